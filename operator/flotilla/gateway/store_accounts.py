"""The accounts of requests in a store of limits: rates first, then money, which is reserved before anything is sent."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from flotilla.api.routing_policy import OnExceeded, Scope
from flotilla.domain.routing.decide import Decision, restrict
from flotilla.domain.routing.document import Policy
from flotilla.domain.routing.money import ZERO, reservation
from flotilla.domain.routing.refusal import SERVER_ERROR, Refusal, budget_exceeded, rate_limited
from flotilla.domain.routing.request import Features
from flotilla.gateway.accounts import Admitted
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

_MAX_PLANS: Final = 256


@dataclass(frozen=True, slots=True)
class StoreLease:
    """What one request holds."""

    store: LimitStore
    ticket: Ticket
    reservation: Reservation | None

    async def settle(self, usd: Decimal, tokens: int) -> None:
        """Money first: it is what a crash between the two must not lose."""
        if self.reservation is not None:
            await self.store.settle(self.reservation, usd)
        await self.store.correct(self.ticket, tokens)


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

    async def admit(self, decision: Decision, features: Features) -> Admitted | Refusal:
        """Count the request, and reserve the most that it can cost; where that cannot be, without hosted models."""
        policy = decision.policy
        tokens = features.prompt_tokens + (features.max_tokens or 0) * features.answers
        plan = self._plan(policy)
        ticket = await self._store.admit(plan.rates or rates_of(policy, features), tokens)
        if isinstance(ticket, Limited):
            return rate_limited(policy.name, ticket.name, ticket.retry_after_s)
        usd = _most(decision, features) if policy.limits.budgets else ZERO
        if usd <= 0:
            return Admitted(decision, StoreLease(self._store, ticket, None))
        ttl_s = decision.route.timeouts.total_seconds + RESERVATION_GRACE_S
        found = await self._store.reserve(plan.budgets or budgets_of(policy, features), usd, ttl_s)
        if isinstance(found, Reservation):
            return Admitted(decision, StoreLease(self._store, ticket, found))
        refusal, narrower = self._without_money(decision, found)
        if narrower is None:
            await self._store.correct(ticket, 0)
            return refusal
        return Admitted(narrower, StoreLease(self._store, ticket, None))

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

    def _without_money(self, decision: Decision, found: Spent | Unavailable) -> tuple[Refusal, Decision | None]:
        """The same request by models of the cluster, where it may go there; and what to say where it may not."""
        policy = decision.policy
        if isinstance(found, Spent):
            refusal = budget_exceeded(policy.name, found.budget.name, found.retry_after_s)
            if found.budget.on_exceeded is OnExceeded.REJECT:
                return refusal, None
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
        return refusal, restrict(decision, policy.hosted, reason)


def _most(decision: Decision, features: Features) -> Decimal:
    target = decision.policy.target
    escalation = None if decision.escalation is None else target[decision.escalation]
    return reservation(features, (target[name] for name in decision.candidates), escalation)
