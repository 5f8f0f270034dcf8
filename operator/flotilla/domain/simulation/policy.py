"""What decides in a simulation: the state machine of the operator, or another policy to hold it against."""

from dataclasses import dataclass
from typing import Protocol

from flotilla.domain.scaling import Demand, Sample, ScalingSpec, State, decide


@dataclass(frozen=True, slots=True)
class Observation:
    """The fleet at the second `now_s`, as somebody sees it who asks every ready replica."""

    now_s: float
    wanted: int
    """What the policy asked for last: ready and starting replicas."""
    ready: int
    waiting: int
    """In the queues of the ready replicas."""
    running: int
    held: int
    """At the gateway, because no replica is ready."""
    kv_full: float
    """KV caches in use at the ready replicas, in whole caches."""
    served: int
    """Since the start, as `rejected`."""
    rejected: int

    @property
    def active(self) -> int:
        """All that clients wait for."""
        return self.waiting + self.running + self.held


class Policy(Protocol):
    """Asked every `interval_s` seconds; keeps its own memory."""

    interval_s: float

    def decide(self, seen: Observation) -> int:
        """The replicas to have."""


class Flotilla:
    """`domain.scaling`, as the operator asks it beside a gateway, which tells what it holds."""

    def __init__(self, spec: ScalingSpec, *, initial: int, interval_s: float = 2.0) -> None:
        self.interval_s = interval_s
        self._spec = spec
        self._state = State.initial(initial)
        self._served = self._rejected = 0

    def decide(self, seen: Observation) -> int:
        """See `Policy`."""
        sample = Sample(
            at=seen.now_s,
            ready=seen.ready,
            answered=seen.ready,
            waiting=float(seen.waiting),
            running=float(seen.running),
            kv_full=seen.kv_full,
            rejected=float(seen.rejected - self._rejected),
            served=float(seen.served - self._served),
            demand=Demand(float(seen.active)),
        )
        self._served, self._rejected = seen.served, seen.rejected
        decision = decide(self._state, sample, self._spec, seen.now_s)
        self._state = decision.state
        return decision.desired
