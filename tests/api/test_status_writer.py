"""A status is written to the resource that was looked at, and to no other, on a real apiserver."""

from typing import Any

import pytest

from flotilla.constants import API_VERSION
from flotilla.controller.apply import StatusWriter
from flotilla.errors import Conflict
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import MODEL_DEPLOYMENT, Key
from flotilla.kube.store import Store, owner
from flotilla_devcluster.controlplane import Cluster
from flotilla_devcluster.stack import MODEL_DEPLOYMENTS

pytestmark = pytest.mark.controlplane
STATUS = {"observedGeneration": 1, "replicas": 1}


async def test_a_change_that_comes_before_the_status_is_not_hidden_by_its_answer(
    controlplane: Cluster, namespace: str
) -> None:
    path = f"{MODEL_DEPLOYMENTS.format(namespace=namespace)}/a"
    manifest: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": "a"},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen2.5-1.5B-Instruct"},
            "engine": {"name": "vllm"},
            "accelerator": {"class": "nvidia-l4"},
        },
    }
    looked_at = controlplane.api.apply(path, manifest, manager="kubectl")
    store = Store(owner)
    assert store.put(MODEL_DEPLOYMENT, looked_at)
    manifest["spec"]["scaling"] = {"minReplicas": 2, "maxReplicas": 2}
    changed = controlplane.api.apply(path, manifest, manager="kubectl")

    client = await KubeClient.connect(kubeconfig=controlplane.kubeconfig, user_agent="test")
    writer = StatusWriter(client, store, interval_s=5, clock=lambda: 0.0)
    key = Key(MODEL_DEPLOYMENT, namespace, "a")
    try:
        with pytest.raises(Conflict):
            await writer.write(key, looked_at, STATUS)
        assert store.put(MODEL_DEPLOYMENT, changed), "its event is news"
        assert await writer.write(key, changed, STATUS) is None
    finally:
        await client.close()
    written = controlplane.api.get(path) or {}
    assert written["status"] == STATUS
    known = store.get(MODEL_DEPLOYMENT, namespace, "a") or {}
    assert known["metadata"]["resourceVersion"] == written["metadata"]["resourceVersion"]
