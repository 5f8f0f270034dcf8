"""The model of one engine: what must hold for every sequence of arrivals, departures and looks at the clock."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flotilla.simulation.engine import (
    Batcher,
    BlockPool,
    Event,
    EventKind,
    Limits,
    Phase,
    SimulatedSequence,
    Speed,
    Steps,
)

SPEED = Speed(decode_tokens_per_s=2003.0, prefill_tokens_per_s=20011.0, overhead_s=0.0101234567)
FOREVER_S = 1e6


@dataclass(frozen=True)
class Operation:
    """After `wait` ticks submit a sequence, or abort the n-th last submitted one, or only look."""

    wait: int
    prompt: int = 0
    output: int = 0
    abort: int = -1


@dataclass
class Outcome:
    batcher: Batcher
    submitted: list[SimulatedSequence]
    events: list[Event | Steps]
    most_running: int

    def of_kind(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if isinstance(event, Event) and event.kind is kind]


LIMITS = st.builds(
    Limits,
    max_running=st.integers(1, 5),
    kv_blocks=st.integers(20, 60),
    block_size=st.sampled_from([1, 2, 4]),
    max_batched_tokens=st.sampled_from([1, 8, 64, 2048]),
)
OPERATIONS = st.lists(
    st.one_of(
        st.builds(Operation, wait=st.integers(0, 9), prompt=st.integers(1, 20), output=st.integers(1, 40)),
        st.builds(Operation, wait=st.integers(0, 9), abort=st.integers(0, 5)),
        st.builds(Operation, wait=st.integers(0, 40)),
    ),
    max_size=25,
)


def run(limits: Limits, operations: list[Operation], *, looks: int = 1, reserve: bool = False) -> Outcome:
    batcher = Batcher(limits, SPEED)
    outcome = Outcome(batcher, [], [], 0)
    now_s = 0.0

    def look(at_s: float) -> None:
        outcome.events += batcher.advance(at_s)
        outcome.most_running = max(outcome.most_running, len(batcher.running))
        assert 0 <= batcher.pool.free <= batcher.pool.total

    for operation in operations:
        later_s = now_s + operation.wait * 0.0077700123
        for part in range(1, looks + 1):
            look(now_s + (later_s - now_s) * part / looks)
        now_s = later_s
        room = limits.kv_blocks * limits.block_size
        if operation.prompt and operation.prompt + operation.output <= room:
            sequence = SimulatedSequence(operation.prompt, operation.output, operation.output if reserve else 0)
            batcher.submit(sequence, now_s)
            outcome.submitted.append(sequence)
        elif 0 <= operation.abort < len(outcome.submitted):
            batcher.abort(outcome.submitted[-1 - operation.abort], now_s)
        look(now_s)
    look(now_s + FOREVER_S)
    return outcome


@given(LIMITS, OPERATIONS, st.booleans())
@settings(max_examples=200)
def test_every_sequence_ends_once_and_leaves_nothing_behind(
    limits: Limits, operations: list[Operation], reserve: bool
) -> None:
    outcome = run(limits, operations, reserve=reserve)
    ended = [event.sequence for event in outcome.of_kind(EventKind.FINISHED) + outcome.of_kind(EventKind.ABORTED)]
    assert set(ended) == set(outcome.submitted)
    assert len(ended) == len(outcome.submitted)
    assert outcome.batcher.unfinished == 0
    assert outcome.batcher.pool.used == 0
    assert outcome.batcher.backlog_tokens == 0
    assert outcome.batcher.next_event_s is None or outcome.batcher.next_event_s < FOREVER_S


@given(LIMITS, OPERATIONS, st.booleans())
@settings(max_examples=200)
def test_tokens_of_steps_counters_and_sequences_agree(
    limits: Limits, operations: list[Operation], reserve: bool
) -> None:
    outcome = run(limits, operations, reserve=reserve)
    steps = [event for event in outcome.events if isinstance(event, Steps)]
    first = len(outcome.of_kind(EventKind.FIRST_TOKEN)) + len(outcome.of_kind(EventKind.RESUMED))
    streamed = sum(outcome.batcher.tokens(sequence) for sequence in outcome.submitted)
    assert outcome.batcher.generated_tokens == streamed
    assert sum(step.count * step.decoding for step in steps) + first == streamed
    for event in outcome.of_kind(EventKind.FINISHED):
        assert outcome.batcher.tokens(event.sequence) == event.sequence.output_tokens


@given(LIMITS, OPERATIONS)
@settings(max_examples=200)
def test_sequences_are_admitted_in_order_and_never_above_the_slots(limits: Limits, operations: list[Operation]) -> None:
    outcome = run(limits, operations)
    admitted = [event.sequence for event in outcome.of_kind(EventKind.ADMITTED)]
    assert admitted == [sequence for sequence in outcome.submitted if sequence.admitted_s is not None]
    assert outcome.most_running <= limits.max_running


@given(LIMITS, OPERATIONS)
@settings(max_examples=200)
def test_times_of_a_sequence_are_in_order_and_at_least_what_its_steps_take(
    limits: Limits, operations: list[Operation]
) -> None:
    for sequence in run(limits, operations).submitted:
        if sequence.phase is not Phase.FINISHED:
            continue
        assert sequence.admitted_s is not None
        assert sequence.first_token_s is not None
        assert sequence.ended_s is not None
        assert sequence.arrived_s <= sequence.admitted_s < sequence.first_token_s <= sequence.ended_s
        least_s = sequence.output_tokens * SPEED.overhead_s
        assert sequence.ended_s - sequence.admitted_s >= least_s * 0.999


@given(LIMITS, OPERATIONS)
@settings(max_examples=200)
def test_jumping_over_steps_gives_the_same_times_as_looking_all_the_time(
    limits: Limits, operations: list[Operation]
) -> None:
    seldom, often = run(limits, operations), run(limits, operations, looks=17)
    assert len(seldom.submitted) == len(often.submitted)
    for one, other in zip(seldom.submitted, often.submitted, strict=True):
        assert one.phase is other.phase
        assert one.preemptions == other.preemptions
        assert one.ended_s == pytest.approx(other.ended_s, abs=1e-6)
        assert one.first_token_s == pytest.approx(other.first_token_s, abs=1e-6)


@given(
    blocks=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    block_size=st.sampled_from([1, 4, 16]),
    step=st.integers(0, 100),
    free=st.integers(0, 40),
)
def test_the_pool_foresees_the_step_at_which_blocks_run_out(
    blocks: list[int], block_size: int, step: int, free: int
) -> None:
    pool = BlockPool(blocks=free, block_size=block_size)
    for length in blocks:
        pool.add_grower(length - step)
    covered = pool.steps_covered(step)
    assert covered is not None

    def needed(until: int) -> int:
        """Counted one by one: a sequence of `length + s` tokens takes a block where that is a multiple."""
        return sum((length + s) % block_size == 0 for s in range(1, until + 1) for length in blocks)

    assert needed(covered) <= free < needed(covered + 1)
    pool.grow_through(step + 1, step + covered)
    assert pool.free == free - needed(covered)


def test_a_lone_sequence_takes_its_prefill_and_one_step_per_token() -> None:
    batcher = Batcher(Limits(max_running=4, kv_blocks=100), Speed(1000.0, 10000.0, 0.01))
    sequence = SimulatedSequence(prompt_tokens=100, output_tokens=11)
    batcher.submit(sequence, 5.0)
    batcher.advance(100.0)
    assert sequence.first_token_s == pytest.approx(5.0 + 0.01 + 100 / 10000)
    assert sequence.ended_s == pytest.approx(5.02 + 10 * (0.01 + 1 / 1000))


def decode_rate(sequences: int) -> float:
    """Tokens a second of all together, once all decode."""
    batcher = Batcher(Limits(max_running=1000, kv_blocks=10**6), Speed(2000.0, 1e9, 0.01))
    for _ in range(sequences):
        batcher.submit(SimulatedSequence(prompt_tokens=1, output_tokens=10**6), 0.0)
    batcher.advance(1.0)
    before = batcher.generated_tokens
    batcher.advance(101.0)
    return (batcher.generated_tokens - before) / 100


def test_speed_falls_per_sequence_and_rises_in_total_to_the_plateau() -> None:
    rates = [decode_rate(sequences) for sequences in (1, 4, 16, 64, 256, 900)]
    assert rates == sorted(rates)
    assert [rate / n for rate, n in zip(rates, (1, 4, 16, 64, 256, 900), strict=True)] == sorted(
        (rate / n for rate, n in zip(rates, (1, 4, 16, 64, 256, 900), strict=True)), reverse=True
    )
    assert rates[0] == pytest.approx(95, abs=2)
    assert 1900 < rates[-1] < 2000


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    batcher = Batcher(Limits(max_running=4, kv_blocks=1000, max_batched_tokens=100), SPEED)
    decoding = SimulatedSequence(prompt_tokens=10, output_tokens=1000)
    batcher.submit(decoding, 0.0)
    batcher.advance(0.1)
    batcher.submit(SimulatedSequence(prompt_tokens=500, output_tokens=5), 0.1)
    chunks = [
        (event.decoding, event.prefill_tokens)
        for event in batcher.advance(1.0)
        if isinstance(event, Steps) and event.prefill_tokens
    ]
    assert [tokens for _, tokens in chunks] == [99, 99, 99, 99, 99, 5]
    assert all(sequences == 1 for sequences, _ in chunks)


def test_the_youngest_gives_way_when_the_cache_is_full_and_still_gets_all_its_tokens() -> None:
    batcher = Batcher(Limits(max_running=4, kv_blocks=8, block_size=4), SPEED)
    old, young = (
        SimulatedSequence(prompt_tokens=8, output_tokens=16),
        SimulatedSequence(prompt_tokens=8, output_tokens=16),
    )
    batcher.submit(old, 0.0)
    batcher.submit(young, 0.0)
    batcher.advance(10.0)
    assert (old.preemptions, young.preemptions > 0) == (0, True)
    assert batcher.tokens(old) == batcher.tokens(young) == 16
    assert old.ended_s is not None
    assert young.ended_s is not None
    assert old.ended_s < young.ended_s


def test_what_was_preempted_goes_on_before_those_who_came_later() -> None:
    batcher = Batcher(Limits(max_running=2, kv_blocks=8, block_size=4), SPEED)
    old, young, late = (SimulatedSequence(prompt_tokens=8, output_tokens=16) for _ in range(3))
    for sequence in (old, young, late):
        batcher.submit(sequence, 0.0)
    batcher.advance(10.0)
    assert young.preemptions > 0
    assert old.ended_s is not None
    assert late.admitted_s is not None
    assert late.admitted_s >= old.ended_s


def test_a_reservation_keeps_the_next_one_waiting_and_nothing_is_preempted() -> None:
    batcher = Batcher(Limits(max_running=4, kv_blocks=24, block_size=1), SPEED)
    first, second = SimulatedSequence(4, 10, reserve_tokens=10), SimulatedSequence(4, 10, reserve_tokens=10)
    batcher.submit(first, 0.0)
    batcher.submit(second, 0.0)
    batcher.advance(0.03)
    assert batcher.kv_usage == pytest.approx(14 / 24)
    assert list(batcher.waiting) == [second]
    batcher.advance(10.0)
    assert first.ended_s == pytest.approx(second.admitted_s)
    assert first.preemptions == second.preemptions == 0


def test_kv_usage_follows_the_tokens() -> None:
    batcher = Batcher(Limits(max_running=4, kv_blocks=10, block_size=16), SPEED)
    batcher.submit(SimulatedSequence(prompt_tokens=32, output_tokens=100), 0.0)
    assert batcher.kv_usage == pytest.approx(0.3)  # the first output token has its block from the start
    batcher.advance(0.5)
    assert batcher.kv_usage == pytest.approx(-(-(32 + batcher.tokens(next(iter(batcher.running))) + 1) // 16) / 10)


def test_the_request_limit_counts_running_and_waiting() -> None:
    batcher = Batcher(Limits(max_running=1, kv_blocks=100, max_unfinished=3), SPEED)
    for _ in range(3):
        assert batcher.refusal() is None
        batcher.submit(SimulatedSequence(prompt_tokens=1, output_tokens=5), 0.0)
    assert batcher.refusal() == "max_num_queued_reqs"
    batcher.advance(10.0)
    assert batcher.refusal(3) is None
    assert batcher.refusal(4) == "max_num_queued_reqs"


def test_the_backlog_limit_counts_prompts_that_are_not_prefilled() -> None:
    batcher = Batcher(Limits(max_running=8, kv_blocks=100, max_prefill_backlog_tokens=50), SPEED)
    batcher.submit(SimulatedSequence(prompt_tokens=60, output_tokens=50), 0.0)
    assert batcher.refusal() == "max_num_queued_tokens"
    batcher.advance(0.1)
    assert batcher.refusal() is None


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        (SimulatedSequence(prompt_tokens=0, output_tokens=1), "at least one prompt token"),
        (SimulatedSequence(prompt_tokens=1, output_tokens=0), "at least one prompt token"),
        (SimulatedSequence(prompt_tokens=160, output_tokens=1), "161 tokens does not fit into 10"),
        (SimulatedSequence(prompt_tokens=1, output_tokens=9, reserve_tokens=3), "hold the whole output"),
    ],
)
def test_a_sequence_that_can_never_run_is_refused(sequence: SimulatedSequence, reason: str) -> None:
    batcher = Batcher(Limits(max_running=1, kv_blocks=10), SPEED)
    with pytest.raises(ValueError, match=reason):
        batcher.submit(sequence, 0.0)
    assert batcher.unfinished == 0
