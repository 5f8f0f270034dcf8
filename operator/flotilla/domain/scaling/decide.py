"""One decision: out at once, in only after every sample of the whole delay agreed, unknown holds.

The measure is waiting + running per replica. Waiting alone reads 0 at 10 % and at 95 % load, and a ratio of the
current count multiplies while pods start; an absolute need does not.
"""

import math
from dataclasses import replace

from flotilla.domain.scaling import limits, needs, reasons
from flotilla.domain.scaling.messages import message
from flotilla.domain.scaling.state import Decision, Need, Sample, ScalingSpec, State


def decide(state: State, sample: Sample | None, spec: ScalingSpec, now: float) -> Decision:
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


def _believable(sample: Sample, spec: ScalingSpec, now: float) -> bool:
    values = (sample.waiting, sample.running, sample.kv_full, sample.rejected, sample.served)
    asked = () if sample.demand is None else (sample.demand.requests,)
    sane = all(math.isfinite(value) and value >= 0 for value in (*values, *asked))
    return sane and now - sample.at <= spec.stale_after_s


def _unseen(state: State, kept: int, sample: Sample, spec: ScalingSpec, now: float) -> tuple[State, int]:
    """No engine answers: only the gateways can ask for more."""
    state = _heard(state, sample, spec, now)
    if kept == 0 and sample.demand is not None and sample.demand.complete:
        state = replace(state, carried="")
    requests = 0.0 if sample.demand is None else sample.demand.requests
    need = needs.by_load(requests, spec)
    if need > kept:
        return _rise(state, kept, need, sample, spec, now)
    return state, kept


def _partial(state: State, kept: int, sample: Sample, spec: ScalingSpec, now: float) -> tuple[State, int]:
    state = _heard(replace(state, answered_at=now, carried=""), sample, spec, now)
    load = needs.load_of(sample)
    # Without an overload among those that answer there is no ground for more: a pod that became ready a moment
    # ago, beside the ones it replaces in a rollout, would otherwise look like demand.
    if load <= sample.answered * spec.queue_depth_per_replica:
        return state, kept
    need = needs.by_load(load, spec) + sample.ready - sample.answered
    return _rise(state, kept, need, sample, spec, now) if need > kept else (state, kept)


def _complete(state: State, kept: int, sample: Sample, spec: ScalingSpec, now: float) -> tuple[State, int]:
    assert state.complete_at is not None
    if state.known_since is None or now - state.complete_at > spec.stale_after_s:
        state = replace(state, known_since=now, idle_since=None, queue=None)
    state = needs.remember_waiting(state, sample, spec, now)
    # One stays for an empty queue: the last one goes by a rule of its own.
    need = max(min(kept, 1), needs.needed(state, sample, spec))
    state = _heard(replace(state, answered_at=now, complete_at=now, carried=""), sample, spec, now)
    if state.idle_since is None and _is_idle(sample):
        state = replace(state, idle_since=now)
    state, desired = _rise(state, kept, need, sample, spec, now)
    return state, _settle(state, kept, sample, spec, now) if spec.clamp(need) <= kept else desired


def _heard(state: State, sample: Sample, spec: ScalingSpec, now: float) -> State:
    """Take in what the sample says of idleness. A lost scrape says nothing; a gap restarts it with the next one."""
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
    quiet = needs.load_of(sample) == 0 and sample.served == 0
    return quiet and (sample.demand is None or sample.demand.complete)


def _ago(at: float | None, now: float) -> float:
    return 0.0 if at is None else now - at


def _rise(state: State, kept: int, need: int, sample: Sample, spec: ScalingSpec, now: float) -> tuple[State, int]:
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
    desired = max(kept, min(clamped, limits.ceiling(state, spec, now)))
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


def _settle(state: State, kept: int, sample: Sample, spec: ScalingSpec, now: float) -> int:
    """The number once the load has asked for no more; `kept` until it has for long enough."""
    if state.panicking or state.known_since is None:
        return kept
    delay_s, zero_after_s = spec.scale_down_delay_s, max(spec.scale_down_delay_s, spec.zero_after_s)
    least = limits.floor(state, spec, now)
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


def _conclude(state: State, desired: int, sample: Sample | None, spec: ScalingSpec, now: float) -> Decision:
    kept = spec.clamp(state.desired)
    reason = state.reason
    if desired > kept:
        reason = reasons.SCALED_OUT if kept else reasons.WOKEN
    elif desired == 0:
        reason = reasons.SCALED_TO_ZERO
    elif desired < kept:
        reason = reasons.SCALED_IN
    elif kept != state.desired:
        reason = reasons.BOUNDS_CHANGED
    carried = state.carried if desired == state.desired else ""
    levels = limits.recent(state.levels, now)
    if desired != levels[-1].replicas:
        levels = (*levels, Need(now, desired))
    state = _heard_from("" if sample is None else sample.source, state, spec, now)
    # Most decisions change none of these, and a copy costs more than the comparison.
    if (desired, reason, carried, levels) != (state.desired, state.reason, state.carried, state.levels):
        state = replace(state, desired=desired, reason=reason, carried=carried, levels=levels)
    shown = _obstacle(state, sample, spec, now) or carried or reason
    return Decision(desired, state, shown, message(shown, desired, spec, state.source))


def _heard_from(source: str, state: State, spec: ScalingSpec, now: float) -> State:
    """Another source counts once it has been the only one for a while, or the status would flap with it."""
    if not source or source == state.source:
        return replace(state, other_since=None) if source and state.other_since is not None else state
    if not state.source or (state.other_since is not None and now - state.other_since > spec.stale_after_s):
        return replace(state, source=source, other_since=None)
    return replace(state, other_since=now) if state.other_since is None else state


def _obstacle(state: State, sample: Sample | None, spec: ScalingSpec, now: float) -> str | None:
    """A lasting one; a single lost scrape is none, or the status would flap with it."""
    if state.desired == 0:
        return reasons.NO_WAKE_SIGNAL if _ago(state.demand_at, now) > spec.stale_after_s else None
    never = state.known_since is None and not state.needs
    if never and not state.carried and sample is not None and sample.ready == 0:
        # Loading a model takes minutes: to say so at once saves the status a change after the first few seconds.
        return reasons.NO_READY_REPLICAS
    if _ago(state.answered_at, now) > spec.stale_after_s:
        return reasons.NO_READY_REPLICAS if sample is not None and sample.ready == 0 else reasons.METRICS_MISSING
    if _ago(state.complete_at, now) > spec.stale_after_s:
        return reasons.METRICS_PARTIAL
    lasts_s = max(spec.scale_down_delay_s, spec.stale_after_s)
    if state.blocked_at is not None and sample is not None and sample.blocked and now - state.blocked_at <= lasts_s:
        return state.blocked
    if state.over_at is not None and state.desired == spec.max_replicas and now - state.over_at <= lasts_s:
        return reasons.AT_MAXIMUM
    asleep = spec.min_replicas == 0 and sample is not None and sample.demand is None
    if asleep and _idle_for(state, now, max(spec.scale_down_delay_s, spec.zero_after_s)):
        return reasons.NO_WAKE_SIGNAL
    return None
