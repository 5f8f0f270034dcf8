"""The scaler by example; its properties are beside it."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.loads import World

from flotilla.api.model_deployment import ScalingSpec as ApiScalingSpec
from flotilla.scaling.autoscaler import (
    AT_MAXIMUM,
    METRICS_MISSING,
    NO_READY_REPLICAS,
    NO_WAKE_SIGNAL,
    QUOTA_EXCEEDED,
    SCALED_IN,
    SCALED_TO_ZERO,
    STEADY,
    UNSCHEDULABLE,
    WOKEN,
    Demand,
    Sample,
    ScalingDecision,
    ScalingParameters,
    State,
    decide,
)

TICK_S = 2.0
SPEC = ScalingParameters(1, 4, 8, 30.0, 15.0, down_percent_per_minute=100)
WIDE = replace(SPEC, max_replicas=40)
ZERO = replace(SPEC, min_replicas=0, zero_after_s=60.0)


def seen(at: float, ready: int, waiting: float = 0, running: float = 0, **more: Any) -> Sample:
    return Sample(at, ready, ready, waiting, running, **more)


def follow(
    state: State, spec: ScalingParameters, ticks: Iterable[dict[str, Any]], *, start: float = 0.0
) -> list[ScalingDecision]:
    """A decision for each tick of 2 s, in which every replica that was asked for is ready and answers."""
    decisions = []
    for number, changes in enumerate(ticks):
        now = start + number * TICK_S
        sample = replace(Sample(now, state.desired, state.desired, 0, 0), **changes)
        decisions.append(decide(state, sample, spec, now))
        state = decisions[-1].state
    return decisions


def test_a_spec_is_read_from_the_resource() -> None:
    wanted = ApiScalingSpec(
        min_replicas=0,
        max_replicas=9,
        queue_depth_per_replica=3,
        scale_down_delay_seconds=7,
        scale_up_limit_per_minute=4,
        scale_down_percent_per_minute=25,
    )
    spec = ScalingParameters.of(wanted, stale_after_s=15)
    assert spec == ScalingParameters(0, 9, 3, 7.0, 15, 4, 25, 900.0)
    assert ScalingParameters.of(ApiScalingSpec(), stale_after_s=15) == ScalingParameters(1, 1)
    sooner = wanted.model_copy(update={"scale_to_zero_after_seconds": 60})
    assert ScalingParameters.of(sooner, stale_after_s=15).zero_after_s == 60


def test_no_ready_replica_is_told_after_a_while_and_over_a_restart() -> None:
    state = decide(State.initial(2), seen(0.0, 2), SPEC, 0.0).state
    now, reason = TICK_S, ""
    while now < 20:
        decision = decide(state, seen(now, 0), SPEC, now)
        state, now, reason = decision.state, now + TICK_S, decision.reason
    assert reason == NO_READY_REPLICAS
    again = decide(State.initial(2, reason), None, SPEC, 1000.0)
    assert (again.desired, again.reason) == (2, NO_READY_REPLICAS)
    answered = decide(again.state, seen(1002.0, 2), SPEC, 1002.0)
    assert answered.reason not in (NO_READY_REPLICAS, METRICS_MISSING)


def test_a_fresh_deployment_says_at_once_that_nothing_is_ready() -> None:
    fresh = decide(State.initial(1), seen(0.0, 0), SPEC, 0.0)
    assert (fresh.desired, fresh.reason) == (1, NO_READY_REPLICAS)
    assert decide(fresh.state, seen(2.0, 1), SPEC, 2.0).reason == STEADY


def test_a_restart_beside_serving_replicas_keeps_the_reason() -> None:
    assert decide(State.initial(2, STEADY), None, SPEC, 0.0).reason == STEADY


def test_the_maximum_is_told_while_the_load_asks_for_more() -> None:
    decision = decide(State.initial(1), seen(0.0, 1, 900), SPEC, 0.0)
    assert (decision.desired, decision.reason) == (4, AT_MAXIMUM)
    assert "spec.scaling.maxReplicas" in decision.message


def test_a_stale_sample_is_not_believed() -> None:
    assert decide(State.initial(3), seen(0.0, 3, 900), SPEC, 16.0).desired == 3


@pytest.mark.parametrize("field", ["waiting", "running", "kv_full", "rejected", "served"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_number_that_is_no_number_is_not_believed(field: str, value: float) -> None:
    broken: Any = {field: value}
    sample = replace(seen(0.0, 2, 90), **broken)
    assert decide(State.initial(2), sample, SPEC, 0.0).desired == 2


def test_replicas_that_do_not_answer_beside_an_overload_count_as_full() -> None:
    partly = replace(seen(0.0, 4, 24), answered=2)
    assert decide(State.initial(4), partly, WIDE, 0.0).desired == 5
    calm = replace(partly, waiting=16)
    assert decide(State.initial(4), calm, WIDE, 0.0).desired == 4


def test_a_gap_starts_the_delay_again() -> None:
    state = follow(State.initial(4), SPEC, [{"running": 1.0}] * 10)[-1].state
    # 18 s were seen; after 16 s of nothing they count no more, and 30 s have to be seen.
    decisions = follow(state, SPEC, [{"running": 1.0}] * 16, start=34.5)
    assert [d.desired for d in decisions] == [4] * 15 + [1]


def test_a_burst_is_met_in_one_step_and_starting_replicas_ask_for_no_more() -> None:
    state = State.initial(1)
    for now in (0.0, 2.0, 4.0, 60.0):
        decision = decide(state, seen(now, 1, 72, 8), WIDE, now)
        state = decision.state
        assert decision.desired == 10


def test_within_a_minute_only_so_many_are_added() -> None:
    spec = replace(WIDE, up_limit_per_minute=3)
    decisions = follow(State.initial(1), spec, [{"running": 200.0}] * 62)
    assert [d.desired for d in decisions] == [4] * 30 + [7] * 30 + [10] * 2


def test_within_a_minute_only_a_share_goes() -> None:
    spec = replace(WIDE, down_percent_per_minute=50, scale_down_delay_s=0)
    decisions = follow(State.initial(10), spec, [{"running": 1.0}] * 121)
    assert [decisions[tick].desired for tick in (0, 29, 30, 60, 90, 120)] == [5, 5, 3, 2, 1, 1]


def test_a_cache_that_is_nearly_full_asks_for_another_and_keeps_it() -> None:
    full = [{"running": 3.0, "kv_full": 0.95}] * 2
    assert [d.desired for d in follow(State.initial(1), SPEC, full)] == [2, 2]
    assert follow(State.initial(1), SPEC, [{"running": 3.0, "kv_full": 0.9}])[-1].desired == 1
    spread = [{"running": 3.0, "kv_full": 0.95}] * 40
    assert follow(State.initial(2), SPEC, spread)[-1].desired == 2


def test_rejected_requests_are_load_and_never_fit_into_what_is_there() -> None:
    assert decide(State.initial(1), seen(0.0, 1, rejected=1.0), WIDE, 0.0).desired == 2
    assert decide(State.initial(1), seen(0.0, 1, 0, 8, rejected=24.0), WIDE, 0.0).desired == 4
    # While the second one starts, the first goes on to reject.
    assert decide(State.initial(2), seen(0.0, 1, rejected=1.0), WIDE, 0.0).desired == 2


def test_requests_that_wait_for_long_get_a_replica_which_stays_while_the_load_does() -> None:
    world = World(SPEC, slots=4)
    assert [world.tick(8.0) for _ in range(5)] == [1] * 5
    assert {world.tick(8.0) for _ in range(100)} == {2}
    for _ in range(20):
        world.tick(4.0)
    assert world.state.desired == 1


def test_a_replica_that_just_came_gets_time_to_take_its_share() -> None:
    waits = {"waiting": 6.0, "running": 4.0}
    spec = replace(WIDE, queue_depth_per_replica=20)
    state = follow(State.initial(1), spec, [{"ready": 1, "answered": 1, **waits}] * 6)[-1].state
    assert state.desired == 2
    two = {"ready": 2, "answered": 2, "waiting": 10.0, "running": 8.0}
    assert [d.desired for d in follow(state, spec, [two] * 6, start=12.0)] == [2] * 5 + [3]


def test_what_was_too_few_for_a_load_is_too_few_for_more_and_not_for_less() -> None:
    loads = [8.0, 8.0, 6.0, 8.0, 8.0, 8.0]
    state = follow(State.initial(1), SPEC, [{"waiting": load - 4, "running": 4.0} for load in loads])[-1].state
    assert state.desired == 2
    assert state.crowded is not None
    assert (state.crowded.replicas, state.crowded.load) == (1, 6.0)
    fine = decide(state, seen(12.0, 1, 0, 6), SPEC, 12.0).state
    assert fine.crowded is None
    assert decide(state, seen(12.0, 1, 0, 5), SPEC, 12.0).state.crowded is not None


def test_a_few_that_wait_between_two_steps_are_no_queue() -> None:
    world = World(replace(SPEC, queue_depth_per_replica=64), slots=50)
    assert {world.tick(55.0) for _ in range(20)} == {1}


def test_no_starting_replica_goes_while_the_others_drown() -> None:
    spec = replace(WIDE, scale_down_delay_s=4.0)
    world = World(spec, startup_s=120.0, state=State.initial(2))
    world.now = 200.0
    world.births = [0.0, 0.0]
    assert world.tick(160.0) == 20
    assert world.state.panicking
    # The load halves and the delay agrees, but 10 are needed and 2 serve.
    assert {world.tick(80.0) for _ in range(20)} == {20}
    for _ in range(60):
        world.tick(80.0)
    assert not world.state.panicking
    assert world.state.desired == 10


def test_the_least_replicas_that_start_one_after_the_other_are_no_burst() -> None:
    spec = replace(WIDE, min_replicas=6)
    assert not decide(State.initial(6), seen(0.0, 1, 0, 3), spec, 0.0).state.panicking


def test_a_panic_outlives_a_restart() -> None:
    spec = replace(WIDE, scale_down_delay_s=0.0)
    kept = decide(State.initial(20, panicking=True), seen(0.0, 2, 0, 80), spec, 0.0)
    assert kept.desired == 20
    assert decide(State.initial(20), seen(0.0, 20, 0, 80), spec, 0.0).desired == 10


def test_a_panic_of_before_a_restart_lasts_a_whole_delay_again() -> None:
    decisions = follow(State.initial(10, panicking=True), WIDE, [{"running": 80.0}] * 16, start=1000.0)
    assert [d.state.panicking for d in decisions] == [True] * 15 + [False]


def idle(seconds: float, demand: Demand | None = None) -> list[dict[str, Any]]:
    return [{"demand": demand}] * (int(seconds / TICK_S) + 1)


def test_an_idle_model_goes_to_zero_and_requests_wake_it() -> None:
    decisions = follow(State.initial(1), ZERO, idle(60, Demand(0.0)))
    assert [d.desired for d in decisions] == [1] * 30 + [0]
    assert decisions[-1].reason == SCALED_TO_ZERO
    asleep = decisions[-1].state
    held = decide(asleep, seen(62.0, 0, demand=Demand(17.0)), ZERO, 62.0)
    assert (held.desired, held.reason) == (3, WOKEN)
    partly = decide(asleep, seen(62.0, 0, demand=Demand(1.0, complete=False)), ZERO, 62.0)
    assert partly.desired == 1


def test_a_request_between_two_looks_is_no_idleness() -> None:
    ticks = idle(58, Demand(0.0))
    ticks[15] = {"demand": Demand(0.0), "served": 1.0}
    assert follow(State.initial(1), ZERO, [*ticks, *idle(20, Demand(0.0))])[-1].desired == 1


def test_idleness_that_nobody_saw_does_not_count() -> None:
    state = follow(State.initial(1), ZERO, idle(40, Demand(0.0)))[-1].state
    decisions = follow(state, ZERO, idle(60, Demand(0.0)), start=56.0)
    assert [d.desired for d in decisions] == [1] * 30 + [0]


def test_an_engine_that_was_silent_for_long_is_not_known_to_have_been_idle() -> None:
    state = follow(State.initial(1), ZERO, idle(40, Demand(0.0)))[-1].state
    silent = [{"answered": 0, "demand": Demand(0.0)}] * 9
    state = follow(state, ZERO, silent, start=42.0)[-1].state
    decisions = follow(state, ZERO, idle(60, Demand(0.0)), start=60.0)
    assert [d.desired for d in decisions] == [1] * 30 + [0]


def test_a_silent_gateway_keeps_the_last_replica() -> None:
    decisions = follow(State.initial(1), ZERO, idle(200, Demand(0.0, complete=False)))
    assert {d.desired for d in decisions} == {1}


def test_what_nothing_could_wake_does_not_sleep() -> None:
    decisions = follow(State.initial(1), ZERO, idle(100))
    assert {d.desired for d in decisions} == {1}
    assert decisions[-1].reason == NO_WAKE_SIGNAL
    assert "RoutingPolicy" in decisions[-1].message
    # Who begins to tell has not told of the time before.
    begun = follow(decisions[-1].state, ZERO, idle(40, Demand(0.0)), start=102.0)
    assert {d.desired for d in begun} == {1}


def test_at_zero_a_signal_that_is_gone_is_told() -> None:
    state = follow(State.initial(1), ZERO, idle(60, Demand(0.0)))[-1].state
    decisions = [decide(state, seen(now, 0), ZERO, now) for now in (70.0, 90.0)]
    assert [d.reason for d in decisions] == [SCALED_TO_ZERO, NO_WAKE_SIGNAL]
    assert {d.desired for d in decisions} == {0}


def test_a_restart_at_zero_says_what_it_said_until_a_gateway_tells() -> None:
    first = decide(State.initial(0, NO_WAKE_SIGNAL), None, ZERO, 0.0)
    told = decide(first.state, seen(2.0, 0, demand=Demand(0.0)), ZERO, 2.0)
    assert [(d.desired, d.reason) for d in (first, told)] == [(0, NO_WAKE_SIGNAL), (0, SCALED_TO_ZERO)]


@pytest.mark.parametrize("reason", [UNSCHEDULABLE, QUOTA_EXCEEDED])
def test_replicas_that_find_no_place_keep_the_number_and_give_the_reason(reason: str) -> None:
    state = decide(State.initial(2), seen(0.0, 1, 100, blocked=reason), WIDE, 0.0)
    assert (state.desired, state.reason) == (2, reason)
    placed = decide(state.state, seen(2.0, 2, 100), WIDE, 2.0)
    assert (placed.desired, placed.reason) == (13, "ScaledOut")


def test_idle_replicas_make_room_for_something_more_important_before_their_delay() -> None:
    patient = replace(WIDE, scale_down_delay_s=600.0, down_percent_per_minute=25)
    waits = [{"running": 9.0, "wanted_elsewhere": True}] * 9
    decisions = follow(State.initial(6), patient, waits)
    assert [d.desired for d in decisions] == [6] * 8 + [2]
    assert decisions[-1].reason == SCALED_IN
    assert {d.desired for d in follow(State.initial(6), patient, [{"running": 9.0}] * 9)} == {6}
    last = follow(State.initial(1), ZERO, [{"demand": Demand(0.0), "wanted_elsewhere": True}] * 9)
    assert last[-1].desired == 0


def test_another_source_is_told_once_it_has_been_the_only_one_for_a_while() -> None:
    ticks = [{"source": "Pods"}, {"source": "Prometheus"}, {"source": "Pods"}, *[{"source": "Prometheus"}] * 10]
    told = [d.state.source for d in follow(State.initial(1), SPEC, ticks)]
    assert told == ["Pods"] * 11 + ["Prometheus"] * 2
    decisions = follow(State.initial(1), SPEC, ticks)
    assert decisions[0].message.endswith("The queues are read from the pods.")
    assert "Prometheus" in decisions[-1].message
