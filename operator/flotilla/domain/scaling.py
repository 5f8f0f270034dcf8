"""How many replicas a queue needs: a pure state machine that is asked every few seconds.

The measure is waiting + running per replica. Waiting alone reads 0 at 10 % and at 95 % load, and a ratio of the
current count multiplies while pods start; the absolute form below asks for the same number however many of the
pods that were asked for are up yet.
"""

import math
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

STEADY: Final = "Steady"
SCALED_OUT: Final = "ScaledOut"
SCALED_IN: Final = "ScaledIn"
BOUNDS_CHANGED: Final = "BoundsChanged"
AT_MAXIMUM: Final = "AtMaximum"
NO_READY_REPLICAS: Final = "NoReadyReplicas"
METRICS_MISSING: Final = "MetricsMissing"
METRICS_PARTIAL: Final = "MetricsPartial"

_LASTING: Final = frozenset({STEADY, SCALED_OUT, SCALED_IN, BOUNDS_CHANGED})
"""Reasons that explain the number; the others explain for a while why it is not another one."""


_OBSTACLES: Final = frozenset({AT_MAXIMUM, NO_READY_REPLICAS, METRICS_MISSING, METRICS_PARTIAL})


@dataclass(frozen=True, slots=True)
class ScalingSpec:
    """The part of `spec.scaling` that decides, with the operator's tolerance for gaps."""

    min_replicas: int
    max_replicas: int
    queue_depth_per_replica: int = 8
    """Target of waiting + running requests of one replica."""
    scale_down_delay_s: float = 300.0
    stale_after_s: float = 15.0
    """Older samples are not believed, and a longer gap starts the scale-down delay again. It must be longer than the
    sampling interval, or the delay never ends."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the ready replicas that answered say together, at the second `at` of the same clock as `now`."""

    at: float
    ready: int
    """Replicas that are ready, whether or not they answered."""
    answered: int
    waiting: float
    running: float


class Need(NamedTuple):
    """A number of replicas that was asked for at the second `at`."""

    at: float
    replicas: int


@dataclass(frozen=True, slots=True)
class State:
    """All that the next decision depends on. `State.initial` rebuilds enough of it after a restart."""

    desired: int
    reason: str = STEADY
    known_since: float | None = None
    """Start of the time that is covered by complete samples without a gap; None: nothing was seen yet."""
    complete_at: float | None = None
    """The last complete sample; at first the first decision."""
    answered_at: float | None = None
    """The last sample with any answer; at first the first decision."""
    over_at: float | None = None
    """The last time at which more than `max_replicas` were needed."""
    carried: str = ""
    """The obstacle that the status showed before a restart, shown on until something new is known: else each restart
    would write every status twice."""
    needs: tuple[Need, ...] = ()
    """The needs of the delay window, without those that a later, higher one makes irrelevant: at most one for each
    number of replicas, however long the window is."""

    @classmethod
    def initial(cls, desired: int, reason: str = STEADY) -> "State":
        """After a (re)start: keep `desired`, and the reason that the status shows."""
        if reason in _LASTING:
            return cls(desired=desired, reason=reason)
        return cls(desired=desired, carried=reason if reason in _OBSTACLES else "")


@dataclass(frozen=True, slots=True)
class Decision:
    """`message` depends on `desired`, `reason` and the spec only, so that writing it to a status does not churn."""

    desired: int
    state: State
    reason: str
    message: str


def decide(state: State, sample: Sample | None, spec: ScalingSpec, now: float) -> Decision:
    """The number of replicas to ask for at the second `now`, never outside the spec's bounds.

    Out at once; in only after every sample of the whole delay agreed; unknown holds. Replicas that are ready and do
    not answer count as full: they can justify more replicas beside an overload, never fewer. Demand is what the
    engines hold at this moment, so a queue that grows while pods load does raise the number, up to the maximum.
    """
    kept = _clamp(state.desired, spec)
    if state.complete_at is None:
        state = replace(state, complete_at=now, answered_at=now)
    if sample is None or not _believable(sample, spec, now):
        return _conclude(state, kept, sample, spec, now)
    load = sample.waiting + sample.running
    need = math.ceil(load / spec.queue_depth_per_replica)
    unanswered = sample.ready - sample.answered
    state = replace(state, answered_at=now, carried="")
    if unanswered > 0:
        # Without an overload among those that answer there is no ground for more: a pod that became ready a moment
        # ago, beside the ones it replaces in a rollout, would otherwise look like demand.
        need = need + unanswered if load > sample.answered * spec.queue_depth_per_replica else kept
        if need > kept:
            state = _remember(state, need, spec, now)
        return _conclude(state, max(kept, _clamp(need, spec)), sample, spec, now)
    if state.known_since is None or _since(state.complete_at, now) > spec.stale_after_s:
        state = replace(state, known_since=now)
    # Zero is no answer to an empty queue here: with no pod left there would be no queue to read any more.
    state = _remember(replace(state, complete_at=now), max(1, need), spec, now)
    return _conclude(state, _settle(state, kept, spec, now), sample, spec, now)


def _believable(sample: Sample, spec: ScalingSpec, now: float) -> bool:
    finite = all(math.isfinite(value) and value >= 0 for value in (sample.waiting, sample.running))
    return finite and sample.answered > 0 and now - sample.at <= spec.stale_after_s


def _clamp(replicas: int, spec: ScalingSpec) -> int:
    return max(spec.min_replicas, min(replicas, spec.max_replicas))


def _remember(state: State, need: int, spec: ScalingSpec, now: float) -> State:
    clamped = _clamp(need, spec)
    window = (n for n in state.needs if n.at >= now - spec.scale_down_delay_s and n.replicas > clamped)
    over_at = now if need > spec.max_replicas else state.over_at
    return replace(state, needs=(*window, Need(now, clamped)), over_at=over_at)


def _since(at: float | None, now: float) -> float:
    return 0.0 if at is None else now - at


def _settle(state: State, kept: int, spec: ScalingSpec, now: float) -> int:
    newest, highest = state.needs[-1].replicas, state.needs[0].replicas
    if newest > kept:
        return newest
    covered = state.known_since is not None and now - state.known_since >= spec.scale_down_delay_s
    return min(kept, _clamp(highest, spec)) if covered else kept


def _conclude(state: State, desired: int, sample: Sample | None, spec: ScalingSpec, now: float) -> Decision:
    kept = _clamp(state.desired, spec)
    reason = state.reason
    if desired > kept:
        reason = SCALED_OUT
    elif desired < kept:
        reason = SCALED_IN
    elif kept != state.desired:
        reason = BOUNDS_CHANGED
    carried = state.carried if desired == state.desired else ""
    state = replace(state, desired=desired, reason=reason, carried=carried)
    shown = _obstacle(state, sample, spec, now) or carried or reason
    return Decision(desired, state, shown, _message(shown, desired, spec))


def _obstacle(state: State, sample: Sample | None, spec: ScalingSpec, now: float) -> str | None:
    """A lasting one; a single lost scrape is none, or the status would flap with it."""
    never = state.known_since is None and not state.needs
    if never and not state.carried and sample is not None and sample.ready == 0:
        # Loading a model takes minutes: to say so at once saves the status a change after the first few seconds.
        return NO_READY_REPLICAS
    if _since(state.answered_at, now) > spec.stale_after_s:
        return NO_READY_REPLICAS if sample is not None and sample.ready == 0 else METRICS_MISSING
    if _since(state.complete_at, now) > spec.stale_after_s:
        return METRICS_PARTIAL
    if state.over_at is not None and state.desired == spec.max_replicas:
        lasts_s = max(spec.scale_down_delay_s, spec.stale_after_s)
        return AT_MAXIMUM if now - state.over_at <= lasts_s else None
    return None


def _message(reason: str, desired: int, spec: ScalingSpec) -> str:
    count = "1 replica" if desired == 1 else f"{desired} replicas"
    target = f"{spec.queue_depth_per_replica} waiting and running requests per replica"
    return {
        STEADY: f"{count}: the load has not asked for another number at a target of {target}.",
        SCALED_OUT: f"{count}: the load rose above the target of {target}.",
        SCALED_IN: (f"{count}: for {spec.scale_down_delay_s:g} s the load asked for no more at a target of {target}."),
        BOUNDS_CHANGED: (
            f"{count}: spec.scaling allows from {spec.min_replicas} to {spec.max_replicas}, which the number before "
            f"was outside of."
        ),
        AT_MAXIMUM: (
            f"{count}: the load asks for more, at a target of {target}, than spec.scaling.maxReplicas allows. "
            f"Raise maxReplicas, or accept longer queues with a higher queueDepthPerReplica."
        ),
        NO_READY_REPLICAS: f"{count}: kept, because no replica is ready and so there is no queue to read.",
        METRICS_MISSING: (
            f"{count}: kept, because no ready replica answers with its metrics. Check that the operator reaches the "
            f"pods' metrics port: a NetworkPolicy must let it in."
        ),
        METRICS_PARTIAL: (
            f"{count}: not lowered, because some ready replicas do not answer with their metrics. Check that the "
            f"operator reaches the metrics port of each pod, and the engine's log."
        ),
    }[reason]
