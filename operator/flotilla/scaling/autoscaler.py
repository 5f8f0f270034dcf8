"""The autoscaler's decision: `decide(state, sample, spec, now)` returns the next state, replica count and reason.

Pure. The state is a value; the caller keeps it and passes it back. The order in this file is the order of a decision:
reasons, bounds, what each signal asks for, the sentences that explain it, the state, the decision.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple, Self

from flotilla.api import model_deployment as api

STEADY: Final = "Steady"
SCALED_OUT: Final = "ScaledOut"
SCALED_IN: Final = "ScaledIn"
SCALED_TO_ZERO: Final = "ScaledToZero"
WOKEN: Final = "Woken"
BOUNDS_CHANGED: Final = "BoundsChanged"
AT_MAXIMUM: Final = "AtMaximum"
UNSCHEDULABLE: Final = "ReplicasUnschedulable"
QUOTA_EXCEEDED: Final = "QuotaExceeded"
NO_READY_REPLICAS: Final = "NoReadyReplicas"
METRICS_MISSING: Final = "MetricsMissing"
METRICS_PARTIAL: Final = "MetricsPartial"
NO_WAKE_SIGNAL: Final = "NoWakeSignal"

LASTING: Final = frozenset({STEADY, SCALED_OUT, SCALED_IN, SCALED_TO_ZERO, WOKEN, BOUNDS_CHANGED})
"""Reasons that explain the number; the others explain for a while why it is not another one."""
STALE: Final = frozenset({METRICS_MISSING, METRICS_PARTIAL})
"""The data that the number would follow is old."""
NOT_FOLLOWING: Final = STALE | {NO_READY_REPLICAS, NO_WAKE_SIGNAL, UNSCHEDULABLE, QUOTA_EXCEEDED}
"""`ScalingActive` is False."""
BLOCKING_REASONS: Final = NOT_FOLLOWING | {AT_MAXIMUM}

PODS: Final = "Pods"
PROMETHEUS: Final = "Prometheus"


@dataclass(frozen=True, slots=True)
class ScalingParameters:
    """The part of `spec.scaling` that decides, with the operator's tolerance for gaps."""

    min_replicas: int
    max_replicas: int
    queue_depth_per_replica: int = 8
    """Target of waiting + running requests of one replica."""
    scale_down_delay_s: float = 240.0
    stale_after_s: float = 15.0
    """Older samples are not believed, and a longer gap starts the scale-down delay again. It must be longer than the
    sampling interval, or the delay never ends."""
    up_limit_per_minute: int = 20
    """At most so many more than the fewest of the last minute."""
    down_percent_per_minute: int = 25
    """At most this share fewer, but one, than the most of the last minute."""
    zero_after_s: float = 900.0
    """Idle time before the last replica is removed, where `min_replicas` is 0."""

    @classmethod
    def of(cls, wanted: api.ScalingSpec, *, stale_after_s: float) -> Self:
        """From a resource's own fields."""
        zero_after_s = wanted.scale_to_zero_after_seconds
        return cls(
            min_replicas=wanted.min_replicas,
            max_replicas=wanted.max_replicas,
            queue_depth_per_replica=wanted.queue_depth_per_replica,
            scale_down_delay_s=float(wanted.scale_down_delay_seconds),
            stale_after_s=stale_after_s,
            up_limit_per_minute=wanted.scale_up_limit_per_minute,
            down_percent_per_minute=wanted.scale_down_percent_per_minute,
            zero_after_s=float(api.SCALE_TO_ZERO_AFTER_S if zero_after_s is None else zero_after_s),
        )

    def clamp(self, replicas: int) -> int:
        """The nearest number that is allowed."""
        return max(self.min_replicas, min(replicas, self.max_replicas))


class Demand(NamedTuple):
    """Requests for the model that gateways hold or have under way; not `complete` where some did not answer."""

    requests: float
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """The sum over the ready replicas that answered, at the second `at` of the same clock as `now`."""

    at: float
    ready: int
    """Replicas that are ready, whether or not they answered."""
    answered: int
    waiting: float
    running: float
    kv_full: float = 0.0
    """KV caches in use, in whole caches: two that are half full are 1."""
    rejected: float = 0.0
    """Requests that the engines turned away since the sample before."""
    served: float = 0.0
    """Requests that ended since the sample before: one that came and went between two samples is no idleness."""
    demand: Demand | None = None
    """None where no source reports requests for a model without replicas."""
    blocked: str = ""
    """Reason why replicas that were asked for cannot be placed; more of them would not serve either."""
    wanted_elsewhere: bool = False
    """A more important model waits for accelerators of this class."""
    source: str = ""


class Need(NamedTuple):
    """A number of replicas that was asked for at the second `at`."""

    at: float
    replicas: int


class QueueWait(NamedTuple):
    """Requests have waited since the second `since` at so many replicas, at a load of no less than `load`."""

    since: float
    replicas: int
    load: float


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
    idle_since: float | None = None
    """Since when complete data have shown no request."""
    demand_at: float | None = None
    """The last time at which every gateway reported its requests; at first the first decision."""
    over_at: float | None = None
    """The last time at which more than `max_replicas` were needed."""
    blocked_at: float | None = None
    """The last time at which more were needed, and those that exist could not be placed."""
    blocked: str = ""
    panicking: bool = False
    """A burst is on: no replica is removed until none was seen for a whole delay."""
    panic_at: float | None = None
    """The last time at which the burst was seen; at first, after a restart in panic, the first decision."""
    queue: QueueWait | None = None
    """The present wait."""
    crowded: QueueWait | None = None
    """The last wait that went on for too long: at its load, its number of replicas is too small."""
    carried: str = ""
    """The obstacle that the status showed before a restart, shown on until something new is known: else each restart
    would write every status twice."""
    source: str = ""
    """Where the engines' numbers come from."""
    other_since: float | None = None
    """Since when they have come from elsewhere only."""
    needs: tuple[Need, ...] = ()
    """The needs of the delay window, without those that a later, higher one makes irrelevant: at most one for each
    number of replicas, however long the window is."""
    levels: tuple[Need, ...] = ()
    """What was wanted from each second on, for the last minute and the moment before it."""

    @classmethod
    def initial(cls, desired: int, reason: str = STEADY, *, panicking: bool = False, source: str = "") -> Self:
        """After a (re)start: keep `desired`, the reason that the status shows, and a panic that was on."""
        lasting = reason in LASTING
        return cls(
            desired=desired,
            reason=reason if lasting else STEADY,
            carried=reason if reason in BLOCKING_REASONS else "",
            panicking=panicking,
            source=source,
        )


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """`message` depends on `desired`, `reason`, the source and the spec only, so that writing it does not churn."""

    desired: int
    state: State
    reason: str
    message: str


WINDOW_S: Final = 60.0


def ceiling(state: State, spec: ScalingParameters, now: float) -> int:
    """The most replicas now.

    Counted from the fewest of the last minute, and not by additions: what a short dip took away may come back.
    """
    return min(level.replicas for level in recent(state.levels, now)) + spec.up_limit_per_minute


def floor(state: State, spec: ScalingParameters, now: float) -> int:
    """The fewest replicas now. One may always go, or a small share of few replicas would never do."""
    most = max(level.replicas for level in recent(state.levels, now))
    return most - max(1, most * spec.down_percent_per_minute // 100)


def recent(levels: tuple[Need, ...], now: float) -> tuple[Need, ...]:
    """Without what ended more than a minute ago."""
    start = now - WINDOW_S
    old = sum(level.at <= start for level in levels)
    return levels[old - 1 :] if old > 1 else levels


KV_CACHE_SHARE: Final = 0.9
"""Of its KV cache, a replica may use so much: beyond it engines preempt requests and compute them again."""
LONG_WAIT_S: Final = 10.0
WAITING_SHARE: Final = 0.25
"""Of the target: fewer requests that wait are those between two steps of the engine."""


def load_of(sample: Sample) -> float:
    """Requests that are there now. What gateways hold is no part of the engines' queues, what they sent on is."""
    inside = sample.waiting + sample.running
    return (inside if sample.demand is None else max(inside, sample.demand.requests)) + sample.rejected


def by_load(load: float, spec: ScalingParameters) -> int:
    """Replicas at the target."""
    return math.ceil(load / spec.queue_depth_per_replica)


def needed(state: State, sample: Sample, spec: ScalingParameters) -> int:
    """The replicas that the load of those that answered needs."""
    load = load_of(sample)
    need = max(by_load(load, spec), math.ceil(sample.kv_full / KV_CACHE_SHARE))
    if sample.rejected > 0:
        need = max(need, sample.answered + 1)
    if state.crowded is not None and load >= state.crowded.load:
        need = max(need, state.crowded.replicas + 1)
    return need


def remember_waiting(state: State, sample: Sample, spec: ScalingParameters, now: float) -> State:
    """Keep in mind how long requests have waited, and the load at which they did for too long.

    An engine may run fewer requests at a time than the target says; without the memory the replica that was added
    for them would go again after each delay.
    """
    load, replicas = load_of(sample), sample.answered
    queue, crowded = state.queue, state.crowded
    if sample.waiting < max(1.0, WAITING_SHARE * spec.queue_depth_per_replica * replicas):
        if queue is None and crowded is None:
            return state
        queue = None
        if crowded is not None and load >= crowded.load and replicas <= crowded.replicas:
            crowded = None
    elif queue is None or queue.replicas != replicas:
        # A replica that just came takes its share of the queue first.
        queue = QueueWait(now, replicas, load)
    else:
        queue = QueueWait(queue.since, replicas, min(queue.load, load))
        if now - queue.since >= LONG_WAIT_S:
            crowded = queue
    return replace(state, queue=queue, crowded=crowded)


@lru_cache(maxsize=4096)
def message(reason: str, desired: int, spec: ScalingParameters, source: str) -> str:
    """A sentence or two that depend on nothing that moves by itself, so that writing them does not churn."""
    count = "1 replica" if desired == 1 else f"{desired} replicas"
    target = f"{spec.queue_depth_per_replica} waiting and running requests per replica"
    said = {
        STEADY: f"{count}: the load has not asked for another number at a target of {target}.",
        SCALED_OUT: f"{count}: the load rose above the target of {target}, or requests waited or were rejected.",
        SCALED_IN: f"{count}: for {spec.scale_down_delay_s:g} s the load asked for no more at a target of {target}.",
        SCALED_TO_ZERO: (
            f"{count}: no request came for {spec.zero_after_s:g} s. The next one starts a replica and waits for it."
        ),
        WOKEN: f"{count}: requests came while there was none.",
        BOUNDS_CHANGED: (
            f"{count}: spec.scaling allows from {spec.min_replicas} to {spec.max_replicas}, which the number before "
            f"was outside of."
        ),
        AT_MAXIMUM: (
            f"{count}: the load asks for more, at a target of {target}, than spec.scaling.maxReplicas allows. "
            f"Raise maxReplicas, or accept longer queues with a higher queueDepthPerReplica."
        ),
        UNSCHEDULABLE: (
            f"{count}: the load asks for more, but some of these wait for a node, so that more would not serve either. "
            f"The Scheduled condition says what they wait for."
        ),
        QUOTA_EXCEEDED: (
            f"{count}: the load asks for more, but a ResourceQuota of the namespace does not even allow these. "
            f"The Scheduled condition names it: raise the quota, or lower maxReplicas."
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
        NO_WAKE_SIGNAL: (
            f"{count}: it is unknown whether requests come for a model without replicas. Name it as a target of a "
            f"RoutingPolicy, whose gateway holds them, or give the operator a wake_query."
        ),
    }[reason]
    return f"{said} {_SOURCES[source]}" if source and desired and reason not in _WITHOUT_DATA else said


_WITHOUT_DATA: Final = STALE | {NO_READY_REPLICAS, NO_WAKE_SIGNAL}
_SOURCES: Final = {
    PODS: "The queues are read from the pods.",
    PROMETHEUS: "The queues are read from Prometheus, because the pods are not, and may be 45 s old.",
}


def decide(state: State, sample: Sample | None, spec: ScalingParameters, now: float) -> ScalingDecision:
    """The number of replicas to ask for at the second `now`, never outside the spec's bounds.

    Replicas that are ready and do not answer count as full: they can justify more replicas beside an overload, never
    fewer. Demand is what the engines and gateways hold at this moment, so a queue that grows while pods load does
    raise the number, up to the maximum. Zero needs complete data that show nothing but idleness.
    """
    kept = spec.clamp(state.desired)
    if state.complete_at is None:
        state = replace(
            state,
            complete_at=now,
            answered_at=now,
            demand_at=now,
            panic_at=now if state.panicking else None,
            levels=(Need(now, kept),),
        )
    desired = kept
    if sample is not None and _believable(sample, spec, now):
        if sample.answered == 0:
            state, desired = _unseen(state, kept, sample, spec, now)
        elif sample.answered < sample.ready:
            state, desired = _partial(state, kept, sample, spec, now)
        else:
            state, desired = _complete(state, kept, sample, spec, now)
    return _conclude(state, desired, sample, spec, now)


def _believable(sample: Sample, spec: ScalingParameters, now: float) -> bool:
    values = (sample.waiting, sample.running, sample.kv_full, sample.rejected, sample.served)
    asked = () if sample.demand is None else (sample.demand.requests,)
    sane = all(math.isfinite(value) and value >= 0 for value in (*values, *asked))
    return sane and now - sample.at <= spec.stale_after_s


def _unseen(state: State, kept: int, sample: Sample, spec: ScalingParameters, now: float) -> tuple[State, int]:
    """No engine answers: only the gateways can ask for more."""
    state = _update_idleness(state, sample, spec, now)
    if kept == 0 and sample.demand is not None and sample.demand.complete:
        state = replace(state, carried="")
    requests = 0.0 if sample.demand is None else sample.demand.requests
    need = by_load(requests, spec)
    if need > kept:
        return _rise(state, kept, need, sample, spec, now)
    return state, kept


def _partial(state: State, kept: int, sample: Sample, spec: ScalingParameters, now: float) -> tuple[State, int]:
    state = _update_idleness(replace(state, answered_at=now, carried=""), sample, spec, now)
    load = load_of(sample)
    # Without an overload among those that answer there is no ground for more: a pod that became ready a moment
    # ago, beside the ones it replaces in a rollout, would otherwise look like demand.
    if load <= sample.answered * spec.queue_depth_per_replica:
        return state, kept
    need = by_load(load, spec) + sample.ready - sample.answered
    return _rise(state, kept, need, sample, spec, now) if need > kept else (state, kept)


def _complete(state: State, kept: int, sample: Sample, spec: ScalingParameters, now: float) -> tuple[State, int]:
    assert state.complete_at is not None
    if state.known_since is None or now - state.complete_at > spec.stale_after_s:
        state = replace(state, known_since=now, idle_since=None, queue=None)
    state = remember_waiting(state, sample, spec, now)
    # One stays for an empty queue: the last one is removed by the rule for zero.
    need = max(min(kept, 1), needed(state, sample, spec))
    state = _update_idleness(replace(state, answered_at=now, complete_at=now, carried=""), sample, spec, now)
    if state.idle_since is None and _is_idle(sample):
        state = replace(state, idle_since=now)
    state, desired = _rise(state, kept, need, sample, spec, now)
    return state, _settle(state, kept, sample, spec, now) if spec.clamp(need) <= kept else desired


def _update_idleness(state: State, sample: Sample, spec: ScalingParameters, now: float) -> State:
    """Update since when the model is idle. A lost scrape changes nothing; after a gap idleness starts anew."""
    idle_since, demand_at = state.idle_since, state.demand_at
    newly_told = sample.demand is not None and _ago(demand_at, now) > spec.stale_after_s
    if not _is_idle(sample) or newly_told:
        idle_since = None
    if sample.demand is not None and sample.demand.complete:
        demand_at = now
    if (idle_since, demand_at) == (state.idle_since, state.demand_at):
        return state
    return replace(state, idle_since=idle_since, demand_at=demand_at)


def _is_idle(sample: Sample) -> bool:
    quiet = load_of(sample) == 0 and sample.served == 0
    return quiet and (sample.demand is None or sample.demand.complete)


def _ago(at: float | None, now: float) -> float:
    return 0.0 if at is None else now - at


def _rise(state: State, kept: int, need: int, sample: Sample, spec: ScalingParameters, now: float) -> tuple[State, int]:
    """Remember the need, and meet it as far as the limits let."""
    clamped = spec.clamp(need)
    start = now - spec.scale_down_delay_s
    window = (*(n for n in state.needs if n.at >= start and n.replicas > clamped), Need(now, clamped))
    panicking, panic_at = state.panicking, state.panic_at
    # By the load alone: minReplicas that start one after the other are no burst.
    if min(need, spec.max_replicas) >= max(2 * sample.answered, sample.answered + 2):
        panicking, panic_at = True, now
    elif panicking and sample.answered == sample.ready and now - (panic_at or 0.0) >= spec.scale_down_delay_s:
        panicking, panic_at = False, None
    blocked_at, blocked = state.blocked_at, state.blocked
    desired = max(kept, min(clamped, ceiling(state, spec, now)))
    if sample.blocked and clamped > kept:
        desired, blocked_at, blocked = kept, now, sample.blocked
    state = replace(
        state,
        needs=window,
        over_at=now if need > spec.max_replicas else state.over_at,
        panicking=panicking,
        panic_at=panic_at,
        blocked_at=blocked_at,
        blocked=blocked,
    )
    return state, desired


def _settle(state: State, kept: int, sample: Sample, spec: ScalingParameters, now: float) -> int:
    """The number when the load needs no more; `kept` until it has been so for the whole delay."""
    if state.panicking or state.known_since is None:
        return kept
    delay_s, zero_after_s = spec.scale_down_delay_s, max(spec.scale_down_delay_s, spec.zero_after_s)
    least = floor(state, spec, now)
    if sample.wanted_elsewhere:
        # Caution is for a wave that may come back; here somebody more important waits already.
        delay_s, zero_after_s, least = min(delay_s, spec.stale_after_s), min(zero_after_s, spec.stale_after_s), 0
    if now - state.known_since < delay_s:
        return kept
    highest = next(need.replicas for need in state.needs if need.at >= now - delay_s)
    if _idle_for(state, now, zero_after_s) and sample.demand is not None:
        highest = 0
    return spec.clamp(min(kept, max(highest, least)))


def _idle_for(state: State, now: float, seconds: float) -> bool:
    return state.idle_since is not None and now - state.idle_since >= seconds


def _conclude(
    state: State, desired: int, sample: Sample | None, spec: ScalingParameters, now: float
) -> ScalingDecision:
    kept = spec.clamp(state.desired)
    reason = state.reason
    if desired > kept:
        reason = SCALED_OUT if kept else WOKEN
    elif desired == 0:
        reason = SCALED_TO_ZERO
    elif desired < kept:
        reason = SCALED_IN
    elif kept != state.desired:
        reason = BOUNDS_CHANGED
    carried = state.carried if desired == state.desired else ""
    levels = recent(state.levels, now)
    if desired != levels[-1].replicas:
        levels = (*levels, Need(now, desired))
    state = _update_source("" if sample is None else sample.source, state, spec, now)
    # Most decisions change none of these, and a copy costs more than the comparison.
    if (desired, reason, carried, levels) != (state.desired, state.reason, state.carried, state.levels):
        state = replace(state, desired=desired, reason=reason, carried=carried, levels=levels)
    shown = _blocking_reason(state, sample, spec, now) or carried or reason
    return ScalingDecision(desired, state, shown, message(shown, desired, spec, state.source))


def _update_source(source: str, state: State, spec: ScalingParameters, now: float) -> State:
    """Another source counts once it has been the only one for a while, or the status would flap with it."""
    if not source or source == state.source:
        return replace(state, other_since=None) if source and state.other_since is not None else state
    if not state.source or (state.other_since is not None and now - state.other_since > spec.stale_after_s):
        return replace(state, source=source, other_since=None)
    return replace(state, other_since=now) if state.other_since is None else state


def _blocking_reason(state: State, sample: Sample | None, spec: ScalingParameters, now: float) -> str | None:
    """A lasting reason why the number cannot follow the load; one lost scrape would make the status flap."""
    if state.desired == 0:
        return NO_WAKE_SIGNAL if _ago(state.demand_at, now) > spec.stale_after_s else None
    never = state.known_since is None and not state.needs
    if never and not state.carried and sample is not None and sample.ready == 0:
        # Loading a model takes minutes: to report it at once saves a change of the status after a few seconds.
        return NO_READY_REPLICAS
    if _ago(state.answered_at, now) > spec.stale_after_s:
        return NO_READY_REPLICAS if sample is not None and sample.ready == 0 else METRICS_MISSING
    if _ago(state.complete_at, now) > spec.stale_after_s:
        return METRICS_PARTIAL
    lasts_s = max(spec.scale_down_delay_s, spec.stale_after_s)
    if state.blocked_at is not None and sample is not None and sample.blocked and now - state.blocked_at <= lasts_s:
        return state.blocked
    if state.over_at is not None and state.desired == spec.max_replicas and now - state.over_at <= lasts_s:
        return AT_MAXIMUM
    asleep = spec.min_replicas == 0 and sample is not None and sample.demand is None
    if asleep and _idle_for(state, now, max(spec.scale_down_delay_s, spec.zero_after_s)):
        return NO_WAKE_SIGNAL
    return None
