"""The autoscaler on a whole cluster: bursts, zero, a killed operator, victims, quotas, an HPA."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from tests.support.external_metrics import METRIC, external_metric
from tests.support.models import Models

from flotilla.constants import GATEWAY, LABEL_MODEL
from flotilla.errors import FlotillaError
from flotilla.kube.observed import DELETION_COST
from flotilla_devcluster import traffic
from flotilla_devcluster.network import local_address

pytestmark = pytest.mark.cluster

CPU = {"class": "cpu-amd64"}
"""Room for more replicas than the cluster has GPUs."""


def soon(delay_s: int) -> dict[str, int]:
    """Scaling in after this delay, and then in one step."""
    return {"scaleDownDelaySeconds": delay_s, "scaleDownPercentPerMinute": 100}


def replicas(models: Models, name: str) -> int:
    """What is written for the child."""
    return int((models.get("Deployment", name) or {})["spec"]["replicas"])


def ready(models: Models, name: str) -> int:
    """Replicas that serve."""
    return int((models.get("Deployment", name) or {}).get("status", {}).get("readyReplicas", 0))


def staying(models: Models, name: str) -> list[dict[str, Any]]:
    """Pods of the model that nobody has told to go."""
    pods = (pod for pod in models.list("Pod") if "deletionTimestamp" not in pod["metadata"])
    return [pod for pod in pods if pod["metadata"]["labels"].get(LABEL_MODEL) == name]


@contextmanager
def crowd(models: Models, name: str, clients: int) -> Iterator[traffic.Tally]:
    """So many clients that each have a request under way, until the end of the block."""
    url = models.stack.service_url(name, models.namespace)
    assert url is not None
    tally, over = traffic.Tally(), threading.Event()
    burst = traffic.burst([traffic.Crowd(url, name, clients)], until=over.is_set, tally=tally)
    thread = threading.Thread(target=lambda: asyncio.run(burst))
    thread.start()
    try:
        yield tally
    finally:
        over.set()
        thread.join()


def test_a_burst_is_met_at_once_and_a_killed_operator_loses_none_of_it(models: Models, spec: dict[str, Any]) -> None:
    scaling = {"maxReplicas": 10, "queueDepthPerReplica": 2, **soon(5)}
    models.apply("burst", {**spec, "accelerator": CPU, "scaling": scaling})
    models.wait_ready("burst")
    with crowd(models, "burst", 20) as tally:
        models.wait(lambda: replicas(models, "burst") == 10, "ten replicas")
        # Between the write of the child and that of the status, if it can be.
        models.stack.restart_operator(kill=True)
        seen = [replicas(models, "burst")]

        def looked_again() -> bool:
            seen.append(replicas(models, "burst"))
            status = (models.get("ModelDeployment", "burst") or {})["status"]["scaling"]
            read = "flotilla_queue_depth{" in models.stack.operator.metrics()
            # The killed one may have ended before its first word on the source.
            return read and (status["desiredReplicas"], status.get("source")) == (10, "Pods")

        models.wait(looked_again, "the new operator to read the queues and say so")
        assert set(seen) == {10}
    models.wait(lambda: replicas(models, "burst") == 1, "the scale-in")
    assert tally.failed == 0
    models.wait(
        lambda: "panicSince" not in (models.get("ModelDeployment", "burst") or {})["status"]["scaling"],
        "the end of the panic",
    )


def test_requests_that_the_gateway_holds_wake_a_model_from_zero_and_are_answered(
    models: Models, spec: dict[str, Any]
) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 5, **soon(1), "scaleToZeroAfterSeconds": 2}
    models.apply("sleepy", {**spec, "scaling": scaling})
    models.wait_ready("sleepy")
    # Before there is a gateway, nobody would tell of requests.
    models.wait_condition("sleepy", "ScalingActive", "False", "NoWakeSignal")
    assert replicas(models, "sleepy") == 1
    models.apply("sleepers", policy("support", "sleepy"), kind="RoutingPolicy")
    models.wait_condition("sleepers", "Ready", "True", kind="RoutingPolicy")
    models.wait_condition("sleepy", "ScalingActive", "True", "ScaledToZero")
    models.wait(lambda: not staying(models, "sleepy"), "the last replica to be told to go")
    assert models.condition("sleepy", "Ready")["status"] == "True"
    assert models.metric("sleepy", "flotilla_demand_requests") == 0
    url = models.wait(lambda: models.stack.service_url(GATEWAY, models.namespace), "the gateway's Service")

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(said(client, stream=number % 2 == 0) for number in range(17)))

    # A short answer is out long before the next look: only what is held is seen.
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: asyncio.run(ask()))
        models.wait(lambda: replicas(models, "sleepy") == 3, "what 17 held requests need")
        assert all(asked.result())
    models.wait(lambda: replicas(models, "sleepy") == 0, "zero again")


def test_a_held_request_is_seen_although_the_next_look_is_a_minute_away(models: Models, spec: dict[str, Any]) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 1, **soon(1), "scaleToZeroAfterSeconds": 2}
    models.apply("dozy", {**spec, "scaling": scaling})
    models.apply("dozers", policy("support", "dozy"), kind="RoutingPolicy")
    models.wait_condition("dozers", "Ready", "True", kind="RoutingPolicy")
    models.wait_condition("dozy", "ScalingActive", "True", "ScaledToZero")
    models.wait(lambda: not staying(models, "dozy"), "the last replica to be told to go")
    url = models.wait(lambda: models.stack.service_url(GATEWAY, models.namespace), "the gateway's Service")

    async def ask() -> str:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=45) as client:
            return await said(client, stream=False)

    settings = models.stack.settings
    models.stack.settings = {**settings, "scaling_interval_s": 60}
    try:
        models.stack.restart_operator()
        assert asyncio.run(ask())
    finally:
        models.stack.settings = settings
        models.stack.restart_operator()


async def said(client: AsyncOpenAI, *, stream: bool) -> str:
    """The text of one answer, whole or in pieces."""
    hello: list[Any] = [{"role": "user", "content": "Which queue is this ticket for?"}]
    if not stream:
        whole = await client.chat.completions.create(model="support", messages=hello, max_tokens=8)
        return whole.choices[0].message.content or ""
    pieces = await client.chat.completions.create(model="support", messages=hello, max_tokens=8, stream=True)
    return "".join([choice.delta.content or "" async for piece in pieces for choice in piece.choices])


def policy(model: str, deployment: str) -> dict[str, Any]:
    """One name for one ModelDeployment."""
    return {
        "hostModels": [model],
        "targets": [{"name": "only", "modelDeploymentRef": {"name": deployment}}],
        "dataPolicy": {"unknownClass": "any", "classes": [{"name": "any", "allowBoundaries": ["Cluster"]}]},
        "defaultRoute": {"split": [{"target": "only"}]},
    }


def test_a_replica_that_works_outlives_its_idle_siblings(models: Models, spec: dict[str, Any]) -> None:
    three = {"minReplicas": 3, "maxReplicas": 3, **soon(1)}
    models.apply("picky", {**spec, "scaling": three})
    models.wait(lambda: ready(models, "picky") == 3, "three replicas")
    pods = models.list("Pod")
    nodes = [pod["spec"]["nodeName"] for pod in pods]
    # By Kubernetes' own order this one would go first: it shares a node, and is the newest there.
    shared = [pod for pod in pods if nodes.count(pod["spec"]["nodeName"]) == 2] or pods
    busy = max(shared, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
    url = f"http://{local_address(busy['status']['podIP'])}:8000/v1/completions"
    body = {"model": "picky", "prompt": "Write on.", "max_tokens": 6000, "stream": True}
    read: list[int] = []

    async def stream() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            async for chunk in answer.content.iter_any():
                read.append(len(chunk))
                if over.is_set():
                    return

    over = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(stream()))
    thread.start()
    try:
        models.wait(lambda: read, "the stream to begin")
        models.wait(lambda: "flotilla_requests_running" in models.stack.operator.metrics(), "its request to be seen")
        models.apply("picky", {**spec, "scaling": {**three, "minReplicas": 1}})
        models.wait(lambda: replicas(models, "picky") == 1, "the scale-in")
        models.wait(lambda: len(staying(models, "picky")) == 1, "two pods to go")
        left = staying(models, "picky")
        assert [pod["metadata"]["name"] for pod in left] == [busy["metadata"]["name"]]
        assert DELETION_COST not in (left[0]["metadata"].get("annotations") or {})
    finally:
        over.set()
        thread.join()


def test_a_quota_is_named_and_not_run_against(models: Models, spec: dict[str, Any]) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus"},
        "spec": {"hard": {"requests.nvidia.com/gpu": "1"}},
    }
    models.stack.plane.api.request("POST", f"/api/v1/namespaces/{models.namespace}/resourcequotas", quota)
    scaling = {"maxReplicas": 6, "queueDepthPerReplica": 2, "scaleUpLimitPerMinute": 1, "scaleDownDelaySeconds": 600}
    models.apply("poor", {**spec, "scaling": scaling})
    models.wait_ready("poor")
    with crowd(models, "poor", 12):
        condition = models.wait_condition("poor", "ScalingActive", "False", "QuotaExceeded")
        assert replicas(models, "poor") == 2
    assert "ResourceQuota" in condition["message"]
    assert "exceeded quota: gpus" in models.condition("poor", "Scheduled")["message"]


def test_idle_replicas_make_room_for_a_more_important_model(models: Models, spec: dict[str, Any]) -> None:
    """The class does not preempt: without the scaler the idle replicas would stay for their whole delay."""
    api, classes = models.stack.plane.api, "/apis/scheduling.k8s.io/v1/priorityclasses"
    important = f"important-{models.namespace}"
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": important}}
    api.request("POST", classes, {**kind, "value": 1000, "preemptionPolicy": "Never"})
    try:
        two = {"class": "nvidia-l4", "count": 2}
        held = {"minReplicas": 3, "maxReplicas": 3, "scaleDownDelaySeconds": 3600}
        models.apply("lavish", {**spec, "accelerator": two, "scaling": held})
        models.wait(lambda: ready(models, "lavish") == 3, "three replicas")
        models.apply("lavish", {**spec, "accelerator": two, "scaling": {**held, "minReplicas": 1}})
        node = {**spec, "accelerator": {"class": "nvidia-l4", "count": 4}}
        models.apply("urgent", {**node, "scheduling": {"priorityClassName": important}})
        models.wait_ready("urgent")
        assert replicas(models, "lavish") == 1
    finally:
        api.request("DELETE", f"{classes}/{important}")


def test_a_horizontal_pod_autoscaler_is_followed(models: Models, spec: dict[str, Any]) -> None:
    """kube-controller-manager's own, which reads a metric and writes /scale."""
    models.apply("outer", {**spec, "scaling": {"mode": "External"}, "replicas": 1})
    models.wait_ready("outer")
    hpa = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "outer"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelDeployment", "name": "outer"},
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [
                {
                    "type": "External",
                    "external": {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": "8"}},
                }
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }
    path = f"/apis/autoscaling/v2/namespaces/{models.namespace}/horizontalpodautoscalers"
    with external_metric(models.stack.plane, models.namespace) as metric:

        def served() -> bool:
            try:
                metric.set(17)
            except FlotillaError:
                return False
            return True

        models.wait(served, "the metrics API")
        models.stack.plane.api.request("POST", path, hpa)
        models.wait(lambda: replicas(models, "outer") == 3, "what the HPA wrote to arrive")
        metric.set(5)
        models.wait(lambda: replicas(models, "outer") == 1, "fewer")
        conditions = models.stack.plane.api.get(f"{path}/outer")["status"]["conditions"]  # type: ignore[index]
        able = {c["type"]: c["status"] for c in conditions}
        assert (able["AbleToScale"], able["ScalingActive"]) == ("True", "True")
    assert models.condition("outer", "ScalingActive")["reason"] == "ExternalScaler"
    for name in ("queue_depth", "requests_waiting", "requests_running", "kv_cache_usage_ratio", "desired_replicas"):
        assert models.metric("outer", f"flotilla_{name}") is not None
