"""The gateway's metrics. Pure: samples are made when /metrics is read, on the admin server's thread.

Counting is one dictionary update, because a client library's objects and locks would cost more than the routing
decision. `declare_series` starts the series that a policy can have at 0: the `increase` of a series that begins with
1 misses that 1, which may be the only failure or charge there is.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flotilla.api.routing_policy import Failure, OnExhausted, RouteSpec
from flotilla.routing.decide import DEFAULT_RULE, wanted_signals
from flotilla.routing.document import Policy, Target

_P: Final = "flotilla_gateway"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_OVERHEAD: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)

FIRST, ESCALATION, REPLACED, CLASSIFIER, SHADOW = "first", "escalation", "replaced", "classifier", "shadow"
"""Values of the label `answer`: the rule's own answer, the better one, one that it replaced, the classifier's, and that
of a shadow copy."""
COPY_OUTCOMES: Final = ("ok", "failed", "class", "full", "busy", "breaker", "budget", "unsupported")
"""Of shadow copies: answered, failed, or dropped: outside of the data class, too many copies, load, open breaker, the
day's money is spent, or the target cannot express the request."""
AGREEMENTS: Final = ("agree", "differ")
ESCALATION_ENDS: Final = ("answered", "refused", "failed")
CLASSIFICATION_ENDS: Final = ("named", "unnamed", "refused", "failed")
"""Values of the label `outcome` of classifications: `unnamed` is an answer that names no task of the policy."""
OTHER = "other"
"""Label value for a model that no policy serves and a team that no policy names: clients cannot invent values."""

Labels = tuple[str, ...]


class Histogram:
    """A histogram by label values."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, bounds
        self._rows: dict[Labels, list[float]] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Count a value. The last entry of a row is the sum."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0.0] * (len(self._bounds) + 2)
        row[bisect_left(self._bounds, value)] += 1
        row[-1] += value

    def family(self) -> Metric:
        """The samples, with cumulative buckets."""
        family = HistogramMetricFamily(f"{_P}_{self._name}", self._text, labels=self._labels)
        for labels, row in list(self._rows.items()):
            total, buckets = 0.0, []
            for bound, count in zip((*self._bounds, float("inf")), row[:-1], strict=True):
                total += count
                buckets.append(("+Inf" if bound == float("inf") else repr(bound), total))
            family.add_metric(labels, buckets, row[-1])
        return family


class Counter:
    """A counter by label values."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.values: defaultdict[Labels, float | Decimal] = defaultdict(int)

    def add(self, labels: Labels, value: float | Decimal = 1) -> None:
        """Add to the counter."""
        self.values[labels] += value  # type: ignore[operator]

    def declare(self, labels: Labels) -> None:
        """Start the series at 0 if it does not exist."""
        self.values.setdefault(labels, 0)

    def family(self) -> Metric:
        """The samples."""
        family = CounterMetricFamily(f"{_P}_{self._name}", self._text, labels=self._labels)
        for labels, value in list(self.values.items()):
            family.add_metric(labels, float(value))
        return family


Gauge = Callable[[], Mapping[Labels, float]]


class GatewayMetrics(Collector):
    """All metrics. Label values are names from policies, so that clients cannot create series."""

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
        self.escalation_outcomes = Counter(
            "escalation_outcomes", "How better models ended: answered, refused, failed.", ("policy", "rule", "outcome")
        )
        self.classifications = Counter("classifications", "Calls of the classifier by outcome.", ("policy", "outcome"))
        self.dropped_fields = Counter(
            "dropped_fields", "Fields of requests that a target does not accept.", ("policy", "target", "field")
        )
        self.fallbacks = Counter(
            "fallbacks", "Attempts that failed and were followed.", ("policy", "target", "failure")
        )
        self.retries = Counter("retries", "Attempts that were made again on another endpoint.", ("policy", "target"))
        self.attempts = Counter("upstream_attempts", "Attempts by outcome.", ("policy", "target", "outcome"))
        self.hold = Histogram("hold_seconds", "Waits for a model at zero.", ("modeldeployment", "result"), _SECONDS)
        self.denied = Counter("sovereignty_denied", "Requests that no target may serve.", ("policy", "class"))
        self.limited = Counter("limited", "Requests that a limit refused.", ("policy", "code"))
        self.copies = Counter("shadow_copies", "Shadow copies by outcome.", (*place, "rule", "outcome"))
        self.agreement = Counter(
            "shadow_agreement", "Answers of shadow copies, compared with the client's.", (*place, "rule", "result")
        )
        self.copy_duration = Histogram("shadow_seconds", "From a shadow copy to its answer.", place, _SECONDS)
        self.captures = Counter(
            "captures", "Requests of the sample, by what became of them.", ("policy", "rule", "result")
        )
        self.log_lost = Counter("access_log_lost", "Lines that nobody read in time.", ())
        self.gauges: list[tuple[str, str, Labels, Gauge]] = []

    def gauge(self, name: str, text: str, labels: Labels, read: Gauge) -> None:
        """Add a gauge that `read` is called for whenever the metrics are read."""
        self.gauges.append((name, text, labels, read))

    def collect(self) -> Iterator[Metric]:
        """All samples, as they are now."""
        for name, text, labels, read in self.gauges:
            family = GaugeMetricFamily(f"{_P}_{name}", text, labels=labels)
            for values, number in read().items():
                family.add_metric(values, number)
            yield family
        for value in list(vars(self).values()):
            if isinstance(value, Counter | Histogram):
                yield value.family()


MAX_SERIES_PER_POLICY: Final = 2000
"""64 rules with 64 targets could have 200,000. Series beyond this number begin when they first count."""
_TOKEN_TYPES: Final = ("input", "cached_input", "output")
_Series = tuple[str, Labels]


def declare_series(metrics: GatewayMetrics, policies: Iterable[Policy]) -> None:
    """Start the series of these policies at 0 if they do not exist."""
    for policy in policies:
        for counter, labels in islice(policy_series(policy), MAX_SERIES_PER_POLICY):
            getattr(metrics, counter).declare(labels)


def policy_series(policy: Policy) -> Iterator[_Series]:
    """Name of the counter in `GatewayMetrics` and label values, those of money and failures first."""
    answers = [(target, answer) for target in policy.targets for answer in _answer_kinds(policy, target)]
    teams = sorted(policy.team_names | {client.name for client in policy.clients} | {OTHER})
    priced = [(target, answer) for target, answer in answers if target.hosted is not None and target.price is not None]
    yield from (("cost", (policy.name, target.name, answer)) for target, answer in priced)
    yield from (("counterfactual", (policy.name, comparator)) for comparator in policy.comparators)
    for target in policy.targets:
        yield from (("attempts", (policy.name, target.name, outcome)) for outcome in ("ok", *map(str, Failure)))
        if target.cluster is not None:
            yield "retries", (policy.name, target.name)
    yield from (("denied", (policy.name, name)) for name in policy.allowed)
    if policy.limits.rates:
        yield "limited", (policy.name, "rate_limit_exceeded")
    if policy.limits.budgets:
        yield "limited", (policy.name, "budget_exceeded")
    if policy.classifier is not None:
        yield from (("classifications", (policy.name, end)) for end in CLASSIFICATION_ENDS)
    yield from _rule_series(policy)
    for target, answer in answers:
        yield from (("tokens", (policy.name, target.name, answer, kind)) for kind in _TOKEN_TYPES)
    for name in dict.fromkeys(target.name for target, _ in priced):
        yield from (("team_cost", (policy.name, name, team)) for team in teams)
    for name in dict.fromkeys(target.name for target, _ in answers):
        yield from (("team_tokens", (policy.name, name, team, kind)) for team in teams for kind in _TOKEN_TYPES)


def _rule_series(policy: Policy) -> Iterator[_Series]:
    yield "requests", (policy.name, "", "", "", "refused")
    followed = {
        (target, str(failure))
        for _, route in _routes(policy)
        if route.fallback is not None
        for target in _split_targets(route) | _fallback_targets(route)
        for failure in route.fallback.on
    }
    yield from (("fallbacks", (policy.name, *pair)) for pair in sorted(followed))
    for rule, route in _routes(policy):
        if route.shadow is not None:
            place = (policy.name, route.shadow.target, rule)
            yield from (("copies", (*place, outcome)) for outcome in COPY_OUTCOMES)
            yield from (("agreement", (*place, result)) for result in AGREEMENTS)
        if route.escalation is not None:
            yield from (("escalation_outcomes", (policy.name, rule, end)) for end in ESCALATION_ENDS)
            yield from (("escalations", (policy.name, rule, str(signal))) for signal in wanted_signals(route))
        rejects = route.escalation is not None and route.escalation.on_exhausted is OnExhausted.FAIL
        ends = ("ok", "client_error", "cancelled", *(("failed",) if rejects else ()))
        for data_class, allowed in policy.allowed.items():
            for target in _all_targets(route) & allowed:
                yield from (("requests", (policy.name, rule, target, data_class, end)) for end in ends)
            for end in ("failed", "refused", "interrupted", "cancelled"):
                yield "requests", (policy.name, rule, "", data_class, end)


def _routes(policy: Policy) -> Iterator[tuple[str, RouteSpec]]:
    yield DEFAULT_RULE, policy.default_route
    yield from ((rule.name, rule.route) for rule in policy.rules)


def _answer_kinds(policy: Policy, target: Target) -> Iterator[str]:
    """The values that the label `answer` can have for a target."""
    routes = [route for _, route in _routes(policy)]
    before = [route for route in routes if target.name in _split_targets(route) | _fallback_targets(route)]
    if before:
        yield FIRST
    if any(route.escalation is not None for route in before):
        yield REPLACED
    if any(route.escalation is not None and route.escalation.target == target.name for route in routes):
        yield ESCALATION
    if policy.classifier is not None and policy.classifier.target == target.name:
        yield CLASSIFIER
    if any(route.shadow is not None and route.shadow.target == target.name for route in routes):
        yield SHADOW


def _all_targets(route: RouteSpec) -> frozenset[str]:
    better = frozenset() if route.escalation is None else frozenset({route.escalation.target})
    return _split_targets(route) | _fallback_targets(route) | better


def _split_targets(route: RouteSpec) -> frozenset[str]:
    return frozenset(share.target for share in route.split if share.weight > 0)


def _fallback_targets(route: RouteSpec) -> frozenset[str]:
    return frozenset(route.fallback.targets) if route.fallback is not None else frozenset()
