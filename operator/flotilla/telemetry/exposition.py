"""The text of a registry, several times as fast as the library's for gauges and counters, which a fleet's series are.

The library looks at each label name and value of each sample with regular expressions and sorts them: 50 ms for 5000
series, during which the operator does nothing else. Names of ours are constants, so only values need a look.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

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


def text(registry: Collector) -> bytes:
    """Format 0.0.4 of everything that the registry collects."""
    parts: list[bytes] = []
    for metric in registry.collect():
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
