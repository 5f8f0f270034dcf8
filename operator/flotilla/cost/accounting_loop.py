"""Charge each pod's time and tokens to its deployment after every scrape, and describe deployments for the metrics."""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from prometheus_client.core import Metric

from flotilla.background import isolated
from flotilla.constants import LABEL_TEAM
from flotilla.cost.gpu_prices import CostBasis, Rate, pod_units
from flotilla.cost.ledger import Counters, Ledger, PodObservation, PodState
from flotilla.cost.metrics import DeploymentView, FleetFamilies
from flotilla.cost.price_loop import PriceCache
from flotilla.kube import observed
from flotilla.kube.kinds import MODEL_DEPLOYMENT, POD, Key
from flotilla.kube.store import Store
from flotilla.planning.speed import SpeedCorrection, correction
from flotilla.scaling.scaling_loop import Scaler, Tracked
from flotilla.scaling.scrape_client import EngineSample, ScrapeError, Scraper, ScrapeTarget


class Draining:
    """Reads the counters of pods that are being deleted, a handful at any time."""

    def __init__(self, store: Store, scaler: Scaler, scraper: Scraper, *, interval_s: float) -> None:
        self._store = store
        self._scaler = scaler
        self._scraper = scraper
        self._interval_s = interval_s
        self.answers: dict[str, EngineSample | ScrapeError] = {}
        """By pod uid, of the last round."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._interval_s)

    async def refresh(self) -> None:
        """Ask every pod that is going."""
        targets = list(self._targets())
        self.answers = await self._scraper.scrape(targets) if targets else {}

    def _targets(self) -> list[ScrapeTarget]:
        found: list[ScrapeTarget] = []
        for key in self._store.owners(POD):
            entry = self._scaler.tracked.get(key) if isinstance(key, Key) else None
            if entry is None:
                continue
            metrics = entry.resolved.profile.metrics
            for obj in self._store.owned_by(POD, key):
                if "deletionTimestamp" not in obj["metadata"]:
                    continue
                pod = observed.pod(obj)
                if pod.ip:
                    found.append(ScrapeTarget(pod.uid, pod.ip, entry.resolved.port, metrics.path, metrics.names))
        return found


_SLICE = 50
"""Deployments that are described without a turn for other tasks: about 10 ms."""
_QUIET_CALLS = 300
"""A deployment without pods is visited once in so many calls of `account`, that is every 10 minutes by default. The
alert on deployments without a price needs one visit in an hour."""
_DELETED_CALLS = 30
"""After so many calls at most, accounts of deployments that were deleted are removed."""


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


class FleetAccounting:
    """Charges pods and describes deployments; both read the scaler's table."""

    def __init__(
        self,
        store: Store,
        scaler: Scaler,
        ledger: Ledger,
        book: PriceCache,
        bases: Mapping[Key, CostBasis],
        *,
        clock: Callable[[], float],
        draining: Callable[[], Mapping[str, EngineSample | ScrapeError]] = dict,
        unallocated: Callable[[], Mapping[str, Decimal]] = dict,
    ) -> None:
        """`bases` says what each ModelDeployment is priced at. `clock` gives Unix seconds and never steps back.

        `draining` yields answers of pods that are being deleted; `unallocated` gives what GPUs that no pod holds cost,
        in US dollars per hour by class.
        """
        self._store = store
        self._scaler = scaler
        self._ledger = ledger
        self._book = book
        self._bases = bases
        self._clock = clock
        self._draining = draining
        self.unallocated = unallocated
        self._had_pods: set[Key] = set()
        self._calls = 0
        self._quiet = Turns()
        self.unpriced: Counter[str] = Counter()
        """Looks at a deployment without a price or usage, by reason."""

    def account(self, visited: Collection[Key] = ()) -> None:
        """Charge the time since the last call; called after each scrape, with the deployments that were decided for."""
        now = self._clock()
        for key in self._due(visited):
            entry, basis = self._scaler.tracked.get(key), self._bases.get(key)
            if entry is not None and basis is not None:
                with isolated("accounting", key):
                    self._observe(key, entry, basis, now)
        # An account outlives a spec that is wrong for a while, and ends with its resource. Most calls find no deletion.
        self._calls += 1
        if len(self._ledger.accounts) > self._store.count(MODEL_DEPLOYMENT) or self._calls % _DELETED_CALLS == 0:
            alive = {obj["metadata"]["uid"] for obj in self._store.all(MODEL_DEPLOYMENT)}
            for uid in [uid for uid in self._ledger.accounts if uid not in alive]:
                self._ledger.forget(uid)

    def _due(self, visited: Collection[Key]) -> set[Key]:
        """Deployments with pods, with an account of pods that are to be closed, or with a change; of the others a few.

        Without pods nothing accrues, so that a visit changes the account only if its price has changed.
        """
        due = {key for key in self._store.owners(POD) if key in self._scaler.tracked}
        due, self._had_pods = due | self._had_pods, due
        return due.union(visited, self._quiet.take(self._scaler.tracked.keys(), 1 / _QUIET_CALLS))

    def _observe(self, key: Key, entry: Tracked, basis: CostBasis, now: float) -> None:
        pods = [pod for pod in self._scaler.workloads.of(key).pods if pod.scheduled]
        seen = [self._pod(entry, basis, pod) for pod in pods]
        listed = basis.rate(None, self._book.sources)
        self._ledger.observe(
            entry.uid,
            seen,
            now=now,
            comparators=basis.comparators,
            price_source="" if listed is None else listed.source,
        )
        if any(pod.usd_per_hour is None for pod in seen):
            self.unpriced["gpu_unknown"] += 1
        if basis.unknown_comparators:
            self.unpriced["model_unknown"] += 1
        if any(pod.ready and not isinstance(entry.answers.get(pod.uid), EngineSample) for pod in pods):
            self.unpriced["usage_missing"] += 1

    def _pod(self, entry: Tracked, basis: CostBasis, pod: observed.Pod) -> PodObservation:
        answer = entry.answers.get(pod.uid) or self._draining().get(pod.uid)
        node = self._book.node(pod.node)
        rate = basis.rate(node, self._book.sources)
        units = pod_units(basis.accelerator, entry.resolved.gpus, node)
        return PodObservation(
            uid=pod.uid,
            incarnation=pod.restarts,
            state=_state(pod, answer),
            gpus=units,
            counters=_counters(answer) if isinstance(answer, EngineSample) else None,
            usd_per_hour=None if rate is None else rate.gpu_usd_per_hour * units,
            capacity_type="unknown" if node is None else node.capacity_type,
            price_source="" if rate is None else rate.source,
            scheduled_at=_seconds(pod.scheduled_time),
            ready_at=_seconds(pod.ready_time),
        )

    async def families(self) -> list[Metric]:
        """The metrics of every deployment now. Other tasks get their turn after each slice of the fleet."""
        found, rates = FleetFamilies(), set[Rate]()
        for number, key in enumerate(list(self._scaler.tracked), start=1):
            # It may have been deleted since the last slice.
            if (entry := self._scaler.tracked.get(key)) is not None:
                found.add(self._deployment(key, entry))
                rates |= self.rates(key)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        if self._store.count(MODEL_DEPLOYMENT) > len(self._scaler.tracked):
            # Those whose spec was never accepted have nothing but this.
            for number, live in enumerate(list(self._store.all(MODEL_DEPLOYMENT)), start=1):
                meta = live["metadata"]
                if Key(MODEL_DEPLOYMENT, meta["namespace"], meta["name"]) not in self._scaler.tracked:
                    found.add_stalled(meta["namespace"], meta["name"], _stalled(live))
                if number % _SLICE == 0:
                    await asyncio.sleep(0)
        found.cost.add_prices(rates, self._book.version)
        found.cost.add_unpriced(self.unpriced)
        found.cost.add_unallocated(self.unallocated())
        return list(found.all())

    def rates(self, key: Key) -> set[Rate]:
        """The prices in force for one deployment: those of its pods' nodes, or of its class without pods."""
        basis = self._bases.get(key)
        if basis is None:
            return set()
        nodes = {pod.node for pod in self._scaler.workloads.of(key).pods} or {""}
        found = (basis.rate(self._book.node(name), self._book.sources) for name in nodes)
        return {rate for rate in found if rate is not None}

    def _deployment(self, key: Key, entry: Tracked) -> DeploymentView:
        sample = entry.sample
        live: Mapping[str, Any] = self._store.get(key.kind, key.namespace, key.name) or {"metadata": {}, "spec": {}}
        ready = sum(pod.ready for pod in self._scaler.workloads.of(key).pods)
        account = self._ledger.accounts.get(entry.uid)
        if account is not None:
            account.advance(self._clock())
        return DeploymentView(
            namespace=key.namespace,
            name=key.name,
            model=(live["spec"].get("model") or {}).get("source", ""),
            engine=entry.resolved.profile.name,
            team=(live["metadata"].get("labels") or {}).get(LABEL_TEAM, ""),
            gpu_type=entry.resolved.accelerator.class_name,
            basis=self._bases.get(key),
            replica_usd_per_hour=self._replica_rate(key, entry),
            account=account,
            min_replicas=entry.spec.min_replicas,
            max_replicas=entry.spec.max_replicas,
            desired_replicas=entry.state.desired,
            ready_replicas=ready,
            waiting=None if sample is None or not sample.answered else sample.waiting,
            running=None if sample is None or not sample.answered else sample.running,
            kv_usage=_kv_usage(entry),
            demand=None if sample is None or sample.demand is None else sample.demand.requests,
            stalled=_stalled(live),
            speed=self._speed(entry),
        )

    def _speed(self, entry: Tracked) -> SpeedCorrection | None:
        observed = entry.speed.observed(self._clock())
        return None if observed is None else correction(entry.resolved, observed)

    def _replica_rate(self, key: Key, entry: Tracked) -> Decimal | None:
        """The mean of the pods that exist, else what the class costs."""
        account = self._ledger.accounts.get(entry.uid)
        if account is not None and account.pods:
            rates = [pod.usd_per_hour for pod in account.pods.values() if pod.usd_per_hour is not None]
            return sum(rates, Decimal(0)) / len(rates) if rates else None
        basis = self._bases.get(key)
        listed = None if basis is None else basis.rate(None, self._book.sources)
        if listed is None:
            return None
        return listed.gpu_usd_per_hour * pod_units(entry.resolved.accelerator, entry.resolved.gpus, None)


def _kv_usage(entry: Tracked) -> float | None:
    known = [a.kv_usage for a in entry.answers.values() if isinstance(a, EngineSample) and a.kv_usage is not None]
    return sum(known) / len(known) if known else None


def _stalled(live: Mapping[str, Any]) -> bool | None:
    conditions = (live.get("status") or {}).get("conditions") or ()
    return next((c["status"] == "True" for c in conditions if c["type"] == "Stalled"), None)


def _seconds(rfc3339: str) -> float | None:
    return datetime.fromisoformat(rfc3339).timestamp() if rfc3339 else None


def _state(pod: observed.Pod, answer: EngineSample | ScrapeError | None) -> PodState:
    if pod.terminating:
        return "draining"
    if not pod.ready:
        return "startup"
    busy = isinstance(answer, EngineSample) and answer.running + answer.waiting > 0
    return "serving" if busy else "idle"


def _counters(sample: EngineSample) -> Counters:
    failed = [count for count in (sample.requests_failed, sample.rejected) if count is not None]
    return Counters(
        prompt=sample.prompt_tokens,
        generated=sample.generation_tokens,
        cached=sample.cached_tokens,
        requests=sample.requests_success,
        failed=sum(failed) if failed else None,
    )
