"""The operator's own metrics and the text format of /metrics."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

_PLAIN = frozenset({"gauge", "counter"})
_CREATED = "_created"


@dataclass(frozen=True, slots=True)
class _One(Collector):
    metric: Metric

    def collect(self) -> Iterable[Metric]:
        return (self.metric,)


def exposition(families: Iterable[Metric]) -> bytes:
    """The text format 0.0.4 of metric families. It only reads them, so that it may run in a thread."""
    parts: list[bytes] = []
    for metric in families:
        if metric.type in _PLAIN and not any(sample.name.endswith(_CREATED) for sample in metric.samples):
            parts.append("".join(_lines(metric)).encode())
        else:
            parts.append(generate_latest(_One(metric)))
    return b"".join(parts)


def _lines(metric: Metric) -> Iterator[str]:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    help_ = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {help_}\n# TYPE {name} {metric.type}\n"
    for sample in metric.samples:
        labels = ",".join([f'{key}="{_escaped(value)}"' for key, value in sample.labels.items()])
        yield (
            f"{sample.name}{{{labels}}} {_number(sample.value)}\n"
            if labels
            else (f"{sample.name} {_number(sample.value)}\n")
        )


@lru_cache(16_384)
def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


class Metrics:
    """What the operator does, for those who run it."""

    def __init__(self, *, version: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._reconciles = Counter(
            "flotilla_reconcile_total", "Passes by outcome.", ["kind", "outcome"], registry=self.registry
        )
        self._durations = Histogram(
            "flotilla_reconcile_duration_seconds",
            "Time of a pass.",
            ["kind"],
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
            registry=self.registry,
        )
        self._calls = Counter(
            "flotilla_api_requests_total",
            "Calls to the apiserver; code 0 had no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._call_durations = Histogram(
            "flotilla_api_request_duration_seconds",
            "Time of a call to the apiserver.",
            ["verb", "resource"],
            buckets=(0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
            registry=self.registry,
        )
        self._events = Gauge(
            "flotilla_last_event_timestamp_seconds",
            "When the last event of a resource came.",
            ["resource"],
            registry=self.registry,
        )
        self._loop_failures = Counter(
            "flotilla_background_failures_total",
            "Failures of a background loop, which is then started again.",
            ["loop"],
            registry=self.registry,
        )
        self._moves = Counter(
            "flotilla_traffic_moves_total",
            "Moves of a route's traffic by evidence.",
            ["namespace", "policy", "rule", "reason"],
            registry=self.registry,
        )
        self._leader = Gauge("flotilla_leader", "1 while this process acts.", registry=self.registry)
        build = Gauge("flotilla_build_info", "The version.", ["version"], registry=self.registry)
        build.labels(version).set(1)
        # The library looks a label set up under a lock and through strings, each time.
        self._reconciles_of, self._durations_of = cache(self._reconciles.labels), cache(self._durations.labels)
        self._calls_of, self._call_durations_of = cache(self._calls.labels), cache(self._call_durations.labels)
        self._events_of = cache(self._events.labels)

    def reconciled(self, kind: str, outcome: str, seconds: float) -> None:
        """One pass."""
        self._reconciles_of(kind, outcome).inc()
        self._durations_of(kind).observe(seconds)

    def api_call(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """One call to the apiserver."""
        self._calls_of(verb, resource, str(code)).inc()
        self._call_durations_of(verb, resource).observe(seconds)

    def event(self, resource: str) -> None:
        """Events of a resource have arrived."""
        self._events_of(resource).set(time.time())

    def loop_failed(self, loop: str) -> None:
        """A background loop raised and is started again."""
        self._loop_failures.labels(loop).inc()

    def traffic_moved(self, namespace: str, policy: str, rule: str, reason: str, count: int = 1) -> None:
        """Evidence has moved the traffic of a route. A `count` of 0 starts the series, so that its first rise shows."""
        self._moves.labels(namespace, policy, rule, reason).inc(count)

    def leading(self, leads: bool) -> None:
        """Whether this process acts."""
        self._leader.set(1 if leads else 0)

    def observe(
        self,
        *,
        depth: Callable[[], int],
        oldest_age_s: Callable[[], float],
        watch_restarts: Callable[[], int],
        watch_silent_s: Callable[[], float],
        objects: Callable[[], Mapping[str, int]],
        kinds: tuple[str, ...],
    ) -> None:
        """Gauges that are read when Prometheus asks."""

        def gauge(name: str, help_: str, read: Callable[[], float]) -> None:
            Gauge(name, help_, registry=self.registry).set_function(read)

        gauge("flotilla_workqueue_depth", "Keys that wait for a worker.", depth)
        gauge("flotilla_workqueue_oldest_age_seconds", "How long the first of them waits.", oldest_age_s)
        gauge("flotilla_watch_restarts", "How often a watch began again after an error.", watch_restarts)
        gauge(
            "flotilla_watch_silent_seconds",
            "Time since the apiserver last sent anything on a watch, of the longest silent one.",
            watch_silent_s,
        )
        family = Gauge("flotilla_objects", "Objects in the store.", ["resource"], registry=self.registry)
        for kind in kinds:
            family.labels(kind).set_function(lambda kind=kind: float(objects().get(kind, 0)))  # type: ignore[misc]
