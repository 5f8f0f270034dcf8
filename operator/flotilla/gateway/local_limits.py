"""Rate limits and budgets of one process: two replicas let through twice as much, and a restart forgets."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, TypeVar

from flotilla.domain.routing.money import ZERO
from flotilla.gateway.limits import (
    RATE_WINDOW_S,
    Budget,
    Clock,
    Limited,
    Rate,
    Reservation,
    Spent,
    Ticket,
    new_id,
)

_MAX_SUBJECTS: Final = 10_000
"""Of one limit. A team is what the caller says it is: beyond so many, further ones are counted together."""


@dataclass(slots=True)
class _Minute:
    """Requests and tokens by second, the oldest first."""

    requests: dict[int, int] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    def forget(self, now_s: int) -> None:
        for counts in (self.requests, self.tokens):
            while counts and (oldest := next(iter(counts))) < now_s - RATE_WINDOW_S:
                del counts[oldest]

    def idle(self, now: float) -> bool:
        self.forget(math.floor(now))
        return not self.requests and not self.tokens


@dataclass(slots=True)
class _Window:
    """One window of a budget."""

    number: int
    ends: float
    spent: Decimal = ZERO
    held: dict[str, tuple[Decimal, float]] = field(default_factory=dict)
    """Reserved by id, and until when."""

    def reserved(self, now: float) -> Decimal:
        for gone in [name for name, (_, until) in self.held.items() if until <= now]:
            del self.held[gone]
        return sum((usd for usd, _ in self.held.values()), ZERO)

    def idle(self, now: float) -> bool:
        return self.ends <= now or (self.spent == 0 and not self.reserved(now))


_Counted = TypeVar("_Counted", _Minute, _Window)


class LocalLimits:
    """A LimitStore in memory. Nothing in it waits, so that each call is one step of the event loop."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._minutes: dict[tuple[str, str], dict[str, _Minute]] = {}
        self._windows: dict[tuple[str, str, int], dict[str, _Window]] = {}
        self._open: dict[str, Decimal] = {}

    @property
    def reserved_usd(self) -> Decimal:
        return sum(self._open.values(), ZERO)

    @property
    def available(self) -> bool:
        return True

    async def admit(self, rates: Sequence[Rate], tokens: int) -> Ticket | Limited:
        now = self._clock()
        now_s = math.floor(now)
        minutes = [self._minute(rate, now) for rate in rates]
        for rate, minute in zip(rates, minutes, strict=True):
            minute.forget(now_s)
            wait_s = max(
                _wait_s(minute.requests, 1, rate.requests_per_minute, now_s),
                _wait_s(minute.tokens, tokens, rate.tokens_per_minute, now_s),
            )
            if wait_s > 0:
                return Limited(rate.name, wait_s)
        for minute in minutes:
            minute.requests[now_s] = minute.requests.get(now_s, 0) + 1
            minute.tokens[now_s] = minute.tokens.get(now_s, 0) + tokens
        return Ticket(tuple(rates), tokens, now_s)

    async def correct(self, ticket: Ticket, tokens: int) -> None:
        more, now = tokens - ticket.tokens, self._clock()
        # Tokens beyond the estimate came since; those that did not come never were.
        second = math.floor(now) if more > 0 else ticket.at_s
        for rate in ticket.rates:
            counts = self._minute(rate, now).tokens
            if more > 0 or second in counts:
                counts[second] = counts.get(second, 0) + more

    async def reserve(self, budgets: Sequence[Budget], usd: Decimal, ttl_s: float) -> Reservation | Spent:
        if not budgets or usd <= 0:
            return Reservation(new_id(), (), usd)
        now = self._clock()
        windows = [self._window(budget, now) for budget in budgets]
        for budget, window in zip(budgets, windows, strict=True):
            if window.spent + window.reserved(now) + usd > budget.limit:
                return Spent(budget, budget.left_s(now))
        name = new_id()
        for window in windows:
            window.held[name] = (usd, now + ttl_s)
        self._open[name] = usd
        return Reservation(name, tuple((budget, budget.window(now)) for budget in budgets), usd)

    async def settle(self, reservation: Reservation, usd: Decimal) -> None:
        if self._open.pop(reservation.id, None) is None:
            return
        now = self._clock()
        for budget, number in reservation.held:
            window = self._window(budget, now)
            window.held.pop(reservation.id, None)
            if window.number == number:
                window.spent += usd

    async def close(self) -> None:
        """There is nothing to let go."""

    def _minute(self, rate: Rate, now: float) -> _Minute:
        return _of_subject(self._minutes.setdefault((rate.policy, rate.name), {}), rate.subject, now, _Minute)

    def _window(self, budget: Budget, now: float) -> _Window:
        def new() -> _Window:
            return _Window(number, (number + 1) * budget.window_s)

        number = budget.window(now)
        windows = self._windows.setdefault((budget.policy, budget.name, budget.window_s), {})
        window = _of_subject(windows, budget.subject, now, new)
        if window.number != number:
            window = windows[budget.subject if budget.subject in windows else ""] = new()
        return window


def _of_subject(known: dict[str, _Counted], subject: str, now: float, new: Callable[[], _Counted]) -> _Counted:
    found = known.get(subject)
    if found is None and len(known) >= _MAX_SUBJECTS:
        for idle in [name for name, counted in known.items() if counted.idle(now)]:
            del known[idle]
        if len(known) >= _MAX_SUBJECTS:
            subject = ""
            found = known.get(subject)
    if found is None:
        found = known[subject] = new()
    return found


def _wait_s(counts: dict[int, int], more: int, limit: int | None, now_s: int) -> int:
    """Seconds until `more` fit; 0 now. What alone exceeds the limit fits when nothing else is counted."""
    if limit is None:
        return 0
    counted = [(second, count) for second, count in counts.items() if count > 0]
    room = limit - sum(count for _, count in counted)
    if more <= room:
        return 0
    for second, count in counted:
        room += count
        if more <= room or room >= limit:
            return second + RATE_WINDOW_S + 1 - now_s
    return 0
