"""Metric text: the families of a real vLLM, and the number formats of the libraries that the engines use."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from flotilla.simulation.engine import Batcher
from flotilla_devcluster.engine.metrics import (
    Distribution,
    EngineMetrics,
    Family,
    Metrics,
    python_number,
    python_text,
    rust_number,
    rust_text,
)
from flotilla_devcluster.engine.vllm import count_exchange, one_two_five, vllm_metrics
from flotilla_devcluster.engine.vllm_config import configure

GOLDEN = Path(__file__).parents[3] / "tests/golden/vllm-0.33-metric-families.txt"


def fresh_vllm() -> EngineMetrics:
    config = configure(["m", "--max-model-len", "1024", "--served-model-name", "tiny"], {})
    return vllm_metrics(config, Batcher(config.limits, config.speed))


def shape(text: str) -> list[str]:
    """Per family of a text: name, type, labels in order of appearance and buckets, as the golden file has it."""
    rows = []
    types = dict(line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE "))
    for name, kind in types.items():
        labels: list[str] = []
        buckets: list[str] = []
        suffixes = ("_bucket", "_sum", "_count") if kind in ("histogram", "summary") else ("",)
        own = {name + suffix for suffix in suffixes}
        for family in text_string_to_metric_families(text):
            for sample in (sample for sample in family.samples if sample.name in own):
                labels += [label for label in sample.labels if label not in (*labels, "le")]
                if "le" in sample.labels and sample.labels["le"] not in buckets:
                    buckets.append(sample.labels["le"])
        rows.append(" ".join(filter(None, (name, kind, ",".join(labels) or "-", ",".join(buckets)))))
    return rows


def test_a_vllm_shows_the_families_types_labels_and_buckets_of_a_real_one() -> None:
    metrics = fresh_vllm()
    request = make_mocked_request("GET", "/v1/models")
    count_exchange(metrics, request, web.Response(body=b"0123456789"), "/v1/models", seconds=0.1)
    golden = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    assert shape(metrics.text()) == golden


def test_label_values_that_a_real_vllm_has_from_the_start_are_there_at_zero() -> None:
    text = fresh_vllm().text()
    for line in (
        'vllm:request_success_total{engine="0",finished_reason="repetition",model_name="tiny"} 0.0',
        'vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_tokens"} 0.0',
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 0.0',
        'vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"} 1.0',
        'vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 0.0',
    ):
        assert line in text.splitlines()


def test_a_vllm_without_log_stats_has_no_numbers_of_the_engine() -> None:
    config = configure(["m", "--disable-log-stats"], {})
    text = vllm_metrics(config, Batcher(config.limits, config.speed)).text()
    assert "vllm:" not in text
    assert "# TYPE http_requests_total counter" in text


def test_an_http_family_without_requests_has_a_type_and_no_sample() -> None:
    text = fresh_vllm().text()
    assert "# TYPE http_requests_total counter" in text
    assert "http_requests_total{" not in text
    assert "http_requests_created" not in text


@given(st.floats(allow_nan=False))
def test_numbers_are_written_as_prometheus_client_does(value: float) -> None:
    assert python_number(value) == floatToGoString(value)  # type: ignore[no-untyped-call]


@given(st.lists(st.floats(0, 1e9), max_size=20), st.floats(0, 1e9))
def test_a_whole_text_is_the_one_of_prometheus_client(observations: list[float], amount: float) -> None:
    registry = CollectorRegistry()
    counter = Counter("a:things", "Some \\ help", ["model"], registry=registry)
    gauge = Gauge("a:level", "Level", registry=registry)
    histogram = Histogram("a:time_seconds", "Time", ["model"], registry=registry, buckets=(0.1, 1, 10))
    mine = Metrics(
        [
            Family("counter", "a:things_total", {"model": ('q"x\\',)}, (), "Some \\ help"),
            Family("gauge", "a:level", {}, (), "Level"),
            Family("histogram", "a:time_seconds", {"model": ("m",)}, (0.1, 1.0, 10.0), "Time"),
        ],
        constants={},
    )
    counter.labels('q"x\\').inc(amount)
    mine.value("a:things_total").value += amount
    gauge.set(amount)
    mine.value("a:level").value = amount
    for value in observations:
        histogram.labels("m").observe(value)
        mine.distribution("a:time_seconds").observe(value)
    histogram.labels("m")

    def without_times(text: str) -> list[str]:
        return [line for line in text.splitlines() if "_created" not in line or line.startswith("#")]

    assert without_times(python_text(mine)) == without_times(generate_latest(registry).decode())


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), max_size=10))
def test_observing_many_at_once_is_observing_one_often(observations: list[tuple[float, int]]) -> None:
    at_once, singly = Distribution(0, (1.0, 10.0)), Distribution(0, (1.0, 10.0))
    for value, times in observations:
        at_once.observe(value, times)
        for _ in range(times):
            singly.observe(value)
    assert at_once.counts == singly.counts
    assert at_once.total == pytest.approx(singly.total)


def test_rust_text_has_no_floats_for_counts_and_leaves_untouched_families_out() -> None:
    metrics = Metrics(
        [
            Family("histogram", "t_duration", {}, (0.5, 2.0), "Duration"),
            Family("counter", "t_count", {"err": ()}, (), ""),
            Family("gauge", "t_untouched", {}, (), "Never"),
        ],
        constants={},
        lazy=True,
    )
    metrics.value("t_count", err="overloaded").value += 2
    metrics.distribution("t_duration").observe(1.25)
    assert rust_text(metrics) == (
        '# TYPE t_count counter\nt_count{err="overloaded"} 2\n\n'
        "# HELP t_duration Duration\n# TYPE t_duration histogram\n"
        't_duration_bucket{le="0.5"} 0\nt_duration_bucket{le="2"} 1\nt_duration_bucket{le="+Inf"} 1\n'
        "t_duration_sum 1.25\nt_duration_count 1\n\n"
    )
    assert (rust_number(3.0), rust_number(0.1)) == ("3", "0.1")


def test_a_label_that_a_family_does_not_have_is_an_error() -> None:
    metrics = Metrics([Family("counter", "a_total", {"x": ()}, (), "")], constants={})
    with pytest.raises(KeyError, match="a_total has no label"):
        metrics.value("a_total", y="1")


@pytest.mark.parametrize(
    ("largest", "bounds"),
    [(1, (1,)), (49, (1, 2, 5, 10, 20)), (1024, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000))],
)
def test_token_buckets_go_up_to_the_context(largest: int, bounds: tuple[float, ...]) -> None:
    assert one_two_five(largest) == bounds
