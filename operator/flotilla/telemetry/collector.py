"""Cost and scaling metrics, computed when Prometheus asks: series vanish with their deployment."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flotilla.domain.pricing import CostBasis, Rate
from flotilla.telemetry.account import Account
from flotilla.telemetry.cost_metrics import BASE, CostFamilies


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One deployment now. None is unknown, and unknown has no series."""

    namespace: str
    name: str
    model: str
    engine: str
    team: str
    """By the label flotilla.dev/team of the resource; empty without one."""
    gpu_type: str
    basis: CostBasis | None
    replica_usd_per_hour: Decimal | None
    account: Account | None
    min_replicas: int
    max_replicas: int
    desired_replicas: int
    ready_replicas: int
    waiting: float | None
    running: float | None
    kv_usage: float | None = None
    """Mean of the replicas that answered, from 0 to 1."""
    demand: float | None = None
    """Requests that gateways hold or have under way."""
    stalled: bool | None = None
    """By the Stalled condition; None before it is written."""


class FleetView(Protocol):
    """What the collector asks for at each scrape."""

    @property
    def unpriced(self) -> Mapping[str, int]:
        """Looks at a deployment without a price or usage, by reason."""

    @property
    def catalog_version(self) -> str:
        """Of the administrator's own prices; empty without them."""

    def view(self) -> Iterable[DeploymentView]:
        """The deployments of this moment."""

    def rates(self) -> Iterable[Rate]:
        """The prices that are in force somewhere."""

    def unallocated(self) -> Mapping[str, Decimal]:
        """US dollars per hour of GPUs that no pod holds, by class; empty where nobody knows."""


class FleetCollector(Collector):
    """Registered once."""

    def __init__(self, fleet: FleetView) -> None:
        self._fleet = fleet

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names depend on what is known."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every family, with a sample for each deployment that has the value."""
        replicas, cost = _Replicas(), CostFamilies()
        for deployment in self._fleet.view():
            replicas.add(deployment)
            cost.add(deployment)
        cost.add_prices(self._fleet.rates(), self._fleet.catalog_version)
        cost.add_unpriced(self._fleet.unpriced)
        cost.add_unallocated(self._fleet.unallocated())
        yield from vars(replicas).values()
        yield from cost.all()


class _Replicas:
    """Load and replica counts."""

    def __init__(self) -> None:
        def gauge(name: str, help_: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"flotilla_{name}", help_, labels=BASE)

        self.depth = gauge("queue_depth", "Waiting and running requests over all ready replicas that answered.")
        self.waiting = gauge("requests_waiting", "Requests in the engines' queues.")
        self.running = gauge("requests_running", "Requests that the engines work on.")
        self.kv_usage = gauge("kv_cache_usage_ratio", "Share of the KV cache in use, mean of the replicas.")
        self.demand = gauge("demand_requests", "Requests that gateways hold or have under way; known without replicas.")
        self.desired = gauge("desired_replicas", "Replicas wanted.")
        self.ready = gauge("ready_replicas", "Replicas that serve.")
        self.least = gauge("min_replicas", "The fewest replicas that scaling may choose.")
        self.most = gauge("max_replicas", "The most replicas that scaling may choose.")
        self.stalled = gauge("stalled", "1 while waiting does not help: somebody must change something.")

    def add(self, of: DeploymentView) -> None:
        """The samples of one deployment."""
        base = [of.namespace, of.name]
        self.desired.add_metric(base, of.desired_replicas)
        self.ready.add_metric(base, of.ready_replicas)
        self.least.add_metric(base, of.min_replicas)
        self.most.add_metric(base, of.max_replicas)
        if of.stalled is not None:
            self.stalled.add_metric(base, of.stalled)
        if of.waiting is not None and of.running is not None:
            self.depth.add_metric(base, of.waiting + of.running)
            self.waiting.add_metric(base, of.waiting)
            self.running.add_metric(base, of.running)
        if of.kv_usage is not None:
            self.kv_usage.add_metric(base, of.kv_usage)
        if of.demand is not None:
            self.demand.add_metric(base, of.demand)
