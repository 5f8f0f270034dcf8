"""What gateways counted of targets under evidence, as figures of the last minutes. Pure: the clock is an argument.

Each gateway reports counters that rise from its start. A `GuardWindow` adds up what they rose by, over all gateways and
restarts, and answers how much came in the window and since a step began.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flotilla.routing.promotion import GuardFigures

WINDOW_S = 300.0
"""Seconds that a guard looks back."""
STALE_AFTER_S = 15.0
"""Without an answer of every gateway for so long, nothing is known."""
FIELDS = ("requests", "errors", "answers", "escalations", "timed", "slow")
"""The counters of one row, in the order in which they are reported; see `GuardFigures`."""
_MAX_ROWS = 4096


class GuardKey(NamedTuple):
    """What is counted together."""

    policy: str
    rule: str
    target: str
    revision: str


Counts = tuple[int, ...]
_NOTHING: Counts = (0,) * len(FIELDS)


@dataclass(slots=True)
class _Series:
    """The sum of a row over all gateways, with its past."""

    total: Counts = _NOTHING
    past: deque[tuple[float, Counts]] = field(default_factory=deque)
    step: tuple[float, int] | None = None
    """When the present step began, and how many requests had been counted then."""


class GuardWindow:
    """The figures of the gateways of one namespace."""

    def __init__(self) -> None:
        self._last: dict[str, dict[GuardKey, Counts]] = {}
        """By gateway, as it reported last."""
        self._series: dict[GuardKey, _Series] = {}
        self._complete_s: float | None = None

    def observe(self, reports: Mapping[str, Mapping[GuardKey, Counts] | None], now_s: float) -> None:
        """Take what each ready gateway reports, by its uid; None for one that did not answer.

        The first report of a gateway only says from where to count, because what it counted before was not seen.
        """
        rose: dict[GuardKey, Counts] = {}
        for uid, rows in reports.items():
            if rows is None:
                continue
            before = self._last.get(uid)
            self._last[uid] = dict(rows)
            for key, counts in rows.items():
                self._add(rose, key, counts, before)
        self._last = {uid: rows for uid, rows in self._last.items() if uid in reports}
        if reports and all(rows is not None for rows in reports.values()):
            self._complete_s = now_s
        reported = {key for rows in self._last.values() for key in rows}
        self._series = {key: one for key, one in self._series.items() if key in reported}
        for key in list(reported)[:_MAX_ROWS]:
            series = self._series.setdefault(key, _Series())
            series.total = _sum(series.total, rose.get(key, _NOTHING))
            series.past.append((now_s, series.total))
            while len(series.past) > 1 and series.past[1][0] <= now_s - WINDOW_S:
                series.past.popleft()

    def read(self, key: GuardKey, now_s: float, step_began_s: float) -> GuardFigures | None:
        """The figures of a row, None where they are unknown. Call it as soon as a step has begun, and again later."""
        series = self._series.get(key)
        if series is None or self._complete_s is None or now_s - self._complete_s > STALE_AFTER_S:
            return None
        if series.step is None or series.step[0] != step_began_s:
            series.step = (step_began_s, series.total[0])
        from_s = max(now_s - WINDOW_S, step_began_s)
        base = _at(series.past, from_s)
        counts = dict(zip(FIELDS, (new - old for new, old in zip(series.total, base, strict=True)), strict=True))
        return GuardFigures(**counts, step_requests=series.total[0] - series.step[1])

    def _add(
        self, rose: dict[GuardKey, Counts], key: GuardKey, counts: Counts, before: Mapping[GuardKey, Counts] | None
    ) -> None:
        if before is None:
            return
        old = before.get(key, _NOTHING)
        restarted = any(new < was for new, was in zip(counts, old, strict=True))
        more = counts if restarted else tuple(new - was for new, was in zip(counts, old, strict=True))
        rose[key] = _sum(rose.get(key, _NOTHING), more)


def _sum(one: Counts, other: Counts) -> Counts:
    return tuple(left + right for left, right in zip(one, other, strict=True))


def _at(past: Iterable[tuple[float, Counts]], at_s: float) -> Counts:
    """The total at a time: of the newest look that was not later, or else of the first one."""
    found: Counts | None = None
    for seen_s, counts in past:
        if found is not None and seen_s > at_s:
            break
        found = counts
    return found if found is not None else _NOTHING
