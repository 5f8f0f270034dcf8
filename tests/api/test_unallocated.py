"""GPUs that no pod holds, counted against a real apiserver with the operator's own rights."""

import asyncio
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from tests.support.unallocated import node, pod

from flotilla.catalog.accelerators import load_accelerators
from flotilla.constants import LABEL_MANAGED_BY, MANAGER
from flotilla.cost.gpu_prices import NO_SOURCES
from flotilla.cost.unallocated_loop import Unallocated
from flotilla.errors import Forbidden
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import POD
from flotilla.kube.store import Store, owner
from flotilla_devcluster.controlplane import Cluster
from flotilla_devcluster.stack import ACCOUNT, NAMESPACE, install_operator

pytestmark = pytest.mark.controlplane
H200 = "nvidia-h200"


@pytest.fixture
def node_name(controlplane: Cluster) -> Iterator[str]:
    """Of a node with eight GPUs at 3 USD/h each."""
    name = f"h200-{uuid.uuid4().hex[:8]}"
    made = node(name, {"nvidia.com/gpu": "8"}, product="NVIDIA-H200", price="3")
    controlplane.api.request("POST", "/api/v1/nodes", {"metadata": made["metadata"]})
    status = {"status": made["status"]}
    merge = "application/merge-patch+json"
    controlplane.api.request("PATCH", f"/api/v1/nodes/{name}/status", status, content_type=merge)
    yield name
    controlplane.api.request("DELETE", f"/api/v1/nodes/{name}")


async def _look(spare: Unallocated) -> None:
    """As soon as the role has taken effect."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await spare.refresh()
            except Forbidden:
                await asyncio.sleep(0.1)


async def test_what_strangers_and_we_hold_is_not_free_and_what_ended_is(
    controlplane: Cluster, namespace: str, node_name: str
) -> None:
    api = controlplane.api
    install_operator(controlplane, controllers=False)

    def run(name: str, gpus: int, labels: dict[str, str] | None = None, phase: str = "") -> dict[str, Any]:
        path = f"/api/v1/namespaces/{namespace}/pods"
        made: dict[str, Any] = api.request("POST", path, pod(name, node_name, gpus, labels))
        if phase:
            merge = "application/merge-patch+json"
            api.request("PATCH", f"{path}/{name}/status", {"status": {"phase": phase}}, content_type=merge)
        return made

    run("stranger", 2)
    run("done", 4, phase="Succeeded")
    store = Store(owner)
    store.put(POD, run("ours", 1, {LABEL_MANAGED_BY: MANAGER}))
    access = controlplane.service_account_kubeconfig(NAMESPACE, ACCOUNT)
    client = await KubeClient.connect(kubeconfig=access, user_agent="test")
    spare = Unallocated(client, store, list(load_accelerators().values()), lambda: NO_SOURCES, interval_s=600)
    try:
        await _look(spare)
        assert spare.usd_per_hour()[H200] == Decimal(3 * (8 - 2 - 1))
        store.drop(POD, next(iter(store.all(POD))))
        assert spare.usd_per_hour()[H200] == Decimal(3 * (8 - 2)), "ours is known at once"
    finally:
        await client.close()
