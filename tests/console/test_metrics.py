"""Our text of a registry says what the library's says."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from flotilla.console.metrics import Metrics, exposition

Parsed = dict[str, tuple[str, str, list[tuple[str, tuple[tuple[str, str], ...], str]]]]


class Families(Collector):
    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def parsed(text: bytes) -> Parsed:
    """By family; values as text, for NaN equals nothing."""
    return {
        family.name: (
            family.type,
            family.documentation,
            sorted((s.name, tuple(sorted(s.labels.items())), repr(s.value)) for s in family.samples),
        )
        for family in text_string_to_metric_families(text.decode())
    }


@given(value=st.floats(), label=st.text(max_size=8), help_=st.text('ab\\\n" ', max_size=8))
def test_any_value_and_label_is_read_back_as_from_the_library(value: float, label: str, help_: str) -> None:
    gauge = GaugeMetricFamily("g", help_.strip(), labels=["b", "a"])
    gauge.add_metric([label, "x"], value)
    counter = CounterMetricFamily("c", help_.strip(), labels=["l"])
    counter.add_metric([label], value)
    bare = GaugeMetricFamily("n", "", value=value)
    families = Families(gauge, counter, bare)
    assert parsed(exposition(families.collect())) == parsed(generate_latest(families))


def test_histograms_and_the_operators_own_metrics_are_all_there() -> None:
    metrics = Metrics(version="1")
    metrics.reconciled("ModelDeployment", "success", 0.1)
    Histogram("h_seconds", "Time.", registry=metrics.registry).observe(0.3)
    Info("i", "Facts.", registry=metrics.registry).info({"a": "b"})
    ours, theirs = parsed(exposition(metrics.registry.collect())), parsed(generate_latest(metrics.registry))
    assert ours.keys() == theirs.keys()
    moving = {name for name in theirs if name.startswith(("process_", "python_gc"))}
    assert {name: ours[name] for name in ours.keys() - moving} == {
        name: theirs[name] for name in theirs.keys() - moving
    }


def test_an_empty_registry_is_an_empty_text() -> None:
    assert exposition(()) == b""
