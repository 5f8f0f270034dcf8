"""Every few seconds: read the queues of all engines, and decide. The writing is left to the reconciler.

There is one loop for the whole fleet, and its cost grows with the number of pods, not with the number of resources: a
deployment without pods is decided for when something about it changes, and once more when what was known of it becomes
stale. Nothing else can change its decision.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flotilla.api.model_deployment import ModelDeployment
from flotilla.background import isolated
from flotilla.constants import MANAGER, SCALER_MANAGER
from flotilla.kube import observed
from flotilla.kube.kinds import DEPLOYMENT, GATEWAY_KIND, MODEL_DEPLOYMENT, POD, Key
from flotilla.kube.observed import Pod, Workload, Workloads
from flotilla.kube.store import Store, replicas_managers
from flotilla.planning.resolve import Resolved
from flotilla.scaling import autoscaler, sampling
from flotilla.scaling.autoscaler import Demand, Sample, ScalingDecision, ScalingParameters, State
from flotilla.scaling.engine_client import (
    GATEWAY_PORT,
    Answers,
    EnginePod,
    EngineSources,
    Model,
    WakeQuery,
    gateway_demand,
)
from flotilla.scaling.sampling import Sampler
from flotilla.scaling.scrape_client import CacheRoom, EngineSample, ScrapeError, Scraper, ScrapeTarget
from flotilla.scaling.speed_observation import SpeedObserver

log = logging.getLogger(__name__)

_NOTHING = Answers()


@dataclass(slots=True)
class Tracked:
    """One ModelDeployment as the loop has it; replaced with each generation, except for the scaling state."""

    uid: str
    mode: str
    spec: ScalingParameters
    resolved: Resolved
    state: State
    decision: ScalingDecision | None = None
    decided_at: float = 0.0
    paused: bool = False
    """The present spec is refused. The pods of the one before are sampled and accounted, and their number stays."""
    sample: Sample | None = None
    answers: dict[str, EngineSample | ScrapeError] = field(default_factory=dict)
    speed: SpeedObserver = field(default_factory=SpeedObserver)
    room: CacheRoom | None = None
    """The smallest KV cache of the pods, by their own metrics; kept while none answers."""

    @property
    def load(self) -> dict[str, float]:
        """Requests of each pod that answered, by uid."""
        known = ((uid, answer) for uid, answer in self.answers.items() if isinstance(answer, EngineSample))
        return {uid: answer.waiting + answer.running for uid, answer in known}

    @property
    def may_sleep(self) -> bool:
        """Whether it may be without a replica that could be asked."""
        return self.spec.min_replicas == 0 or self.mode == "External"

    @property
    def wakeable(self) -> bool:
        """Whether this loop scales it to zero and back."""
        return self.spec.min_replicas == 0 and self.mode == "Internal"


class FleetCounts:
    """What a tick asks about all deployments, counted when one comes or goes, so that no tick has to visit them all."""

    def __init__(self) -> None:
        self.may_sleep = 0
        self.by_namespace: Counter[str] = Counter()
        self.wakeable: Counter[str] = Counter()
        """By namespace; see `Tracked.wakeable`."""

    def replace(self, namespace: str, before: Tracked | None, after: Tracked | None) -> None:
        """A deployment came (`before` None), changed, or went (`after` None)."""
        for entry, number in ((before, -1), (after, 1)):
            if entry is not None:
                self.may_sleep += number * entry.may_sleep
                self.by_namespace[namespace] += number
                self.wakeable[namespace] += number * entry.wakeable
        for counter in (self.by_namespace, self.wakeable):
            if not counter[namespace]:
                del counter[namespace]


class Scaler:
    """Owns the wanted replica counts of deployments in mode Internal, and follows spec.replicas in the others."""

    def __init__(
        self,
        store: Store,
        scraper: Scraper,
        *,
        sources: EngineSources | None = None,
        wake: WakeQuery | None = None,
        interval_s: float,
        clock: Callable[[], float],
        enqueue: Callable[[Key], None],
    ) -> None:
        self._store = store
        self._scraper = scraper
        self._sources = sources or EngineSources(scraper, None, order="Pods")
        self._wake = wake
        self._interval_s = interval_s
        self._stale_after_s = max(15.0, 3 * interval_s, self._sources.oldest_s)
        self._clock = clock
        self._enqueue = enqueue
        self._sampler = Sampler()
        self.workloads = Workloads(store)
        self.tracked: dict[Key, Tracked] = {}
        self._counts = FleetCounts()
        self._changed: set[Key] = set()
        """Keys that were reconciled since the last tick, or whose requests have changed in a `wake`."""
        self._had_pods: set[Key] = set()
        """In the last tick: a deployment whose pods are gone is visited once more."""
        self._demand_before: Mapping[Model, Demand] = {}
        self._settling: deque[tuple[float, Key]] = deque()
        """Visits because of a change, the oldest in front; at most one for each tick and deployment."""
        self._ticked_at = clock()
        self._pressing: dict[str, int] = {}
        """See `sampling.pressing`; of the last tick."""

    def track(self, key: Key, live: Mapping[str, Any], model: ModelDeployment, resolved: Resolved) -> int:
        """Take the current spec; returns the replicas to have now."""
        uid, wanted = live["metadata"]["uid"], model.spec.scaling
        mode = str(wanted.mode)
        known = self.tracked.get(key)
        if known is None or known.uid != uid:
            known = None
        spec = ScalingParameters.of(wanted, stale_after_s=self._stale_after_s)
        state = known.state if known else self._restored(key, live)
        entry = Tracked(uid=uid, mode=mode, spec=spec, resolved=resolved, state=state)
        if known is not None:
            entry.decision, entry.decided_at = known.decision, known.decided_at
            entry.sample, entry.answers = known.sample, known.answers
            if known.resolved.argv == resolved.argv:
                entry.speed, entry.room = known.speed, known.room
        self._counts.replace(key.namespace, self.tracked.get(key), entry)
        self.tracked[key] = entry
        self._changed.add(key)
        if mode != "Internal":
            entry.decision = None
            replicas = model.spec.replicas
            entry.state = State.initial(self.before(key, live) if replicas is None else replicas)
            return entry.state.desired
        if entry.decision is None or known is None or known.spec != spec:
            self._catch_up(entry)
            self._decide(entry, self._first_sample(key))
        return entry.state.desired

    def _first_sample(self, key: Key) -> Sample | None:
        """What is known without a scrape: nothing, unless no replica is ready."""
        ready = any(pod.ready for pod in self.workloads.of(key).pods)
        return None if ready else self._sampler.sample((), _NOTHING, self._clock())

    def _restored(self, key: Key, live: Mapping[str, Any]) -> State:
        """What the status remembers, for the first look of this process."""
        status = live.get("status") or {}
        scaled, conditions = status.get("scaling") or {}, status.get("conditions") or ()
        return State.initial(
            self.before(key, live),
            next((c["reason"] for c in conditions if c["type"] == "ScalingActive"), ""),
            panicking="panicSince" in scaled,
            source=scaled.get("source", ""),
        )

    def before(self, key: Key, live: Mapping[str, Any]) -> int:
        """The replicas to keep when nothing better is known: what we wrote last, else what somebody else wrote.

        The child is written before the status, and an operator may end between the two. But a number that is not ours
        is not kept: somebody scaled the child by hand while no operator ran.
        """
        child = self._store.get(DEPLOYMENT, key.namespace, key.name)
        recorded = (live.get("status") or {}).get("scaling", {}).get("desiredReplicas")
        if child is not None and (recorded is None or replicas_managers(child) & {MANAGER, SCALER_MANAGER}):
            return int(child["spec"].get("replicas", 1))
        return 1 if recorded is None else int(recorded)

    def pause(self, key: Key) -> None:
        """Decide nothing for a ModelDeployment until `track` is called with a spec that is accepted."""
        if (entry := self.tracked.get(key)) is not None:
            entry.paused = True

    def forget(self, key: Key) -> None:
        """Drop a ModelDeployment that was deleted."""
        self._counts.replace(key.namespace, self.tracked.pop(key, None), None)
        self._changed.discard(key)
        self.workloads.forget(key)

    async def run(self, *, publish: Callable[[Collection[Key]], None]) -> None:
        """Until cancelled. `publish` is called after each tick, with the deployments that were decided for."""
        while True:
            due = self._clock() + self._interval_s
            publish(await self.tick())
            await asyncio.sleep(max(0.0, due - self._clock()))

    async def tick(self) -> set[Key]:
        """Ask every ready pod and every gateway, then decide for the deployments that something may have changed for.

        Returns those deployments. They are the ones that have or had pods, that were reconciled, that requests wait
        for or for which the report of their requests has changed, and those whose last change is just so long ago that
        what is known of them has become stale.
        """
        began = self._clock()
        with_pods = {key for key in self._store.owners(POD) if key in self.tracked}
        loads = {key: self.workloads.of(key) for key in with_pods}
        engines = [_engine(key, pod, self.tracked[key].resolved) for key, load in loads.items() for pod in _asked(load)]
        answers, demand = await asyncio.gather(self._engines(engines), self._demand())
        loads |= {key: self.workloads.of(key) for key in self._without_pods(demand, began) if key not in loads}
        self._had_pods = with_pods
        self._pressing = sampling.pressing(
            (self.tracked[key].resolved.accelerator.class_name, load)
            for key, load in loads.items()
            if key in self.tracked
        )
        for key, load in loads.items():
            # A pod that became ready while the others were read is asked in the next tick.
            if key in with_pods or not _asked(load):
                self._sample(key, load, answers, demand)
        self._sampler.retain(answers.by_uid)
        self._ticked_at = began
        return set(loads)

    async def wake(self, namespaces: Collection[str]) -> None:
        """Read the gateways of these namespaces now, and decide for the models that requests wait for.

        Models with a ready replica are left to `tick`, which also reads the queues of their engines.
        """
        demand = await gateway_demand(self._scraper, self._gateways(namespaces))
        for model, one in demand.items():
            key = Key(MODEL_DEPLOYMENT, *model)
            if one.requests > 0 and key in self.tracked:
                load = self.workloads.of(key)
                if not _asked(load):
                    self._sample(key, load, _NOTHING, demand)
                    self._changed.add(key)

    def wakeable_gateways(self) -> dict[str, list[ScrapeTarget]]:
        """Ready gateways by namespace, of the namespaces with a model that this loop may scale to zero and back."""
        return self._gateways(self._counts.wakeable)

    def _sample(self, key: Key, load: Workload, answers: Answers, demand: Mapping[Model, Demand]) -> None:
        """Decide for one deployment with what was read."""
        current = self.tracked.get(key)
        if current is None:
            return
        with isolated("scaling", key):
            current.answers = {pod.uid: answers.by_uid[pod.uid] for pod in _asked(load)}
            self._catch_up(current)
            current.sample = self._sampler.sample(
                _asked(load),
                answers,
                self._clock(),
                demand=self._demand_for(key, current, demand),
                blocked=sampling.blocked(load),
                wanted_elsewhere=sampling.yields(current.resolved.accelerator.class_name, load, self._pressing),
            )
            self._follow(key, current)
            self._learn(key, current)

    def _learn(self, key: Key, entry: Tracked) -> None:
        """What the engines say of themselves: how fast they are, and the room that they found for their cache."""
        entry.speed.add(entry.answers, self._clock())
        samples = (answer for answer in entry.answers.values() if isinstance(answer, EngineSample))
        room = min((one.room for one in samples if one.room is not None), key=lambda one: one.tokens, default=None)
        if room is not None and room != entry.room:
            entry.room = room
            self._enqueue(key)

    def _without_pods(self, demand: Mapping[Model, Demand], now: float) -> set[Key]:
        """Deployments to decide for although they have no pods."""
        reported = demand if self._wake is None else {**self._wake.known(), **demand}
        models = {model for model, one in reported.items() if one.requests > 0}
        models.update(model for model, _ in reported.items() ^ self._demand_before.items())
        self._demand_before = reported
        due = self._had_pods | self._changed | {Key(MODEL_DEPLOYMENT, *model) for model in models}
        self._changed = set()
        due = {key for key in due if key in self.tracked}
        self._settling.extend((now, key) for key in due)
        while self._settling and now - self._settling[0][0] > self._stale_after_s:
            _, key = self._settling.popleft()
            if key in self.tracked:
                due.add(key)
        return due

    async def _engines(self, engines: list[EnginePod]) -> Answers:
        return await self._sources.read(engines) if engines else _NOTHING

    async def _demand(self) -> dict[Model, Demand]:
        if self._wake is not None and self._counts.may_sleep:
            self._wake.refresh()
        return await gateway_demand(self._scraper, self._gateways(self._counts.by_namespace))

    def _gateways(self, namespaces: Collection[str]) -> dict[str, list[ScrapeTarget]]:
        """The ready gateways of these namespaces."""
        gateways: dict[str, list[ScrapeTarget]] = {}
        for key in self._store.owners(POD):
            if not isinstance(key, Key) or key.kind != GATEWAY_KIND or key.namespace not in namespaces:
                continue
            for pod in map(observed.pod, self._store.owned_by(POD, key)):
                if pod.ready and not pod.terminating and pod.ip:
                    target = ScrapeTarget(pod.uid, pod.ip, GATEWAY_PORT, "/metrics", {})
                    gateways.setdefault(key.namespace, []).append(target)
        return gateways

    def _demand_for(self, key: Key, entry: Tracked, demand: Mapping[Model, Demand]) -> Demand | None:
        model = (key.namespace, key.name)
        if model in demand or self._wake is None or not entry.may_sleep:
            return demand.get(model)
        return self._wake.demand(model)

    def _follow(self, key: Key, entry: Tracked) -> None:
        if entry.mode != "Internal" or entry.paused:
            return
        before = entry.decision
        self._decide(entry, entry.sample)
        after = entry.decision
        assert after is not None
        panicking = before is not None and before.state.panicking
        if before is None or (after.desired, after.message, after.state.panicking) != (
            before.desired,
            before.message,
            panicking,
        ):
            self._enqueue(key)

    def _catch_up(self, entry: Tracked) -> None:
        """Decide as of the last tick, if that tick did not: nothing had changed by then, but its time counts.

        Otherwise a report of the gateways that ends would look as old as the last visit.
        """
        if entry.sample is not None and entry.decision is not None and entry.decided_at < self._ticked_at:
            sample = replace(entry.sample, at=self._ticked_at)
            entry.state = autoscaler.decide(entry.state, sample, entry.spec, self._ticked_at).state

    def _decide(self, entry: Tracked, sample: Sample | None) -> None:
        entry.decided_at = self._clock()
        entry.decision = autoscaler.decide(entry.state, sample, entry.spec, entry.decided_at)
        entry.state = entry.decision.state


def _asked(load: Workload) -> list[Pod]:
    return [pod for pod in load.pods if pod.ready and not pod.terminating and pod.ip]


def _engine(key: Key, pod: Pod, resolved: Resolved) -> EnginePod:
    metrics = resolved.profile.metrics
    return EnginePod(ScrapeTarget(pod.uid, pod.ip, resolved.port, metrics.path, metrics.names), key.namespace, pod.name)
