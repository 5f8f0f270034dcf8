"""The scaler by example; its properties are in tests/properties."""

import math

from flotilla.domain.scaling import Sample, ScalingSpec, State, decide
from flotilla.domain.scaling.reasons import (
    AT_MAXIMUM,
    METRICS_MISSING,
    NO_READY_REPLICAS,
    STEADY,
)

TICK_S = 2.0
SPEC = ScalingSpec(1, 4, 8, 30.0, 15.0)


def test_no_ready_replica_is_told_after_a_while_and_over_a_restart() -> None:
    state = decide(State.initial(2), Sample(0.0, 2, 2, 0, 0), SPEC, 0.0).state
    now, reason = TICK_S, ""
    while now < 20:
        decision = decide(state, Sample(now, 0, 0, 0, 0), SPEC, now)
        state, now, reason = decision.state, now + TICK_S, decision.reason
    assert reason == NO_READY_REPLICAS
    again = decide(State.initial(2, reason), None, SPEC, 1000.0)
    assert (again.desired, again.reason) == (2, NO_READY_REPLICAS)
    answered = decide(again.state, Sample(1002.0, 2, 2, 0, 0), SPEC, 1002.0)
    assert answered.reason not in (NO_READY_REPLICAS, METRICS_MISSING)


def test_a_fresh_deployment_says_at_once_that_nothing_is_ready() -> None:
    fresh = decide(State.initial(1), Sample(0.0, 0, 0, 0, 0), SPEC, 0.0)
    assert (fresh.desired, fresh.reason) == (1, NO_READY_REPLICAS)
    assert decide(fresh.state, Sample(2.0, 1, 1, 0, 0), SPEC, 2.0).reason == STEADY


def test_a_restart_beside_serving_replicas_keeps_the_reason() -> None:
    assert decide(State.initial(2, STEADY), None, SPEC, 0.0).reason == STEADY


def test_the_maximum_is_told_while_the_load_asks_for_more() -> None:
    decision = decide(State.initial(1), Sample(0.0, 1, 1, 900, 0), SPEC, 0.0)
    assert (decision.desired, decision.reason) == (4, AT_MAXIMUM)
    assert "spec.scaling.maxReplicas" in decision.message


def test_a_stale_sample_is_not_believed() -> None:
    assert decide(State.initial(3), Sample(0.0, 3, 3, 900, 0), SPEC, 16.0).desired == 3


def test_a_number_that_is_no_number_is_not_believed() -> None:
    assert decide(State.initial(2), Sample(0.0, 2, 2, math.nan, 0), SPEC, 0.0).desired == 2
