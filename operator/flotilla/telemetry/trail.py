"""What an account's totals were at each step of a window: eight doubles a step, so that a thousand windows fit."""

from array import array
from dataclasses import dataclass
from decimal import Decimal

from flotilla.domain.cost.tokens import Usage

_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Totals:
    """Of an account at a time, or over a window."""

    usd: Decimal
    usage: Usage
    requests: Decimal
    serving_s: Decimal = Decimal(0)
    """Pod-seconds with requests."""
    idle_s: Decimal = Decimal(0)
    """Pod-seconds of ready pods without."""

    @property
    def ready_s(self) -> Decimal:
        return self.serving_s + self.idle_s

    @property
    def active_ratio(self) -> Decimal | None:
        """The share of ready pods' time with requests; None without ready pods."""
        return self.serving_s / self.ready_s if self.ready_s > 0 else None

    def row(self) -> tuple[float, ...]:
        """As the trail keeps it; doubles are exact for tokens, and for dollars to far below a cent."""
        usage = self.usage
        parts = (self.usd, usage.prompt, usage.generated, usage.cached, self.requests, self.serving_s, self.idle_s)
        return tuple(map(float, parts))


class Trail:
    """Steps of `step_s` over the last `span_s`."""

    __slots__ = ("_rows", "_span_s", "_step_s")

    def __init__(self, *, span_s: float, step_s: float) -> None:
        self._span_s = span_s
        self._step_s = step_s
        self._rows = array("d")

    def add(self, at: float, totals: Totals) -> Totals | None:
        """Note the totals where a step is due; returns what came in the step that ended."""
        rows, ended = self._rows, None
        if not rows or at - rows[-_WIDTH] >= self._step_s:
            ended = self._since(totals, len(rows) - _WIDTH) if rows else None
            rows.extend((at, *totals.row()))
        while len(rows) > _WIDTH and rows[_WIDTH] <= at - self._span_s:
            del rows[:_WIDTH]
        return ended

    def since(self, totals: Totals) -> Totals | None:
        """What came since the window's begin; None where nothing was noted."""
        return self._since(totals, 0) if self._rows else None

    def _since(self, totals: Totals, start: int) -> Totals:
        before = self._rows[start + 1 : start + _WIDTH]
        usd, prompt, generated, cached, requests, serving_s, idle_s = (
            Decimal(repr(now - then)) for now, then in zip(totals.row(), before, strict=True)
        )
        return Totals(usd, Usage(prompt, generated, cached), requests, serving_s, idle_s)
