"""LoRA adapters on running engines: loaded, shared by two routes, and taken away, while the pods stay."""

import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import openai
import psutil
import pytest
from tests.support.models import Models

from flotilla.constants import GATEWAY

pytestmark = pytest.mark.cluster

ONE = {"name": "one", "source": "hf://acme/one"}
TWO = {"name": "two", "source": "hf://acme/two"}
THREE = {"name": "three", "source": "pvc://tuned/three", "rank": 8}
PORTS = {"vllm": 8000, "sglang": 30000}


def with_adapters(spec: dict[str, Any], engine: str, *adapters: dict[str, Any]) -> dict[str, Any]:
    claims = ["tuned"] if THREE in adapters else []
    model = {**spec["model"], "lora": {"maxAdapters": 3, "claimNames": claims}, "adapters": list(adapters)}
    return {**spec, "model": model, "engine": {"name": engine}, "replicas": 2, "scaling": {"mode": "None"}}


@pytest.fixture
def claim(models: Models) -> Iterator[str]:
    """A claim that is bound: the scheduler waits for it."""
    volume, api = f"tuned-{models.namespace}", models.stack.plane.api
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    folder = {"capacity": {"storage": "1Gi"}, "hostPath": {"path": "/nowhere"}, **common}
    api.request("POST", "/api/v1/persistentvolumes", {"metadata": {"name": volume}, "spec": folder})
    wanted = {**common, "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}
    body = {"metadata": {"name": "tuned"}, "spec": wanted}
    api.request("POST", f"/api/v1/namespaces/{models.namespace}/persistentvolumeclaims", body)
    yield "tuned"
    api.request("DELETE", f"/api/v1/persistentvolumes/{volume}")


def pods(models: Models) -> dict[str, dict[str, Any]]:
    found = models.list("Pod")
    return {pod["metadata"]["uid"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def names_in(pod: dict[str, Any], engine: str) -> set[str]:
    """What the pod's engine serves, by its own list."""
    address = pod["status"]["podIP"].replace("10.", "127.", 1)
    client = openai.OpenAI(base_url=f"http://{address}:{PORTS[engine]}/v1", api_key="none", timeout=20)
    return {model.id for model in client.models.list()}


def wait_loaded(models: Models, *names: str, replicas: int = 2) -> None:
    def probe() -> bool:
        status = (models.get("ModelDeployment", "base") or {}).get("status", {})
        return [(a["name"], a["loadedReplicas"]) for a in status.get("adapters", ())] == [(n, replicas) for n in names]

    models.wait(probe, f"the adapters {names} on {replicas} replicas")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_adapters_come_and_go_without_a_new_pod_and_a_new_pod_is_ready_with_all(
    models: Models, spec: dict[str, Any], claim: str, engine: str
) -> None:
    models.apply("base", with_adapters(spec, engine, ONE, THREE))
    models.wait_ready("base")
    wait_loaded(models, "one", "three")
    before = pods(models)
    assert len(before) == 2
    models.apply("base", with_adapters(spec, engine, TWO, THREE))
    wait_loaded(models, "two", "three")
    assert set(pods(models)) == set(before)
    assert all(is_ready(pod) for pod in pods(models).values())
    assert [names_in(pod, engine) for pod in before.values()] == 2 * [{"base", "two", "three"}]

    gone = next(iter(before.values()))
    models.delete("Pod", gone["metadata"]["name"])

    def replaced() -> dict[str, Any] | None:
        return next((pod for uid, pod in pods(models).items() if uid not in before and is_ready(pod)), None)

    assert names_in(models.wait(replaced, "the new pod"), engine) == {"base", "two", "three"}
    wait_loaded(models, "two", "three")


def test_an_engine_that_restarts_in_its_pod_gets_its_adapters_again(models: Models, spec: dict[str, Any]) -> None:
    models.apply("base", {**with_adapters(spec, "vllm", ONE), "replicas": 1})
    models.wait_ready("base")
    ((uid, pod),) = pods(models).items()
    end_the_engine(pod)

    def again() -> bool:
        live = pods(models)[uid]
        return live["status"]["containerStatuses"][0]["restartCount"] == 1 and is_ready(live)

    models.wait(again, "the engine to come back")
    models.wait(lambda: names_in(pod, "vllm") == {"base", "one"}, "its adapter to be loaded again")


def end_the_engine(pod: dict[str, Any]) -> None:
    address = pod["status"]["podIP"].replace("10.", "127.", 1)
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid]
    (pid,) = {c.pid for c in listening if f"ip='{address}'" in str(c.laddr)}
    psutil.Process(pid).kill()


def test_two_adapters_on_the_same_pods_share_a_route_and_clients_cannot_load(
    models: Models, spec: dict[str, Any]
) -> None:
    models.apply("base", {**with_adapters(spec, "vllm", ONE, TWO), "replicas": 1})
    targets = [{"name": n, "modelDeploymentRef": {"name": "base", "adapter": n}} for n in ("one", "two")]
    split = [{"target": "one", "weight": 1}, {"target": "two", "weight": 1}]
    classes = [{"name": "sovereign", "allowBoundaries": ["Cluster"]}]
    policy = {
        "hostModels": ["support"],
        "targets": targets,
        "dataPolicy": {"unknownClass": "sovereign", "classes": classes},
        "defaultRoute": {"split": split},
    }
    models.apply("support", policy, kind="RoutingPolicy")
    models.wait_ready("base")
    models.wait_condition("support", "Ready", "True", kind="RoutingPolicy")
    url = models.stack.service_url(GATEWAY, models.namespace)
    assert url is not None
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30)

    def decided() -> str:
        raw = client.chat.completions.with_raw_response.create(
            model="support", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
        )
        return str(raw.headers["x-flotilla-route"]).partition("target=")[2].partition(";")[0]

    told = Counter(decided() for _ in range(30))
    assert set(told) == {"one", "two"}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/load_lora_adapter", "/lora-adapters"):
        request = urllib.request.Request(url.removesuffix("/v1") + path, b'{"lora_name": "one", "lora_path": "x"}')
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        with refused.value:
            assert refused.value.code == 404
