"""A fleet of simulated replicas under the operator's own autoscaler, and the figures of a run."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.cost.hosted_prices import SECONDS_PER_HOUR
from flotilla.errors import InvalidSpec
from flotilla.planning.memory_fit import settings
from flotilla.planning.resolve import Resolved
from flotilla.planning.speed import RequestShape, planned_speed
from flotilla.scaling.autoscaler import Demand, Sample, ScalingParameters, State, decide
from flotilla.simulation.engine import Batcher, Event, EventKind, Limits, Phase, SimulatedSequence, Speed
from flotilla.simulation.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True)
class Observation:
    """The fleet at the second `now_s`, as somebody sees it who asks every ready replica."""

    now_s: float
    wanted: int
    """What the policy asked for last: ready and starting replicas."""
    ready: int
    waiting: int
    """In the queues of the ready replicas."""
    running: int
    held: int
    """At the gateway, because no replica is ready."""
    kv_full: float
    """KV caches in use at the ready replicas, in whole caches."""
    served: int
    """Since the start, as `rejected`."""
    rejected: int

    @property
    def active(self) -> int:
        """All that clients wait for."""
        return self.waiting + self.running + self.held


class ScalingPolicy(Protocol):
    """Asked every `interval_s` seconds; keeps its own memory."""

    interval_s: float

    def decide(self, seen: Observation) -> int:
        """The replicas to have."""


class Flotilla:
    """The operator's autoscaler, with the demand of a gateway that holds requests."""

    def __init__(self, spec: ScalingParameters, *, initial: int, interval_s: float = 2.0) -> None:
        self.interval_s = interval_s
        self._spec = spec
        self._state = State.initial(initial)
        self._served = self._rejected = 0

    def decide(self, seen: Observation) -> int:
        """See `Policy`."""
        sample = Sample(
            at=seen.now_s,
            ready=seen.ready,
            answered=seen.ready,
            waiting=float(seen.waiting),
            running=float(seen.running),
            kv_full=seen.kv_full,
            rejected=float(seen.rejected - self._rejected),
            served=float(seen.served - self._served),
            demand=Demand(float(seen.active)),
        )
        self._served, self._rejected = seen.served, seen.rejected
        decision = decide(self._state, sample, self._spec, seen.now_s)
        self._state = decision.state
        return decision.desired


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """What every replica is. `startup_s`: from its creation to its first request; `drain_s`: then it is killed."""

    limits: Limits
    speed: Speed
    context_tokens: int
    startup_s: float
    drain_s: float

    def could_serve(self, request: TraceRequest) -> bool:
        """Whether one that is alone on a replica would get its answer."""
        tokens = request.prompt_tokens + request.output_tokens
        return tokens <= min(self.context_tokens, self.limits.kv_blocks * self.limits.block_size)


@dataclass(slots=True, eq=False)
class Asked:
    """A request on its way. `sequence` is None while no replica is there to take it."""

    request: TraceRequest
    sequence: SimulatedSequence | None = None
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

    engine: EngineModel
    created_s: float
    ready_s: float
    batcher: Batcher = field(init=False)
    draining_s: float | None = None
    gone_s: float | None = None
    served: int = 0
    _last_end_s: float = 0.0
    _asked: dict[SimulatedSequence, Asked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.engine.limits, self.engine.speed)

    def is_ready(self, now_s: float) -> bool:
        return self.draining_s is None and self.gone_s is None and self.ready_s <= now_s

    @property
    def unfinished(self) -> int:
        return self.batcher.unfinished

    def advance(self, now_s: float) -> None:
        """Let the engine work until now; a draining replica ends with its last answer."""
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
        asked.sequence = SimulatedSequence(asked.request.prompt_tokens, asked.request.output_tokens)
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


_BLOCK_TOKENS = 16
L4_SPEED = Speed(decode_tokens_per_s=1200.0, prefill_tokens_per_s=4000.0, overhead_s=0.028)
"""An engine for benchmarks of scaling: about a 7B model in FP8 on one L4. engine_speed computes that of a model."""


def engine_speed(resolved: Resolved, shape: RequestShape) -> Speed:
    """The speed model's result for the deployment, as a straight line between one request and a full batch.

    Raises InvalidSpec where no speed is known.
    """
    model, limits = planned_speed(resolved, shape)
    full = max(2.0, limits.batch(shape))
    one, many = (model.decode_step_s(batch, shape.mean_context) for batch in (1.0, full))
    per_request_s = (many - one) / (full - 1)
    prompt_s = model.prefill_s(shape) + model.factors.request_s
    return Speed(
        decode_tokens_per_s=1 / per_request_s,
        prefill_tokens_per_s=shape.input_tokens / prompt_s,
        overhead_s=one - per_request_s,
    )


@dataclass(frozen=True, slots=True)
class Deployment:
    """The parts of a ModelDeployment that a simulation needs."""

    name: str
    engine: EngineModel
    scaling: ScalingParameters
    gpus: int
    gpu_usd_per_hour: Decimal | None
    """None: unknown."""


def deployment(
    name: str,
    spec: ModelDeploymentSpec,
    resolved: Resolved,
    *,
    speed: Speed,
    startup_s: float,
    kv_tokens: int | None,
    max_sequences: int | None,
    stale_after_s: float,
) -> Deployment:
    """Limits come from the memory fit and the engine's flags where they are not given. Raises InvalidSpec."""
    fit = resolved.fit
    if kv_tokens is None:
        if fit is None or not fit.concurrency:
            raise InvalidSpec(
                "How many tokens the KV cache holds is not known for this model; give --kv-tokens.", field="--kv-tokens"
            )
        kv_tokens = int(fit.concurrency * fit.context_length)
    engine_settings = settings(resolved.profile.memory, resolved.accelerator, spec.engine.args)
    price = resolved.accelerator.price
    own = spec.cost.gpu_hourly_price
    return Deployment(
        name=name,
        engine=EngineModel(
            limits=Limits(
                max_running=max_sequences or engine_settings.sequences,
                kv_blocks=max(1, kv_tokens // _BLOCK_TOKENS),
                block_size=_BLOCK_TOKENS,
                max_batched_tokens=engine_settings.batched_tokens,
            ),
            speed=speed,
            context_tokens=fit.context_length if fit and fit.context_length else kv_tokens,
            startup_s=startup_s,
            drain_s=float(resolved.profile.drain.seconds),
        ),
        scaling=ScalingParameters.of(spec.scaling, stale_after_s=stale_after_s),
        gpus=resolved.gpus,
        gpu_usd_per_hour=Decimal(own) if own is not None else price.usd if price else None,
    )


class FleetRow(NamedTuple):
    """The fleet at one second; `arrived`, `served` and `dropped` are since the start."""

    at_s: float
    wanted: int
    ready: int
    starting: int
    draining: int
    waiting: int
    running: int
    held: int
    arrived: int
    served: int
    dropped: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Run:
    """What happened. Requests that never got an answer keep the time at which that was clear."""

    trace: Trace
    horizon_s: float
    asked: tuple[Asked, ...]
    replicas: tuple[Replica, ...]
    rejected: int
    dropped: int
    rows: tuple[FleetRow, ...]


class _Kind(IntEnum):
    """What happens at one instant, in this order."""

    READY = 0
    ARRIVAL = 1
    PATIENCE = 2
    KILL = 3
    TICK = 4
    RECORD = 5


@dataclass
class _Fleet:
    engine: EngineModel
    policy: ScalingPolicy
    patience_s: float
    horizon_s: float
    record_s: float
    replicas: list[Replica] = field(default_factory=list)
    alive: list[Replica] = field(default_factory=list)
    held: deque[Asked] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    homes: dict[Asked, Replica] = field(default_factory=dict)
    rows: list[FleetRow] = field(default_factory=list)
    wanted: int = 0
    rejected: int = 0
    refused: int = 0
    """Of the rejected, those that an engine turned away; the others no engine could ever serve."""
    dropped: int = 0
    _events: list[tuple[float, int, int, Any]] = field(default_factory=list)
    _order: int = 0

    def at(self, time_s: float, kind: _Kind, what: Any = None) -> None:
        if time_s <= self.horizon_s:
            self._order += 1
            heapq.heappush(self._events, (time_s, kind, self._order, what))

    def run(self, trace: Trace) -> None:
        arrivals = iter(trace.requests)
        if (first := next(arrivals, None)) is not None:
            self.at(first.at_s, _Kind.ARRIVAL, first)
        self.at(0.0, _Kind.TICK)
        self.at(0.0, _Kind.RECORD)
        while self._events:
            now_s, kind, _, what = heapq.heappop(self._events)
            if kind == _Kind.ARRIVAL:
                if (following := next(arrivals, None)) is not None:
                    self.at(following.at_s, _Kind.ARRIVAL, following)
                self.arrive(Asked(what), now_s)
            elif kind == _Kind.PATIENCE:
                self.lose_patience(what, now_s)
            elif kind == _Kind.READY:
                self.release(now_s)
            elif kind == _Kind.KILL:
                self.kill(what, now_s)
            elif kind == _Kind.TICK:
                self.scale(self.policy.decide(self.observe(now_s)), now_s)
                self.at(now_s + self.policy.interval_s, _Kind.TICK)
            else:
                self.record(now_s)
                self.at(now_s + self.record_s, _Kind.RECORD)
        self.advance(self.horizon_s)

    def advance(self, now_s: float) -> None:
        for replica in self.alive:
            replica.advance(now_s)
        self.alive = [replica for replica in self.alive if replica.gone_s is None]

    def ready(self, now_s: float) -> list[Replica]:
        return [replica for replica in self.alive if replica.is_ready(now_s)]

    def arrive(self, asked: Asked, now_s: float) -> None:
        self.asked.append(asked)
        if not self.engine.could_serve(asked.request):
            self.reject(asked, now_s)
            return
        self.at(now_s + self.patience_s, _Kind.PATIENCE, asked)
        if self.held:
            self.held.append(asked)
        else:
            self.place(asked, now_s)

    def place(self, asked: Asked, now_s: float) -> None:
        self.advance(now_s)
        ready = self.ready(now_s)
        if not ready:
            self.held.append(asked)
            return
        home = min(ready, key=lambda replica: replica.unfinished)
        if home.take(asked, now_s):
            self.homes[asked] = home
        else:
            self.refused += 1
            self.reject(asked, now_s)

    def reject(self, asked: Asked, now_s: float) -> None:
        asked.dropped_s = now_s
        self.rejected += 1

    def drop(self, asked: Asked, now_s: float) -> None:
        asked.dropped_s = now_s
        self.dropped += 1

    def lose_patience(self, asked: Asked, now_s: float) -> None:
        home = self.homes.get(asked)
        if home is not None:
            home.advance(now_s)
        if asked.dropped_s is not None or asked.admitted_s is not None:
            return
        if home is None:
            self.held.remove(asked)
        else:
            home.give_up(asked, now_s)
        self.drop(asked, now_s)

    def release(self, now_s: float) -> None:
        held, self.held = self.held, deque()
        for asked in held:
            self.place(asked, now_s)

    def observe(self, now_s: float) -> Observation:
        self.advance(now_s)
        ready = self.ready(now_s)
        return Observation(
            now_s=now_s,
            wanted=self.wanted,
            ready=len(ready),
            waiting=sum(len(replica.batcher.waiting) for replica in ready),
            running=sum(len(replica.batcher.running) for replica in ready),
            held=len(self.held),
            kv_full=sum(replica.batcher.kv_usage for replica in ready),
            served=sum(replica.served for replica in self.replicas),
            rejected=self.refused,
        )

    def scale(self, wanted: int, now_s: float) -> None:
        current = [replica for replica in self.alive if replica.draining_s is None]
        self.wanted = wanted
        for _ in range(wanted - len(current)):
            self.add(now_s, ready_s=now_s + self.engine.startup_s)
        if wanted < len(current):
            self.remove(current, len(current) - wanted, now_s)

    def add(self, now_s: float, *, ready_s: float) -> None:
        replica = Replica(self.engine, now_s, ready_s)
        self.replicas.append(replica)
        self.alive.append(replica)
        self.at(ready_s, _Kind.READY)

    def remove(self, current: Iterable[Replica], count: int, now_s: float) -> None:
        """First what does not serve yet, the newest first, then the idlest: a ReplicaSet with our deletion cost."""
        order = sorted(current, key=lambda r: (r.ready_s <= now_s, r.unfinished, -r.created_s))
        for replica in order[:count]:
            replica.drain(now_s)
            if replica.gone_s is None:
                self.at(now_s + self.engine.drain_s, _Kind.KILL, replica)

    def kill(self, replica: Replica, now_s: float) -> None:
        for asked in replica.kill(now_s):
            self.drop(asked, now_s)

    def record(self, now_s: float) -> None:
        seen = self.observe(now_s)
        draining = sum(replica.draining_s is not None for replica in self.alive)
        self.rows.append(
            FleetRow(
                at_s=now_s,
                wanted=self.wanted,
                ready=seen.ready,
                starting=len(self.alive) - seen.ready - draining,
                draining=draining,
                waiting=seen.waiting,
                running=seen.running,
                held=seen.held,
                arrived=len(self.asked),
                served=seen.served,
                dropped=self.dropped,
                rejected=self.rejected,
            )
        )


def simulate(
    trace: Trace,
    policy: ScalingPolicy,
    engine: EngineModel,
    *,
    initial: int,
    patience_s: float = 60.0,
    tail_s: float = 600.0,
    record_s: float = 5.0,
) -> Run:
    """Replay `trace` against a fleet that begins with `initial` ready replicas, until `tail_s` after its end."""
    horizon_s = trace.duration_s + tail_s
    fleet = _Fleet(engine, policy, patience_s, horizon_s, record_s, wanted=initial)
    for _ in range(initial):
        fleet.add(0.0, ready_s=0.0)
    fleet.run(trace)
    return Run(
        trace=trace,
        horizon_s=horizon_s,
        asked=tuple(fleet.asked),
        replicas=tuple(fleet.replicas),
        rejected=fleet.rejected,
        dropped=fleet.dropped,
        rows=tuple(fleet.rows),
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a whole run. Times in seconds; None: there was no request.

    `wait` is from the arrival to a place in a batch, at the gateway and in the engine's queue, of every request: one
    that was dropped has waited until then. `first_token` and `end` are from the arrival too, of those that got so far.
    """

    arrived: int
    served: int
    dropped: int
    rejected: int
    in_flight: int
    wait_p50_s: float | None
    wait_p99_s: float | None
    first_token_p50_s: float | None
    first_token_p99_s: float | None
    end_p50_s: float | None
    replicas_mean: float
    replicas_most: int
    changes: int
    """How often the wanted number changed."""
    replica_hours: Decimal


def figures(run: Run) -> Figures:
    """Sum a run up."""
    waits = [wait for asked in run.asked if (wait := _wait_s(asked, run.horizon_s)) is not None]
    served = [asked for asked in run.asked if asked.served]
    firsts = [s.first_token_s - a.request.at_s for a in run.asked if (s := a.sequence) and s.first_token_s is not None]
    ends = [s.ended_s - a.request.at_s for a in served if (s := a.sequence) and s.ended_s is not None]
    seconds = sum(
        (run.horizon_s if one.gone_s is None else min(one.gone_s, run.horizon_s)) - one.created_s
        for one in run.replicas
    )
    wanted = [row.wanted for row in run.rows]
    return Figures(
        arrived=len(run.asked),
        served=len(served),
        dropped=run.dropped,
        rejected=run.rejected,
        in_flight=sum(not asked.served and asked.dropped_s is None for asked in run.asked),
        wait_p50_s=percentile(waits, 50),
        wait_p99_s=percentile(waits, 99),
        first_token_p50_s=percentile(firsts, 50),
        first_token_p99_s=percentile(firsts, 99),
        end_p50_s=percentile(ends, 50),
        replicas_mean=seconds / run.horizon_s,
        replicas_most=max((row.ready + row.starting + row.draining for row in run.rows), default=0),
        changes=sum(a != b for a, b in itertools.pairwise(wanted)),
        replica_hours=Decimal(str(round(seconds, 3))) / SECONDS_PER_HOUR,
    )


def _wait_s(asked: Asked, horizon_s: float) -> float | None:
    """None: refused at once."""
    if asked.admitted_s is not None:
        return asked.admitted_s - asked.request.at_s
    until_s = horizon_s if asked.dropped_s is None else asked.dropped_s
    refused = asked.sequence is None and until_s == asked.request.at_s
    return None if refused else until_s - asked.request.at_s


def percentile(values: Sequence[float], percent: int) -> float | None:
    """By nearest rank: one of the values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(Fraction(percent, 100) * len(values)) - 1)]
