"""Every method on every kind of card: native, slower and said, or refused with the reason."""

import pytest

from flotilla.api.model_deployment import ModelDeploymentSpec, QuantizationMethod
from flotilla.errors import InvalidSpec
from flotilla.planning.resolve import Resolved, load_catalog, resolve

CATALOG = load_catalog()
CLASSES = (
    "nvidia-v100-16gb", "nvidia-t4", "nvidia-a10", "nvidia-l4", "nvidia-a100-80gb", "nvidia-l40s", "nvidia-h100-80gb",
    "nvidia-h200", "nvidia-b200", "amd-mi300x", "cpu-amd64",
)  # fmt: skip
# N native, W weights only (saves memory, no faster), ! admitted with a warning, x refused. vLLM 0.33, from its
# get_min_capability() and its wheel's kernels; AMD from platforms/rocm.py.
MATRIX = {
    "none":               "x N N N N N N N N N N",
    "fp8":                "x W W N W N N N N N x",
    "fp8-per-channel":    "x W W N W N N N N x x",
    "awq":                "x N N N N N N N N N N",
    "gptq":               "x N N N N N N N N N N",
    "compressed-tensors": "x N N N N N N N N N N",
    "int8-w8a8":          "x N N N N N N N ! N N",
    "nvfp4":              "x W W W W W W W N x x",
    "mxfp4":              "x x W W W W W W N N x",
    "bitsandbytes":       "x x x x x x x x x x x",
    "gguf":               "x x x x x x x x x x x",
}  # fmt: skip
CHECKPOINTS = {
    "awq": "hf://a/x-AWQ",
    "gptq": "hf://a/x-GPTQ",
    "compressed-tensors": "hf://a/x-w4a16",
    "int8-w8a8": "hf://a/x-w8a8",
    "nvfp4": "hf://a/x-NVFP4",
    "mxfp4": "hf://openai/gpt-oss-20b",
    "gguf": "hf://a/x-GGUF",
}
CELLS = [
    (method, class_name, verdict)
    for method, row in MATRIX.items()
    for class_name, verdict in zip(CLASSES, row.split(), strict=True)
]


def resolved(method: str, class_name: str, *, source: str = "", engine: str = "vllm", version: str = "") -> Resolved:
    spec = {
        "model": {"source": source or CHECKPOINTS.get(method, "hf://a/plain")},
        "engine": {"name": engine, **({"version": version} if version else {})},
        "quantization": {"method": method},
        "accelerator": {"class": class_name},
    }
    return resolve("tiny", ModelDeploymentSpec.model_validate(spec), CATALOG)


def test_the_matrix_has_every_method() -> None:
    assert set(MATRIX) | {"auto"} == {str(method) for method in QuantizationMethod}


@pytest.mark.parametrize(("method", "class_name", "verdict"), CELLS)
def test_vllm_on_each_card(method: str, class_name: str, verdict: str) -> None:
    if verdict == "x":
        with pytest.raises(InvalidSpec) as refused:
            resolved(method, class_name)
        assert refused.value.reason in ("UnsupportedQuantization", "UnsupportedAccelerator")
        assert "Use " in str(refused.value) or "Choose " in str(refused.value)
        return
    note = resolved(method, class_name).quantization.note
    assert {"N": "", "W": "it saves memory and is not faster", "!": "no INT8 tensor cores"}[verdict] in note
    assert bool(note) == (verdict != "N")


@pytest.mark.parametrize(
    ("method", "class_name", "message"),
    [
        ("mxfp4", "nvidia-t4", "mxfp4 on vllm 0.33.0 needs compute capability 8.0, and nvidia-t4 has 7.5."),
        ("nvfp4", "amd-mi300x", "nvfp4 on vllm 0.33.0 does not run on amd-mi300x (vendor amd)."),
        ("bitsandbytes", "nvidia-l4", "bitsandbytes left vLLM's core in 0.28.0 (vllm#43529)"),
        ("gguf", "nvidia-l4", "use spec.engine.name llamacpp"),
        ("none", "nvidia-v100-16gb", "holds no kernels for nvidia-v100-16gb (compute capability 7.0, needed 7.5)"),
    ],
)
def test_a_refusal_says_why(method: str, class_name: str, message: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        resolved(method, class_name)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("method", "version", "flag"),
    [
        ("bitsandbytes", "0.27.0", "bitsandbytes"),
        ("fp8-per-channel", "0.24.0", "fp8_per_channel"),
        ("gguf", "0.23.0", ""),
    ],
)
def test_what_an_older_vllm_still_had_is_admitted_there(method: str, version: str, flag: str) -> None:
    assert resolved(method, "nvidia-l4", version=version).quantization.engine_value == flag


def test_what_an_older_vllm_had_not_yet_is_refused_there() -> None:
    with pytest.raises(InvalidSpec, match=r"fp8-per-channel came with 0\.24\.0 \(vllm 0\.23\.0\)"):
        resolved("fp8-per-channel", "nvidia-l4", version="0.23.0")


@pytest.mark.parametrize(
    ("engine", "source", "class_name", "method", "flag"),
    [
        ("vllm", "hf://Qwen/Qwen2.5-7B-Instruct", "nvidia-l4", "fp8", "fp8"),
        ("vllm", "hf://Qwen/Qwen2.5-7B-Instruct", "nvidia-a100-80gb", "none", ""),
        ("vllm", "hf://Qwen/Qwen2.5-7B-Instruct", "amd-mi300x", "none", ""),
        ("vllm", "hf://openai/gpt-oss-20b", "nvidia-b200", "mxfp4", ""),
        ("vllm", "hf://Qwen/Qwen2.5-7B-Instruct-AWQ", "nvidia-l4", "awq", ""),
        ("sglang", "hf://Qwen/Qwen2.5-7B-Instruct", "nvidia-l4", "fp8", "fp8"),
        ("sglang", "hf://a/x-NVFP4", "nvidia-b200", "nvfp4", "modelopt_fp4"),
        ("tgi", "hf://Qwen/Qwen2.5-7B-Instruct", "nvidia-h100-80gb", "fp8", "fp8"),
        ("tgi", "hf://Qwen/Qwen2.5-7B-Instruct", "nvidia-l4", "none", ""),
        ("tgi", "hf://Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "nvidia-l4", "gptq", "gptq"),
        ("llamacpp", "hf://Qwen/Qwen2.5-7B-Instruct-GGUF", "cpu-amd64", "gguf", ""),
    ],
)
def test_auto_takes_what_the_checkpoint_is_or_what_the_card_runs_natively(
    engine: str, source: str, class_name: str, method: str, flag: str
) -> None:
    found = resolved("auto", class_name, source=source, engine=engine).quantization
    assert (found.method, found.engine_value, found.note) == (method, flag, "")


def test_the_catalogue_knows_better_than_the_name() -> None:
    # An fp8 checkpoint without fp8 in its name.
    found = resolved("auto", "nvidia-h100-80gb", source="hf://mistralai/Ministral-3-8B-Instruct-2512")
    assert (found.quantization.method, found.quantization.engine_value) == ("fp8", "")


def test_llama_cpp_reads_gguf_only() -> None:
    with pytest.raises(InvalidSpec, match="Name a GGUF checkpoint"):
        resolved("auto", "nvidia-l4", source="hf://Qwen/Qwen2.5-7B-Instruct", engine="llamacpp")


@pytest.mark.parametrize("engine", CATALOG.profiles)
def test_each_profile_says_something_of_each_method_and_cache_type(engine: str) -> None:
    profile = CATALOG.profiles[engine]
    assert set(profile.quantization) == {str(method) for method in QuantizationMethod} - {"auto"}
    assert set(profile.kv_cache) == {"auto", "fp8", "fp8_e4m3", "fp8_e5m2"}


@pytest.mark.parametrize(
    "source",
    [
        "hf://amd/Qwen3-8B-MXFP4-Quark",
        "hf://pytorch/Phi-4-mini-instruct-INT4",
        "hf://acme/support-bot-v3",
        "pvc://weights/support-bot-v3",
        "s3://bucket/support-bot-v3",
    ],
)
def test_auto_leaves_the_flag_out_where_it_is_not_known_how_the_weights_are_stored(source: str) -> None:
    found = resolved("auto", "nvidia-l4", source=source).quantization
    assert (found.method, found.engine_value) == ("none", "")
    assert "as they are stored" in found.note
    assert "fp8 as spec.quantization.method" in found.note


def test_auto_leaves_an_encoder_as_it_is() -> None:
    found = resolved("auto", "nvidia-l4", source="hf://BAAI/bge-m3").quantization
    assert (found.method, found.engine_value, found.note) == ("none", "", "")


@pytest.mark.parametrize(
    "name", ["Qwen3-8B-Quark", "Phi-4-INT4", "x-hqq", "x-4bit", "x-AutoRound", "bitnet-b1.58-BitNet"]
)
def test_another_method_than_the_name_tells_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match="is quantized already") as refused:
        resolved("fp8", "nvidia-l4", source=f"hf://acme/{name}")
    assert "Use auto" in str(refused.value)


def test_a_method_that_needs_a_checkpoint_of_its_own_is_refused_with_the_checkpoint_to_use() -> None:
    with pytest.raises(InvalidSpec, match="Qwen/Qwen3-8B has 16-bit weights") as refused:
        resolved("awq", "nvidia-l4", source="hf://Qwen/Qwen3-8B")
    assert "Qwen/Qwen3-8B-AWQ" in str(refused.value)


@pytest.mark.parametrize(
    "model", ["google/gemma-3-4b-it", "google/gemma-3-1b-it", "google/gemma-2-9b-it", "zai-org/GLM-4-9B-0414"]
)
def test_a_model_that_is_unstable_in_float16_is_refused_on_a_card_without_bfloat16(model: str) -> None:
    with pytest.raises(InvalidSpec, match="refuses float16 for models of type") as refused:
        resolved("none", "nvidia-t4", source=f"hf://{model}")
    assert refused.value.field == "spec.accelerator.class"
    resolved("none", "nvidia-a100-80gb", source=f"hf://{model}")
