"""Each engine as a pod, what its refusals look like to a user, and how a change reaches running pods."""

from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from tests.support.models import Models

from flotilla.catalog.accelerators import load_accelerators
from flotilla.controller.apply import free_units
from flotilla_devcluster.nodeagent.container import REAL_IMAGE
from flotilla_devcluster.stack import Stack, samples, value

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
GGUF = "hf://Qwen/Qwen2.5-1.5B-Instruct-GGUF"


def answer(models: Models, name: str) -> str:
    """What the model says to a user's client."""
    url = models.stack.service_url(name, models.namespace)
    assert url is not None
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20)
    said = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=8)
    return said.choices[0].message.content or ""


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        ("sglang", {}),
        ("llamacpp", {"model": {"source": GGUF}}),
        ("llamacpp", {"model": {"source": GGUF}, "accelerator": {"class": "cpu-amd64"}}),
    ],
    ids=["sglang", "llamacpp", "llamacpp-cpu"],
)
def test_the_engine_serves_and_its_queue_is_read(
    models: Models, spec: dict[str, Any], engine: str, changes: dict[str, Any]
) -> None:
    models.apply("small", {**spec, **changes, "engine": {"name": engine}})
    models.wait_ready("small")
    assert answer(models, "small")
    models.wait_condition("small", "ScalingActive", "True", "Steady")
    condition = models.condition("small", "FitsMemory")
    assert (condition["status"], condition["reason"]) == ("True", "Fits")
    status = (models.get("ModelDeployment", "small") or {})["status"]
    assert status["engine"]["name"] == engine
    assert status["fit"]["contextLength"] == 32768


def test_llama_cpp_serves_a_real_model_whose_weights_are_here_and_the_pod_says_so(models: Models) -> None:
    spec = yaml.safe_load((ROOT / "manifests/samples/smollm2-135m.yaml").read_text())["spec"]
    models.apply("real", spec)
    models.wait_ready("real")
    url = models.stack.service_url("real", models.namespace)
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    question: Any = {"role": "user", "content": "What is the capital of France? One word."}
    said = client.chat.completions.create(model="real", messages=[question], max_tokens=12, temperature=0)
    assert "Paris" in (said.choices[0].message.content or "")
    models.wait_condition("real", "ScalingActive", "True", "Steady")

    def counted() -> bool:
        labels = {"modeldeployment": "real", "namespace": models.namespace}
        tokens = value(samples(models.stack.operator.metrics()), "flotilla_deployment_tokens_total", **labels)
        assert said.usage is not None
        return tokens == said.usage.total_tokens

    models.wait(counted, "the operator to count llama.cpp's tokens")
    (pod,) = models.list("Pod")
    assert pod["status"]["containerStatuses"][0]["imageID"].startswith(REAL_IMAGE)
    meta = pod["metadata"]
    folder = models.stack.agent.directory / "pods" / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
    assert "model loaded" in (folder / "engine" / "0.log").read_text()


def test_adapters_are_served_under_their_own_names(models: Models, spec: dict[str, Any]) -> None:
    adapters = [{"name": "triage", "source": "hf://acme/triage-lora"}]
    models.apply("base", {**spec, "model": {**spec["model"], "adapters": adapters}})
    models.wait_ready("base")
    url = models.stack.service_url("base", models.namespace)
    client = openai.OpenAI(base_url=url, api_key="none", timeout=20)
    assert {model.id for model in client.models.list()} == {"base", "triage"}


def test_a_wrong_flag_is_shown_in_the_engines_own_words(models: Models, spec: dict[str, Any]) -> None:
    models.apply("typo", {**spec, "engine": {"name": "vllm", "args": ["--max-num-sequences=4"]}})
    condition = models.wait_condition("typo", "ModelLoaded", "False", "CrashLoopBackOff")
    assert "exit code 2" in condition["message"]
    assert "unrecognized arguments: --max-num-sequences=4" in condition["message"]


def test_what_does_not_fit_takes_no_gpu(models: Models, spec: dict[str, Any]) -> None:
    huge = {**spec, "model": {"source": "hf://meta-llama/Llama-3.3-70B-Instruct"}}
    models.apply("huge", {**huge, "accelerator": {"class": "nvidia-l4", "count": 1}})
    condition = models.wait_condition("huge", "FitsMemory", "False", "DoesNotFit")
    assert "1 x nvidia-l4 (22.0 GiB each) cannot hold the model" in condition["message"]
    assert models.condition("huge", "Ready")["reason"] == "DoesNotFit"
    assert models.condition("huge", "SpecValid")["status"] == "True"
    assert models.get("Deployment", "huge") is None
    models.apply("huge", {**huge, "accelerator": {"class": "nvidia-l4"}})
    status = models.wait(lambda: (models.get("ModelDeployment", "huge") or {})["status"].get("fit"), "the fit")
    assert status["verdict"] == "Fits"
    child = models.wait(lambda: models.get("Deployment", "huge"), "the Deployment")
    limits = child["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "4"


def surge(models: Models, name: str) -> int:
    child = models.get("Deployment", name) or {}
    found: int = child["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    return found


def wait_for_room(models: Models) -> None:
    """Until a node has accelerators free: pods of earlier tests hold theirs until they have drained."""
    accelerator, api = load_accelerators()["nvidia-l4"], models.stack.plane.api

    def room() -> bool:
        nodes, pods = (api.request("GET", f"/api/v1/{plural}")["items"] for plural in ("nodes", "pods"))
        return max(free_units(accelerator, nodes, pods)) >= 1

    models.wait(room, "a free accelerator")


def pod_args(models: Models, *, ready: bool) -> list[list[str]]:
    found = []
    for pod in models.list("Pod"):
        conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", ())}
        if (conditions.get("Ready") == "True") is ready and "deletionTimestamp" not in pod["metadata"]:
            found.append(pod["spec"]["containers"][0].get("args", []))
    return found


def test_a_change_surges_while_there_is_room_and_serves_throughout(models: Models, spec: dict[str, Any]) -> None:
    models.apply("moving", spec)
    models.wait_ready("moving")
    wait_for_room(models)
    models.apply("moving", {**spec, "engine": {"name": "vllm", "args": ["--max-num-seqs=7"]}})
    models.wait(lambda: surge(models, "moving") == 1, "the rollout to surge")

    def moved() -> bool:
        assert models.condition("moving", "Ready")["status"] == "True"
        return any("--max-num-seqs=7" in args for args in pod_args(models, ready=True))

    models.wait(moved, "the new revision to serve")
    assert answer(models, "moving")


def test_a_change_that_never_starts_leaves_the_old_replica_serving(models: Models, spec: dict[str, Any]) -> None:
    models.apply("careful", spec)
    models.wait_ready("careful")
    wait_for_room(models)
    models.apply("careful", {**spec, "engine": {"name": "vllm", "args": ["--no-such-flag"]}})
    models.wait(lambda: pod_args(models, ready=False), "a pod of the new revision")
    condition = models.wait_condition("careful", "Reconciling", "True", "RollingOut")
    assert condition["reason"] == "RollingOut"
    assert models.condition("careful", "Ready")["status"] == "True"
    assert answer(models, "careful")


def test_a_change_without_room_replaces_one_at_a_time(models: Models, stack: Stack, spec: dict[str, Any]) -> None:
    whole_node = {**spec, "accelerator": {"class": "nvidia-l4", "count": 4}}
    models.apply("large", whole_node)
    models.wait(lambda: pod_args(models, ready=True), "the model to serve", timeout_s=90)
    (node,) = {pod["spec"]["nodeName"] for pod in models.list("Pod")}
    other = {"gpu-1": "gpu-2", "gpu-2": "gpu-1"}[node]
    gpu = {"nvidia.com/gpu": "1"}
    filler = {
        "metadata": {"name": "filler"},
        "spec": {
            "nodeName": other,
            "containers": [{"name": "c", "image": "busybox", "resources": {"requests": gpu, "limits": gpu}}],
        },
    }
    stack.plane.api.request("POST", models.path("Pod"), filler)
    models.apply("large", {**whole_node, "engine": {"name": "vllm", "args": ["--max-num-seqs=7"]}})
    changed = models.wait(
        lambda: any(
            "--max-num-seqs=7" in args for args in pod_args(models, ready=False) + pod_args(models, ready=True)
        ),
        "the rollout",
        timeout_s=60,
    )
    assert changed
    assert surge(models, "large") == 0
