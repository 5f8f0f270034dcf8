"""`flotilla convert`: others' manifests become ours, or the field that has no counterpart is named."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.support.schema import put
from typer.testing import CliRunner, Result

from flotilla.cli import app
from flotilla.cli.convert import Conversion, conversions, draft
from flotilla.cli.convert.draft import split
from flotilla.planning.resolve import load_catalog
from flotilla_devcluster.engine.arguments import load_flags

CATALOG = load_catalog()
KUBEAI: dict[str, Any] = {
    "apiVersion": "kubeai.org/v1",
    "kind": "Model",
    "metadata": {"name": "qwen2.5-7b-l4", "namespace": "models"},
    "spec": {
        "features": ["TextGeneration"],
        "owner": "alibaba",
        "url": "hf://Qwen/Qwen2.5-7B-Instruct",
        "engine": "VLLM",
        "resourceProfile": "nvidia-gpu-l4:2",
        "args": [
            "--max-model-len=8192",
            "--max-num-batched-token=8192",
            "--gpu-memory-utilization=0.95",
            "--swap-space=4",
            "--enable_prefix_caching",
            "--quantization=fp8",
            "--port",
            "9999",
        ],
        "env": {"VLLM_LOGGING_LEVEL": "INFO", "LD_PRELOAD": "/evil.so"},
        "adapters": [{"name": "triage", "url": "hf://acme/triage"}, {"name": "far", "url": "oss://x/y"}],
        "minReplicas": 0,
        "targetRequests": 16,
        "cacheProfile": "efs",
    },
}
KSERVE: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "llama"},
    "spec": {
        "predictor": {
            "minReplicas": 1,
            "maxReplicas": 3,
            "scaleMetric": "concurrency",
            "scaleTarget": 4,
            "serviceAccountName": "reader",
            "nodeSelector": {"node.kubernetes.io/instance-type": "g6.2xlarge"},
            "model": {
                "modelFormat": {"name": "huggingface"},
                "args": ["--model_name=assistant", "--model_id=Qwen/Qwen2.5-1.5B-Instruct", "--backend=vllm"],
                "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "t"}}}],
                "resources": {"limits": {"cpu": "6", "memory": "24Gi", "nvidia.com/gpu": "1"}},
            },
        },
        "transformer": {"containers": [{"image": "mine"}]},
    },
}
LLM: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1alpha2",
    "kind": "LLMInferenceService",
    "metadata": {"name": "qwen"},
    "spec": {
        "model": {
            "uri": "hf://Qwen/Qwen2.5-7B-Instruct",
            "name": "Qwen/Qwen2.5-7B-Instruct",
            "lora": {"adapters": [{"name": "a", "uri": "hf://acme/a"}], "maxRank": 64},
        },
        "replicas": 3,
        "parallelism": {"tensor": 2},
        "router": {"route": {}, "scheduler": {}},
        "template": {
            "containers": [
                {
                    "name": "main",
                    "image": "vllm/vllm-openai:v0.19.0",
                    "args": ["--enforce-eager"],
                    "resources": {"limits": {"nvidia.com/gpu": 2}, "requests": {"cpu": "2", "memory": "16Gi"}},
                    "livenessProbe": {"httpGet": {"path": "/health", "port": 8000}},
                }
            ]
        },
    },
}
LLMKUBE: list[dict[str, Any]] = [
    {
        "apiVersion": "inference.llmkube.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": "coder"},
        "spec": {
            "source": "https://huggingface.co/unsloth/Qwen3-8B-GGUF/resolve/main/Qwen3-8B-Q4_K_M.gguf",
            "format": "gguf",
            "hardware": {"accelerator": "cuda", "gpu": {"enabled": True, "count": 1, "vendor": "nvidia"}},
        },
    },
    {
        "apiVersion": "inference.llmkube.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "coder-service"},
        "spec": {
            "modelRef": "coder",
            "contextSize": 8192,
            "resources": {"gpu": 1, "gpuMemory": "24Gi", "cpu": "4", "memory": "16Gi"},
            "autoscaling": {"minReplicas": 1, "maxReplicas": 2, "metrics": [{"type": "Pods"}]},
            "priority": "high",
            "endpoint": {"port": 8080},
        },
    },
]
VLLM_OF_LLMKUBE = {
    "runtime": "vllm",
    "vllmConfig": {
        "maxModelLen": 4096,
        "enablePrefixCaching": True,
        "maxNumBatchedTokens": 2048,
        "dtype": "float16",
        "hfTokenSecretRef": {"name": "hf", "key": "HF_TOKEN"},
    },
}


def one(*documents: dict[str, Any], accelerator: str | None = None) -> Conversion:
    (found,) = conversions(list(documents), CATALOG, accelerator=accelerator)
    return found


def spec_of(found: Conversion) -> dict[str, Any]:
    assert found.manifest is not None, found.refusal
    spec: dict[str, Any] = found.manifest["spec"]
    return spec


def lost(found: Conversion, part: str) -> str:
    (loss,) = (loss for loss in found.losses if part in loss)
    return loss


def test_a_model_of_kubeai_keeps_its_weights_card_limits_and_name() -> None:
    found = one(KUBEAI)
    spec = spec_of(found)
    assert found.refusal == ""
    assert (found.manifest or {})["metadata"] == {"name": "qwen2-5-7b-l4", "namespace": "models"}
    assert spec["model"] == {
        "servedName": "qwen2.5-7b-l4",
        "source": "hf://Qwen/Qwen2.5-7B-Instruct",
        "contextLength": 8192,
        "adapters": [{"name": "triage", "source": "hf://acme/triage"}],
    }
    assert spec["engine"] == {
        "name": "vllm",
        "args": ["--max-num-batched-tokens=8192", "--enable-prefix-caching"],
        "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "INFO"}],
    }
    assert spec["accelerator"] == {"class": "nvidia-l4", "count": 2}
    assert spec["quantization"] == {"method": "fp8"}
    assert (spec["scaling"]["queueDepthPerReplica"], spec["scaling"]["scaleDownDelaySeconds"]) == (16, 30)
    assert spec["scaling"]["scaleDownPercentPerMinute"] == 100


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("--gpu-memory-utilization", "memory fit"),
        ("--swap-space", "vllm no longer has it"),
        ("--port", "set by the operator"),
        ("LD_PRELOAD", "can replace the engine's code"),
        ("far", "hf:// or pvc:// only"),
        ("spec.cacheProfile", "spec.model.cache.claimName"),
        ("spec.maxReplicas", "no limit becomes"),
    ],
)
def test_what_kubeai_says_and_we_do_not_is_named(part: str, why: str) -> None:
    assert why in lost(one(KUBEAI), part)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("spec", "engine"), "OLlama", "spec.engine: Flotilla has no engine OLlama"),
        (("spec", "engine"), None, "spec.engine: it is missing"),
        (("metadata", "name"), None, "metadata.name: it is missing"),
        (("spec", "url"), "ollama://gemma2:2b", "no engine of Flotilla reads ollama://"),
        (("spec", "resourceProfile"), "google-tpu-v5e-1x1:1", "is a TPU"),
        (("spec", "resourceProfile"), "nvidia-gpu-gh200:1", "'nvidia-gpu-gh200' is not a class of Flotilla"),
    ],
)
def test_what_has_no_counterpart_of_kubeais_is_refused_by_name(
    path: tuple[str, ...], value: str | None, named: str
) -> None:
    found = one(put(KUBEAI, path, value))
    assert found.manifest is None
    assert named in found.refusal


def test_a_card_without_a_class_is_replaced_only_when_asked_and_then_told() -> None:
    found = one(put(KUBEAI, ("spec", "resourceProfile"), "nvidia-gpu-gh200:1"), accelerator="nvidia-h100-80gb")
    assert spec_of(found)["accelerator"] == {"class": "nvidia-h100-80gb", "count": 1}
    assert "nvidia-gpu-gh200 has no class" in lost(found, "resourceProfile")


def test_what_would_not_fit_is_converted_and_said_to_need_correction() -> None:
    found = one(put(put(KUBEAI, ("spec", "url"), "hf://Qwen/Qwen2.5-72B-Instruct"), ("spec", "args"), []))
    assert found.manifest is not None
    assert "cannot hold the model" in found.refusal


def test_autoscaling_that_is_off_is_a_fixed_number() -> None:
    document = put(put(KUBEAI, ("spec", "autoscalingDisabled"), True), ("spec", "replicas"), 2)
    spec = spec_of(one(document))
    assert (spec["replicas"], spec["scaling"]["mode"]) == (2, "None")


def test_a_language_model_of_kserves_predictor() -> None:
    found = one(KSERVE)
    spec = spec_of(found)
    assert found.refusal == ""
    assert spec["model"] == {
        "servedName": "assistant",
        "source": "hf://Qwen/Qwen2.5-1.5B-Instruct",
        "credentialsSecret": {"name": "hf", "key": "t"},
    }
    assert spec["accelerator"] == {"class": "nvidia-l4", "count": 1}
    assert spec["resources"] == {"cpu": "6", "memory": "24Gi"}
    assert (spec["scaling"]["maxReplicas"], spec["scaling"]["queueDepthPerReplica"]) == (3, 4)
    assert "credentialsSecret" in lost(found, "serviceAccountName")
    assert "no counterpart" in lost(found, "spec.transformer")
    assert "spec.engine.name" in lost(found, "--backend")


def test_only_a_vendor_is_not_enough_to_know_the_card() -> None:
    without = copy.deepcopy(KSERVE)
    del without["spec"]["predictor"]["nodeSelector"]
    assert "--accelerator" in one(without).refusal
    assert spec_of(one(without, accelerator="nvidia-l4"))["accelerator"]["class"] == "nvidia-l4"
    assert "--accelerator" in one(without, accelerator="amd-mi300x").refusal
    of_amd = put(without, ("spec", "predictor", "model", "resources"), {"limits": {"amd.com/gpu": 1}})
    assert "--accelerator amd-" in one(of_amd, accelerator="nvidia-l4").refusal


def test_other_models_of_kserve_are_refused() -> None:
    found = one(put(KSERVE, ("spec", "predictor", "model", "modelFormat", "name"), "sklearn"))
    assert "sklearn is not a language model" in found.refusal


@pytest.mark.parametrize(
    ("predictor", "named"),
    [
        ({"sklearn": {"storageUri": "gs://iris"}}, "spec.predictor.sklearn: sklearn is not a language model"),
        ({"containers": [{"image": "mine"}]}, "spec.predictor.containers: "),
        ({"workerSpec": {"size": 2}}, "spec.predictor.workerSpec: "),
        ({"minReplicas": 1}, "spec.predictor: it has neither"),
    ],
)
def test_a_predictor_without_a_format_is_refused_by_what_it_has(predictor: dict[str, Any], named: str) -> None:
    assert one(put(KSERVE, ("spec", "predictor"), predictor)).refusal.startswith(named)


def test_an_llminferenceservice_becomes_a_fixed_number_of_replicas() -> None:
    found = one(LLM, accelerator="nvidia-l4")
    spec = spec_of(found)
    assert (spec["replicas"], spec["scaling"]["mode"]) == (3, "None")
    assert spec["accelerator"] == {"class": "nvidia-l4", "count": 2}
    assert spec["model"]["adapters"] == [{"name": "a", "source": "hf://acme/a", "rank": 64}]
    assert spec["model"]["servedName"] == "Qwen/Qwen2.5-7B-Instruct"
    assert spec["engine"]["args"] == ["--enforce-eager"]
    assert "RoutingPolicy" in lost(found, "spec.router")
    assert "v0.19.0" in lost(found, "image")
    prefill = put(LLM, ("spec", "prefill"), {"replicas": 1})
    assert "in one pod" in one(prefill, accelerator="nvidia-l4").refusal


def test_a_service_of_llmkube_takes_its_model_in() -> None:
    found = one(*LLMKUBE, accelerator="nvidia-l4")
    spec = spec_of(found)
    assert found.refusal == ""
    assert spec["model"] == {
        "servedName": "coder",
        "source": "hf://unsloth/Qwen3-8B-GGUF",
        "revision": "Q4_K_M",
        "contextLength": 8192,
    }
    assert spec["engine"] == {"name": "llamacpp"}
    assert spec["resources"] == {"cpu": "4", "memory": "16Gi"}
    assert spec["scaling"] == {"minReplicas": 1, "maxReplicas": 2}
    assert "priorityClassName" in lost(found, "spec.priority")


def test_settings_of_an_engine_of_llmkubes_become_fields_and_flags() -> None:
    service = put(LLMKUBE[1], ("spec",), {**LLMKUBE[1]["spec"], **VLLM_OF_LLMKUBE, "contextSize": None})
    model = put(LLMKUBE[0], ("spec", "source"), "Qwen/Qwen2.5-7B-Instruct")
    spec = spec_of(one(model, service, accelerator="nvidia-l4"))
    assert spec["model"]["contextLength"] == 4096
    assert spec["model"]["credentialsSecret"] == {"name": "hf", "key": "HF_TOKEN"}
    assert spec["engine"]["args"] == ["--enable-prefix-caching", "--max-num-batched-tokens=2048"]


def test_halves_of_llmkubes_pairs_are_told() -> None:
    assert "the Model 'coder' is not among the files" in one(LLMKUBE[1]).refusal
    assert "None of the files has an InferenceService" in one(LLMKUBE[0]).refusal
    assert "spec.modelRef" in one(put(LLMKUBE[1], ("spec", "modelRef"), {"name": "coder"})).refusal
    router = {**LLMKUBE[1], "kind": "ModelRouter"}
    assert "RoutingPolicy" in one(router).refusal


def test_arguments_are_read_as_argparse_reads_them() -> None:
    words = ["--model_name=a", "--tp", "2", "-tp", "4", "--flag", "--other=x=y", "loose"]
    assert [(flag, value) for flag, value, _ in split(words)] == [
        ("--served-model-name", "a"),
        ("--tp", "2"),
        ("--tensor-parallel-size", "4"),
        ("--flag", None),
        ("--other", "x=y"),
        ("", "loose"),
    ]


def test_renamed_flags_are_among_vllms() -> None:
    known = {flag.name for flag in load_flags("vllm-0.33.flags")}
    assert set(draft._RENAMED.values()) <= known


SCALARS = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x", "hf://a/b", "VLLM", "nvidia-gpu-l4:1"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(st.data())
def test_whatever_stands_in_a_manifest_it_is_converted_or_refused_in_words(data: st.DataObject) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from([KUBEAI, KSERVE, LLM, LLMKUBE[1]])))
    here, path = document["spec"], data.draw(st.integers(1, 4))
    for _ in range(path):
        key = data.draw(st.sampled_from(sorted(here)))
        if not isinstance(here[key], dict) or not here[key]:
            break
        here = here[key]
    here[data.draw(st.sampled_from(sorted(here)))] = data.draw(JSON)
    for found in conversions([LLMKUBE[0], document], CATALOG, accelerator="nvidia-l4"):
        assert found.manifest is not None or found.refusal
        assert all(": " in loss for loss in found.losses)


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], input=stdin)


def test_the_output_says_where_each_is_from_and_what_it_lost() -> None:
    result = invoke("-", stdin=yaml.safe_dump_all([KUBEAI, KSERVE]))
    assert result.exit_code == 0, result.output
    assert "# from KubeAI Model qwen2.5-7b-l4\n# lost: " in result.stdout
    assert [obj["kind"] for obj in yaml.safe_load_all(result.stdout)] == ["ModelDeployment"] * 2


def test_what_could_not_be_converted_ends_with_1_and_a_wrong_question_with_2() -> None:
    result = invoke("-", "--json", stdin=yaml.safe_dump(put(KUBEAI, ("spec", "engine"), "Infinity")))
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["manifest"] is None
    assert "Infinity" in result.stderr
    assert invoke("-", stdin="apiVersion: v1\nkind: Service\n").exit_code == 2
    assert invoke("-", "-a", "l5", stdin=yaml.safe_dump(KUBEAI)).exit_code == 2
