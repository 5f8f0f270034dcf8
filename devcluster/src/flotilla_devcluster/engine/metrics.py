"""A metric registry that is filled from a data file.

Own code instead of `prometheus_client`: a histogram here takes a thousand equal observations in one call, and
families may stay absent until they are touched, as in TGI's Rust exporter.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flotilla_devcluster.engine.settings import DATA


class Value:
    """A counter or a gauge."""

    __slots__ = ("created_s", "value")

    def __init__(self, created_s: float) -> None:
        self.value = 0.0
        self.created_s = created_s


class Distribution:
    """A histogram, or without bounds a summary of sum and count."""

    __slots__ = ("bounds", "counts", "created_s", "total")

    def __init__(self, created_s: float, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.created_s = created_s

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass(slots=True)
class Family:
    """One metric name. `labels` maps a label to the values it has from the start; empty: any, later."""

    kind: str
    name: str
    labels: dict[str, tuple[str, ...]]
    bounds: tuple[float, ...]
    help: str
    values: dict[tuple[str, ...], Value] = field(default_factory=dict)
    distributions: dict[tuple[str, ...], Distribution] = field(default_factory=dict)


class Metrics:
    """All families of one engine; `constants` gives values to labels that do not change."""

    def __init__(self, families: Iterable[Family], *, constants: Mapping[str, str], lazy: bool = False) -> None:
        self.families = {family.name: family for family in families}
        self.created_s = time.time()
        for family in self.families.values():
            for label in family.labels.keys() & constants.keys():
                family.labels[label] = (constants[label],)
            if not lazy and all(family.labels.values()):
                for labels in _combinations(family.labels):
                    self._child(family, labels)

    def value(self, name: str, **labels: str) -> Value:
        """The counter or gauge of these labels; asking for it makes it appear."""
        family = self.families[name]
        key = _key(family, labels)
        self._child(family, key)
        return family.values[key]

    def distribution(self, name: str, **labels: str) -> Distribution:
        """The histogram or summary of these labels; asking for it makes it appear."""
        family = self.families[name]
        key = _key(family, labels)
        self._child(family, key)
        return family.distributions[key]

    def _child(self, family: Family, key: tuple[str, ...]) -> None:
        if family.kind in ("histogram", "summary"):
            if key not in family.distributions:
                family.distributions[key] = Distribution(time.time(), family.bounds)
        elif key not in family.values:
            family.values[key] = Value(time.time())


def load_families(name: str, *, buckets: Mapping[str, tuple[float, ...]]) -> list[Family]:
    """Read `data/<name>`; `buckets` adds the bucket lists that depend on the engine's arguments."""
    known = dict(buckets)
    families = []
    for line in (DATA / name).read_text().splitlines():
        if line.startswith("buckets "):
            _, key, *bounds = line.split()
            known[key] = tuple(float(bound) for bound in bounds)
        elif line and not line.startswith("#"):
            families.append(_family(line, known))
    return families


def _family(line: str, buckets: Mapping[str, tuple[float, ...]]) -> Family:
    head, _, help_text = line.partition("::")
    kind, name, labels, *rest = head.split()
    bounds: tuple[float, ...] = ()
    for option in rest:
        bounds = buckets[option.removeprefix("buckets=")]
    parsed: dict[str, tuple[str, ...]] = {}
    for label in [] if labels == "-" else labels.split(","):
        key, equals, values = label.partition("=")
        parsed[key] = tuple(values.split("|")) if equals else ()
    return Family(kind=kind, name=name, labels=parsed, bounds=bounds, help=help_text.strip())


def _combinations(labels: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = [()]
    for values in labels.values():
        keys = [(*key, value) for key in keys for value in values]
    return keys


def _key(family: Family, labels: Mapping[str, str]) -> tuple[str, ...]:
    unknown = labels.keys() - family.labels.keys()
    if unknown:
        raise KeyError(f"{family.name} has no label {sorted(unknown)}")
    return tuple(labels[label] if label in labels else values[0] for label, values in family.labels.items())
