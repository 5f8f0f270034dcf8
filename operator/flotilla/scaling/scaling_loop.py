"""Every few seconds: read the queues of all engines, decide, and account. The writing is left to reconcile.

One loop for the whole fleet rather than a timer per resource: it costs with the number of pods and not of objects.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from flotilla.api.model_deployment import ModelDeployment
from flotilla.background import isolated
from flotilla.constants import GATEWAY_COMPONENT, LABEL_COMPONENT, MANAGER, SCALER_MANAGER
from flotilla.kube import observed
from flotilla.kube.keys import Key
from flotilla.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, POD
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
from flotilla.scaling.scrape_client import EngineSample, ScrapeError, Scraper, ScrapeTarget

log = logging.getLogger(__name__)

_NOTHING = Answers()
_QUIET_INTERVAL_S = 30.0
"""Seconds between two visits of a deployment without pods. A pod, a change of the resource or its Deployment, and
requests that wait make it due at once; what is left for these visits are reasons that end by themselves."""


@dataclass(slots=True)
class Tracked:
    """One ModelDeployment as the loop has it; replaced with each generation, except for the scaling state."""

    uid: str
    mode: str
    spec: ScalingParameters
    resolved: Resolved
    state: State
    decision: ScalingDecision | None = None
    sample: Sample | None = None
    answers: dict[str, EngineSample | ScrapeError] = field(default_factory=dict)

    @property
    def load(self) -> dict[str, float]:
        """Requests of each pod that answered, by uid."""
        known = ((uid, answer) for uid, answer in self.answers.items() if isinstance(answer, EngineSample))
        return {uid: answer.waiting + answer.running for uid, answer in known}

    @property
    def may_sleep(self) -> bool:
        """Whether it may be without a replica that could be asked."""
        return self.spec.min_replicas == 0 or self.mode == "External"


class Turns:
    """Takes keys in turn: each that stays is taken once before any is taken again."""

    def __init__(self) -> None:
        self._left: deque[Key] = deque()

    def take(self, keys: Collection[Key], share: float) -> set[Key]:
        """The next `share` of `keys`, or what is left of this round. Keys that are gone take no turn."""
        if not self._left:
            self._left.extend(keys)
        wanted, taken = math.ceil(len(keys) * share), set[Key]()
        while self._left and len(taken) < wanted:
            key = self._left.popleft()
            if key in keys:
                taken.add(key)
        return taken


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
        self._reconciled: set[Key] = set()
        """Keys that were reconciled since the last tick."""
        self._had_pods: set[Key] = set()
        self._had_demand: set[Key] = set()
        """Of the last tick: a deployment whose pods or requests are gone is due once more."""
        self._quiet = Turns()
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
            entry.decision, entry.sample, entry.answers = known.decision, known.sample, known.answers
        self.tracked[key] = entry
        self._reconciled.add(key)
        if mode != "Internal":
            entry.decision = None
            replicas = model.spec.replicas
            entry.state = State.initial(self.before(key, live) if replicas is None else replicas)
            return entry.state.desired
        if entry.decision is None or known is None or known.spec != spec:
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

    def forget(self, key: Key) -> None:
        """Drop a ModelDeployment that was deleted."""
        self.tracked.pop(key, None)
        self._reconciled.discard(key)
        self.workloads.forget(key)

    async def run(self, *, publish: Callable[[], None]) -> None:
        """Until cancelled. `publish` is called once the samples of a tick are in."""
        while True:
            due = self._clock() + self._interval_s
            await self.tick()
            publish()
            await asyncio.sleep(max(0.0, due - self._clock()))

    async def tick(self) -> None:
        """Ask every ready pod and every gateway, then decide for the deployments that something may have changed for.

        Those are the deployments that have or had pods, that were reconciled, or that requests wait for. The others are
        visited in turn, each of them once in `_QUIET_INTERVAL_S`, so that a fleet at rest costs little.
        """
        with_pods = {key for key in self._store.owners(POD) if key in self.tracked}
        loads = {key: self.workloads.of(key) for key in with_pods}
        engines = [_engine(key, pod, self.tracked[key].resolved) for key, load in loads.items() for pod in _asked(load)]
        answers, demand = await asyncio.gather(self._engines(engines), self._demand())
        loads |= {key: self.workloads.of(key) for key in self._without_pods(demand) if key not in loads}
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

    def wakeable_gateways(self) -> dict[str, list[ScrapeTarget]]:
        """Ready gateways by namespace, of the namespaces with a model that this loop may scale to zero and back."""
        return self._gateways(
            {
                key.namespace
                for key, entry in self.tracked.items()
                if entry.mode == "Internal" and entry.spec.min_replicas == 0
            }
        )

    def _sample(self, key: Key, load: Workload, answers: Answers, demand: Mapping[Model, Demand]) -> None:
        """Decide for one deployment with what was read."""
        current = self.tracked.get(key)
        if current is None:
            return
        with isolated("scaling", key):
            current.answers = {pod.uid: answers.by_uid[pod.uid] for pod in _asked(load)}
            current.sample = self._sampler.sample(
                _asked(load),
                answers,
                self._clock(),
                demand=self._demand_for(key, current, demand),
                blocked=sampling.blocked(load),
                wanted_elsewhere=sampling.yields(current.resolved.accelerator.class_name, load, self._pressing),
            )
            self._follow(key, current)

    def _without_pods(self, demand: Mapping[Model, Demand]) -> set[Key]:
        """Deployments to decide for although no pod of theirs is there."""
        due = self._had_pods | self._reconciled | self._had_demand
        self._reconciled = set()
        waking = {model for model, one in demand.items() if one.requests > 0}
        if self._wake is not None:
            waking |= self._wake.wanted()
        self._had_demand = {Key(MODEL_DEPLOYMENT, *model) for model in waking}
        due |= self._had_demand
        due |= self._quiet.take(self.tracked.keys(), self._interval_s / _QUIET_INTERVAL_S)
        return {key for key in due if key in self.tracked}

    async def _engines(self, engines: list[EnginePod]) -> Answers:
        return await self._sources.read(engines) if engines else _NOTHING

    async def _demand(self) -> dict[Model, Demand]:
        namespaces = {key.namespace for key in self.tracked}
        if self._wake is not None and any(entry.may_sleep for entry in self.tracked.values()):
            self._wake.refresh()
        return await gateway_demand(self._scraper, self._gateways(namespaces))

    def _gateways(self, namespaces: Collection[str]) -> dict[str, list[ScrapeTarget]]:
        gateways: dict[str, list[ScrapeTarget]] = {}
        if not namespaces:
            return gateways
        for obj in self._store.all(POD):
            meta = obj["metadata"]
            if (meta.get("labels") or {}).get(LABEL_COMPONENT) == GATEWAY_COMPONENT and meta["namespace"] in namespaces:
                pod = observed.pod(obj)
                if pod.ready and not pod.terminating and pod.ip:
                    target = ScrapeTarget(pod.uid, pod.ip, GATEWAY_PORT, "/metrics", {})
                    gateways.setdefault(meta["namespace"], []).append(target)
        return gateways

    def _demand_for(self, key: Key, entry: Tracked, demand: Mapping[Model, Demand]) -> Demand | None:
        model = (key.namespace, key.name)
        if model in demand or self._wake is None or not entry.may_sleep:
            return demand.get(model)
        return self._wake.demand(model)

    def _follow(self, key: Key, entry: Tracked) -> None:
        if entry.mode != "Internal":
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

    def _decide(self, entry: Tracked, sample: Sample | None) -> None:
        entry.decision = autoscaler.decide(entry.state, sample, entry.spec, self._clock())
        entry.state = entry.decision.state


def _asked(load: Workload) -> list[Pod]:
    return [pod for pod in load.pods if pod.ready and not pod.terminating and pod.ip]


def _engine(key: Key, pod: Pod, resolved: Resolved) -> EnginePod:
    metrics = resolved.profile.metrics
    return EnginePod(ScrapeTarget(pod.uid, pod.ip, resolved.port, metrics.path, metrics.names), key.namespace, pod.name)
