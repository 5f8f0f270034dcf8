"""One replica of the simulated fleet: it starts, serves, drains and is gone."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from flotilla.domain.simulation.batching import Batcher
from flotilla.domain.simulation.sequences import Event, EventKind, Limits, Phase, Sequence, Speed
from flotilla.domain.simulation.trace import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What every replica is. `startup_s`: from its creation to its first request; `drain_s`: then it is killed."""

    limits: Limits
    speed: Speed
    context_tokens: int
    startup_s: float
    drain_s: float

    def could_serve(self, request: Request) -> bool:
        """Whether one that is alone on a replica would get its answer."""
        tokens = request.prompt_tokens + request.output_tokens
        return tokens <= min(self.context_tokens, self.limits.kv_blocks * self.limits.block_size)


@dataclass(slots=True, eq=False)
class Asked:
    """A request on its way. `sequence` is None while no replica is there to take it."""

    request: Request
    sequence: Sequence | None = None
    dropped_s: float | None = None

    @property
    def admitted_s(self) -> float | None:
        return None if self.sequence is None else self.sequence.admitted_s

    @property
    def served(self) -> bool:
        return self.sequence is not None and self.sequence.phase is Phase.FINISHED


@dataclass(slots=True, eq=False)
class Replica:
    """`created_s` to `gone_s` is what is paid for."""

    engine: Engine
    created_s: float
    ready_s: float
    batcher: Batcher = field(init=False)
    draining_s: float | None = None
    gone_s: float | None = None
    served: int = 0
    _last_end_s: float = 0.0
    _asked: dict[Sequence, Asked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.engine.limits, self.engine.speed)

    def is_ready(self, now_s: float) -> bool:
        return self.draining_s is None and self.gone_s is None and self.ready_s <= now_s

    @property
    def unfinished(self) -> int:
        return self.batcher.unfinished

    def advance(self, now_s: float) -> None:
        """Let the engine work until now; a draining replica goes when its last answer is out."""
        if self.gone_s is not None:
            return
        for event in self.batcher.advance(now_s):
            if isinstance(event, Event) and event.kind in (EventKind.FINISHED, EventKind.ABORTED):
                self._last_end_s = event.at_s
                self.served += event.kind is EventKind.FINISHED
                self._asked.pop(event.sequence, None)
        if self.draining_s is not None and not self.unfinished:
            self.gone_s = max(self.draining_s, self._last_end_s)

    def take(self, asked: Asked, now_s: float) -> bool:
        """False where the engine refuses because of its limits."""
        if self.batcher.refusal() is not None:
            return False
        asked.sequence = Sequence(asked.request.prompt_tokens, asked.request.output_tokens)
        self._asked[asked.sequence] = asked
        self.batcher.submit(asked.sequence, now_s)
        return True

    def give_up(self, asked: Asked, now_s: float) -> None:
        """The client leaves."""
        assert asked.sequence is not None
        self.batcher.abort(asked.sequence, now_s)
        self.advance(now_s)

    def drain(self, now_s: float) -> None:
        """No new request from now on."""
        self.draining_s = now_s
        self.advance(now_s)

    def kill(self, now_s: float) -> Iterator[Asked]:
        """The end of its patience: what it had not answered is returned."""
        self.advance(now_s)
        if self.gone_s is None:
            yield from self._asked.values()
            self.gone_s = now_s
