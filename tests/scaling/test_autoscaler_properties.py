"""The autoscaler under any sequence of samples, gaps, restarts and bounds."""

import itertools
import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.loads import SANE, STALE_S, Step, World, histories, run, samples, specs

from flotilla.scaling.autoscaler import (
    AT_MAXIMUM,
    METRICS_MISSING,
    NO_READY_REPLICAS,
    SCALED_IN,
    SCALED_OUT,
    SCALED_TO_ZERO,
    WOKEN,
    Demand,
    Sample,
    ScalingParameters,
    State,
    decide,
)

STARTS = st.integers(min_value=0, max_value=13)


def need(sample: Sample, spec: ScalingParameters) -> int:
    """What the requests and KV caches of a sample ask for at the least, within the bounds."""
    load = sample.waiting + sample.running + sample.rejected
    return spec.clamp(max(math.ceil(load / spec.queue_depth_per_replica), math.ceil(sample.kv_full / 0.9)))


def is_complete(sample: Sample | None, now: float) -> bool:
    if sample is None or not sample.answered == sample.ready > 0 or now - sample.at > STALE_S:
        return False
    values = (sample.waiting, sample.running, sample.kv_full, sample.rejected, sample.served)
    return all(math.isfinite(value) and value >= 0 for value in values)


def is_idle(sample: Sample) -> bool:
    """Whether everybody was asked, and nobody had anything to do."""
    return sample.waiting + sample.running + sample.rejected + sample.served == 0 and sample.demand == Demand(0.0)


@given(specs(), histories(), st.integers(min_value=0, max_value=30))
def test_bounds_always_hold(spec: ScalingParameters, steps: list[Step], desired: int) -> None:
    for _, _, decision in run(State.initial(desired), steps, spec):
        assert spec.min_replicas <= decision.desired <= spec.max_replicas
        assert decision.state.desired == decision.desired


@given(st.lists(specs(), min_size=1, max_size=5), histories(), st.integers(min_value=0, max_value=30))
def test_bounds_hold_from_the_first_decision_after_the_spec_changed(
    changes: list[ScalingParameters], steps: list[Step], desired: int
) -> None:
    state = State.initial(desired)
    for index, (now, sample) in enumerate(steps):
        spec = changes[index % len(changes)]
        decision = decide(state, sample, spec, now)
        state = decision.state
        assert spec.min_replicas <= decision.desired <= spec.max_replicas


@given(specs(), histories(), STARTS)
def test_what_is_missing_stale_broken_or_partial_never_lowers_the_number(
    spec: ScalingParameters, steps: list[Step], desired: int
) -> None:
    for before, (now, sample), decision in run(State.initial(desired), steps, spec):
        if not is_complete(sample, now):
            assert decision.desired >= spec.clamp(before.desired)


@given(specs(), histories(), STARTS)
def test_a_sample_that_says_nothing_changes_nothing(spec: ScalingParameters, steps: list[Step], desired: int) -> None:
    for before, (now, _), _ in run(State.initial(desired), steps, spec):
        assert decide(before, None, spec, now).desired == spec.clamp(before.desired)


@given(specs(), histories(), STARTS)
def test_a_need_for_more_is_met_in_one_step_up_to_the_ceiling_of_the_minute(
    spec: ScalingParameters, steps: list[Step], desired: int
) -> None:
    wanted = [(-math.inf, spec.clamp(desired))]
    for _, (now, sample), decision in run(State.initial(desired), steps, spec):
        fewest = min(n for n, _ in _levels(wanted, now))
        if sample is not None and is_complete(sample, now) and not sample.blocked:
            assert decision.desired >= min(need(sample, spec), fewest + spec.up_limit_per_minute)
        assert decision.desired <= max(fewest + spec.up_limit_per_minute, wanted[-1][1])
        wanted.append((now, decision.desired))


@given(specs(), histories(), STARTS)
def test_nothing_is_added_to_replicas_that_find_no_place(
    spec: ScalingParameters, steps: list[Step], desired: int
) -> None:
    for before, (_, sample), decision in run(State.initial(desired), steps, spec):
        if sample is not None and sample.blocked:
            assert decision.desired <= spec.clamp(before.desired)


@given(specs(), histories(complete=True, longest_gap=STALE_S, idle=True), STARTS)
def test_within_a_minute_no_more_than_the_share_goes_unless_a_more_important_model_waits(
    spec: ScalingParameters, steps: list[Step], desired: int
) -> None:
    wanted = [(-math.inf, spec.clamp(desired))]
    for _, (now, sample), decision in run(State.initial(desired), steps, spec):
        most = max(n for n, _ in _levels(wanted, now))
        given_up = sample is not None and sample.wanted_elsewhere
        share = most if given_up else max(1, most * spec.down_percent_per_minute // 100)
        assert decision.desired >= min(wanted[-1][1], most - share)
        wanted.append((now, decision.desired))


def _levels(wanted: list[tuple[float, int]], now: float) -> list[tuple[int, float]]:
    """What was wanted in the last minute, with the moment from which on."""
    ends = [*(at for at, _ in wanted[1:]), math.inf]
    return [(n, at) for (at, n), end in zip(wanted, ends, strict=True) if end > now - 60]


@given(specs(), histories(longest_gap=20), STARTS)
def test_the_number_falls_only_after_a_whole_delay_without_gap_that_agreed(
    spec: ScalingParameters, steps: list[Step], desired: int
) -> None:
    seen: list[tuple[float, int]] = []
    for before, (now, sample), decision in run(State.initial(desired), steps, spec):
        if sample is not None and is_complete(sample, now):
            seen.append((now, need(sample, spec)))
        if decision.desired >= spec.clamp(before.desired):
            continue
        assert sample is not None
        delay_s = min(spec.scale_down_delay_s, STALE_S) if sample.wanted_elsewhere else spec.scale_down_delay_s
        start = now - delay_s
        earlier = [at for at, _ in seen if at <= start]
        assert earlier
        times = [earlier[-1], *(at for at, _ in seen if at > start)]
        assert all(later - sooner <= spec.stale_after_s for sooner, later in itertools.pairwise(times))
        assert all(replicas <= decision.desired for at, replicas in seen if at >= start)


@given(specs(), histories(longest_gap=20, idle=True), STARTS)
def test_zero_comes_only_after_complete_data_of_the_whole_time_that_show_nothing(
    spec: ScalingParameters, steps: list[Step], desired: int
) -> None:
    seen: list[tuple[float, Sample]] = []
    for before, (now, sample), decision in run(State.initial(desired), steps, spec):
        if sample is not None and is_complete(sample, now):
            seen.append((now, sample))
        if decision.desired > 0 or spec.clamp(before.desired) == 0:
            continue
        assert spec.min_replicas == 0
        assert sample is not None
        zero_after_s = max(spec.zero_after_s, spec.scale_down_delay_s)
        start = now - (min(zero_after_s, STALE_S) if sample.wanted_elsewhere else zero_after_s)
        first = max(at for at, _ in seen if at <= start)
        counted = [(at, one) for at, one in seen if at >= first]
        assert all(b - a <= STALE_S for (a, _), (b, _) in itertools.pairwise(counted))
        assert all(is_idle(one) or one.demand is None for _, one in counted)
        told = [at for at, one in seen if one.demand == Demand(0.0)]
        assert told
        assert now == told[-1]


@given(specs(), histories(), STARTS, SANE)
def test_more_waiting_at_one_moment_never_asks_for_less(
    spec: ScalingParameters, steps: list[Step], desired: int, more: float
) -> None:
    for before, (now, sample), decision in run(State.initial(desired), steps, spec):
        if sample is not None:
            busier = replace(sample, waiting=sample.waiting + more)
            assert decide(before, busier, spec, now).desired >= decision.desired
            asked = 0.0 if sample.demand is None else sample.demand.requests
            wanted = replace(sample, demand=Demand(asked + more, complete=False))
            assert decide(before, wanted, spec, now).desired >= decision.desired


@given(specs(), histories(complete=True, longest_gap=25), STARTS, SANE)
def test_more_running_all_the_time_never_asks_for_less(
    spec: ScalingParameters, steps: list[Step], desired: int, more: float
) -> None:
    # Without waiting, whose memory may differ between the two, and without what limits both.
    calm_steps = [(now, replace(s, waiting=0.0, rejected=0.0, blocked="")) for now, s in steps if s is not None]
    busier = [(now, replace(sample, running=sample.running + more)) for now, sample in calm_steps]
    calm = run(State.initial(desired), calm_steps, spec)
    busy = run(State.initial(desired), busier, spec)
    assert all(b.desired >= a.desired for (_, _, a), (_, _, b) in zip(calm, busy, strict=True))


@given(
    specs(),
    histories(),
    STARTS,
    st.integers(min_value=0, max_value=200),
    st.integers(min_value=1, max_value=40),
    st.integers(min_value=0, max_value=60),
    st.integers(min_value=5, max_value=STALE_S),
)
@settings(max_examples=40)
def test_constant_load_converges_from_any_state_and_turns_back_at_most_once(
    spec: ScalingParameters, steps: list[Step], desired: int, load: int, slots: int, startup: int, interval: int
) -> None:
    *_, (_, (start, _), last) = run(State.initial(desired), steps, spec)
    world = World(spec, startup, interval, last.state, start, slots)
    settled_s = spec.max_replicas * (60 + startup + 2 * interval + 20) + spec.scale_down_delay_s + spec.zero_after_s
    numbers = [last.desired]
    numbers += [world.tick(float(load)) for _ in range(int(settled_s / interval) + 20)]
    moves = [(at, b - a) for at, (a, b) in enumerate(itertools.pairwise(numbers)) if a != b]
    turns = [later for (_, a), (later, b) in itertools.pairwise(moves) if a * b < 0]
    window = spec.scale_down_delay_s / interval
    assert all(later - sooner >= window for sooner, later in itertools.pairwise(turns))
    assert len(set(numbers[-10:])) == 1
    assert numbers[-1] >= spec.clamp(math.ceil(load / spec.queue_depth_per_replica))
    waiting = load - slots * numbers[-1]
    few = max(1.0, 0.25 * spec.queue_depth_per_replica * numbers[-1])
    assert waiting < few or numbers[-1] in (0, spec.max_replicas)
    if load == 0:
        assert numbers[-1] == spec.min_replicas


@given(specs(), st.lists(st.tuples(SANE, st.booleans(), st.booleans()), min_size=1, max_size=60), STARTS)
def test_no_replica_goes_in_a_panic_and_a_panic_ends(
    spec: ScalingParameters, moments: list[tuple[float, bool, bool]], startup: int
) -> None:
    world = World(spec, startup)
    for load, lost, restarted in moments:
        before = world.state.desired
        if restarted:
            world.restart()
        world.tick(load, see=lambda sample, lost=lost: None if lost else sample)  # type: ignore[misc]
        if world.state.panicking:
            assert world.state.desired >= before
    for _ in range(int((startup + spec.scale_down_delay_s) / world.interval_s) + 2):
        world.tick(0.0)
    assert not world.state.panicking or not world.ready


@given(specs(shortest_delay=1), st.data())
def test_a_restart_keeps_the_number_whatever_is_seen_first_unless_more_is_needed(
    spec: ScalingParameters, data: st.DataObject
) -> None:
    desired = data.draw(st.integers(min_value=spec.min_replicas, max_value=spec.max_replicas))
    reason = data.draw(st.sampled_from([SCALED_OUT, SCALED_IN, AT_MAXIMUM, METRICS_MISSING, NO_READY_REPLICAS, "?"]))
    sample = data.draw(samples(100.0, complete=False))
    decision = decide(State.initial(desired, reason), sample, spec, 100.0)
    assert decision.desired >= desired
    assert decide(State.initial(desired, reason), None, spec, 100.0).desired == desired


@given(specs(shortest_delay=5), st.lists(st.tuples(SANE, st.booleans()), min_size=1, max_size=60))
def test_restarts_lower_nothing_before_a_whole_delay_was_seen_again(
    spec: ScalingParameters, moments: list[tuple[float, bool]]
) -> None:
    world, since = World(spec), 0.0
    for load, restarted in moments:
        before = world.state.desired
        if restarted:
            world.restart()
            since = world.now + world.interval_s
        if world.tick(load) < before:
            assert world.now - since >= min(spec.scale_down_delay_s, 60)


@given(specs(), st.lists(histories(), min_size=2, max_size=3), STARTS)
def test_the_message_depends_on_number_reason_and_spec_only(
    spec: ScalingParameters, runs: list[list[Step]], desired: int
) -> None:
    messages: dict[tuple[int, str], str] = {}
    for steps in runs:
        for _, _, decision in run(State.initial(desired), steps, spec):
            known = messages.setdefault((decision.desired, decision.reason), decision.message)
            assert decision.message == known


@given(specs(), histories(idle=True), STARTS)
def test_a_reason_for_more_or_fewer_is_given_when_the_number_moves(
    spec: ScalingParameters, steps: list[Step], desired: int
) -> None:
    for before, _, decision in run(State.initial(desired), steps, spec):
        kept = spec.clamp(before.desired)
        if decision.desired != kept:
            out = SCALED_OUT if kept else WOKEN
            into = SCALED_IN if decision.desired else SCALED_TO_ZERO
            assert decision.state.reason == (out if decision.desired > kept else into)


@given(specs(), histories(), STARTS)
def test_the_memory_is_at_most_one_need_for_each_number_and_the_moves_of_a_minute(
    spec: ScalingParameters, steps: list[Step], desired: int
) -> None:
    for _, (now, _), decision in run(State.initial(desired), steps, spec):
        remembered = [n.replicas for n in decision.state.needs]
        assert remembered == sorted(set(remembered), reverse=True)
        assert sum(level.at <= now - 60 for level in decision.state.levels) <= 1
