"""Rate limits and budgets of one process: two replicas let through twice as much, and a restart forgets."""

import math
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from heapq import heappop, heappush
from typing import Final, TypeVar

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
from flotilla.routing.budgets import ZERO

_MAX_SUBJECTS: Final = 10_000
"""Of one limit. A team is what the caller says it is: beyond so many, further ones are counted together."""


class _Minute:
    """Requests and tokens by second, the oldest first, and what they come to."""

    __slots__ = ("_totals", "requests", "tokens")

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.tokens: dict[int, int] = {}
        self._totals = [0, 0]

    def room(self, requests: int | None, tokens: int | None, more_tokens: int, now_s: int) -> int:
        """Seconds until one request of so many tokens fits; 0 now."""
        self.forget(now_s)
        wait_s = 0
        if requests is not None and self._totals[0] >= requests:
            wait_s = _wait_s(self.requests, 1, requests, now_s)
        if tokens is not None and self._totals[1] + more_tokens > tokens:
            wait_s = max(wait_s, _wait_s(self.tokens, more_tokens, tokens, now_s))
        return wait_s

    def count(self, second: int, requests: int, tokens: int) -> None:
        self.requests[second] = self.requests.get(second, 0) + requests
        self.tokens[second] = self.tokens.get(second, 0) + tokens
        self._totals[0] += requests
        self._totals[1] += tokens

    def forget(self, now_s: int) -> None:
        oldest_s = now_s - RATE_WINDOW_S
        for number, counts in enumerate((self.requests, self.tokens)):
            while counts and (oldest := next(iter(counts))) < oldest_s:
                self._totals[number] -= counts.pop(oldest)

    def idle(self, now: float) -> bool:
        self.forget(math.floor(now))
        return not self.requests and not self.tokens


class _Window:
    """One window of a budget."""

    __slots__ = ("_expiring", "_held", "ends", "number", "reserved", "spent")

    def __init__(self, number: int, ends: float) -> None:
        self.number, self.ends = number, ends
        self.spent = self.reserved = ZERO
        self._held: dict[str, Decimal] = {}
        self._expiring: list[tuple[float, str]] = []

    def hold(self, name: str, usd: Decimal, until: float) -> None:
        self._held[name] = usd
        self.reserved += usd
        heappush(self._expiring, (until, name))

    def let_go(self, name: str) -> None:
        """Of one reservation, where it has not expired."""
        self.reserved -= self._held.pop(name, ZERO)

    def expire(self, now: float) -> None:
        while self._expiring and self._expiring[0][0] <= now:
            self.let_go(heappop(self._expiring)[1])

    def idle(self, now: float) -> bool:
        self.expire(now)
        return self.ends <= now or (self.spent == 0 and not self._held)


_Counted = TypeVar("_Counted", _Minute, _Window)


class LocalLimits:
    """A LimitStore in memory. Nothing in it waits, so that each call is one step of the event loop."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._minutes: dict[tuple[str, str], dict[str, _Minute]] = {}
        self._windows: dict[tuple[str, str, int], dict[str, _Window]] = {}
        self._open: dict[str, Decimal] = {}
        self._reserved = ZERO

    @property
    def reserved_usd(self) -> Decimal:
        return self._reserved

    @property
    def available(self) -> bool:
        return True

    async def admit(self, rates: Sequence[Rate], tokens: int) -> Ticket | Limited:
        now = self._clock()
        now_s = math.floor(now)
        minutes = [self._minute(rate, now) for rate in rates]
        for rate, minute in zip(rates, minutes, strict=True):
            wait_s = minute.room(rate.requests_per_minute, rate.tokens_per_minute, tokens, now_s)
            if wait_s > 0:
                return Limited(rate.name, wait_s)
        for minute in minutes:
            minute.count(now_s, 1, tokens)
        return Ticket(tuple(rates), tokens, now_s)

    async def correct(self, ticket: Ticket, tokens: int) -> None:
        more, now = tokens - ticket.tokens, self._clock()
        # Tokens beyond the estimate came since; those that did not come never were.
        second = math.floor(now) if more > 0 else ticket.at_s
        for rate in ticket.rates:
            minute = self._minute(rate, now)
            if more > 0 or second in minute.tokens:
                minute.count(second, 0, more)

    async def reserve(self, budgets: Sequence[Budget], usd: Decimal, ttl_s: float) -> Reservation | Spent:
        if not budgets or usd <= 0:
            return Reservation(new_id(), (), usd)
        now = self._clock()
        windows = [self._window(budget, now) for budget in budgets]
        for budget, window in zip(budgets, windows, strict=True):
            window.expire(now)
            if window.spent + window.reserved + usd > budget.limit:
                return Spent(budget, budget.left_s(now))
        name = new_id()
        for window in windows:
            window.hold(name, usd, now + ttl_s)
        self._open[name] = usd
        self._reserved += usd
        return Reservation(name, tuple((budget, budget.window(now)) for budget in budgets), usd)

    async def settle(self, reservation: Reservation, usd: Decimal) -> None:
        if self._open.pop(reservation.id, None) is None:
            return
        self._reserved -= reservation.usd
        now = self._clock()
        for budget, number in reservation.held:
            window = self._window(budget, now)
            window.let_go(reservation.id)
            if window.number == number:
                window.spent += usd

    async def close(self) -> None:
        """There is nothing to let go."""

    def _minute(self, rate: Rate, now: float) -> _Minute:
        key = (rate.policy, rate.name)
        minutes = self._minutes.get(key)
        if minutes is None:
            minutes = self._minutes[key] = {}
        return minutes.get(rate.subject) or _of_subject(minutes, rate.subject, now, _Minute)

    def _window(self, budget: Budget, now: float) -> _Window:
        key = (budget.policy, budget.name, budget.window_s)
        windows = self._windows.get(key)
        if windows is None:
            windows = self._windows[key] = {}
        number = budget.window(now)
        window = windows.get(budget.subject)
        if window is None or window.number != number:
            ends = (number + 1) * budget.window_s
            window = _of_subject(windows, budget.subject, now, lambda: _Window(number, ends))
            if window.number != number:
                window = windows[budget.subject if budget.subject in windows else ""] = _Window(number, ends)
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
