"""The totals of one deployment as values: what can be written down, and taken up again by a successor."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from flotilla.domain.cost.tokens import Usage
from flotilla.telemetry.trail import Totals, Trail

PodState = Literal["startup", "serving", "idle", "draining"]
STATES: tuple[PodState, ...] = ("startup", "serving", "idle", "draining")
WINDOWS: Mapping[str, tuple[float, float]] = {"1h": (3600.0, 60.0), "24h": (86_400.0, 900.0)}
"""Span and step in seconds."""
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod as it was charged last."""

    incarnation: int
    state: PodState
    gpus: Decimal
    """As first seen: a pod keeps what it was scheduled with, whatever the spec says by now."""
    usd_per_hour: Decimal | None
    capacity_type: str
    counters: Mapping[str, float]
    fell: bool
    """Its counters fell in this incarnation, so that the restart which will be reported is counted already."""


def _trails() -> dict[str, Trail]:
    return {name: Trail(span_s=span_s, step_s=step_s) for name, (span_s, step_s) in WINDOWS.items()}


@dataclass(slots=True)
class Account:
    """The totals of one deployment; they only grow."""

    usd: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(STATES, _ZERO))
    estimated_usd: Decimal = _ZERO
    """Of `usd`, what accrued while nobody looked."""
    gpu_hours: dict[str, Decimal] = field(default_factory=dict)
    """By capacity type."""
    pod_seconds: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(STATES, _ZERO))
    tokens: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(("prompt", "generated", "cached"), _ZERO))
    requests: Decimal = _ZERO
    failed: Decimal = _ZERO
    """Requests that ended without a whole answer."""
    known: set[str] = field(default_factory=set)
    """Counters that some pod has had; the others are unknown rather than 0."""
    cached_ahead: Decimal = _ZERO
    """Cache hits of prompts that are not counted yet: engines count the hit at admission, the prompt after prefill."""
    hosted: dict[str, Decimal] = field(default_factory=dict)
    """What each comparator would have billed, at its prices of the time."""
    peak_tokens_per_second: Decimal = _ZERO
    """The most output that a replica made over a minute."""
    priced: bool = False
    """Whether a price was ever known: a cost of 0 is then a fact."""
    pods: dict[str, PodRecord] = field(default_factory=dict)
    at: float | None = None
    rates: dict[tuple[str, str], Decimal] = field(default_factory=dict)
    """US dollars per hour of the pods that exist, by capacity type and source of the price."""
    trails: dict[str, Trail] = field(default_factory=_trails)
    closed: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Pods that went: one that shows up again would be charged from its beginning."""

    @property
    def usage(self) -> Usage:
        return Usage(**self.tokens)

    @property
    def total_usd(self) -> Decimal:
        return sum(self.usd.values(), _ZERO)

    @property
    def usd_per_hour(self) -> Decimal | None:
        """None while no price is known."""
        return sum(self.rates.values(), _ZERO) if self.rates else None

    def totals(self) -> Totals:
        """Now."""
        seconds = self.pod_seconds
        return Totals(self.total_usd, self.usage, self.requests, seconds["serving"], seconds["idle"])

    def window(self, name: str) -> Totals | None:
        """The last hour or day, or since the operator's start if that is shorter; None before the first look."""
        return self.trails[name].since(self.totals())
