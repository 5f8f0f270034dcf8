"""The limits of one request: count it, reserve its cost, settle both. The interface between requests and the stores.

`Accounts.admit` counts a request in its rates and returns a `LimitLease`, by which it reserves money and settles. The
Protocols are what requests use; `StoreAccounts` is the implementation over a `LimitStore`.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Protocol

from flotilla.api.routing_policy import OnExceeded, Scope
from flotilla.errors import InvalidSpec
from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.gateway.limits.store import (
    REDIS_URL,
    RESERVATION_GRACE_S,
    BudgetExceeded,
    Clock,
    LimitStore,
    RateExceeded,
    RateTicket,
    Reservation,
    StoreUnavailable,
    SubjectBudget,
    SubjectRate,
    budgets_of,
    rates_of,
)
from flotilla.routing.budgets import ZERO, pays, reservation
from flotilla.routing.decide import SERVER_ERROR, Decision, Refusal, budget_exceeded, rate_limited, restrict
from flotilla.routing.document import Policy
from flotilla.routing.request import Features


class LimitLease(Protocol):
    """What one request was counted as, and what is reserved for it."""

    async def reserve_call(self, usd: Decimal, timeout_s: float) -> bool:
        """Reserve the cost of the classifier's call. False if a budget has no room, or the store does not answer."""

    async def settle_call(self, usd: Decimal) -> None:
        """Replace the reservation of the classifier's call by what it cost."""

    async def reserve(self, decision: Decision) -> Decision | Refusal:
        """Reserve the highest cost of the answer. If that is not possible, the decision may exclude hosted models."""

    async def settle(self, usd: Decimal, tokens: int) -> None:
        """The request has ended with this cost and these tokens, the classifier's call included. Called once."""


class Accounts(Protocol):
    """Rate limits and budgets."""

    immediate: bool
    """Whether the calls of this and of its leases wait for nothing."""

    async def admit(self, policy: Policy, features: Features) -> LimitLease | Refusal:
        """Count the request in its rates, before anything is sent for it."""


def limited(policy: Policy, features: Features) -> bool:
    """Whether a policy, or the client of a request, has limits."""
    return bool(policy.limits.rates or policy.limits.budgets or features.client_limits is not None)


_MAX_PLANS: Final = 256


@dataclass(frozen=True, slots=True)
class _Plan:
    """The limits of a policy that are the same for each request; empty if they count by client or team."""

    policy: Policy
    """Kept, so that no other object gets the same id() while this plan exists."""
    rates: tuple[SubjectRate, ...]
    budgets: tuple[SubjectBudget, ...]

    @classmethod
    def of(cls, policy: Policy) -> "_Plan":
        limits, anyone = policy.limits, Features()
        return cls(
            policy,
            rates_of(policy, anyone) if all(limit.per is Scope.POLICY for limit in limits.rates) else (),
            budgets_of(policy, anyone) if all(limit.per is Scope.POLICY for limit in limits.budgets) else (),
        )


class StoreLease:
    """A LimitLease in a LimitStore."""

    __slots__ = ("_call", "_features", "_paid_usd", "_plan", "_reservation", "_store", "_ticket")

    def __init__(self, store: LimitStore, plan: _Plan, features: Features, ticket: RateTicket) -> None:
        self._store, self._plan, self._features, self._ticket = store, plan, features, ticket
        self._call: Reservation | None = None
        self._reservation: Reservation | None = None
        self._paid_usd = ZERO

    async def reserve_call(self, usd: Decimal, timeout_s: float) -> bool:
        if usd <= 0 or not (self._plan.policy.limits.budgets or pays(self._features)):
            return True
        found = await self._held(usd, timeout_s)
        if isinstance(found, Reservation):
            self._call = found
        return self._call is not None

    async def settle_call(self, usd: Decimal) -> None:
        if self._call is not None:
            self._paid_usd = usd
            await self._store.settle(self._call, usd)

    async def reserve(self, decision: Decision) -> Decision | Refusal:
        """Reserve the highest cost. If a budget has no room, restrict the decision to models of the cluster."""
        if not (decision.policy.limits.budgets or pays(self._features)):
            return decision
        usd = _highest_cost(decision, self._features)
        if usd <= 0:
            return decision
        found = await self._held(usd, decision.route.timeouts.total_seconds)
        if isinstance(found, Reservation):
            self._reservation = found
            return decision
        return _without_hosted(decision, found)

    async def settle(self, usd: Decimal, tokens: int) -> None:
        """Settle money, then tokens: a crash between the two must not lose the money."""
        if self._reservation is not None:
            await self._store.settle(self._reservation, usd - self._paid_usd)
        await self._store.correct(self._ticket, tokens)

    async def _held(self, usd: Decimal, timeout_s: float) -> Reservation | BudgetExceeded | StoreUnavailable:
        shared = self._plan.budgets if self._features.client_limits is None else ()
        budgets = shared or budgets_of(self._plan.policy, self._features)
        return await self._store.reserve(budgets, usd, timeout_s + RESERVATION_GRACE_S)


class StoreAccounts:
    """Accounts in a LimitStore."""

    def __init__(self, store: LimitStore) -> None:
        self._store = store
        self._plans: dict[int, _Plan] = {}
        self.immediate = store.immediate

    @property
    def reserved_usd(self) -> Decimal:
        """US dollars that are reserved for open requests."""
        return self._store.reserved_usd

    @property
    def available(self) -> bool:
        """Whether the store answered the last call."""
        return self._store.available

    async def admit(self, policy: Policy, features: Features) -> StoreLease | Refusal:
        """Count the request with the highest number of tokens that it can use."""
        tokens = features.prompt_tokens + (features.max_tokens or 0) * features.answers
        plan = self._plan(policy)
        shared = plan.rates if features.client_limits is None else ()
        ticket = await self._store.admit(shared or rates_of(policy, features), tokens)
        if isinstance(ticket, RateExceeded):
            return rate_limited(policy.name, ticket.name, ticket.retry_after_s)
        return StoreLease(self._store, plan, features, ticket)

    def _plan(self, policy: Policy) -> _Plan:
        """The plan of a policy, by its id(). Policies come and go with documents."""
        plan = self._plans.get(id(policy))
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[id(policy)] = _Plan.of(policy)
        return plan

    async def close(self) -> None:
        """Write outstanding settlements."""
        await self._store.close()


def store_from_environment(*, environ: Mapping[str, str] = os.environ, clock: Clock = time.time) -> LimitStore:
    """A store in Redis, which all replicas share, if FLOTILLA_REDIS_URL is set; else one in this process.

    Raises InvalidSpec if the URL is invalid or the client library is not installed.
    """
    url = environ.get(REDIS_URL, "").strip()
    if not url:
        return LocalLimitStore(clock)
    try:
        from flotilla.gateway.limits.redis import RedisLimitStore
    except ImportError as error:
        raise InvalidSpec(
            f"{REDIS_URL} is set and the Redis client is not installed. Install flotilla-operator[redis].",
            field=REDIS_URL,
        ) from error
    return RedisLimitStore(url, clock=clock)


def _without_hosted(decision: Decision, found: BudgetExceeded | StoreUnavailable) -> Decision | Refusal:
    """The decision without hosted models, or the refusal if no other model may serve the request."""
    policy = decision.policy
    if isinstance(found, BudgetExceeded):
        refusal = budget_exceeded(policy.name, found.budget.name, found.retry_after_s)
        if found.budget.on_exceeded is OnExceeded.REJECT:
            return refusal
        reason = f"Budget {found.budget.name!r} is spent"
    else:
        refusal = Refusal(
            503,
            "budget_unknown",
            "The budgets of hosted models cannot be read just now. Try again later.",
            type=SERVER_ERROR,
            retry_after_s=found.retry_after_s,
            policy=policy.name,
        )
        reason = "Budgets cannot be read"
    return restrict(decision, policy.hosted, reason) or refusal


def _highest_cost(decision: Decision, features: Features) -> Decimal:
    target = decision.policy.target
    escalation = None if decision.escalation is None else target[decision.escalation]
    return reservation(features, (target[name] for name in decision.candidates), escalation)
