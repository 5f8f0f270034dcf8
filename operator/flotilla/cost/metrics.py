"""The cost metrics of the fleet, computed at scrape from the ledger and the prices."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from flotilla.cost.comparison import (
    NEVER,
    at_full_load,
    break_even_tasks_per_day,
    break_even_utilization,
    cost_ratio,
    replica_tasks_per_day,
    saturation_ratio,
)
from flotilla.cost.gpu_prices import CostBasis, Rate
from flotilla.cost.hosted_prices import (
    MEASURED,
    Comparator,
    hosted_usd_by_request,
    unit_costs,
    usd_per_million,
    usd_per_request,
)
from flotilla.cost.ledger import WINDOWS, Account, Totals
from flotilla.planning.speed import SpeedCorrection

BASE = ["namespace", "modeldeployment"]
_LONGEST = list(WINDOWS)[-1]


def _gauge(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"flotilla_{name}", help_, labels=[*BASE, *labels])


def _counter(name: str, help_: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"flotilla_{name}", help_, labels=[*BASE, *labels])


class CostFamilies:
    """One scrape's worth: `add` each deployment, then take `all`."""

    def __init__(self) -> None:
        self.info = _gauge("deployment_info", "What it serves, and for whom.", "model", "engine", "gpu_type", "team")
        self.rate = _gauge(
            "deployment_cost_usd_per_hour",
            "US dollars per hour of the pods that exist.",
            "gpu_type",
            "capacity_type",
            "price_source",
        )
        self.cost = _counter("deployment_cost_usd", "US dollars by what the pods did.", "state")
        self.estimated = _counter(
            "deployment_estimated_cost_usd", "Of the cost, US dollars that accrued while the operator was away."
        )
        self.gpu_hours = _counter("deployment_gpu_hours", "Hours of whole GPUs held.", "gpu_type", "capacity_type")
        self.tokens = _counter("deployment_tokens", "Tokens served.", "token_type")
        self.requests = _counter("deployment_requests", "Requests by how they ended.", "outcome")
        self.unit = _gauge(
            "deployment_cost_usd_per_million_tokens",
            "US dollars per million tokens of the window, idle time included.",
            "token_type",
            "window",
        )
        self.per_request = _gauge("deployment_cost_usd_per_request", "US dollars per request of the window.", "window")
        self.active = _gauge("deployment_active_ratio", "Share of ready replicas' time with requests.", "window")
        self.saturation = _gauge(
            "deployment_saturation_ratio", "Tokens made over what the ready replicas can make.", "window"
        )
        self.weight = _gauge(
            "deployment_token_weight_ratio", "Cost of a token over one of uncached input.", "token_type"
        )
        self.budget = _gauge("deployment_budget_usd_per_month", "spec.cost.monthlyBudgetUsd.")
        self.hosted = _counter(
            "hosted_equivalent_cost_usd", "What the comparator would have cost for the same tokens.", "comparator"
        )
        self.savings = _gauge(
            "savings_usd",
            "Hosted minus own cost of the window; negative where hosted is cheaper.",
            "comparator",
            "window",
        )
        self.ratio = _gauge("cost_ratio", "Hosted over own cost of the window.", "comparator", "window")
        self.break_even = _gauge(
            "break_even_tasks_per_day",
            "From how many requests a day on hosted costs more; +Inf: never.",
            "comparator",
        )
        self.break_even_load = _gauge(
            "break_even_utilization_ratio",
            "The saturation from which on hosted costs more; above 1: never.",
            "comparator",
        )
        self.hosted_price = GaugeMetricFamily(
            "flotilla_hosted_price_usd_per_million_tokens",
            "The comparator's price for the mean request.",
            labels=["comparator", "provider", "model", "token_type", "mode"],
        )
        dated = ["source", "as_of", "catalog_version"]
        self.price_info = GaugeMetricFamily("flotilla_price_info", "GPU prices in force.", labels=dated)
        self.price_as_of = GaugeMetricFamily(
            "flotilla_price_as_of_timestamp_seconds", "The date of a GPU price in force.", labels=dated
        )
        self.unpriced = CounterMetricFamily(
            "flotilla_unpriced", "Looks at a deployment that lacked a price or usage.", labels=["reason"]
        )
        self.unallocated = GaugeMetricFamily(
            "flotilla_unallocated_gpu_cost_usd_per_hour",
            "US dollars per hour of GPUs that no pod holds.",
            labels=["gpu_type"],
        )
        self._listed: set[str] = set()

    def all(self) -> Iterator[Metric]:
        """Every family."""
        return (family for family in vars(self).values() if isinstance(family, Metric))

    def add_prices(self, rates: Iterable[Rate], catalog_version: str) -> None:
        """GPU prices, once each."""
        for source, as_of in sorted({(rate.source, rate.as_of) for rate in rates}, key=str):
            version = catalog_version if source == "catalog" else ""
            labels = [source, as_of.isoformat() if as_of else "", version]
            self.price_info.add_metric(labels, 1)
            if as_of is not None:
                midnight = datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC)
                self.price_as_of.add_metric(labels, midnight.timestamp())

    def add_unpriced(self, counts: Mapping[str, int]) -> None:
        """All reasons, so that an increase is seen from the first on."""
        for reason in ("gpu_unknown", "model_unknown", "usage_missing"):
            self.unpriced.add_metric([reason], counts.get(reason, 0))

    def add_unallocated(self, usd_per_hour: Mapping[str, Decimal]) -> None:
        """By class."""
        for gpu_type, usd in usd_per_hour.items():
            self.unallocated.add_metric([gpu_type], float(usd))

    def add(self, of: "DeploymentView") -> None:
        """The samples of one deployment."""
        base = [of.namespace, of.name]
        self.info.add_metric([*base, of.model, of.engine, of.gpu_type, of.team], 1)
        if of.basis is not None and of.basis.budget_usd_per_month is not None:
            self.budget.add_metric(base, float(of.basis.budget_usd_per_month))
        if of.basis is not None and of.basis.weights != MEASURED:
            for token_type, weight in of.basis.weights.by_token_type.items():
                self.weight.add_metric([*base, token_type], float(weight))
        if of.account is None or of.basis is None:
            return
        self._account(base, of.gpu_type, of.account)
        windows = {name: window for name in WINDOWS if (window := of.account.window(name)) is not None}
        capacity = of.basis.tokens_per_second or of.account.peak_tokens_per_second or None
        bills: dict[str, Decimal] = {}
        for name, window in windows.items():
            bills = {each.name: _hosted(window, each) for each in of.basis.comparators}
            self._window(base, name, window, of.account, of.basis, capacity)
            self._compare(base, name, window, of.account, bills)
        for comparator in of.basis.comparators:
            self._price(comparator, of.account)
        day = windows.get(_LONGEST)
        if day is not None and day.requests > 0 and day.usage.total > 0:
            self._break_even(base, of, of.basis, day, bills, capacity)

    def _account(self, base: list[str], gpu_type: str, account: Account) -> None:
        for (capacity_type, source), usd in account.rates.items():
            self.rate.add_metric([*base, gpu_type, capacity_type, source], float(usd))
        if account.priced:
            for state, usd in account.usd.items():
                self.cost.add_metric([*base, state], float(usd))
            self.estimated.add_metric(base, float(account.estimated_usd))
        for capacity_type, hours in account.gpu_hours.items():
            self.gpu_hours.add_metric([*base, gpu_type, capacity_type], float(hours))
        usage = account.usage
        for token_type, tokens, counter in (
            ("input", usage.uncached, "prompt"),
            ("cached_input", usage.cached, "cached"),
            ("output", usage.generated, "generated"),
        ):
            if counter in account.known:
                self.tokens.add_metric([*base, token_type], float(tokens))
        if "requests" in account.known:
            self.requests.add_metric([*base, "success"], float(account.requests))
        if "failed" in account.known:
            self.requests.add_metric([*base, "error"], float(account.failed))
        for name, usd in account.hosted.items():
            self.hosted.add_metric([*base, name], float(usd))

    def _window(
        self,
        base: list[str],
        name: str,
        window: Totals,
        account: Account,
        basis: CostBasis,
        capacity: Decimal | None,
    ) -> None:
        if window.active_ratio is not None:
            self.active.add_metric([*base, name], float(window.active_ratio))
        saturation = _saturation(window, capacity)
        if saturation is not None:
            self.saturation.add_metric([*base, name], float(saturation))
        if not account.priced:
            return
        units = unit_costs(window.usd, window.usage, basis.weights)
        if units is not None:
            for token_type, usd in (
                ("blended", units.blended),
                ("input", units.input),
                ("output", units.output),
                *((("cached_input", units.cached_input),) if "cached" in account.known else ()),
            ):
                self.unit.add_metric([*base, token_type, name], float(usd))
        per_request = usd_per_request(window.usd, window.requests)
        if per_request is not None:
            self.per_request.add_metric([*base, name], float(per_request))

    def _compare(
        self, base: list[str], name: str, window: Totals, account: Account, bills: Mapping[str, Decimal]
    ) -> None:
        if not account.priced:
            return
        for comparator, hosted in bills.items():
            if hosted > 0:
                self.savings.add_metric([*base, comparator, name], float(hosted - window.usd))
            ratio = cost_ratio(hosted, window.usd)
            if ratio is not None:
                self.ratio.add_metric([*base, comparator, name], float(ratio))

    def _price(self, comparator: Comparator, account: Account) -> None:
        """One series for all deployments: that of the first one's mean request."""
        if comparator.name in self._listed:
            return
        self._listed.add(comparator.name)
        mean = account.usage.prompt / account.requests if account.requests > 0 else Decimal(0)
        prices = comparator.price.at(float(mean * comparator.terms.input_factor))
        labels = [comparator.name, comparator.price.provider, comparator.price.model]
        for token_type, usd in (
            ("input", prices.input_usd_per_million),
            ("cached_input", prices.cached_usd_per_million),
            ("output", prices.output_usd_per_million),
        ):
            if usd is not None:
                self.hosted_price.add_metric([*labels, token_type, comparator.mode], float(usd))

    def _break_even(
        self,
        base: list[str],
        of: "DeploymentView",
        basis: CostBasis,
        day: Totals,
        bills: Mapping[str, Decimal],
        capacity: Decimal | None,
    ) -> None:
        mean_output = day.usage.generated / day.requests
        replica_tasks = replica_tasks_per_day(capacity / mean_output) if capacity and mean_output > 0 else NEVER
        own = usd_per_million(day.usd, day.usage.total)
        saturation = _saturation(day, capacity)
        for comparator, hosted in bills.items():
            if of.replica_usd_per_hour is not None:
                tasks = break_even_tasks_per_day(
                    replica_usd_per_hour=of.replica_usd_per_hour,
                    hosted_usd_per_task=hosted / day.requests,
                    replica_tasks=replica_tasks,
                    min_replicas=of.min_replicas,
                    max_replicas=of.max_replicas,
                    overhead_usd_per_day=basis.overhead_usd_per_day,
                )
                self.break_even.add_metric([*base, comparator], float(tasks))
            theirs = usd_per_million(hosted, day.usage.total)
            if own and theirs and saturation:
                load = break_even_utilization(at_full_load(own, saturation), theirs)
                if load is not None:
                    self.break_even_load.add_metric([*base, comparator], float(load))


def _hosted(window: Totals, comparator: Comparator) -> Decimal:
    return hosted_usd_by_request(window.usage, window.requests, comparator.price, comparator.terms)


def _saturation(window: Totals, capacity: Decimal | None) -> Decimal | None:
    if capacity is None or window.ready_s <= 0:
        return None
    return saturation_ratio(window.usage.generated, seconds=window.ready_s, tokens_per_second=capacity)


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
    speed: SpeedCorrection | None = None
    """How fast its engines were in the last hour, beside what is computed."""


class FleetFamilies:
    """One scrape's worth of metrics about the fleet: `add` each deployment, then take `all`.

    The caller adds deployments in slices, because a large fleet would keep the event loop busy for too long.
    """

    def __init__(self) -> None:
        self._replicas = _Replicas()
        self.cost = CostFamilies()

    def add(self, of: DeploymentView) -> None:
        """The samples of one deployment."""
        self._replicas.add(of)
        self.cost.add(of)

    def add_stalled(self, namespace: str, name: str, stalled: bool | None) -> None:
        """The sample of a deployment whose spec was never accepted, which has no others."""
        self._replicas.add_stalled(namespace, name, stalled)

    def all(self) -> Iterator[Metric]:
        """Every family, with a sample for each deployment that has the value."""
        yield from vars(self._replicas).values()
        yield from self.cost.all()


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
        self.interval = gauge(
            "deployment_token_interval_seconds", "Mean time between two tokens of an answer in the last hour."
        )
        self.first_token = gauge(
            "deployment_first_token_seconds", "Mean time from arrival to the first token in the last hour."
        )
        self.speed = gauge(
            "deployment_speed_ratio", "Speed of the last hour over the one that is computed for the same load."
        )
        self.counted = gauge("deployment_speed_observations", "Times between tokens that the ratio rests on.")
        self.age = gauge("deployment_speed_age_seconds", "Since the last of them.")

    def add_stalled(self, namespace: str, name: str, stalled: bool | None) -> None:
        """Whether somebody must change something; nothing before the first status."""
        if stalled is not None:
            self.stalled.add_metric([namespace, name], stalled)

    def add(self, of: DeploymentView) -> None:
        """The samples of one deployment."""
        base = [of.namespace, of.name]
        self.desired.add_metric(base, of.desired_replicas)
        self.ready.add_metric(base, of.ready_replicas)
        self.least.add_metric(base, of.min_replicas)
        self.most.add_metric(base, of.max_replicas)
        self.add_stalled(of.namespace, of.name, of.stalled)
        if of.waiting is not None and of.running is not None:
            self.depth.add_metric(base, of.waiting + of.running)
            self.waiting.add_metric(base, of.waiting)
            self.running.add_metric(base, of.running)
        if of.speed is not None:
            seen = of.speed.observed
            self.interval.add_metric(base, seen.token_interval_s)
            if seen.first_token_s is not None:
                self.first_token.add_metric(base, seen.first_token_s)
            self.speed.add_metric(base, of.speed.factor)
            self.counted.add_metric(base, seen.token_intervals)
            self.age.add_metric(base, seen.age_s)
        if of.kv_usage is not None:
            self.kv_usage.add_metric(base, of.kv_usage)
        if of.demand is not None:
            self.demand.add_metric(base, of.demand)
