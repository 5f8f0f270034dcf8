"""The simulated fleet: nothing is lost, the same question has the same answer, and more replicas never wait longer."""

from dataclasses import dataclass
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from flotilla.scaling.autoscaler import ScalingParameters
from flotilla.simulation.engine import Limits, Speed
from flotilla.simulation.fleet import (
    EngineModel,
    Flotilla,
    Observation,
    Run,
    ScalingPolicy,
    figures,
    percentile,
    simulate,
)
from flotilla.simulation.trace import Trace, TraceRequest, from_requests

SPEED = Speed(decode_tokens_per_s=211.0, prefill_tokens_per_s=1009.0, overhead_s=0.0213)


@dataclass
class Script:
    """A policy that asks for what somebody wrote down."""

    wishes: list[int]
    interval_s: float

    def decide(self, seen: Observation) -> int:
        return self.wishes[min(round(seen.now_s / self.interval_s), len(self.wishes) - 1)]


REQUESTS = st.lists(
    st.builds(
        TraceRequest,
        st.integers(0, 300).map(lambda tenths: tenths / 10),
        st.integers(1, 40),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=30,
)
DURATION_S = 30.0
"""Six moves of a script, and long enough for a replica to start, serve and drain."""
LONG_S = 200.0
"""After which nothing is under way: who was not admitted has left, the rest has its tokens."""
ENGINES = st.builds(
    EngineModel,
    limits=st.builds(
        Limits,
        max_running=st.integers(1, 4),
        kv_blocks=st.integers(25, 60),
        block_size=st.just(4),
        max_unfinished=st.sampled_from([None, 3, 10]),
    ),
    speed=st.just(SPEED),
    context_tokens=st.integers(60, 100),
    startup_s=st.sampled_from([0.0, 3.0, 20.0]),
    drain_s=st.sampled_from([0.0, 2.0, 30.0]),
)
POLICIES = st.one_of(
    st.builds(Script, st.lists(st.integers(0, 4), min_size=1, max_size=8), interval_s=st.just(5.0)),
    st.builds(
        Flotilla,
        st.builds(
            ScalingParameters,
            min_replicas=st.just(1),
            max_replicas=st.integers(1, 5),
            queue_depth_per_replica=st.integers(1, 4),
            scale_down_delay_s=st.sampled_from([0.0, 10.0]),
        ),
        initial=st.just(1),
    ),
)


def run(
    requests: list[TraceRequest], policy: ScalingPolicy, engine: EngineModel, *, tail_s: float, patience_s: float = 15.0
) -> Run:
    trace = from_requests("test", requests, duration_s=DURATION_S)
    return simulate(trace, policy, engine, initial=1, patience_s=patience_s, tail_s=tail_s)


@given(REQUESTS, POLICIES, ENGINES, st.sampled_from([0.0, 7.0, LONG_S]))
def test_every_request_is_served_dropped_refused_or_still_there(
    requests: list[TraceRequest], policy: ScalingPolicy, engine: EngineModel, tail_s: float
) -> None:
    found = run(requests, policy, engine, tail_s=tail_s)
    f = figures(found)
    assert f.arrived == len([r for r in requests if r.at_s <= DURATION_S + tail_s])
    assert f.arrived == f.served + f.dropped + f.rejected + f.in_flight
    if tail_s == LONG_S:
        assert f.in_flight == 0
    last = found.rows[-1]
    assert last.arrived >= last.served + last.dropped + last.rejected
    for row in found.rows:
        assert row.arrived - row.served - row.dropped - row.rejected >= row.waiting + row.running + row.held


@given(REQUESTS, st.lists(st.integers(0, 4), min_size=1, max_size=15), ENGINES)
@settings(max_examples=50)
def test_the_same_question_has_the_same_answer(
    requests: list[TraceRequest], wishes: list[int], engine: EngineModel
) -> None:
    one, other = (run(requests, Script(wishes, 5.0), engine, tail_s=50.0) for _ in range(2))
    assert figures(one) == figures(other)
    assert one.rows == other.rows


@given(REQUESTS, POLICIES, ENGINES)
@settings(max_examples=100)
def test_replicas_are_what_was_asked_for_and_are_paid_from_creation_to_the_last_answer(
    requests: list[TraceRequest], policy: ScalingPolicy, engine: EngineModel
) -> None:
    found = run(requests, policy, engine, tail_s=50.0)
    for replica in found.replicas:
        if replica.gone_s is not None:
            assert replica.draining_s is not None
            assert replica.created_s <= replica.draining_s <= replica.gone_s <= replica.draining_s + engine.drain_s
    for row in found.rows:
        assert row.ready + row.starting == row.wanted
        assert row.held == 0 or row.ready == 0
    assert figures(found).replica_hours >= 0


@given(st.integers(0, 599), st.integers(1, 40), st.integers(1, 60), st.integers(1, 3), st.integers(1, 3))
def test_more_replicas_never_wait_longer_for_requests_of_equal_length(
    gap: int, prompt: int, output: int, fewer: int, more: int
) -> None:
    requests = [TraceRequest(n * gap / 1000, prompt, output) for n in range(20)]
    engine = EngineModel(
        limits=Limits(max_running=2, kv_blocks=100, block_size=4),
        speed=SPEED,
        context_tokens=400,
        startup_s=0.0,
        drain_s=0.0,
    )

    def worst(replicas: int) -> float:
        trace = from_requests("test", requests, duration_s=DURATION_S)
        found = simulate(trace, Script([replicas], 5.0), engine, initial=replicas, patience_s=1e6, tail_s=100.0)
        wait_s = figures(found).wait_p99_s
        assert wait_s is not None
        return wait_s

    # Who comes in the middle of a step waits for its end.
    step_s = SPEED.step_s(decoding=2, prefill_tokens=2 * prompt)
    assert worst(fewer + more) <= worst(fewer) + step_s


def test_who_is_never_served_waits_until_patience_ends() -> None:
    engine = EngineModel(
        limits=Limits(max_running=1, kv_blocks=100, block_size=4),
        speed=SPEED,
        context_tokens=400,
        startup_s=1000.0,
        drain_s=0.0,
    )
    trace = from_requests("test", [TraceRequest(5.0, 3, 3)], duration_s=10.0)
    f = figures(simulate(trace, Script([1], 5.0), engine, initial=0, patience_s=30.0, tail_s=100.0))
    assert (f.served, f.dropped, f.wait_p99_s) == (0, 1, 30.0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(v <= found for v in values) * 100 >= percent * len(values)
    smaller = [v for v in values if v < found]
    assert not smaller or len(smaller) * 100 < percent * len(values)


@given(REQUESTS, st.fractions(Fraction(1, 10), Fraction(5), max_denominator=10))
def test_a_scaled_trace_has_the_shape_and_so_many_times_the_requests(
    requests: list[TraceRequest], factor: Fraction
) -> None:
    trace = from_requests("test", requests, duration_s=60.0)
    scaled = trace.scaled(float(factor))
    assert abs(len(scaled.requests) - len(requests) * factor) <= 1
    assert list(scaled.requests) == sorted(scaled.requests, key=lambda r: r.at_s)
    assert isinstance(scaled, Trace)
    assert scaled.duration_s == trace.duration_s
