"""A model of a continuously batching engine: sequences, KV cache, iterations."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class BlockPool:
    """A fixed number of blocks of `block_size` tokens.

    Sequences that decode take one block each time their length passes a multiple of the block size. As all of
    them advance by one token a step, when a sequence does so depends on the step number alone: its phase. The
    pool keeps a count per phase, so that a step costs nothing per sequence.
    """

    def __init__(self, *, blocks: int, block_size: int) -> None:
        self.total = blocks
        self.free = blocks
        self.block_size = block_size
        self._growing = [0] * block_size
        self._growers = 0

    @property
    def used(self) -> int:
        return self.total - self.free

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def take(self, blocks: int) -> None:
        self.free -= blocks

    def give(self, blocks: int) -> None:
        self.free += blocks

    def phase(self, offset: int) -> int:
        """Of a sequence whose length at step s is `s + offset` tokens."""
        return -offset % self.block_size

    def add_grower(self, offset: int) -> None:
        self._growing[self.phase(offset)] += 1
        self._growers += 1

    def remove_grower(self, offset: int) -> None:
        self._growing[self.phase(offset)] -= 1
        self._growers -= 1

    def growth_at(self, step: int) -> int:
        """Blocks that the growing sequences need before `step` can run."""
        return self._growing[step % self.block_size]

    def grow_through(self, first: int, last: int) -> None:
        """Take the growth of the steps `first` to `last`, both included."""
        cycles, rest = divmod(max(0, last - first + 1), self.block_size)
        self.free -= cycles * self._growers
        self.free -= sum(self.growth_at(first + step) for step in range(rest))

    def steps_covered(self, step: int) -> int | None:
        """How many steps after `step` the free blocks last; None: without end."""
        if not self._growers:
            return None
        cycles, left = divmod(self.free, self._growers)
        steps = cycles * self.block_size
        for ahead in range(1, self.block_size):
            left -= self.growth_at(step + ahead)
            if left < 0:
                break
            steps += 1
        return steps


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine admits. `max_unfinished` counts running and waiting requests, None is no limit."""

    max_running: int
    kv_blocks: int
    block_size: int = 16
    max_batched_tokens: int = 2048
    max_unfinished: int | None = None
    max_prefill_backlog_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """A step takes overhead_s + decoding / decode_tokens_per_s + prompt / prefill_tokens_per_s seconds.

    So one sequence gets nearly 1 / overhead_s tokens a second, and all together never more than
    `decode_tokens_per_s`, the plateau.
    """

    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    overhead_s: float

    def step_s(self, *, decoding: int, prefill_tokens: int) -> float:
        return self.overhead_s + decoding / self.decode_tokens_per_s + prefill_tokens / self.prefill_tokens_per_s


class Phase(Enum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """One output to generate.

    `reserve_tokens` > 0: blocks for so many output tokens are held from admission on.
    `finish_reason` is for the owner.
    """

    prompt_tokens: int
    output_tokens: int
    reserve_tokens: int = 0
    finish_reason: str = "stop"
    phase: Phase = Phase.WAITING
    arrived_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    stalled_since_s: float | None = None
    preemptions: int = 0
    emitted: int = 0
    prefill_left: int = 0
    base_step: int = 0


class EventKind(Enum):
    ADMITTED = "admitted"
    FIRST_TOKEN = "first-token"  # noqa: S105 - not a password
    RESUMED = "resumed"
    PREEMPTED = "preempted"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a sequence; `stall_s`: how long one that was preempted got no token."""

    kind: EventKind
    sequence: SimulatedSequence
    at_s: float
    stall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Steps:
    """`count` equal steps of `duration_s` each, in which `decoding` sequences got a token each."""

    count: int
    duration_s: float
    decoding: int
    prefill_tokens: int
    sequences: int


EPSILON_S: Final = 1e-9
"""Timers fire at rounded times: a step that ends so soon after now has ended."""


@dataclass(slots=True)
class _Step:
    ends_s: float
    duration_s: float
    prefill: list[tuple[SimulatedSequence, int]] = field(default_factory=list)


class Batcher:
    """The scheduler of one engine. Every method takes `now_s`, which must not go backwards."""

    def __init__(self, limits: Limits, speed: Speed) -> None:
        self.limits = limits
        self.speed = speed
        self.pool = BlockPool(blocks=limits.kv_blocks, block_size=limits.block_size)
        self.waiting: deque[SimulatedSequence] = deque()
        self.running: dict[SimulatedSequence, None] = {}
        self.generated_tokens = 0
        self.prefilled_tokens = 0
        self.backlog_tokens = 0
        self._step_number = 0
        self._step: _Step | None = None
        self._reschedule = False
        self._decoding = 0
        self._finish_heap: list[tuple[int, int, SimulatedSequence]] = []
        self._order = 0
        self._events: list[Event | Steps] = []

    @property
    def kv_usage(self) -> float:
        """0 to 1."""
        return self.pool.used / self.pool.total

    @property
    def unfinished(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def next_event_s(self) -> float | None:
        """When a sequence gets its first token, ends, or the batch changes; None: nothing runs."""
        if self._step is None:
            return None
        return self._step.ends_s + (self._uniform_steps() - 1) * self._step.duration_s

    def tokens(self, sequence: SimulatedSequence) -> int:
        """Tokens produced for a sequence by the time of the last call of `advance`."""
        if sequence.phase is Phase.DECODE:
            return self._step_number - sequence.base_step
        return sequence.emitted

    def refusal(self, sequences: int = 1) -> str | None:
        """The limit that keeps so many more sequences out, by the name of its vLLM option."""
        unfinished, backlog = self.limits.max_unfinished, self.limits.max_prefill_backlog_tokens
        if unfinished is not None and self.unfinished + sequences > unfinished:
            return "max_num_queued_reqs"
        if backlog is not None and self.backlog_tokens >= backlog:
            return "max_num_queued_tokens"
        return None

    def submit(self, sequence: SimulatedSequence, now_s: float) -> None:
        """Put a sequence at the end of the queue.

        Raises ValueError where it could never run: no tokens to make, or more than the whole KV cache.
        """
        if 0 < sequence.reserve_tokens < sequence.output_tokens:
            raise ValueError("A reservation must hold the whole output.")
        longest = sequence.prompt_tokens + max(sequence.output_tokens, sequence.reserve_tokens)
        if sequence.prompt_tokens < 1 or sequence.output_tokens < 1:
            raise ValueError("A sequence needs at least one prompt token and one output token.")
        if self.pool.blocks_for(longest) > self.pool.total:
            raise ValueError(f"A sequence of {longest} tokens does not fit into {self.pool.total} KV-cache blocks.")
        self._catch_up(now_s)
        sequence.arrived_s = now_s
        self.waiting.append(sequence)
        self.backlog_tokens += sequence.prompt_tokens
        self._reschedule = True
        if self._step is None:
            self._begin_step(now_s)

    def abort(self, sequence: SimulatedSequence, now_s: float) -> None:
        """Drop a sequence; what it had produced stays counted. Without effect once it has ended."""
        self._catch_up(now_s)
        if sequence.phase in (Phase.FINISHED, Phase.ABORTED):
            return
        if sequence.phase is Phase.WAITING:
            self.waiting.remove(sequence)
        else:
            self._leave_batch(sequence, blocks=self._held(sequence, mid_step=True))
        if sequence.first_token_s is None:
            self.backlog_tokens -= sequence.prompt_tokens
        self._end(sequence, Phase.ABORTED, EventKind.ABORTED, now_s)
        self._reschedule = True

    def advance(self, now_s: float) -> list[Event | Steps]:
        """Run all steps that end by `now_s` and return what happened since the last call, in order."""
        self._catch_up(now_s)
        events, self._events = self._events, []
        return events

    def _catch_up(self, now_s: float) -> None:
        while self._step is not None and self._step.ends_s <= now_s + EPSILON_S:
            step = self._step
            ended = 1 + int((now_s + EPSILON_S - step.ends_s) / step.duration_s)
            count = min(ended, self._uniform_steps())
            boundary_s = step.ends_s + (count - 1) * step.duration_s
            self._end_steps(step, count, boundary_s)
            self._begin_step(boundary_s)

    def _uniform_steps(self) -> int:
        """Steps, the current one included, until the batch may change for the first time."""
        step = self._step
        if step is None or self._reschedule or step.prefill:
            return 1
        while self._finish_heap and not self._is_live(self._finish_heap[0]):
            heapq.heappop(self._finish_heap)
        if not self._finish_heap:
            return 1
        steps = self._finish_heap[0][0] - self._step_number
        covered = self.pool.steps_covered(self._step_number)
        return steps if covered is None else min(steps, covered + 1)

    def _is_live(self, entry: tuple[int, int, SimulatedSequence]) -> bool:
        finish_step, _, sequence = entry
        return sequence.phase is Phase.DECODE and sequence.base_step + sequence.output_tokens == finish_step

    def _end_steps(self, step: _Step, count: int, boundary_s: float) -> None:
        first = self._step_number
        self._step_number += count
        self.pool.grow_through(first + 1, self._step_number - 1)
        self.generated_tokens += count * self._decoding
        prefilled = sum(chunk for sequence, chunk in step.prefill if sequence.phase is Phase.PREFILL)
        self._events.append(Steps(count, step.duration_s, self._decoding, prefilled, len(self.running)))
        for sequence in self._due():
            sequence.emitted = sequence.output_tokens
            self._leave_batch(sequence, blocks=self._held(sequence, mid_step=False))
            self._end(sequence, Phase.FINISHED, EventKind.FINISHED, boundary_s)
        for sequence, chunk in step.prefill:
            if sequence.phase is Phase.PREFILL:
                sequence.prefill_left -= chunk
                if not sequence.prefill_left:
                    self._prefilled(sequence, boundary_s)

    def _due(self) -> Iterator[SimulatedSequence]:
        while self._finish_heap and self._finish_heap[0][0] <= self._step_number:
            entry = heapq.heappop(self._finish_heap)
            if self._is_live(entry):
                yield entry[2]

    def _prefilled(self, sequence: SimulatedSequence, now_s: float) -> None:
        """The step that ends a prefill makes a token too: the first, or the next after a preemption."""
        sequence.emitted += 1
        self.generated_tokens += 1
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
            self.prefilled_tokens += sequence.prompt_tokens
            self.backlog_tokens -= sequence.prompt_tokens
            self._events.append(Event(EventKind.FIRST_TOKEN, sequence, now_s))
        else:
            stalled_since_s = now_s if sequence.stalled_since_s is None else sequence.stalled_since_s
            self._events.append(Event(EventKind.RESUMED, sequence, now_s, stall_s=now_s - stalled_since_s))
        if sequence.emitted == sequence.output_tokens:
            self._leave_batch(sequence, blocks=self._held(sequence, mid_step=False))
            self._end(sequence, Phase.FINISHED, EventKind.FINISHED, now_s)
            return
        sequence.phase = Phase.DECODE
        sequence.base_step = self._step_number - sequence.emitted
        self._decoding += 1
        if not sequence.reserve_tokens:
            self.pool.add_grower(sequence.prompt_tokens - sequence.base_step)
        self._order += 1
        finish_step = sequence.base_step + sequence.output_tokens
        heapq.heappush(self._finish_heap, (finish_step, self._order, sequence))

    def _begin_step(self, now_s: float) -> None:
        preempted = self._make_room(now_s)
        prefill = self._plan_prefill(now_s, admit=not preempted)
        self._reschedule = preempted
        if not self.running:
            self._step = None
            return
        duration_s = self.speed.step_s(decoding=self._decoding, prefill_tokens=sum(chunk for _, chunk in prefill))
        self._step = _Step(ends_s=now_s + duration_s, duration_s=duration_s, prefill=prefill)

    def _make_room(self, now_s: float) -> bool:
        """Blocks for the next token of each decoding sequence; the youngest give way where they lack."""
        preempted = False
        while (need := self.pool.growth_at(self._step_number)) > self.pool.free:
            self._preempt(next(reversed(self.running)), now_s)
            preempted = True
        self.pool.take(need)
        return preempted

    def _preempt(self, sequence: SimulatedSequence, now_s: float) -> None:
        sequence.emitted = self.tokens(sequence)
        self._leave_batch(sequence, blocks=self._held(sequence, mid_step=False))
        sequence.phase = Phase.WAITING
        sequence.preemptions += 1
        if sequence.stalled_since_s is None:
            sequence.stalled_since_s = now_s
        self.waiting.appendleft(sequence)
        self._events.append(Event(EventKind.PREEMPTED, sequence, now_s))

    def _plan_prefill(self, now_s: float, *, admit: bool) -> list[tuple[SimulatedSequence, int]]:
        budget = self.limits.max_batched_tokens - self._decoding
        plan: list[tuple[SimulatedSequence, int]] = []
        for sequence in self.running:
            if sequence.phase is Phase.PREFILL and budget > 0:
                chunk = min(sequence.prefill_left, budget)
                plan.append((sequence, chunk))
                budget -= chunk
        while admit and budget > 0 and self.waiting and self._admit(self.waiting[0], now_s):
            sequence = self.waiting.popleft()
            chunk = min(sequence.prefill_left, budget)
            plan.append((sequence, chunk))
            budget -= chunk
        return plan

    def _admit(self, sequence: SimulatedSequence, now_s: float) -> bool:
        held = max(sequence.emitted + 1, sequence.reserve_tokens)
        blocks = self.pool.blocks_for(sequence.prompt_tokens + held)
        if len(self.running) >= self.limits.max_running or blocks > self.pool.free:
            return False
        self.pool.take(blocks)
        self.running[sequence] = None
        sequence.phase = Phase.PREFILL
        sequence.prefill_left = sequence.prompt_tokens + sequence.emitted
        if sequence.admitted_s is None:
            sequence.admitted_s = now_s
            self._events.append(Event(EventKind.ADMITTED, sequence, now_s))
        return True

    def _held(self, sequence: SimulatedSequence, *, mid_step: bool) -> int:
        """Blocks of a sequence in the batch; in a step one that decodes holds the next token's place."""
        if sequence.reserve_tokens:
            return self.pool.blocks_for(sequence.prompt_tokens + sequence.reserve_tokens)
        ahead = 0
        if sequence.phase is Phase.PREFILL:
            ahead = 0 if sequence.prefill_left == 0 else 1
        elif mid_step:
            ahead = 1
        return self.pool.blocks_for(sequence.prompt_tokens + self.tokens(sequence) + ahead)

    def _leave_batch(self, sequence: SimulatedSequence, *, blocks: int) -> None:
        del self.running[sequence]
        self.pool.give(blocks)
        if sequence.phase is Phase.DECODE:
            sequence.emitted = self.tokens(sequence)
            self._decoding -= 1
            if not sequence.reserve_tokens:
                self.pool.remove_grower(sequence.prompt_tokens - sequence.base_step)

    def _end(self, sequence: SimulatedSequence, phase: Phase, kind: EventKind, now_s: float) -> None:
        sequence.phase = phase
        sequence.ended_s = now_s
        self._events.append(Event(kind, sequence, now_s))
