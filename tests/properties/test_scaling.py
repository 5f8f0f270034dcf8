"""The autoscaler under any sequence of samples, gaps and bounds."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flotilla.domain.scaling import (
    AT_MAXIMUM,
    METRICS_MISSING,
    NO_READY_REPLICAS,
    SCALED_IN,
    SCALED_OUT,
    Decision,
    Sample,
    ScalingSpec,
    State,
    decide,
)

Step = tuple[float, Sample | None]
"""A second, and what was seen at it."""

STALE_S = 15
SANE = st.integers(min_value=0, max_value=200).map(float)
BROKEN = st.sampled_from([math.nan, math.inf, -1.0])


@st.composite
def specs(draw: st.DrawFn, *, shortest_delay: int = 0) -> ScalingSpec:
    low = draw(st.integers(min_value=1, max_value=5))
    return ScalingSpec(
        min_replicas=low,
        max_replicas=low + draw(st.integers(min_value=0, max_value=8)),
        queue_depth_per_replica=draw(st.integers(min_value=1, max_value=16)),
        scale_down_delay_s=draw(st.integers(min_value=shortest_delay, max_value=60)),
        stale_after_s=STALE_S,
    )


@st.composite
def histories(draw: st.DrawFn, *, complete: bool = False, longest_gap: int = 40) -> list[Step]:
    """Samples at growing times. `complete` ones are fresh, sane and from every ready replica."""
    now, steps = 0.0, []
    for gap in draw(st.lists(st.integers(min_value=1, max_value=longest_gap), min_size=1, max_size=40)):
        now += gap
        steps.append((now, draw(_samples(now, complete=complete))))
    return steps


@st.composite
def _samples(draw: st.DrawFn, now: float, *, complete: bool) -> Sample | None:
    if complete:
        ready = draw(st.integers(min_value=1, max_value=8))
        return Sample(now, ready, ready, draw(SANE), draw(SANE))
    if draw(st.booleans()):
        return draw(st.one_of(st.none(), _samples(now, complete=True)))
    ready = draw(st.integers(min_value=0, max_value=8))
    answered = draw(st.integers(min_value=0, max_value=ready))
    age = draw(st.integers(min_value=0, max_value=40))
    return Sample(now - age, ready, answered, draw(SANE | BROKEN), draw(SANE | BROKEN))


def run(state: State, steps: Sequence[Step], spec: ScalingSpec) -> Iterator[tuple[State, Step, Decision]]:
    """Each decision with the state and the step that it was made from."""
    for now, sample in steps:
        decision = decide(state, sample, spec, now)
        yield state, (now, sample), decision
        state = decision.state


def clamp(replicas: int, spec: ScalingSpec) -> int:
    return max(spec.min_replicas, min(replicas, spec.max_replicas))


def need(sample: Sample, spec: ScalingSpec) -> int:
    """What a complete sample asks for, within the bounds."""
    return clamp(math.ceil((sample.waiting + sample.running) / spec.queue_depth_per_replica), spec)


def is_complete(sample: Sample | None, now: float) -> bool:
    return (
        sample is not None
        and sample.answered == sample.ready > 0
        and now - sample.at <= STALE_S
        and all(math.isfinite(value) and value >= 0 for value in (sample.waiting, sample.running))
    )


@given(specs(), histories(), st.integers(min_value=0, max_value=30))
def test_bounds_always_hold(spec: ScalingSpec, steps: list[Step], desired: int) -> None:
    for _, _, decision in run(State.initial(desired), steps, spec):
        assert spec.min_replicas <= decision.desired <= spec.max_replicas
        assert decision.state.desired == decision.desired


@given(st.lists(specs(), min_size=1, max_size=5), histories(), st.integers(min_value=0, max_value=30))
def test_bounds_hold_from_the_first_decision_after_the_spec_changed(
    changes: list[ScalingSpec], steps: list[Step], desired: int
) -> None:
    state = State.initial(desired)
    for index, (now, sample) in enumerate(steps):
        spec = changes[index % len(changes)]
        decision = decide(state, sample, spec, now)
        state = decision.state
        assert spec.min_replicas <= decision.desired <= spec.max_replicas


@given(specs(), histories(), st.integers(min_value=1, max_value=13))
def test_what_is_missing_stale_broken_or_partial_never_lowers_the_number(
    spec: ScalingSpec, steps: list[Step], desired: int
) -> None:
    for before, (now, sample), decision in run(State.initial(desired), steps, spec):
        if not is_complete(sample, now):
            assert decision.desired >= clamp(before.desired, spec)


@given(specs(), histories(), st.integers(min_value=1, max_value=13))
def test_a_sample_that_says_nothing_changes_nothing(spec: ScalingSpec, steps: list[Step], desired: int) -> None:
    for before, (now, _), _ in run(State.initial(desired), steps, spec):
        assert decide(before, None, spec, now).desired == clamp(before.desired, spec)


@given(specs(), histories(), st.integers(min_value=1, max_value=13))
def test_a_need_for_more_is_met_at_once(spec: ScalingSpec, steps: list[Step], desired: int) -> None:
    for _, (now, sample), decision in run(State.initial(desired), steps, spec):
        if sample is not None and is_complete(sample, now):
            assert decision.desired >= need(sample, spec)


@given(specs(), histories(longest_gap=20), st.integers(min_value=1, max_value=13))
def test_the_number_falls_only_after_a_whole_delay_without_gap_that_agreed(
    spec: ScalingSpec, steps: list[Step], desired: int
) -> None:
    seen: list[tuple[float, int]] = []
    for before, (now, sample), decision in run(State.initial(desired), steps, spec):
        if sample is not None and is_complete(sample, now):
            seen.append((now, need(sample, spec)))
        if decision.desired >= clamp(before.desired, spec):
            continue
        start = now - spec.scale_down_delay_s
        earlier = [at for at, _ in seen if at <= start]
        assert earlier
        times = [earlier[-1], *(at for at, _ in seen if at > start)]
        assert all(later - sooner <= spec.stale_after_s for sooner, later in itertools.pairwise(times))
        assert all(replicas <= decision.desired for at, replicas in seen if at >= start)


@given(specs(), histories(complete=True, longest_gap=STALE_S), st.integers(min_value=1, max_value=13))
def test_without_gaps_the_number_is_the_highest_need_of_the_window(
    spec: ScalingSpec, steps: list[Step], desired: int
) -> None:
    seen: list[tuple[float, int]] = []
    expected = clamp(desired, spec)
    for _, (now, sample), decision in run(State.initial(desired), steps, spec):
        assert sample is not None
        seen.append((now, need(sample, spec)))
        start = now - spec.scale_down_delay_s
        highest = max(replicas for at, replicas in seen if at >= start)
        expected = highest if highest > expected or seen[0][0] <= start else expected
        assert decision.desired == expected


@given(specs(), histories(), st.integers(min_value=1, max_value=13), SANE)
def test_more_load_at_one_moment_never_asks_for_less(
    spec: ScalingSpec, steps: list[Step], desired: int, more: float
) -> None:
    for before, (now, sample), decision in run(State.initial(desired), steps, spec):
        if sample is not None:
            busier = replace(sample, waiting=sample.waiting + more)
            assert decide(before, busier, spec, now).desired >= decision.desired


@given(specs(), histories(complete=True, longest_gap=25), st.integers(min_value=1, max_value=13), SANE)
def test_more_load_all_the_time_never_asks_for_less(
    spec: ScalingSpec, steps: list[Step], desired: int, more: float
) -> None:
    busier = [(now, replace(sample, running=sample.running + more)) for now, sample in steps if sample is not None]
    calm = run(State.initial(desired), steps, spec)
    busy = run(State.initial(desired), busier, spec)
    assert all(b.desired >= a.desired for (_, _, a), (_, _, b) in zip(calm, busy, strict=True))


@given(specs(), histories(), st.integers(min_value=1, max_value=13), SANE, st.integers(min_value=1, max_value=STALE_S))
def test_constant_load_converges_and_turns_back_at_most_once(
    spec: ScalingSpec, steps: list[Step], desired: int, load: float, interval: int
) -> None:
    state = State.initial(desired)
    start = 0.0
    for _, (now, _), decision in run(state, steps, spec):
        start, state = now, decision.state
    rounds = int(spec.scale_down_delay_s) // interval + 3
    constant = [(start + interval * n, Sample(start + interval * n, 1, 1, 0.0, load)) for n in range(1, rounds + 1)]
    numbers = [clamp(state.desired, spec), *(d.desired for _, _, d in run(state, constant, spec))]
    moves = [b - a for a, b in itertools.pairwise(numbers) if a != b]
    assert numbers[-1] == need(Sample(0.0, 1, 1, 0.0, load), spec)
    assert sum(a * b < 0 for a, b in itertools.pairwise(moves)) <= 1


@given(specs(shortest_delay=1), st.data())
def test_a_restart_keeps_the_number_whatever_is_seen_first_unless_more_is_needed(
    spec: ScalingSpec, data: st.DataObject
) -> None:
    desired = data.draw(st.integers(min_value=spec.min_replicas, max_value=spec.max_replicas))
    reason = data.draw(st.sampled_from([SCALED_OUT, SCALED_IN, AT_MAXIMUM, METRICS_MISSING, NO_READY_REPLICAS, "?"]))
    sample = data.draw(_samples(100.0, complete=False))
    decision = decide(State.initial(desired, reason), sample, spec, 100.0)
    assert decision.desired >= desired
    assert decide(State.initial(desired, reason), None, spec, 100.0).desired == desired


@given(specs(), st.lists(histories(), min_size=2, max_size=3), st.integers(min_value=0, max_value=13))
def test_the_message_depends_on_number_reason_and_spec_only(
    spec: ScalingSpec, runs: list[list[Step]], desired: int
) -> None:
    messages: dict[tuple[int, str], str] = {}
    for steps in runs:
        for _, _, decision in run(State.initial(desired), steps, spec):
            known = messages.setdefault((decision.desired, decision.reason), decision.message)
            assert decision.message == known


@given(specs(), histories(), st.integers(min_value=0, max_value=13))
def test_a_reason_for_more_or_fewer_is_given_when_the_number_moves(
    spec: ScalingSpec, steps: list[Step], desired: int
) -> None:
    for before, _, decision in run(State.initial(desired), steps, spec):
        if decision.desired != clamp(before.desired, spec):
            rose = decision.desired > clamp(before.desired, spec)
            assert decision.state.reason == (SCALED_OUT if rose else SCALED_IN)


@given(specs(), histories(), st.integers(min_value=0, max_value=13))
def test_the_memory_is_at_most_one_need_for_each_number_of_replicas(
    spec: ScalingSpec, steps: list[Step], desired: int
) -> None:
    for _, _, decision in run(State.initial(desired), steps, spec):
        remembered = [n.replicas for n in decision.state.needs]
        assert remembered == sorted(set(remembered), reverse=True)
