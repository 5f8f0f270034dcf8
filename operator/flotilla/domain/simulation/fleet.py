"""The simulation: arrivals, a policy that is asked at its interval, and replicas that take their time to start.

Requests go to the ready replica with the fewest unfinished ones, as the gateway sends them. Where none is ready they
are held. Who has waited for `patience_s` without being admitted to a batch leaves, and counts as dropped.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from flotilla.domain.simulation.policy import Observation, Policy
from flotilla.domain.simulation.replica import Asked, Engine, Replica
from flotilla.domain.simulation.trace import Trace


class Row(NamedTuple):
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
    rows: tuple[Row, ...]


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
    engine: Engine
    policy: Policy
    patience_s: float
    horizon_s: float
    record_s: float
    replicas: list[Replica] = field(default_factory=list)
    alive: list[Replica] = field(default_factory=list)
    held: deque[Asked] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    homes: dict[Asked, Replica] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
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
            Row(
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
    policy: Policy,
    engine: Engine,
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
