"""From a spec to a command line, or to a refusal that names field, value and remedy."""

from typing import Any

import pytest

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.catalog.engines import parse
from flotilla.errors import InvalidSpec
from flotilla.planning.quantization import checkpoint_method
from flotilla.planning.resolve import Resolved, load_catalog, resolve

CATALOG = load_catalog()


def resolved(source: str = "hf://Qwen/Qwen2.5-7B-Instruct", **parts: Any) -> Resolved:
    spec = {
        "model": {"source": source, **parts.pop("model", {})},
        "engine": {"name": "vllm"},
        "accelerator": {"class": "nvidia-l4"},
        **parts,
    }
    return resolve("tiny", ModelDeploymentSpec.model_validate(spec), CATALOG)


def test_vllms_command_line_is_what_its_parser_takes() -> None:
    found = resolved(model={"revision": "abc", "contextLength": 8192}, quantization={"method": "none"})
    assert list(found.argv) == [
        "Qwen/Qwen2.5-7B-Instruct", "--host", "0.0.0.0", "--port", "8000", "--served-model-name", "tiny",
        "--revision", "abc", "--tensor-parallel-size", "1", "--gpu-memory-utilization", "0.92",
        "--max-model-len", "8192", "--shutdown-timeout", "45",
        "--disable-access-log-for-endpoints", "/health,/metrics,/ping",
    ]  # fmt: skip
    assert found.image == "vllm/vllm-openai:v0.33.0"


def test_tgis_command_line_is_what_its_launcher_takes() -> None:
    found = resolved(engine={"name": "tgi"}, quantization={"method": "none"})
    assert list(found.argv) == [
        "--model-id", "Qwen/Qwen2.5-7B-Instruct", "--hostname", "0.0.0.0", "--port", "8080", "--num-shard", "1",
        "--max-total-tokens", "32768", "--graceful-termination-timeout", "45", "--usage-stats", "off",
    ]  # fmt: skip
    assert "maintenance mode" in found.warnings[0]


def test_half_precision_is_asked_for_where_bf16_does_not_exist() -> None:
    argv = resolved(accelerator={"class": "nvidia-t4"}, quantization={"method": "none"}).argv
    assert argv[argv.index("--dtype") + 1] == "half"


def test_amd_gpus_get_amds_image() -> None:
    assert resolved(accelerator={"class": "amd-mi300x"}).image == "vllm/vllm-openai-rocm:v0.33.0"


@pytest.mark.parametrize(
    ("source", "method"),
    [
        ("hf://a/Llama-3.1-8B-Instruct-AWQ-INT4", "awq"),
        ("hf://a/Qwen2.5-7B-Instruct-GPTQ-Int4", "gptq"),
        ("hf://a/Llama-3.1-8B-FP8", "fp8"),
        ("hf://a/Qwen3-8B-NVFP4", "nvfp4"),
        ("hf://openai/gpt-oss-20b", "mxfp4"),
        ("hf://a/model-quantized.w8a8", "int8-w8a8"),
        ("hf://Qwen/Qwen2.5-7B-Instruct", None),
    ],
)
def test_a_pre_quantized_checkpoint_is_known_by_its_name(source: str, method: str | None) -> None:
    assert checkpoint_method(source) == method


@pytest.mark.parametrize(
    ("source", "engine", "gpu", "wish", "method", "flag"),
    [
        ("hf://Qwen/Qwen3-8B", "vllm", "nvidia-l4", "auto", "fp8", "fp8"),
        ("hf://a/plain", "vllm", "nvidia-l4", "auto", "none", ""),
        ("hf://a/plain", "vllm", "nvidia-a100-80gb", "auto", "none", ""),
        ("hf://a/plain", "vllm", "amd-mi300x", "auto", "none", ""),
        ("hf://a/x-AWQ", "vllm", "nvidia-l4", "auto", "awq", ""),
        ("hf://a/x-FP8", "vllm", "nvidia-l4", "fp8", "fp8", ""),
        ("hf://a/x-AWQ", "tgi", "nvidia-l4", "awq", "awq", "awq"),
        ("hf://a/plain", "vllm", "nvidia-h100-80gb", "fp8-per-channel", "fp8-per-channel", "fp8_per_channel"),
    ],
)
def test_quantization_becomes_a_flag_or_nothing(
    source: str, engine: str, gpu: str, wish: str, method: str, flag: str
) -> None:
    found = resolved(source, engine={"name": engine}, accelerator={"class": gpu}, quantization={"method": wish})
    assert (found.quantization.method, found.quantization.engine_value) == (method, flag)
    assert (flag in found.argv) == bool(flag)


def test_what_is_only_slower_is_admitted_and_said() -> None:
    note = resolved(accelerator={"class": "nvidia-a100-80gb"}, quantization={"method": "fp8"}).quantization.note
    assert "no native fp8" in note


@pytest.mark.parametrize(
    ("parts", "field", "reason", "remedy"),
    [
        ({"accelerator": {"class": "nvidia-l5"}}, "spec.accelerator.class", "UnknownAccelerator", "Did you mean"),
        (
            {"engine": {"name": "vllm", "version": "0.19.0"}},
            "spec.engine.version",
            "UnsupportedVersion",
            "Use 0.33.0",
        ),
        (
            {"engine": {"name": "vllm", "version": "latest"}},
            "spec.engine.version",
            "UnsupportedVersion",
            "Use 0.33.0",
        ),
        ({"resources": {"memory": "99999999999999999999"}}, "spec.resources.memory", "InvalidSpec", "64Mi to 64Ti"),
        ({"resources": {"cpu": "0"}}, "spec.resources.cpu", "InvalidSpec", "10m to 1k"),
        ({"resources": {"sharedMemory": "99999Pi"}}, "spec.resources.sharedMemory", "InvalidSpec", "1Mi to 16Ti"),
        ({"quantization": {"method": "bitsandbytes"}}, "spec.quantization.method", "UnsupportedQuantization", "plugin"),
        (
            {"quantization": {"kvCache": "fp8"}, "accelerator": {"class": "nvidia-a10g"}},
            "spec.quantization.kvCache",
            "UnsupportedQuantization",
            "compute capability 8.9",
        ),
        ({"engine": {"name": "vllm", "args": ["x", "--port=1"]}}, "spec.engine.args[1]", "ArgumentRefused", "--port"),
        ({"engine": {"name": "vllm", "args": ["--max_model_len"]}}, "spec.engine.args[0]", "ArgumentRefused", "--max"),
        ({"engine": {"name": "vllm", "args": ["--tensor-par", "2"]}}, "spec.engine.args[0]", "ArgumentRefused", "tens"),
        (
            {"engine": {"name": "vllm", "args": ["--trust-remote-code"]}},
            "spec.engine.args[0]",
            "ArgumentRefused",
            "ref",
        ),
        (
            {"engine": {"name": "vllm", "env": [{"name": "HF_TOKEN", "value": "x"}]}},
            "spec.engine.env[0].name",
            "EnvironmentRefused",
            "credentialsSecret",
        ),
        (
            {"engine": {"name": "vllm", "env": [{"name": "LD_PRELOAD", "value": "x"}]}},
            "spec.engine.env[0].name",
            "EnvironmentRefused",
            "remove it",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_field_and_remedy(
    parts: dict[str, Any], field: str, reason: str, remedy: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        resolved(**parts)
    assert (refused.value.field, refused.value.reason) == (field, reason)
    assert remedy in str(refused.value)


def test_one_timeout_moves_the_engines_limit_the_probe_and_the_rollout() -> None:
    plan = resolved(rollout={"timeoutSeconds": 7200})
    assert plan.startup_seconds == 7200
    assert ("VLLM_ENGINE_READY_TIMEOUT_S", "7200") in plan.env


def test_a_tag_that_moves_is_allowed_where_the_engine_has_one_and_said() -> None:
    plan = resolved("hf://a/x-GGUF", engine={"name": "llamacpp", "version": "latest"})
    assert plan.image.endswith(":server-cuda")
    assert "Pin a version such as b" in plan.warnings[0]
    assert resolved("hf://a/x-GGUF", engine={"name": "llamacpp"}).warnings == ()


def test_a_quantized_checkpoint_is_not_quantized_again() -> None:
    with pytest.raises(InvalidSpec, match="quantized with awq, and fp8 differs"):
        resolved("hf://a/x-AWQ", quantization={"method": "fp8"})
    with pytest.raises(InvalidSpec, match="already, so none cannot be had"):
        resolved("hf://a/x-AWQ", quantization={"method": "none"})


def test_a_value_stays_one_argument_whatever_it_holds() -> None:
    spec = ModelDeploymentSpec.model_validate(
        {"model": {"source": "hf://a/b"}, "engine": {"name": "vllm"}, "accelerator": {"class": "nvidia-l4"}}
    )
    # The CRD's pattern would refuse this name.
    odd = spec.model_copy(update={"model": spec.model.model_copy(update={"served_name": "a {{ 1 }} --port 9"})})
    argv = resolve("tiny", odd, CATALOG).argv
    assert argv[argv.index("--served-model-name") + 1] == "a {{ 1 }} --port 9"


def test_a_broken_profile_is_named_by_file_and_field() -> None:
    with pytest.raises(InvalidSpec, match=r"mine\.yaml: defaultVersion: Field required"):
        parse("mine.yaml", "name: mine")
    with pytest.raises(InvalidSpec, match=r"mine\.yaml: "):
        parse("mine.yaml", "a: [")
