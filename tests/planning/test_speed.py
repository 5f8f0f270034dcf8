"""The speed model: published cases, what is refused, and what an estimate says."""

from dataclasses import replace
from decimal import Decimal

import pytest
from benchmarks.speed_points import throughput_points

from flotilla.catalog.accelerators import load_accelerators
from flotilla.catalog.chips import find_chip, load_chips
from flotilla.catalog.models import Architecture, load_models
from flotilla.errors import InvalidSpec
from flotilla.planning.memory_fit import Weights
from flotilla.planning.speed import MEASURED, SPREAD_UNMEASURED, RequestShape, SpeedLimits, SpeedModel, compute_type

WHOLE = Weights(bits=Decimal(16), kv_element_bytes=2)
HALF = Weights(bits=Decimal("8.1"), kv_element_bytes=2)


def architecture(name: str) -> Architecture:
    found = load_models().find(name)
    assert found is not None
    return found.architecture


def model(name: str, gpu: str, method: str = "none", gpus: int = 1) -> SpeedModel:
    chip = find_chip(gpu)
    weights = WHOLE if method == "none" else HALF
    return SpeedModel(architecture(name), weights, compute_type(method, chip), chip, gpus)


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "in_flight", "published"),
    [(8192, 512, 10, 1.54), (2048, 2048, 52, 1.78), (128, 128, 512, 129.0)],
)
def test_qwen3_8b_in_fp8_on_an_h100_does_what_silybench_published(
    input_tokens: int, output_tokens: int, in_flight: int, published: float
) -> None:
    speed = model("Qwen/Qwen3-8B", "nvidia-h100-80gb", "fp8")

    tasks = speed.tasks_per_s(RequestShape(input_tokens, output_tokens), in_flight)

    assert tasks == pytest.approx(published, rel=0.2)


def test_llama_8b_on_an_a100_does_what_vllm_cost_meter_published() -> None:
    speed = model("meta-llama/Llama-3.1-8B-Instruct", "nvidia-a100-80gb")

    tasks = speed.estimate(RequestShape(512, 256), SpeedLimits(400_000, 256)).tasks_per_s

    assert tasks.expected == pytest.approx(11.35, rel=0.2)
    assert tasks.low < 11.35 < tasks.high


def test_an_h100_is_bounded_by_the_overhead_of_a_request_where_requests_are_tiny() -> None:
    speed = model("Qwen/Qwen3-8B", "nvidia-h100-80gb", "fp8")

    tiny = speed.estimate(RequestShape(1, 1), SpeedLimits(430_000, 1024))

    assert tiny.tasks_per_s.expected < 1000
    assert tiny.bound == "the overhead per request"


def test_every_class_with_published_figures_is_a_class_of_the_table() -> None:
    assert set(load_chips()) <= set(load_accelerators())


def test_every_priced_class_has_a_speed_or_is_a_cpu() -> None:
    missing = {name for name, row in load_accelerators().items() if row.vendor != "cpu"} - set(load_chips())

    assert missing == set()


def test_a_class_without_published_figures_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidSpec, match="no speed is known for nvidia-l4-shared: give --tasks-per-second"):
        find_chip("nvidia-l4-shared")


def test_a_mig_slice_has_its_share_of_compute_and_of_bandwidth() -> None:
    part, whole = find_chip("nvidia-a100-80gb-mig-3g-40gb"), find_chip("nvidia-a100-80gb")

    assert part.wide_tflops == pytest.approx(whole.wide_tflops * 3 / 7)
    assert part.bandwidth_gb_per_s == pytest.approx(whole.bandwidth_gb_per_s / 2)
    assert part.slice_of == "nvidia-a100-80gb"


def test_slices_are_not_joined() -> None:
    with pytest.raises(InvalidSpec, match="cannot share a model"):
        model("Qwen/Qwen3-8B", "nvidia-a100-80gb-mig-3g-40gb", gpus=2)


def test_the_classes_that_count_as_measured_are_those_with_points() -> None:
    assert {point.gpu for point in throughput_points()} == MEASURED


@pytest.mark.parametrize(
    ("method", "gpu", "multiplied"),
    [
        ("fp8", "nvidia-h100-80gb", "fp8"),
        ("fp8", "nvidia-a100-80gb", "bf16"),
        ("awq", "nvidia-h100-80gb", "bf16"),
        ("nvfp4", "nvidia-b200", "fp4"),
        ("nvfp4", "nvidia-h100-80gb", "bf16"),
        ("int8-w8a8", "nvidia-t4", "int8"),
    ],
)
def test_weights_are_widened_where_the_gpu_does_not_multiply_their_type(method: str, gpu: str, multiplied: str) -> None:
    assert compute_type(method, find_chip(gpu)) == multiplied


def test_a_mixture_of_experts_is_faster_than_a_dense_model_of_its_size() -> None:
    mixture = architecture("Qwen/Qwen3-30B-A3B")
    dense = replace(mixture, experts=0, experts_per_token=0, expert_parameters=0)
    chip, shape = find_chip("nvidia-h100-80gb"), RequestShape(512, 256)

    fast = SpeedModel(mixture, WHOLE, "bf16", chip).tasks_per_s(shape, 4)
    slow = SpeedModel(dense, WHOLE, "bf16", chip).tasks_per_s(shape, 4)

    assert fast > 2 * slow
    assert mixture.active_parameters == pytest.approx(3.3e9, rel=0.05)


def test_a_mixture_whose_layers_with_experts_are_not_known_is_refused() -> None:
    unknown = replace(architecture("Qwen/Qwen3-30B-A3B"), expert_parameters=0)

    with pytest.raises(InvalidSpec, match="give --tasks-per-second"):
        SpeedModel(unknown, WHOLE, "bf16", find_chip("nvidia-h100-80gb"))


def test_a_request_that_does_not_fit_the_cache_is_refused() -> None:
    speed = model("Qwen/Qwen3-8B", "nvidia-l4")

    with pytest.raises(InvalidSpec, match="Not one request"):
        speed.estimate(RequestShape(8192, 512), SpeedLimits(4096, 256))


def test_what_was_never_measured_has_a_wider_range() -> None:
    shape, limits = RequestShape(512, 256), SpeedLimits(100_000, 256)

    known = model("Qwen/Qwen3-8B", "nvidia-l40s").estimate(shape, limits)
    unknown = model("Qwen/Qwen3-8B", "nvidia-l40").estimate(shape, limits)

    assert known.measured
    assert not unknown.measured
    assert unknown.tasks_per_s.high / unknown.tasks_per_s.low > known.tasks_per_s.high / known.tasks_per_s.low


def test_the_first_token_comes_later_the_more_there_is_to_do() -> None:
    speed, limits = model("meta-llama/Llama-3.1-8B-Instruct", "nvidia-h100-80gb"), SpeedLimits(400_000, 1024)
    shape = RequestShape(512, 256)

    quiet, busy = (speed.first_token_p99_s(shape, rate, limits) for rate in (1, 20))

    assert quiet is not None
    assert busy is not None
    assert 0.02 < quiet < busy < 1
    assert speed.first_token_p99_s(shape, 1000, limits) is None


def test_a_tower_for_images_costs_no_time_for_text() -> None:
    with_tower, without = (
        model(f"Qwen/{name}-7B-Instruct", "nvidia-h100-80gb").decode_step_s(1, 1000)
        for name in ("Qwen2.5-VL", "Qwen2.5")
    )

    assert with_tower == pytest.approx(without, rel=0.01)


def test_the_state_of_recurrent_layers_is_read_and_written_in_each_step() -> None:
    hybrid = model("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "nvidia-h100-80gb")
    state = hybrid.architecture.recurrent
    assert state is not None
    plain = replace(hybrid, architecture=replace(hybrid.architecture, recurrent=replace(state, layers=0)))
    bandwidth = hybrid.chip.bandwidth_gb_per_s * 1e9

    per_request = hybrid.decode_step_s(200, 1000) - hybrid.decode_step_s(100, 1000)
    without = plain.decode_step_s(200, 1000) - plain.decode_step_s(100, 1000)

    assert per_request - without >= 100 * 2 * state.layers * state.bytes_per_layer(1) / bandwidth
    tasks = hybrid.estimate(RequestShape(1000, 150), SpeedLimits(400_000, 256)).tasks_per_s
    assert tasks.low == pytest.approx(tasks.expected / SPREAD_UNMEASURED)


def test_parts_that_a_checkpoint_keeps_in_16_bits_are_read_so() -> None:
    narrow = model("openai/gpt-oss-20b", "nvidia-h100-80gb", "fp8")
    kept = replace(narrow, weights=replace(HALF, keeps=frozenset({"attention"})))

    assert kept.decode_step_s(1, 1000) > narrow.decode_step_s(1, 1000)
