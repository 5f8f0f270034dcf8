"""What the batching model is told and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
class Sequence:
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
    sequence: Sequence
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
