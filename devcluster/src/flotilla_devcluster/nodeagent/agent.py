"""All simulated nodes of one process: their registration, their heartbeats and the pods that are bound to them."""

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from flotilla.errors import Conflict, FlotillaError
from flotilla.kube.kinds import CONFIG_MAP, LEASE, NODE, POD, SECRET, Kind
from flotilla_devcluster.network import POD_NETWORK, PodNetworks, local_address
from flotilla_devcluster.nodeagent.container import Host
from flotilla_devcluster.nodeagent.kubelet_api import ContainerLogs, KubeletApi
from flotilla_devcluster.nodeagent.nodes import NodeConfig, rfc3339, rfc3339_micro
from flotilla_devcluster.nodeagent.pod import PodWorker, finished
from flotilla_devcluster.nodeagent.serviceproxy import ServiceProxy, follow

log = logging.getLogger(__name__)

LOST = "flotilla.dev/sim-lost"
"""Node annotation: while it is there the node neither renews its Lease nor reports its pods."""
_LEASE_NAMESPACE = "kube-node-lease"
_LEASE_S = 40


class Agent:
    """Registers nodes, keeps them alive, and runs a PodWorker for each pod that is bound to one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._client = host.client
        self._config = host.config
        self._networks = PodNetworks()
        self._nodes = {node.name: self._networks.claim() for node in host.config.nodes}
        self._workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}
        self._addresses: dict[str, Iterator[str]] = {name: _addresses(number) for name, number in self._nodes.items()}
        self._lost: set[str] = set()

    async def run(self) -> None:
        """Until cancelled."""
        kubelet = KubeletApi(self._logs, authority=self._host.access.authority)
        if (
            self._host.access.authority
        ):  # that of a foreign cluster can be unknown; its apiserver cannot reach this machine anyway
            await kubelet.start(
                (local_address(_address(number)) for number in self._nodes.values()), self._host.directory
            )
        for node in self._config.nodes:
            await self._register(node)
        log.info("ready", extra={"nodes": list(self._nodes)})
        proxy = ServiceProxy(self._client)
        try:
            async with asyncio.TaskGroup() as group:
                for node in self._config.nodes:
                    group.create_task(self._heartbeat(node))
                group.create_task(proxy.run())
                group.create_task(
                    follow(
                        self._client,
                        POD,
                        changed=self._changed,
                        gone=self._gone,
                        field_selector="spec.nodeName!=",
                    )
                )
                for kind in (CONFIG_MAP, SECRET):
                    mounted = partial(self._mounted, kind)
                    group.create_task(follow(self._client, kind, changed=mounted, gone=mounted))
        finally:
            for worker, task in self._workers.values():
                task.cancel()
                worker.kill()
            await kubelet.stop()

    def _logs(self, namespace: str, pod: str, container: str) -> ContainerLogs | None:
        for worker, _ in self._workers.values():
            meta = worker.pod["metadata"]
            if (meta["namespace"], meta["name"]) == (namespace, pod) and not worker.frozen:
                return worker.logs(container)
        return None

    async def _register(self, node: NodeConfig) -> None:
        while True:
            try:
                try:
                    await self._client.create(NODE, node.manifest())
                except Conflict:
                    await self._client.patch(NODE, node.name, {"metadata": node.manifest()["metadata"]})
                await self._report(node)
                await self._renew(node)
            except FlotillaError as error:
                log.warning("a registration is retried", extra={"node": node.name, "cause": str(error)})
                await asyncio.sleep(0.5)
            else:
                return

    async def _report(self, node: NodeConfig) -> None:
        status = {"status": node.status(now=rfc3339(), address=_address(self._nodes[node.name]))}
        await self._client.patch(NODE, node.name, status, subresource="status", patch_type="strategic")

    async def _renew(self, node: NodeConfig) -> None:
        body = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": node.name, "namespace": _LEASE_NAMESPACE},
            "spec": {
                "holderIdentity": node.name,
                "leaseDurationSeconds": _LEASE_S,
                "renewTime": rfc3339_micro(),
            },
        }
        await self._client.apply(LEASE, body, manager="flotilla-nodeagent")

    async def _heartbeat(self, node: NodeConfig) -> None:
        while True:
            await asyncio.sleep(self._config.heartbeat_s)
            try:
                live = await self._client.get(NODE, node.name)
                if live is None:
                    await self._register(node)
                    continue
                lost = LOST in (live["metadata"].get("annotations") or {})
                self._freeze(node.name, lost)
                if not lost:
                    await self._renew(node)
                    if not _ready(live):
                        await self._report(node)
            except FlotillaError as error:
                log.warning("a heartbeat is late", extra={"node": node.name, "cause": str(error)})

    def _freeze(self, node: str, lost: bool) -> None:
        for worker, _ in self._workers.values():
            if worker.pod["spec"]["nodeName"] == node:
                worker.frozen = lost

    def _changed(self, pod: dict[str, Any]) -> None:
        node, uid = pod["spec"].get("nodeName"), pod["metadata"]["uid"]
        if node not in self._nodes:
            return
        if uid in self._workers:
            self._workers[uid][0].update(pod)
        elif not finished(pod) or "deletionTimestamp" in pod["metadata"]:
            worker = PodWorker(self._host, pod, address=next(self._addresses[node]))
            self._workers[uid] = (worker, asyncio.create_task(worker.run(), name=pod["metadata"]["name"]))

    def _mounted(self, kind: Kind, source: dict[str, Any]) -> None:
        for worker, _ in self._workers.values():
            worker.volumes.changed(kind, source)

    def _gone(self, pod: dict[str, Any]) -> None:
        known = self._workers.pop(pod["metadata"]["uid"], None)
        if known is not None:
            known[1].cancel()
            known[0].kill()


def _address(node: int) -> str:
    """The address of the node itself."""
    return f"{POD_NETWORK}.{node}.1"


def _addresses(node: int) -> Iterator[str]:
    """Pod addresses of a node in turn; when all were used it starts again, and the first are free by then."""
    while True:
        yield from (f"{POD_NETWORK}.{node}.{host}" for host in range(2, 255))


def _ready(node: dict[str, Any]) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
