"""The operator between start and stop: store, queue, workers, watches and loops, wired once.

Data flows one way: watches and answers to own writes change the store; the store reports each change; `_on_change` puts
whoever depends on it into the queue; workers reconcile.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

from prometheus_client.core import Metric

from flotilla.addresses import AddressMap
from flotilla.background import isolated, keep_running
from flotilla.catalog.accelerators import WHOLE_GPUS
from flotilla.config import OperatorConfig
from flotilla.console import view
from flotilla.console.metrics import Metrics
from flotilla.constants import GATEWAY, MANAGED_BY_SELECTOR
from flotilla.controller.adapter_loop import AdapterLoader
from flotilla.controller.apply import CHILD_KINDS, LISTED_KINDS, Executor, PodDeletionCosts, Rollouts, StatusWriter
from flotilla.controller.evaluation import EvaluationReconciler, ProgressReader, target_facts
from flotilla.controller.gateway import GatewayReader, GatewayReconciler, PodNudge
from flotilla.controller.guard_loop import GuardLoop
from flotilla.controller.model_deployment import ModelDeploymentReconciler
from flotilla.controller.promotions import Promotions
from flotilla.controller.queue import Queue, Workers
from flotilla.controller.resync import Resync
from flotilla.cost.accounting_loop import Draining, FleetAccounting
from flotilla.cost.gpu_prices import PriceCatalog, PriceSources
from flotilla.cost.hosted_price_client import HostedPriceLookup
from flotilla.cost.ledger import Ledger
from flotilla.cost.ledger_store import LedgerStore
from flotilla.cost.price_loop import NodeLister, PriceCache, Pricing, opencost_prices
from flotilla.cost.unallocated_loop import Unallocated
from flotilla.kube import observed
from flotilla.kube.client import KubeClient
from flotilla.kube.events import EventRecorder
from flotilla.kube.informer import Informer, in_slices
from flotilla.kube.kinds import (
    DEPLOYMENT,
    EVALUATION,
    GATEWAY_KIND,
    MODEL_DEPLOYMENT,
    POD,
    ROUTING_POLICY,
    USER_KINDS,
    Key,
    Kind,
    gateway_key,
)
from flotilla.kube.store import Object, Store, owner
from flotilla.kube.watch import Watch
from flotilla.planning.resolve import Catalog
from flotilla.prometheus.client import PrometheusClient
from flotilla.render.gateway import ADMIN_PORT, GatewaySettings
from flotilla.routing.document import facts_of
from flotilla.scaling.engine_client import EngineSources, PrometheusEngines, WakeQuery
from flotilla.scaling.scaling_loop import Scaler
from flotilla.scaling.scrape_client import Scraper
from flotilla.scaling.wake_loop import SCRAPER_TIMEOUT_S, WakeLoop

log = logging.getLogger(__name__)

CHILD_AND_POD_KINDS: tuple[Kind, ...] = (*CHILD_KINDS, *LISTED_KINDS, POD)
"""What the operator made, or what was made for it: kept in the store by informers."""
WATCHED_KINDS: tuple[Kind, ...] = (*USER_KINDS, *CHILD_AND_POD_KINDS)


def _today() -> date:
    return datetime.now(UTC).date()


def _rfc3339_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _wake(client: PrometheusClient | None, query: str | None, clock: Callable[[], float]) -> WakeQuery | None:
    return None if client is None or query is None else WakeQuery(client, query, clock=clock)


def _gateway_settings(config: OperatorConfig) -> GatewaySettings:
    mapped = {"FLOTILLA_POD_ADDRESS_MAP": config.pod_address_map} if config.pod_address_map else {}
    return GatewaySettings(
        image=config.gateway_image,
        replicas=config.gateway_replicas,
        redis_secret=config.gateway_redis_secret,
        tls_secret=config.gateway_tls_secret,
        env={**mapped, **config.gateway_env},
    )


def _samples(families: Iterable[Metric]) -> Iterator[view.MetricSample]:
    for family in families:
        for sample in family.samples:
            yield view.MetricSample(sample.name, sample.labels, sample.value)


class ControlLoop:
    """Everything that acts; built at once, run only while this process leads."""

    def __init__(
        self, config: OperatorConfig, catalog: Catalog, prices: PriceCatalog, client: KubeClient, metrics: Metrics
    ) -> None:
        clock = time.monotonic
        self._metrics = metrics
        self.synced = asyncio.Event()
        self._standby = False
        self.store = Store(owner, self._on_change)
        self.queue: Queue[Key] = Queue(clock=clock)
        self._events = EventRecorder(client, instance=os.uname().nodename)
        self._scraper = Scraper(AddressMap.parse(config.pod_address_map))
        for_scaling, for_prices = PrometheusClient.from_config(config), PrometheusClient.from_config(config)
        self._prometheus = [client for client in (for_scaling, for_prices) if client is not None]
        """Two, so that a slow query for prices holds up no query of the scaler."""
        self._scaler = Scaler(
            self.store,
            self._scraper,
            sources=EngineSources(
                self._scraper,
                None if for_scaling is None else PrometheusEngines(for_scaling),
                order=config.scaling_source,
            ),
            wake=_wake(for_scaling, config.wake_query, clock),
            interval_s=config.scaling_interval_s,
            clock=clock,
            enqueue=self.queue.add,
        )
        self._poller = Scraper(AddressMap.parse(config.pod_address_map), timeout_s=SCRAPER_TIMEOUT_S)
        self._wake_loop = WakeLoop(self._poller, self._scaler.wakeable_gateways, self._scaler.wake)
        self._prices = PriceCache(
            lambda: self._resync.trigger_all(),
            clock=clock,
            interval_s=config.resync_interval_s,
            # The role of an operator of a few namespaces has no right to nodes.
            nodes=None if config.namespaces else NodeLister(client, WHOLE_GPUS),
            catalog_file=config.price_catalog,
            opencost=None if for_prices is None else partial(opencost_prices, for_prices),
            sources=PriceSources(catalog=prices),
        )
        self._reader = GatewayReader(AddressMap.parse(config.pod_address_map), port=ADMIN_PORT)
        self._promotions = Promotions(self.store, clock=time.time, enqueue=self.queue.add)
        self._guards = GuardLoop(self.store, self._scraper, self._promotions, port=ADMIN_PORT)
        executor = Executor(client, self.store)
        status = StatusWriter(client, self.store, interval_s=config.status_interval_s, clock=clock)
        pricing = Pricing(
            HostedPriceLookup(),
            self._prices,
            config.compare_with,
            today=_today,
            stale_after_days=config.price_stale_days,
        )
        self._adapters = AdapterLoader(
            client,
            self.store,
            AddressMap.parse(config.pod_address_map),
            enqueue=self.queue.add,
            clock=clock,
            now=_rfc3339_now,
        )
        models = ModelDeploymentReconciler(
            store=self.store,
            executor=executor,
            rollouts=Rollouts(client),
            deletion_costs=PodDeletionCosts(client, self.store),
            status=status,
            scaler=self._scaler,
            adapters=self._adapters,
            events=self._events,
            catalog=catalog,
            pricing=pricing,
            now=_rfc3339_now,
            promotions=self._promotions,
        )
        gateways = GatewayReconciler(
            store=self.store,
            executor=executor,
            status=status,
            events=self._events,
            reader=self._reader,
            settings=_gateway_settings(config),
            allow_private_hosted_addresses=config.allow_private_hosted_addresses,
            now=_rfc3339_now,
            promotions=self._promotions,
            nudge=PodNudge(client, self.store),
            moved=metrics.traffic_moved,
        )
        self._progress = ProgressReader(AddressMap.parse(config.pod_address_map))
        # A record outlives this process, and the system's clock may step: its time, by the seconds that went by.
        begin = time.time() - clock()
        ledger = Ledger(gap_s=max(30.0, 5 * config.scaling_interval_s), record_interval_s=config.ledger_interval_s)
        evaluations = EvaluationReconciler(
            client=client,
            store=self.store,
            status=status,
            events=self._events,
            progress=self._progress,
            ledger=ledger,
            bases=pricing.bases,
            image=config.gateway_image,
            allow_private_hosted_addresses=config.allow_private_hosted_addresses,
            now=_rfc3339_now,
        )
        self._workers = Workers(
            self.queue,
            {MODEL_DEPLOYMENT: models, GATEWAY_KIND: gateways, EVALUATION: evaluations},
            metrics,
            count=config.workers,
            clock=clock,
        )
        self._informers = [
            Informer(
                client,
                self.store,
                kind,
                namespace=namespace,
                label_selector=MANAGED_BY_SELECTOR,
                # The operator has a right to these kinds for objects of this name only.
                field_selector=f"metadata.name={GATEWAY}" if kind in LISTED_KINDS else None,
                on_events=lambda kind: metrics.event(kind.plural),
            )
            for kind in CHILD_AND_POD_KINDS
            for namespace in config.namespaces or (None,)
        ]
        self._resync = Resync(
            [
                Informer(client, self.store, kind, namespace=namespace)
                for kind in USER_KINDS
                for namespace in config.namespaces or (None,)
            ],
            self._informers,
            self.store,
            interval_s=config.resync_interval_s,
            enqueue=self.queue.add,
        )
        self._watch = Watch(
            USER_KINDS,
            self._on_event,
            on_listed=self._resync.trigger,
            namespaces=config.namespaces,
            kubeconfig=config.kubeconfig,
            context=config.context,
        )
        self._ledger_store = LedgerStore(
            client,
            self.store,
            ledger,
            namespace=config.leader_election.namespace,
            watched=config.namespaces,
            interval_s=config.ledger_interval_s,
            clock=clock,
        )
        self._draining = Draining(self.store, self._scaler, self._scraper, interval_s=config.scaling_interval_s)
        # The role of an operator of a few namespaces shows it neither nodes nor the pods of others.
        self._unallocated = (
            None
            if config.namespaces
            else Unallocated(
                client,
                self.store,
                tuple(catalog.accelerators.values()),
                lambda: self._prices.sources,
                interval_s=config.resync_interval_s,
            )
        )
        self._accounting = FleetAccounting(
            self.store,
            self._scaler,
            ledger,
            self._prices,
            pricing.bases,
            clock=lambda: begin + clock(),
            draining=lambda: self._draining.answers,
            unallocated=dict if self._unallocated is None else self._unallocated.usd_per_hour,
        )
        metrics.observe(
            depth=lambda: self.queue.depth,
            oldest_age_s=lambda: self.queue.oldest_age_s,
            watch_restarts=lambda: self._watch.restarts + sum(informer.restarts for informer in self._informers),
            watch_silent_s=lambda: max(self._watch.silent_s, *(informer.silent_s for informer in self._informers)),
            objects=self.store.counts,
            kinds=tuple(kind.plural for kind in WATCHED_KINDS),
        )

    def standing_by(self) -> None:
        """Another process leads: healthy and ready, but idle."""
        self._standby = True

    async def run(self) -> None:
        """Until cancelled, or until a part of it breaks."""
        self._standby = False
        self._metrics.leading(True)
        async with asyncio.TaskGroup() as group:

            def start(name: str, loop: Callable[[], Awaitable[None]]) -> None:
                group.create_task(keep_running(name, loop, on_failure=self._metrics.loop_failed), name=name)

            for informer in self._informers:
                start(f"informer of {informer.kind.plural}", informer.run)
            await self._resync.first()
            await self._ledger_store.load()
            # Prices are read before the first pass, so that a restart changes no status.
            async for pods in in_slices(self.store.objects(POD)):
                for obj in pods:
                    with isolated("price of a node", obj["metadata"]["name"]):
                        self._prices.node(observed.pod(obj).node)
            with isolated("prices", "at the start"):
                await self._prices.refresh()
            # What was listed stays for long: the garbage collector need not walk over it again and again.
            gc.freeze()
            self._watch.start()
            start("workers", self._workers.run)
            start("scaler", lambda: self._scaler.run(publish=self._accounting.account))
            start("wake", self._wake_loop.run)
            start("guards", self._guards.run)
            start("resync", self._resync.run)
            start("events", self._events.run)
            start("draining", self._draining.run)
            start("adapters", self._adapters.run)
            start("prices", self._prices.run)
            start("ledger", self._ledger_store.run)
            if self._unallocated is not None:
                start("unallocated", self._unallocated.run)
            self.synced.set()

    async def stop(self, *, leading: bool) -> None:
        """Close what `run` used, after it has ended. One that no longer leads writes nothing."""
        if leading and self.synced.is_set():
            await self._ledger_store.save()
        await asyncio.to_thread(self._watch.stop)
        await self._scraper.close()
        await self._poller.close()
        for client in self._prometheus:
            await client.close()
        await self._reader.close()
        await self._progress.close()
        self._metrics.leading(False)

    async def families(self) -> list[Metric]:
        """The metrics of the operator and of the fleet now."""
        return [*self._metrics.registry.collect(), *await self._accounting.families()]

    async def fleet(self) -> view.Json:
        """What the console shows now."""
        families = await self._accounting.families()
        models, policies = list(self.store.all(MODEL_DEPLOYMENT)), list(self.store.all(ROUTING_POLICY))
        # Stored objects are replaced and never changed, so that a thread may read them.
        return await asyncio.to_thread(view.fleet, models, policies, _samples(families), tuple(self._events.recent))

    def live_checks(self) -> Mapping[str, Callable[[], bool]]:
        """A false one asks the kubelet for a restart."""
        return {"watch": lambda: self._standby or not self.synced.is_set() or self._watch.alive}

    def ready_checks(self) -> Mapping[str, Callable[[], bool]]:
        """A false one takes the pod out of its Service."""
        return {"synced": lambda: self._standby or self.synced.is_set()}

    def _on_event(self, kind: Kind, type_: str | None, obj: dict[str, Any]) -> None:
        self._metrics.event(kind.plural)
        if type_ == "DELETED":
            self.store.drop(kind, obj)
        else:
            self.store.put(kind, obj)

    def _on_change(self, kind: Kind, before: Object | None, after: Object | None, writer: Hashable | None) -> None:
        """Put into the queue whoever depends on an object that changed, but for the reconciler that wrote it."""
        for key in dependants(kind, before, after):
            # Without a policy the namespace has no gateway.
            if key != writer and (key.kind != GATEWAY_KIND or kind != MODEL_DEPLOYMENT or self._has_policy(key)):
                self.queue.add(key)
        if kind == EVALUATION or (kind in (MODEL_DEPLOYMENT, DEPLOYMENT) and _serves_otherwise(kind, before, after)):
            namespace = (after or before or {})["metadata"]["namespace"]
            if namespace in self._promotions.namespaces:
                self.queue.add(gateway_key(namespace))
        if kind in (MODEL_DEPLOYMENT, DEPLOYMENT) and target_facts(kind, before) != target_facts(kind, after):
            # Evaluations ask models of their namespace, and their verdicts are about what those serve.
            for evaluation in self.store.in_namespace(EVALUATION, (after or before or {})["metadata"]["namespace"]):
                self.queue.add(Key(EVALUATION, evaluation["metadata"]["namespace"], evaluation["metadata"]["name"]))
        if kind == MODEL_DEPLOYMENT and after is None:
            self._ledger_store.trigger()

    def _has_policy(self, gateway: Key) -> bool:
        return bool(self.store.owned_by(ROUTING_POLICY, gateway))


def _serves_otherwise(kind: Kind, before: Object | None, after: Object | None) -> bool:
    """Whether what a ModelDeployment serves may be another revision now."""
    old, new = target_facts(kind, before), target_facts(kind, after)
    return old != new if kind == MODEL_DEPLOYMENT or old is None or new is None else old[0] != new[0]


def dependants(kind: Kind, before: Object | None, after: Object | None) -> Iterator[Key]:
    """Keys of the resources that must be looked at when an object changed, appeared (`before` None) or went."""
    owners = {owner(kind, obj) for obj in (before, after) if obj is not None} - {None}
    yield from (key for key in owners if key is not None)
    if kind == MODEL_DEPLOYMENT:
        # Gateways serve what they know of models, some of which (the fitted context length) is in the status.
        facts = [
            None if obj is None or "deletionTimestamp" in obj["metadata"] else facts_of(obj) for obj in (before, after)
        ]
        if facts[0] != facts[1]:
            yield gateway_key((after or before or {})["metadata"]["namespace"])
