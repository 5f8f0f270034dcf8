"""Every few seconds: read the queues of all engines, decide, and account. The writing is left to reconcile.

One loop for the whole fleet rather than a timer per resource: it costs with the number of pods and not of objects.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flotilla.api.model_deployment import ModelDeployment
from flotilla.control.keys import Key
from flotilla.domain import observed, scaling
from flotilla.domain.pricing import CostBasis
from flotilla.domain.resolve import Resolved
from flotilla.domain.scaling import Decision, Sample, ScalingSpec, State
from flotilla.kube.kinds import DEPLOYMENT, POD
from flotilla.kube.store import Store
from flotilla.telemetry.scrape import EngineSample, ScrapeError, Scraper, Target

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tracked:
    """One ModelDeployment as the loop knows it; replaced with each generation, but for the scaling state."""

    uid: str
    mode: str
    spec: ScalingSpec
    resolved: Resolved
    cost: CostBasis | None
    state: State
    decision: Decision | None = None
    sample: Sample | None = None
    answers: dict[str, EngineSample | ScrapeError] = field(default_factory=dict)


class Scaler:
    """Owns the wanted replica counts of deployments in mode Internal, and follows spec.replicas in the others."""

    def __init__(
        self,
        store: Store,
        scraper: Scraper,
        *,
        interval_s: float,
        clock: Callable[[], float],
        enqueue: Callable[[Key], None],
    ) -> None:
        self._store = store
        self._scraper = scraper
        self._interval_s = interval_s
        self._clock = clock
        self._enqueue = enqueue
        self.tracked: dict[Key, Tracked] = {}

    def track(
        self,
        key: Key,
        live: Mapping[str, Any],
        model: ModelDeployment,
        resolved: Resolved,
        cost: CostBasis | None,
    ) -> int:
        """Take the current spec; returns the replicas to have now."""
        uid, wanted = live["metadata"]["uid"], model.spec.scaling
        mode = str(wanted.mode)
        known = self.tracked.get(key)
        if known is None or known.uid != uid:
            known = None
        spec = ScalingSpec(
            min_replicas=wanted.min_replicas,
            max_replicas=wanted.max_replicas,
            queue_depth_per_replica=wanted.queue_depth_per_replica,
            scale_down_delay_s=float(wanted.scale_down_delay_seconds),
            stale_after_s=max(15.0, 3 * self._interval_s),
        )
        state = known.state if known else State.initial(self.before(key, live), self._reason_before(live))
        entry = Tracked(uid=uid, mode=mode, spec=spec, resolved=resolved, cost=cost, state=state)
        if known is not None:
            entry.decision, entry.sample, entry.answers = known.decision, known.sample, known.answers
        self.tracked[key] = entry
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
        pods = (observed.pod(obj) for obj in self._store.owned_by(POD, key))
        return None if any(pod.ready for pod in pods) else _sample((), self._clock())

    def before(self, key: Key, live: Mapping[str, Any]) -> int:
        """The replicas to keep when nothing better is known: the status's, else the child's, else one.

        The status comes first because somebody may have scaled the child by hand while nobody looked.
        """
        recorded = (live.get("status") or {}).get("scaling", {}).get("desiredReplicas")
        if recorded is not None:
            return int(recorded)
        child = self._store.get(DEPLOYMENT, key.namespace, key.name)
        return int(child["spec"].get("replicas", 1)) if child else 1

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self.tracked.pop(key, None)

    async def run(self, *, after: Callable[[], None]) -> None:
        """Until cancelled, calling `after` at the end of each tick; one that takes too long is followed at once."""
        while True:
            due = self._clock() + self._interval_s
            await self.tick()
            after()
            await asyncio.sleep(max(0.0, due - self._clock()))

    async def tick(self) -> None:
        """Scrape every ready pod, then decide for every deployment."""
        targets: list[Target] = []
        pods: dict[Key, list[observed.Pod]] = {}
        for key, entry in self.tracked.items():
            pods[key] = [observed.pod(obj) for obj in self._store.owned_by(POD, key)]
            targets += self._targets(entry, pods[key])
        answers = await self._scraper.scrape(targets) if targets else {}
        now = self._clock()
        for key, mine in pods.items():
            current = self.tracked.get(key)
            if current is None:
                continue
            current.answers = {pod.uid: answers[pod.uid] for pod in mine if pod.uid in answers}
            current.sample = _sample(current.answers.values(), now)
            if current.mode == "Internal":
                desired, reason = current.state.desired, current.decision.reason if current.decision else ""
                self._decide(current, current.sample)
                assert current.decision is not None
                if (current.decision.desired, current.decision.reason) != (desired, reason):
                    self._enqueue(key)

    def _decide(self, entry: Tracked, sample: Sample | None) -> None:
        entry.decision = scaling.decide(entry.state, sample, entry.spec, self._clock())
        entry.state = entry.decision.state

    def _targets(self, entry: Tracked, pods: Iterable[observed.Pod]) -> Iterable[Target]:
        profile = entry.resolved.profile
        for pod in pods:
            if pod.ready and not pod.terminating and pod.ip:
                yield Target(
                    uid=pod.uid,
                    address=pod.ip,
                    port=entry.resolved.port,
                    path=profile.metrics.path,
                    names=profile.metrics.names,
                )

    @staticmethod
    def _reason_before(live: Mapping[str, Any]) -> str:
        conditions = (live.get("status") or {}).get("conditions") or ()
        return next((c["reason"] for c in conditions if c["type"] == "ScalingActive"), "")


def _sample(answers: Iterable[EngineSample | ScrapeError], now: float) -> Sample:
    """Sum what answered; without a ready pod nothing was asked."""
    results = list(answers)
    good = [answer for answer in results if isinstance(answer, EngineSample)]
    return Sample(
        at=now,
        ready=len(results),
        answered=len(good),
        waiting=sum(answer.waiting for answer in good),
        running=sum(answer.running for answer in good),
    )
