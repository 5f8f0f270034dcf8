"""The accounts of requests in a store of limits: rates first, then money, which is reserved before anything is sent."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from flotilla.api.routing_policy import OnExceeded, Scope
from flotilla.gateway.limits import (
    RESERVATION_GRACE_S,
    Budget,
    Limited,
    LimitStore,
    Rate,
    Reservation,
    Spent,
    Ticket,
    Unavailable,
    budgets_of,
    rates_of,
)
from flotilla.routing.budgets import ZERO, reservation
from flotilla.routing.decide import SERVER_ERROR, Decision, Refusal, budget_exceeded, rate_limited, restrict
from flotilla.routing.document import Policy
from flotilla.routing.request import Features

_MAX_PLANS: Final = 256


@dataclass(frozen=True, slots=True)
class _Plan:
    """Limits that are the same for each request of a policy; empty where a client or team is counted."""

    policy: Policy
    """Kept, so that its identity stays its own."""
    rates: tuple[Rate, ...]
    budgets: tuple[Budget, ...]

    @classmethod
    def of(cls, policy: Policy) -> "_Plan":
        limits, nobody = policy.limits, Features()
        return cls(
            policy,
            rates_of(policy, nobody) if all(limit.per is Scope.POLICY for limit in limits.rates) else (),
            budgets_of(policy, nobody) if all(limit.per is Scope.POLICY for limit in limits.budgets) else (),
        )


class StoreLease:
    """What one request holds in a store."""

    __slots__ = ("_call", "_features", "_paid_usd", "_plan", "_reservation", "_store", "_ticket")

    def __init__(self, store: LimitStore, plan: _Plan, features: Features, ticket: Ticket) -> None:
        self._store, self._plan, self._features, self._ticket = store, plan, features, ticket
        self._call: Reservation | None = None
        self._reservation: Reservation | None = None
        self._paid_usd = ZERO

    async def set_aside(self, usd: Decimal, timeout_s: float) -> bool:
        if usd <= 0 or not self._plan.policy.limits.budgets:
            return True
        found = await self._held(usd, timeout_s)
        if isinstance(found, Reservation):
            self._call = found
        return self._call is not None

    async def pay(self, usd: Decimal) -> None:
        if self._call is not None:
            self._paid_usd = usd
            await self._store.settle(self._call, usd)

    async def reserve(self, decision: Decision) -> Decision | Refusal:
        """Where that cannot be, without hosted models."""
        usd = _most(decision, self._features) if decision.policy.limits.budgets else ZERO
        if usd <= 0:
            return decision
        found = await self._held(usd, decision.route.timeouts.total_seconds)
        if isinstance(found, Reservation):
            self._reservation = found
            return decision
        return _without_money(decision, found)

    async def settle(self, usd: Decimal, tokens: int) -> None:
        """Money first: it is what a crash between the two must not lose."""
        if self._reservation is not None:
            await self._store.settle(self._reservation, usd - self._paid_usd)
        await self._store.correct(self._ticket, tokens)

    async def _held(self, usd: Decimal, timeout_s: float) -> Reservation | Spent | Unavailable:
        budgets = self._plan.budgets or budgets_of(self._plan.policy, self._features)
        return await self._store.reserve(budgets, usd, timeout_s + RESERVATION_GRACE_S)


class StoreAccounts:
    """Accounts in a LimitStore."""

    def __init__(self, store: LimitStore) -> None:
        self._store = store
        self._plans: dict[int, _Plan] = {}

    @property
    def reserved_usd(self) -> Decimal:
        """What open requests hold."""
        return self._store.reserved_usd

    @property
    def available(self) -> bool:
        """Whether the store answers."""
        return self._store.available

    async def admit(self, policy: Policy, features: Features) -> StoreLease | Refusal:
        """Count the request as the most tokens that it asks for."""
        tokens = features.prompt_tokens + (features.max_tokens or 0) * features.answers
        plan = self._plan(policy)
        ticket = await self._store.admit(plan.rates or rates_of(policy, features), tokens)
        if isinstance(ticket, Limited):
            return rate_limited(policy.name, ticket.name, ticket.retry_after_s)
        return StoreLease(self._store, plan, features, ticket)

    def _plan(self, policy: Policy) -> _Plan:
        """Policies come and go with documents; an identity is taken again only when its policy is gone from here."""
        plan = self._plans.get(id(policy))
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[id(policy)] = _Plan.of(policy)
        return plan

    async def close(self) -> None:
        """Write what is left to write."""
        await self._store.close()


def _without_money(decision: Decision, found: Spent | Unavailable) -> Decision | Refusal:
    """The same request by models of the cluster; or what to say where it may not go there."""
    policy = decision.policy
    if isinstance(found, Spent):
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


def _most(decision: Decision, features: Features) -> Decimal:
    target = decision.policy.target
    escalation = None if decision.escalation is None else target[decision.escalation]
    return reservation(features, (target[name] for name in decision.candidates), escalation)
