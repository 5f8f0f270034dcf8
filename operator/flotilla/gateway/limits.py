"""Rate limits and budgets: what is asked of a store, and which store there is.

A rate counts every 60 s on end. A budget counts windows that begin at whole multiples of their length since 1970 (UTC):
24 hours begin at midnight. Its money is reserved before a request is sent and settled when it has ended, once, by the
reservation's id; a reservation that nobody settles is given back when it expires.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from typing import Final, Protocol
from uuid import uuid4

from flotilla.api.routing_policy import OnExceeded, Scope
from flotilla.errors import InvalidSpec
from flotilla.routing.document import Policy
from flotilla.routing.request import Features

Clock = Callable[[], float]
"""Seconds since 1970."""
RATE_WINDOW_S: Final = 60
RESERVATION_GRACE_S: Final = 60
"""A reservation outlives its request's time limit by so much."""
_PREFIX: Final = f"{uuid4().hex}-"
_NUMBERS: Final = count()
REDIS_URL: Final = "FLOTILLA_REDIS_URL"


@dataclass(frozen=True, slots=True)
class Rate:
    """One rate limit of one subject."""

    policy: str
    """uid of the policy: two policies of one name and different times share nothing."""
    name: str
    subject: str
    """The client or team that is counted; empty for all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """One budget of one subject."""

    policy: str
    name: str
    subject: str
    limit: Decimal
    """US dollars in a window."""
    window_s: int
    on_exceeded: OnExceeded = OnExceeded.REJECT

    def window(self, now: float) -> int:
        """Number of the window."""
        return int(now // self.window_s)

    def left_s(self, now: float) -> int:
        """Seconds until the budget is whole again."""
        return math.ceil((self.window(now) + 1) * self.window_s - now)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that was let through, and what it was counted as."""

    rates: tuple[Rate, ...]
    tokens: int
    at_s: int


@dataclass(frozen=True, slots=True)
class Limited:
    """A rate limit has no room."""

    name: str
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money that is set aside for one request."""

    id: str
    held: tuple[tuple[Budget, int], ...]
    """Each budget with the number of its window: what is settled counts where it was reserved."""
    usd: Decimal


@dataclass(frozen=True, slots=True)
class Spent:
    """A budget has no room."""

    budget: Budget
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The store does not answer, so that nobody knows what was spent: no hosted model may be asked."""

    retry_after_s: int = 1


class LimitStore(Protocol):
    """Counts. No call raises or waits for more than half a second, whatever the store's state is."""

    async def admit(self, rates: Sequence[Rate], tokens: int) -> Ticket | Limited:
        """Count a request of about so many tokens in all the rates, or in none of them where one has no room."""

    async def correct(self, ticket: Ticket, tokens: int) -> None:
        """Count the tokens that it really was, prompt and answer together."""

    async def reserve(self, budgets: Sequence[Budget], usd: Decimal, ttl_s: float) -> Reservation | Spent | Unavailable:
        """Set money aside in all the budgets, or in none of them where one has no room for it.

        What is reserved and spent never exceeds a budget; only an answer that costs more than was reserved for it can.
        """

    async def settle(self, reservation: Reservation, usd: Decimal) -> None:
        """Put what was spent in the place of what was reserved; 0 releases it. The second time changes nothing."""

    @property
    def reserved_usd(self) -> Decimal:
        """What this process has reserved and not settled."""

    @property
    def available(self) -> bool:
        """False from a call that the store did not answer until one that it did."""

    async def close(self) -> None:
        """Write what is left to write, and let go."""


def new_id() -> str:
    """A name for one reservation, of this process and no other."""
    return f"{_PREFIX}{next(_NUMBERS):x}"


def rates_of(policy: Policy, features: Features) -> tuple[Rate, ...]:
    """The rate limits that count a request."""
    return tuple(
        Rate(
            policy.uid,
            limit.name,
            _subject(limit.per, features),
            limit.requests_per_minute,
            limit.tokens_per_minute,
        )
        for limit in policy.limits.rates
    )


def budgets_of(policy: Policy, features: Features) -> tuple[Budget, ...]:
    """The budgets that pay for a request."""
    return tuple(
        Budget(
            policy.uid,
            budget.name,
            _subject(budget.per, features),
            Decimal(budget.amount_usd),
            budget.window_hours * 3600,
            budget.on_exceeded,
        )
        for budget in policy.limits.budgets
    )


def store_from(*, environ: Mapping[str, str] = os.environ, clock: Clock = time.time) -> LimitStore:
    """Redis where FLOTILLA_REDIS_URL is set, for all replicas together; else this process, for itself alone.

    Raises InvalidSpec where the URL is none, or the client library is not installed.
    """
    from flotilla.gateway.local_limits import LocalLimits

    url = environ.get(REDIS_URL, "").strip()
    if not url:
        return LocalLimits(clock)
    try:
        from flotilla.gateway.redis_limits import RedisLimits
    except ImportError as error:
        raise InvalidSpec(
            f"{REDIS_URL} is set and the Redis client is not installed. Install flotilla-operator[redis].",
            field=REDIS_URL,
        ) from error
    return RedisLimits(url, clock=clock)


def _subject(scope: Scope, features: Features) -> str:
    match scope:
        case Scope.CLIENT:
            return features.client or ""
        case Scope.TEAM:
            return features.team or ""
    return ""
