"""Counts of the gateway, and what /metrics shows of them.

Counting is a dictionary's entry: a client library's objects and locks would cost more than the decision. The samples
are made when somebody asks, on the admin server's thread.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_P: Final = "flotilla_gateway"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_OVERHEAD: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)

Labels = tuple[str, ...]


class Histogram:
    """Observations by label values."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, bounds
        self._rows: dict[Labels, list[float]] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Count one; the last entry of a row is the sum."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0.0] * (len(self._bounds) + 2)
        row[bisect_left(self._bounds, value)] += 1
        row[-1] += value

    def family(self) -> Metric:
        """Cumulative buckets."""
        family = HistogramMetricFamily(f"{_P}_{self._name}", self._text, labels=self._labels)
        for labels, row in list(self._rows.items()):
            total, buckets = 0.0, []
            for bound, count in zip((*self._bounds, float("inf")), row[:-1], strict=True):
                total += count
                buckets.append(("+Inf" if bound == float("inf") else repr(bound), total))
            family.add_metric(labels, buckets, row[-1])
        return family


class Counter:
    """A sum by label values."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.values: defaultdict[Labels, float | Decimal] = defaultdict(int)

    def add(self, labels: Labels, value: float | Decimal = 1) -> None:
        """Count."""
        self.values[labels] += value  # type: ignore[operator]

    def declare(self, labels: Labels) -> None:
        """Show 0 until something is counted."""
        self.values.setdefault(labels, 0)

    def family(self) -> Metric:
        """One sample of each."""
        family = CounterMetricFamily(f"{_P}_{self._name}", self._text, labels=self._labels)
        for labels, value in list(self.values.items()):
            family.add_metric(labels, float(value))
        return family


Gauge = Callable[[], Mapping[Labels, float]]


class Metrics(Collector):
    """All of them. Label values are names in policies: a client cannot invent one."""

    def __init__(self) -> None:
        route = ("policy", "rule", "target", "class")
        self.requests = Counter("requests", "Requests that ended.", (*route, "outcome"))
        self.ttft = Histogram("ttft_seconds", "From the request to the first token.", ("policy", "target"), _SECONDS)
        self.duration = Histogram("duration_seconds", "From the request to its end.", ("policy", "target"), _SECONDS)
        self.overhead = Histogram("overhead_seconds", "Time of a request that no target took.", ("policy",), _OVERHEAD)
        place = ("policy", "target")
        self.tokens = Counter("tokens", "Tokens that targets counted.", (*place, "answer", "token_type"))
        self.cost = Counter("cost_usd", "What hosted targets charge.", (*place, "answer"))
        self.team_tokens = Counter("team_tokens", "The same tokens by team.", (*place, "team", "token_type"))
        self.team_cost = Counter("team_cost_usd", "The same charges by team.", (*place, "team"))
        self.counterfactual = Counter(
            "counterfactual_cost_usd",
            "What the answers that clients got cost on a hosted target.",
            ("policy", "comparator"),
        )
        self.escalations = Counter("escalations", "Answers that were asked again.", ("policy", "rule", "signal"))
        self.fallbacks = Counter(
            "fallbacks", "Attempts that failed and were followed.", ("policy", "target", "failure")
        )
        self.retries = Counter("retries", "Attempts that were made again on another endpoint.", ("policy", "target"))
        self.attempts = Counter("upstream_attempts", "Attempts by outcome.", ("policy", "target", "outcome"))
        self.hold = Histogram("hold_seconds", "Waits for a model at zero.", ("modeldeployment", "result"), _SECONDS)
        self.denied = Counter("sovereignty_denied", "Requests that no target may serve.", ("policy", "class"))
        self.limited = Counter("limited", "Requests that a limit refused.", ("policy", "code"))
        self.log_lost = Counter("access_log_lost", "Lines that nobody read in time.", ())
        self.gauges: list[tuple[str, str, Labels, Gauge]] = []

    def gauge(self, name: str, text: str, labels: Labels, read: Gauge) -> None:
        """Show what `read` returns at the time of the question."""
        self.gauges.append((name, text, labels, read))

    def collect(self) -> Iterator[Metric]:
        """Everything, as it is now."""
        for name, text, labels, read in self.gauges:
            family = GaugeMetricFamily(f"{_P}_{name}", text, labels=labels)
            for values, number in read().items():
                family.add_metric(values, number)
            yield family
        for value in list(vars(self).values()):
            if isinstance(value, Counter | Histogram):
                yield value.family()
