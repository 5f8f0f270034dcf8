"""The public measurements of speed_points.yaml, and the prediction of the speed model for each.

`python -m benchmarks.speed` writes docs/reference/truth.md from them, hack/fit_speed.py fits the factors on a part, and
tests/planning/test_speed_truth.py checks the limits of the errors.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from flotilla.catalog.accelerators import load_accelerators
from flotilla.catalog.chips import find_chip
from flotilla.catalog.models import load_models
from flotilla.planning.memory_fit import Settings, Weights
from flotilla.planning.speed import FACTORS, Factors, RequestShape, SpeedLimits, SpeedModel, compute_type, memory_limits

BITS = {"none": Decimal(16), "fp8": Decimal("8.1"), "nvfp4": Decimal("4.5")}
"""Per parameter, by method; as the operator counts them."""
FILE = Path(__file__).with_name("speed_points.yaml")


@dataclass(frozen=True, slots=True)
class OtherEngine:
    """How a program other than vLLM's v1 engine differs from it on the same GPU; fitted with the factors."""

    compute: float = 1.0
    """Times vLLM's share of the FLOPs."""
    experts: float = 1.0
    """Times vLLM's share of it for routed experts."""
    step_s: float = 0.0
    """On top of vLLM's time per step."""
    token_s: float = 0.0


OTHER_ENGINES = {
    "vllm": OtherEngine(),
    "vllm-v0": OtherEngine(compute=0.74, step_s=0.004),
    "trtllm": OtherEngine(compute=1.3, experts=1.5),
    "turbomind": OtherEngine(step_s=0.0008),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement with its setting."""

    source: str
    note: str
    engine: str
    model: str
    method: str
    kv: str
    gpu: str
    gpus: int
    sequences: int
    utilization: Decimal
    kv_tokens: int | None
    measure: str
    fit: bool
    input_tokens: int
    output_tokens: int
    load: float | None
    """Requests in flight, or per second for the time to the first token."""
    value: float

    @property
    def what(self) -> str:
        """Return model, weights and GPU, for tables."""
        several = f"{self.gpus} x " if self.gpus > 1 else ""
        weights = "16 bit" if self.method == "none" else self.method
        return f"{self.model.split('/')[1]}, {weights}, {several}{self.gpu}"


def points() -> list[Point]:
    """Return all measurements of the file."""
    return [point for group in yaml.safe_load(FILE.read_text()) for point in _of(group)]


def throughput_points() -> list[Point]:
    """Return the measurements for which the limits of the errors are stated."""
    return [point for point in points() if point.measure != "first_token_p99_ms"]


def _of(group: dict[str, Any]) -> Iterator[Point]:
    for input_tokens, output_tokens, load, value in group["points"]:
        yield Point(
            source=group["source"],
            note=group.get("note", ""),
            engine=group["engine"],
            model=group["model"],
            method=group["method"],
            kv=group.get("kv", "auto"),
            gpu=group["gpu"],
            gpus=group.get("gpus", 1),
            sequences=group.get("sequences", 256),
            utilization=Decimal(str(group.get("utilization", "0.9"))),
            kv_tokens=group.get("kv_tokens"),
            measure=group["measure"],
            fit=group.get("fit", False),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            load=load,
            value=float(value),
        )


def predict(point: Point, factors: Factors = FACTORS, others: dict[str, OtherEngine] | None = None) -> float:
    """Return the prediction of the model, in the unit of the measurement."""
    other = (others or OTHER_ENGINES)[point.engine]
    found = load_models().find(point.model)
    if found is None:
        raise ValueError(f"{point.model} is not in the catalogue of models")
    weights = Weights(bits=BITS[point.method], kv_element_bytes=1 if point.kv == "fp8" else 2)
    chip = find_chip(point.gpu)
    speed = SpeedModel(
        found.architecture,
        weights,
        compute_type(point.method, chip),
        chip,
        point.gpus,
        factors=replace(
            factors,
            compute={name: share * other.compute for name, share in factors.compute.items()},
            experts=factors.experts * other.experts,
            attention=factors.attention * other.compute,
            step_s=factors.step_s + other.step_s,
            token_s=factors.token_s + other.token_s,
        ),
    )
    shape = RequestShape(point.input_tokens, point.output_tokens)
    limits = _limits(point, weights)
    if point.measure == "first_token_p99_ms":
        assert point.load is not None
        first = speed.first_token_p99_s(shape, point.load, limits)
        return float("inf") if first is None else 1000 * first
    most = limits.batch(shape)
    batch = min(most, point.load) if point.load is not None else most
    if point.measure == "token_interval_ms":
        return 1000 * speed.token_interval_s(shape, batch)
    return speed.tasks_per_s(shape, batch) * point.output_tokens


@lru_cache(maxsize=1024)
def _limits(point: Point, weights: Weights) -> SpeedLimits:
    if point.kv_tokens is not None:
        return SpeedLimits(point.kv_tokens, point.sequences)
    accelerator = load_accelerators()[point.gpu]
    found = load_models().find(point.model)
    assert found is not None
    settings = Settings(
        utilization=point.utilization,
        batched_tokens=8192 if accelerator.memory_gib >= 70 else 2048,
        sequences=min(point.sequences, 1024),
        base_gib=Decimal("1.1"),
    )
    shape = RequestShape(point.input_tokens, point.output_tokens)
    limits = memory_limits(
        found.architecture, weights, settings, shape, memory_gib=accelerator.memory_gib, gpus=point.gpus
    )
    return replace(limits, sequences=point.sequences)
