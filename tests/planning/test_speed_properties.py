"""What holds for every model, GPU and request: more or faster hardware is never slower, more work never faster."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from flotilla.catalog.chips import Chip, load_chips
from flotilla.catalog.models import load_models
from flotilla.errors import InvalidSpec
from flotilla.planning.memory_fit import Weights
from flotilla.planning.speed import RequestShape, SpeedLimits, SpeedModel, compute_type

_MODELS = [
    found.architecture
    for name in load_models().rows
    if (found := load_models().find(name)) and (not found.architecture.experts or found.architecture.expert_parameters)
]
_METHODS = {"none": "16", "fp8": "8.1", "awq": "4.25", "nvfp4": "4.5", "int8-w8a8": "8.1"}
_ALMOST = 1 - 1e-9


@st.composite
def models(draw: st.DrawFn) -> SpeedModel:
    method = draw(st.sampled_from(sorted(_METHODS)))
    chip = draw(st.sampled_from(sorted(load_chips().values(), key=lambda one: one.class_name)))
    return SpeedModel(
        architecture=draw(st.sampled_from(_MODELS)),
        weights=Weights(bits=Decimal(_METHODS[method]), kv_element_bytes=draw(st.sampled_from([1, 2]))),
        compute=compute_type(method, chip),
        chip=chip,
        gpus=1 if chip.slice_of else draw(st.sampled_from([1, 2, 4, 8])),
    )


shapes = st.builds(RequestShape, st.integers(1, 100_000), st.integers(1, 20_000), st.floats(0, 1))
batches = st.floats(1, 2000)
more = st.floats(1, 10)


@given(models(), shapes, batches, more, more)
def test_a_faster_gpu_is_never_slower(
    speed: SpeedModel, shape: RequestShape, batch: float, bandwidth: float, compute: float
) -> None:
    chip = speed.chip
    faster = replace(
        chip,
        bandwidth_gb_per_s=chip.bandwidth_gb_per_s * bandwidth,
        tflops={name: value * compute for name, value in chip.tflops.items()},
        link_gb_per_s=chip.link_gb_per_s * bandwidth,
    )

    assert replace(speed, chip=faster).tasks_per_s(shape, batch) >= _ALMOST * speed.tasks_per_s(shape, batch)


@given(models(), shapes, st.floats(10, 1e7), st.integers(1, 2048), more, st.integers(0, 1000))
def test_a_larger_cache_and_a_larger_batch_are_never_slower(
    speed: SpeedModel, shape: RequestShape, kv_tokens: float, sequences: int, larger: float, extra: int
) -> None:
    small, large = SpeedLimits(kv_tokens, sequences), SpeedLimits(kv_tokens * larger, sequences + extra)

    slow, fast = (speed.tasks_per_s(shape, limits.batch(shape)) for limits in (small, large))

    assert fast >= _ALMOST * slow


@given(models(), shapes, batches, st.integers(1, 10_000))
def test_a_longer_answer_is_never_faster(speed: SpeedModel, shape: RequestShape, batch: float, extra: int) -> None:
    longer = replace(shape, output_tokens=shape.output_tokens + extra)

    assert speed.tasks_per_s(longer, batch) <= speed.tasks_per_s(shape, batch) / _ALMOST


@given(models(), shapes, batches, st.integers(1, 10_000))
def test_a_longer_prompt_is_never_faster(speed: SpeedModel, shape: RequestShape, batch: float, extra: int) -> None:
    longer = replace(shape, input_tokens=shape.input_tokens + extra)

    assert speed.tasks_per_s(longer, batch) <= speed.tasks_per_s(shape, batch) / _ALMOST


@given(models(), shapes, batches, st.floats(0, 1))
def test_more_of_the_prompt_in_the_cache_is_never_slower(
    speed: SpeedModel, shape: RequestShape, batch: float, share: float
) -> None:
    less, most = sorted((share, shape.cached_share))

    slow, fast = (speed.tasks_per_s(replace(shape, cached_share=value), batch) for value in (less, most))

    assert fast >= _ALMOST * slow


@given(models(), shapes, st.floats(1, 500), st.floats(0.01, 0.99))
def test_the_batch_at_a_rate_makes_that_rate(speed: SpeedModel, shape: RequestShape, most: float, part: float) -> None:
    rate = part * speed.tasks_per_s(shape, most)

    batch = speed.batch_at(shape, rate, most=most)

    assert batch is not None
    assert 0 < batch <= most
    assert abs(speed.tasks_per_s(shape, batch) / rate - 1) < 1e-3


@settings(max_examples=50)
@given(models(), shapes, st.floats(10, 1e7), st.floats(0.01, 0.98), st.floats(0.01, 1))
def test_the_first_token_is_never_earlier_under_more_load(
    speed: SpeedModel, shape: RequestShape, kv_tokens: float, part: float, less: float
) -> None:
    limits = SpeedLimits(kv_tokens, 256)
    try:
        highest = speed.estimate(shape, limits).tasks_per_s.expected
    except InvalidSpec:
        return

    early, late = (speed.first_token_p99_s(shape, highest * rate, limits) for rate in (part * less, part))

    assert early is not None
    assert late is not None
    assert early <= late / _ALMOST


@given(st.sampled_from(sorted(load_chips().values(), key=lambda one: one.class_name)))
def test_published_figures_are_positive_and_narrow_types_are_not_slower(chip: Chip) -> None:
    assert chip.bandwidth_gb_per_s > 0
    assert chip.link_gb_per_s > 0
    assert all(value >= chip.wide_tflops * _ALMOST for value in chip.tflops.values())
