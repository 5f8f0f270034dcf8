"""Cost and scaling metrics, computed when Prometheus asks: series vanish with their deployment."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flotilla.domain.cost.hosted import hosted_usd
from flotilla.domain.cost.tokens import usd_per_million
from flotilla.domain.prices import HostedPrice
from flotilla.telemetry.ledger import Account, Window

_BASE = ["namespace", "modeldeployment"]
_WINDOW = "1h"


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One deployment now. None is unknown, and unknown has no series."""

    namespace: str
    name: str
    gpu_type: str
    price_source: str
    comparators: tuple[HostedPrice, ...]
    account: Account | None
    window: Window | None
    desired_replicas: int
    ready_replicas: int
    waiting: float | None
    running: float | None


class FleetCollector(Collector):
    """Registered once; `view` yields the deployments of this moment."""

    def __init__(self, view: Callable[[], Iterable[DeploymentView]]) -> None:
        self._view = view

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names depend on what is known."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every family, with a sample for each deployment that has the value."""
        families = _Families()
        for deployment in self._view():
            families.add(deployment)
        yield from families.all()


class _Families:
    def __init__(self) -> None:
        def gauge(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"flotilla_{name}", help_, labels=[*_BASE, *labels])

        def counter(name: str, help_: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"flotilla_{name}", help_, labels=[*_BASE, *labels])

        self.rate = gauge(
            "deployment_cost_usd_per_hour",
            "US dollars per hour of the pods that exist.",
            "gpu_type",
            "price_source",
        )
        self.cost = counter("deployment_cost_usd", "US dollars by what the pods did.", "state")
        self.gpu_hours = counter("deployment_gpu_hours", "GPU-hours held.", "gpu_type")
        self.tokens = counter("deployment_tokens", "Tokens served.", "token_type")
        self.requests = counter("deployment_requests", "Requests served with success.")
        self.unit = gauge(
            "deployment_cost_usd_per_million_tokens",
            "US dollars per million tokens of the window, idle time included.",
            "token_type",
            "window",
        )
        self.hosted = counter(
            "hosted_equivalent_cost_usd",
            "What the comparator would have cost for the same tokens.",
            "comparator",
        )
        self.hosted_price = gauge(
            "hosted_price_usd_per_million_tokens", "The comparator's price.", "comparator", "token_type"
        )
        self.savings = gauge(
            "savings_usd",
            "Hosted minus own cost of the window; negative where hosted is cheaper.",
            "comparator",
            "window",
        )
        self.ratio = gauge("cost_ratio", "Hosted over own cost of the window.", "comparator", "window")
        self.depth = gauge("queue_depth", "Waiting and running requests over all ready replicas that answered.")
        self.waiting = gauge("requests_waiting", "Requests in the engines' queues.")
        self.running = gauge("requests_running", "Requests that the engines work on.")
        self.desired = gauge("desired_replicas", "Replicas wanted.")
        self.ready = gauge("ready_replicas", "Replicas that serve.")

    def all(self) -> Iterator[Metric]:
        """Every family."""
        yield from vars(self).values()

    def add(self, of: DeploymentView) -> None:
        """The samples of one deployment."""
        base = [of.namespace, of.name]
        self.desired.add_metric(base, of.desired_replicas)
        self.ready.add_metric(base, of.ready_replicas)
        if of.waiting is not None and of.running is not None:
            self.depth.add_metric(base, of.waiting + of.running)
            self.waiting.add_metric(base, of.waiting)
            self.running.add_metric(base, of.running)
        if of.account is not None:
            self._account(base, of, of.account)
        if of.account is not None and of.window is not None:
            self._compare(base, of, of.account, of.window)

    def _account(self, base: list[str], of: DeploymentView, account: Account) -> None:
        if account.usd_per_hour is not None:
            self.rate.add_metric([*base, of.gpu_type, of.price_source], float(account.usd_per_hour))
            for state, usd in account.usd.items():
                self.cost.add_metric([*base, state], float(usd))
        self.gpu_hours.add_metric([*base, of.gpu_type], float(account.gpu_hours))
        usage = account.usage
        for token_type, tokens in (
            ("input", usage.prompt - usage.cached),
            ("cached_input", usage.cached),
            ("output", usage.generated),
        ):
            self.tokens.add_metric([*base, token_type], float(tokens))
        self.requests.add_metric(base, float(account.requests))

    def _compare(self, base: list[str], of: DeploymentView, account: Account, window: Window) -> None:
        own = None if account.usd_per_hour is None else window.usd
        unit = None if own is None else usd_per_million(own, window.usage.total)
        if unit is not None:
            self.unit.add_metric([*base, "blended", _WINDOW], float(unit))
        mean_prompt = float(account.usage.prompt / account.requests) if account.requests else 0.0
        for comparator in of.comparators:
            prices, name = comparator.at(mean_prompt), comparator.comparator
            self.hosted.add_metric([*base, name], float(hosted_usd(account.usage, prices)))
            self.hosted_price.add_metric([*base, name, "input"], float(prices.input_usd_per_million))
            self.hosted_price.add_metric([*base, name, "output"], float(prices.output_usd_per_million))
            hosted = hosted_usd(window.usage, prices)
            if own is not None and hosted > 0:
                self.savings.add_metric([*base, name, _WINDOW], float(hosted - own))
                if own > Decimal(0):
                    self.ratio.add_metric([*base, name, _WINDOW], float(hosted / own))
