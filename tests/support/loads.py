"""Random specs, samples and histories for the autoscaler, and a fleet whose replicas take time to start."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from flotilla.scaling.autoscaler import Demand, Sample, ScalingDecision, ScalingParameters, State, decide

Step = tuple[float, Sample | None]
"""A second, and what was seen at it."""

STALE_S = 15
SANE = st.integers(min_value=0, max_value=200).map(float)
DEMAND = st.one_of(st.none(), st.builds(Demand, SANE, st.booleans()))
_ANY = SANE | st.sampled_from([math.nan, math.inf, -1.0])
_IDLE = st.just(0.0) | SANE
_REJECTED, _REJECTED_IDLE = st.just(0.0) | SANE, st.just(0.0) | _IDLE
_FEW = st.integers(min_value=0, max_value=8)
_READY = st.integers(min_value=1, max_value=8)
_AGE = st.integers(min_value=0, max_value=40)
_PERCENT = st.integers(min_value=0, max_value=100)
_BLOCKED = st.sampled_from(["", "", "", "ReplicasUnschedulable"])
_LONGEST = 25
"""Samples of a history: with the gaps between them several times the longest delay of a spec."""


@st.composite
def specs(draw: st.DrawFn, *, shortest_delay: int = 0, fewest: int = 0) -> ScalingParameters:
    low = draw(st.integers(min_value=fewest, max_value=5))
    return ScalingParameters(
        min_replicas=low,
        max_replicas=max(1, low + draw(_FEW)),
        queue_depth_per_replica=draw(st.integers(min_value=1, max_value=16)),
        scale_down_delay_s=draw(st.integers(min_value=shortest_delay, max_value=60)),
        stale_after_s=STALE_S,
        up_limit_per_minute=draw(st.integers(min_value=1, max_value=10)),
        down_percent_per_minute=draw(st.sampled_from([1, 30, 50, 100])),
        zero_after_s=draw(st.integers(min_value=1, max_value=90)),
    )


@st.composite
def histories(draw: st.DrawFn, *, complete: bool = False, longest_gap: int = 40, idle: bool = False) -> list[Step]:
    """Samples at growing times. `complete` ones are fresh, sane and from every ready replica."""
    now, steps = 0.0, []
    gaps = st.lists(st.integers(min_value=1, max_value=longest_gap), min_size=1, max_size=_LONGEST)
    for gap in draw(gaps):
        now += gap
        steps.append((now, _sample(draw, now, complete=complete, idle=idle)))
    return steps


@st.composite
def samples(draw: st.DrawFn, now: float, *, complete: bool, idle: bool = False) -> Sample | None:
    return _sample(draw, now, complete=complete, idle=idle)


def _sample(draw: st.DrawFn, now: float, *, complete: bool, idle: bool) -> Sample | None:
    """Strategies are made once: to make them takes longer than to draw from them."""
    kind = 0 if complete else draw(_KIND)
    if kind == _NONE:
        return None
    if kind == _COMPLETE:
        quantity, rejected = (_IDLE, _REJECTED_IDLE) if idle else (SANE, _REJECTED)
        ready = draw(_READY)
        return Sample(
            now,
            ready,
            ready,
            draw(quantity),
            draw(quantity),
            kv_full=draw(_PERCENT) / 100 * ready,
            rejected=draw(rejected),
            served=draw(quantity),
            demand=draw(DEMAND),
            blocked=draw(_BLOCKED),
            wanted_elsewhere=draw(st.booleans()),
        )
    ready = draw(_FEW)
    return Sample(
        now - draw(_AGE),
        ready,
        draw(_FEW) % (ready + 1),
        draw(_ANY),
        draw(_ANY),
        kv_full=draw(_ANY),
        rejected=draw(_ANY),
        served=draw(_ANY),
        demand=draw(DEMAND),
    )


_COMPLETE, _NONE, _BROKEN = range(3)
_KIND = st.sampled_from([_COMPLETE, _NONE, _BROKEN, _BROKEN])


def run(state: State, steps: Sequence[Step], spec: ScalingParameters) -> Iterator[tuple[State, Step, ScalingDecision]]:
    """Each decision with the state and the step that it was made from."""
    for now, sample in steps:
        decision = decide(state, sample, spec, now)
        yield state, (now, sample), decision
        state = decision.state


@dataclass
class World:
    """A fleet that does what the scaler says: replicas take `startup_s` to be ready, and go at once."""

    spec: ScalingParameters
    startup_s: float = 0.0
    interval_s: float = 2.0
    state: State = field(default_factory=lambda: State.initial(1))
    now: float = 0.0
    slots: int = 10_000
    """Requests that one replica runs at a time."""
    births: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.births = [-math.inf] * self.state.desired

    @property
    def ready(self) -> int:
        return sum(self.now - birth >= self.startup_s for birth in self.births)

    def sample(self, load: float) -> Sample:
        """The load spread over what is ready; the gateway holds it all."""
        running = min(load, float(self.slots * self.ready))
        waiting = load - running if self.ready else 0.0
        return Sample(self.now, self.ready, self.ready, waiting, running, demand=Demand(load))

    def tick(self, load: float, see: Callable[[Sample], Sample | None] = lambda sample: sample) -> int:
        """One interval at that load, seen through `see`; returns what is wanted then."""
        self.now += self.interval_s
        self.state = decide(self.state, see(self.sample(load)), self.spec, self.now).state
        wanted = self.state.desired
        self.births = sorted([*self.births, *[self.now] * (wanted - len(self.births))])[:wanted]
        return wanted

    def restart(self) -> None:
        """A new operator, which knows what the status says."""
        self.state = State.initial(
            self.state.desired, self.state.reason, panicking=self.state.panicking, source=self.state.source
        )
