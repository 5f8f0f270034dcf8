"""Rate limits and budgets that are counted in this process.

Each replica counts for itself, so that two replicas admit twice as much, and a restart forgets what was counted.
"""

import math
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from heapq import heappop, heappush
from typing import Final, TypeVar

from flotilla.gateway.limits.store import (
    RATE_WINDOW_S,
    BudgetExceeded,
    Clock,
    RateExceeded,
    RateTicket,
    Reservation,
    SubjectBudget,
    SubjectRate,
    new_id,
)
from flotilla.routing.budgets import ZERO

_MAX_SUBJECTS: Final = 10_000
"""Clients or teams that one limit counts apart. Callers choose the names of teams; more are counted together."""


class _Minute:
    """Requests and tokens of the last minute by second, oldest first, and their sums."""

    __slots__ = ("_forgotten_s", "_totals", "requests", "tokens")

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.tokens: dict[int, int] = {}
        self._totals = [0, 0]
        self._forgotten_s = 0

    def room(self, requests: int | None, tokens: int | None, more_tokens: int, now_s: int) -> int:
        """Seconds until a request of so many tokens fits; 0 if it does now."""
        if now_s != self._forgotten_s:
            self.forget(now_s)
        wait_s = 0
        if requests is not None and self._totals[0] >= requests:
            wait_s = _wait_s(self.requests, 1, requests, now_s)
        if tokens is not None and self._totals[1] + more_tokens > tokens:
            wait_s = max(wait_s, _wait_s(self.tokens, more_tokens, tokens, now_s))
        return wait_s

    def count(self, second: int, requests: int, tokens: int) -> None:
        if requests:
            self.requests[second] = self.requests.get(second, 0) + requests
            self._totals[0] += requests
        self.tokens[second] = self.tokens.get(second, 0) + tokens
        self._totals[1] += tokens

    def forget(self, now_s: int) -> None:
        self._forgotten_s = now_s
        oldest_s = now_s - RATE_WINDOW_S
        for number, counts in enumerate((self.requests, self.tokens)):
            while counts and (oldest := next(iter(counts))) < oldest_s:
                self._totals[number] -= counts.pop(oldest)

    def idle(self, now: float) -> bool:
        self.forget(math.floor(now))
        return not self.requests and not self.tokens


class _Window:
    """One window of a budget: what was spent and what is reserved."""

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

    def release(self, name: str) -> None:
        """Release a reservation, unless it has expired."""
        self.reserved -= self._held.pop(name, ZERO)

    def expire(self, now: float) -> None:
        while self._expiring and self._expiring[0][0] <= now:
            self.release(heappop(self._expiring)[1])

    def idle(self, now: float) -> bool:
        self.expire(now)
        return self.ends <= now or (self.spent == 0 and not self._held)


_Counted = TypeVar("_Counted", _Minute, _Window)


class LocalLimitStore:
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

    immediate = True

    async def admit(self, rates: Sequence[SubjectRate], tokens: int) -> RateTicket | RateExceeded:
        now = self._clock()
        now_s = math.floor(now)
        minutes = []
        for rate in rates:
            minute = self._minute(rate, now)
            wait_s = minute.room(rate.requests_per_minute, rate.tokens_per_minute, tokens, now_s)
            if wait_s > 0:
                return RateExceeded(rate.name, wait_s)
            minutes.append(minute)
        for minute in minutes:
            minute.count(now_s, 1, tokens)
        return RateTicket(tuple(rates), tokens, now_s)

    async def correct(self, ticket: RateTicket, tokens: int) -> None:
        more, now = tokens - ticket.tokens, self._clock()
        # Tokens beyond the estimate count now; tokens that were not used are taken back where they were counted.
        second = math.floor(now) if more > 0 else ticket.at_s
        for rate in ticket.rates:
            minute = self._minute(rate, now)
            if more > 0 or second in minute.tokens:
                minute.count(second, 0, more)

    async def reserve(
        self, budgets: Sequence[SubjectBudget], usd: Decimal, ttl_s: float
    ) -> Reservation | BudgetExceeded:
        if not budgets or usd <= 0:
            return Reservation(new_id(), (), usd)
        now = self._clock()
        windows = [self._window(budget, now) for budget in budgets]
        for budget, window in zip(budgets, windows, strict=True):
            window.expire(now)
            if window.spent + window.reserved + usd > budget.limit:
                return BudgetExceeded(budget, budget.left_s(now))
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
            window.release(reservation.id)
            if window.number == number:
                window.spent += usd

    async def close(self) -> None:
        """There is nothing to close."""

    def _minute(self, rate: SubjectRate, now: float) -> _Minute:
        key = (rate.policy, rate.name)
        minutes = self._minutes.get(key)
        if minutes is None:
            minutes = self._minutes[key] = {}
        return minutes.get(rate.subject) or _of_subject(minutes, rate.subject, now, _Minute)

    def _window(self, budget: SubjectBudget, now: float) -> _Window:
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
    """Seconds until `more` fits; 0 if it does now. What exceeds the limit alone fits when nothing else is counted."""
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
