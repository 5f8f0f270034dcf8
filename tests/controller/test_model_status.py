"""The status of a ModelDeployment, as what was decided fills it in."""

from typing import Any

import pytest

from flotilla.api.model_deployment import ModelDeploymentSpec, ModelDeploymentStatus
from flotilla.controller import model_status
from flotilla.kube import observed
from flotilla.planning.resolve import load_catalog, resolve
from flotilla.scaling.scrape_client import CacheRoom

LIVE = {"metadata": {"name": "m", "namespace": "n", "generation": 3}}


def built(model: dict[str, Any]) -> dict[str, Any]:
    spec = ModelDeploymentSpec.model_validate(
        {"model": model, "engine": {"name": "vllm"}, "accelerator": {"class": "nvidia-l4"}}
    )
    resolved = resolve("m", spec, load_catalog())
    found = model_status.build(
        LIVE, [], observed.workload(None, []), now="2026-11-25T09:00:00Z", desired=1, spec=spec, resolved=resolved
    )
    ModelDeploymentStatus.model_validate(found)
    return found


def test_the_parts_of_the_memory_are_those_of_one_gpu() -> None:
    fit = built({"source": "hf://Qwen/Qwen2.5-7B-Instruct", "contextLength": 8192})["fit"]
    assert (fit["verdict"], fit["contextLength"]) == ("Fits", 8192)
    assert fit["longestContextLength"] > fit["contextLength"]
    gpu_mib = 22.03 * 1024  # what CUDA shows of an L4's memory
    assert 0.85 * gpu_mib < fit["weightsMib"] + fit["workingMib"] + fit["kvCacheMib"] < gpu_mib
    assert fit["concurrentRequests"] >= 1


@pytest.mark.parametrize("known", ["contextLength", "longestContextLength", "concurrentRequests"])
def test_what_is_not_known_of_a_model_is_absent(known: str) -> None:
    assert known not in built({"source": "hf://somebody/unheard-of"}).get("fit", {})


def test_a_model_without_an_estimate_has_what_its_engines_report() -> None:
    room = CacheRoom(43_520, 8192, 5)
    unknown = model_status.fits_memory(None, None, room=room)
    assert (unknown.status, unknown.reason) == ("True", "Measured")
    assert "a cache of 43520 tokens, 5 requests of 8192" in unknown.message
    assert model_status.fits_memory(None, None).reason == "ArchitectureUnknown"


def test_what_engines_reported_is_kept_while_none_answers() -> None:
    told = {"status": {"fit": {"measuredCacheTokens": 43_520, "measuredContextLength": 8192, "measuredRequests": 5}}}
    assert model_status.known_room(told, None) == CacheRoom(43_520, 8192, 5)
    assert model_status.known_room(told, CacheRoom(1000, 0, 0)) == CacheRoom(1000, 0, 0)
    assert model_status.known_room({}, None) is None
