"""Rate limits and budgets: the values that are counted, and the interface of a store that counts them. Pure.

A rate counts the last 60 s. A budget counts windows that begin at whole multiples of their length since 1970 (UTC),
so that 24 hours begin at midnight. Its money is reserved before a request is sent and settled once, by the
reservation's ID, when the request has ended; a reservation that is never settled is released when it expires.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from typing import Final, Protocol
from uuid import uuid4

from flotilla.api.routing_policy import OnExceeded, Scope
from flotilla.routing.clients import ClientLimits
from flotilla.routing.document import Policy
from flotilla.routing.request import Features

Clock = Callable[[], float]
"""Returns Unix seconds."""
RATE_WINDOW_S: Final = 60
RESERVATION_GRACE_S: Final = 60
"""How long a reservation outlives the time limit of its request."""
_PREFIX: Final = f"{uuid4().hex}-"
_NUMBERS: Final = count()
OF_CLIENT: Final = "of the client"
"""Name of the limits that a client has in the file of clients; no limit of a policy can have it."""
REDIS_URL: Final = "FLOTILLA_REDIS_URL"


@dataclass(frozen=True, slots=True)
class SubjectRate:
    """One rate limit of one subject."""

    policy: str
    """uid of the policy, so that a policy that was made anew under its old name starts from 0."""
    name: str
    subject: str
    """The client or team that is counted; empty for all together."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class SubjectBudget:
    """One budget of one subject."""

    policy: str
    name: str
    subject: str
    limit: Decimal
    """US dollars in a window."""
    window_s: int
    on_exceeded: OnExceeded = OnExceeded.REJECT

    def window(self, now: float) -> int:
        """The number of the window at a time in Unix seconds."""
        return int(now // self.window_s)

    def left_s(self, now: float) -> int:
        """Seconds until the next window begins."""
        return math.ceil((self.window(now) + 1) * self.window_s - now)


@dataclass(slots=True)
class RateTicket:
    """A request that was admitted, and as how many tokens it was counted."""

    rates: Sequence[SubjectRate]
    tokens: int
    at_s: int


@dataclass(frozen=True, slots=True)
class RateExceeded:
    """A rate limit has no room for the request."""

    name: str
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money that is reserved for one request."""

    id: str
    held: tuple[tuple[SubjectBudget, int], ...]
    """Each budget with the number of its window, so that the cost counts in the window of its reservation."""
    usd: Decimal


@dataclass(frozen=True, slots=True)
class BudgetExceeded:
    """A budget has no room for the reservation."""

    budget: SubjectBudget
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class StoreUnavailable:
    """The store does not answer. What was spent is unknown, so that no hosted model may be asked."""

    retry_after_s: int = 1


class LimitStore(Protocol):
    """Counts rates and budgets.

    No call raises, or waits for more than half a second, whatever state the store is in.
    """

    async def admit(self, rates: Sequence[SubjectRate], tokens: int) -> RateTicket | RateExceeded:
        """Count a request of about `tokens` in all the rates, or in none if one has no room."""

    async def correct(self, ticket: RateTicket, tokens: int) -> None:
        """Correct the count to the actual tokens of prompt and answer."""

    async def reserve(
        self, budgets: Sequence[SubjectBudget], usd: Decimal, ttl_s: float
    ) -> Reservation | BudgetExceeded | StoreUnavailable:
        """Reserve money in all the budgets, or in none if one has no room.

        The sum of what is reserved and spent never exceeds a budget, unless an answer costs more than its reservation.
        """

    async def settle(self, reservation: Reservation, usd: Decimal) -> None:
        """Replace the reservation by what was spent; 0 releases it. A second call changes nothing."""

    @property
    def reserved_usd(self) -> Decimal:
        """What this process has reserved and not settled yet."""

    @property
    def available(self) -> bool:
        """Whether the store answered the last call."""

    immediate: bool
    """Whether no call waits for anything, so that none needs a task."""

    async def close(self) -> None:
        """Write outstanding settlements and close connections."""


def new_id() -> str:
    """A unique ID for a reservation."""
    return f"{_PREFIX}{next(_NUMBERS):x}"


def rates_of(policy: Policy, features: Features) -> tuple[SubjectRate, ...]:
    """The rate limits that count a request, those of its client included."""
    own = features.client_limits
    of_client = () if own is None else _rates_of_client(policy, features, own)
    return of_client + tuple(
        SubjectRate(
            policy.uid,
            limit.name,
            _subject(limit.per, features),
            limit.requests_per_minute,
            limit.tokens_per_minute,
        )
        for limit in policy.limits.rates
    )


def budgets_of(policy: Policy, features: Features) -> tuple[SubjectBudget, ...]:
    """The budgets that pay for a request, that of its client included."""
    own = features.client_limits
    of_client = () if own is None else _budget_of_client(policy, features, own)
    return of_client + tuple(
        SubjectBudget(
            policy.uid,
            budget.name,
            _subject(budget.per, features),
            Decimal(budget.amount_usd),
            budget.window_hours * 3600,
            budget.on_exceeded,
        )
        for budget in policy.limits.budgets
    )


def _rates_of_client(policy: Policy, features: Features, own: ClientLimits) -> tuple[SubjectRate, ...]:
    if own.requests_per_minute is None and own.tokens_per_minute is None:
        return ()
    name = features.client or ""
    return (SubjectRate(policy.uid, OF_CLIENT, name, own.requests_per_minute, own.tokens_per_minute),)


def _budget_of_client(policy: Policy, features: Features, own: ClientLimits) -> tuple[SubjectBudget, ...]:
    if own.budget_usd is None:
        return ()
    name = features.client or ""
    return (SubjectBudget(policy.uid, OF_CLIENT, name, own.budget_usd, own.budget_s, OnExceeded.REJECT),)


def _subject(scope: Scope, features: Features) -> str:
    match scope:
        case Scope.CLIENT:
            return features.client or ""
        case Scope.TEAM:
            return features.team or ""
    return ""
