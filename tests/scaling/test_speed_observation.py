"""How fast a deployment is by its engines' own counters, and what becomes of the computed speed."""

from dataclasses import replace

import pytest

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.planning.resolve import Resolved, load_catalog, resolve
from flotilla.planning.speed import Range, RequestShape, correction, observed_range, planned_model
from flotilla.scaling.scrape_client import CacheRoom, EngineSample, ScrapeError, parse
from flotilla.scaling.speed_observation import SpeedObserver

CATALOG = load_catalog()
START = EngineSample(
    running=8, waiting=0, prompt_tokens=0, generation_tokens=0, cached_tokens=0, requests_success=0,
    first_token_seconds=0, first_tokens=0, token_interval_seconds=0, token_intervals=0,
)  # fmt: skip


def resolved(source: str = "hf://meta-llama/Llama-3.1-8B-Instruct") -> Resolved:
    spec = {"engine": {"name": "vllm"}, "model": {"source": source}, "accelerator": {"class": "nvidia-l4"}}
    return resolve("m", ModelDeploymentSpec.model_validate(spec), CATALOG)


def after(seconds: float, *, interval_s: float = 0.04) -> EngineSample:
    """Eight requests at a time of 500 tokens in and 100 out, since the start."""
    tokens = 8 * seconds / interval_s
    done = tokens / 100
    return replace(
        START, prompt_tokens=500 * done, generation_tokens=tokens, cached_tokens=50 * done, requests_success=done,
        first_token_seconds=0.2 * done, first_tokens=done, token_interval_seconds=tokens * interval_s,
        token_intervals=tokens,
    )  # fmt: skip


def watched(seconds: int, **how: float) -> SpeedObserver:
    observer = SpeedObserver()
    for at in range(0, seconds + 1, 10):
        observer.add({"pod": after(at, **how)}, at)
    return observer


def test_the_means_of_the_last_hour_are_those_of_the_counters() -> None:
    seen = watched(600).observed(630)
    assert seen is not None
    assert (seen.requests, seen.token_intervals) == (1200, 120_000)
    assert (seen.input_tokens, seen.output_tokens, seen.cached_share) == pytest.approx((500, 100, 0.1))
    assert (seen.in_flight, seen.token_interval_s, seen.first_token_s) == pytest.approx((8, 0.04, 0.2))
    assert seen.age_s == 30
    assert watched(600).observed(600 + 2 * 3600) is None


def test_two_pods_add_up_and_a_restart_or_a_gap_counts_nothing() -> None:
    observer = SpeedObserver()
    for at in (0, 10):
        observer.add({"a": after(at), "b": after(at), "c": ScrapeError("timeout")}, at)
    both = observer.observed(10)
    assert both is not None
    assert both.token_intervals == 2 * 2000
    observer.add({"a": after(1)}, 20)
    observer.add({"a": after(11)}, 1000)
    assert observer.observed(1000) == replace(both, age_s=990)


def test_an_engine_that_measures_no_first_token_has_the_rest() -> None:
    observer = SpeedObserver()
    for at in (0, 60):
        observer.add({"pod": replace(after(at), first_token_seconds=None, first_tokens=None)}, at)
    seen = observer.observed(60)
    assert seen is not None
    assert (seen.first_token_s, seen.first_tokens) == (None, 0)


def test_the_correction_is_what_was_observed_over_what_is_computed_for_the_same_load() -> None:
    of = resolved()
    computed = planned_model(of).token_interval_s(RequestShape(500, 100, 0.1), 8)
    slower = watched(600, interval_s=computed * 1.25).observed(600)
    assert slower is not None
    found = correction(of, slower)
    assert found is not None
    assert found.factor == pytest.approx(0.8, rel=0.01)
    assert found.computed_interval_s == pytest.approx(computed, rel=0.01)
    assert 0 < found.computed_first_token_s < 1
    assert observed_range(Range.around(1000, 1.4), found.factor).expected == pytest.approx(800, rel=0.01)


def test_few_tokens_or_a_model_without_a_speed_are_not_compared() -> None:
    few, enough = watched(10).observed(10), watched(600).observed(600)
    assert few is not None
    assert enough is not None
    assert correction(resolved(), replace(few, token_intervals=999)) is None
    assert correction(resolved("hf://nobody/knows-it"), enough) is None


def test_the_room_of_the_cache_is_read_from_the_labels_of_the_engines_metrics() -> None:
    names = CATALOG.profiles["vllm"].metrics.names
    told = 'block_size="16",num_gpu_blocks="2720"'
    queue = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
    newer = f'vllm:cache_config_info{{{told},kv_cache_size_tokens="43520",kv_cache_max_concurrency="5.3125"}} 1.0\n'
    older = f"vllm:cache_config_info{{{told}}} 1.0\n"
    unknown = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n'
    rooms = [parse((queue + line).encode(), names) for line in (newer, older, unknown, "")]
    found = [one.room for one in rooms if isinstance(one, EngineSample)]
    assert found == [CacheRoom(43_520, 8192, 5), CacheRoom(43_520, 0, 0), None, None]
    assert CATALOG.profiles["sglang"].metrics.names["kv_tokens"] == ("sglang:max_total_num_tokens",)
