"""One pod on a simulated node, from its binding to its end."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from flotilla.errors import FlotillaError, NotReady
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import POD
from flotilla_devcluster.addresses import local_address
from flotilla_devcluster.kubeconfig import Access
from flotilla_devcluster.nodeagent.account import login
from flotilla_devcluster.nodeagent.clock import rfc3339
from flotilla_devcluster.nodeagent.container import Container
from flotilla_devcluster.nodeagent.containerlogs import ContainerLogs
from flotilla_devcluster.nodeagent.engines import Engines
from flotilla_devcluster.nodeagent.environment import environment
from flotilla_devcluster.nodeagent.mounts import Mounts
from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.nodeagent.volumes import Volumes

log = logging.getLogger(__name__)

FAILURE = "flotilla.dev/sim-failure"
"""Pod annotation: CrashLoop, OOMKilled, ImagePullBackOff or ErrImagePull."""
_RETRY_S = 1.0
_TERMINAL = frozenset({"Succeeded", "Failed"})


class PodWorker:
    """Plays the kubelet for one pod: `run` is its life, `update` brings news from the apiserver."""

    def __init__(
        self,
        pod: dict[str, Any],
        *,
        address: str,
        client: KubeClient,
        session: aiohttp.ClientSession,
        config: AgentConfig,
        access: Access,
        directory: Path,
        engines: Engines,
    ) -> None:
        self.pod = pod
        self.frozen = False
        """Set while the node is lost: the pod lives on and nobody hears of it."""
        self._address = address
        self._client = client
        self._config = config
        self._access = access
        self._dirty = asyncio.Event()
        self._deleted = asyncio.Event()
        self._conditions: dict[str, tuple[str, str]] = {}
        meta = pod["metadata"]
        folder = directory / "pods" / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
        self._folder = folder
        self.volumes = Volumes(client, pod, folder)
        always = pod["spec"].get("restartPolicy", "Always") == "Always"
        self._containers = [
            Container(
                spec,
                address=local_address(address),
                directory=folder / spec["name"],
                session=session,
                changed=self._dirty.set,
                backoff_s=config.crash_backoff_s,
                restart=always,
                fake_seconds=config.fake_seconds,
                mounts=Mounts(pod, spec, folder=folder, claims=config.claims),
                programs=config.programs,
                engines=engines,
            )
            for spec in pod["spec"]["containers"]
        ]

    def update(self, pod: dict[str, Any]) -> None:
        """A newer version of the pod."""
        self.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._deleted.set()

    def logs(self, container: str) -> ContainerLogs | None:
        """None where the pod has no container of that name."""
        return next((one.logs for one in self._containers if one.spec["name"] == container), None)

    async def run(self) -> None:
        """Until the pod is gone from the apiserver."""
        if "deletionTimestamp" in self.pod["metadata"]:
            self._deleted.set()
        running = [asyncio.create_task(self._contain(container)) for container in self._containers]
        running.append(asyncio.create_task(self.volumes.follow()))
        reporter = asyncio.create_task(self._report())
        self._dirty.set()
        try:
            await self._deleted.wait()
            for task in running:
                task.cancel()
            for container in self._containers:
                container.ready = False
            self._dirty.set()
            grace_s = float(self.pod["metadata"].get("deletionGracePeriodSeconds") or 0)
            await asyncio.gather(*(container.stop(grace_s) for container in self._containers))
        finally:
            reporter.cancel()
            for task in running:
                task.cancel()
            self.kill()
        await self._remove()

    def kill(self) -> None:
        """End all processes at once."""
        for container in self._containers:
            container.kill()

    async def _contain(self, container: Container) -> None:
        failure = (self.pod["metadata"].get("annotations") or {}).get(FAILURE, "")
        if failure in ("ImagePullBackOff", "ErrImagePull"):
            image = container.spec["image"]
            container.waits(failure, f'Back-off pulling image "{image}"')
            return
        while True:
            try:
                await self.volumes.fill()
                values = await environment(self._client, self.pod, container.spec, self._address)
                values |= await login(self._client, self._access, self.pod, self._folder)
            except NotReady as missing:
                container.waits("CreateContainerConfigError", str(missing))
            except FlotillaError as error:
                log.warning("the environment of a container is retried", extra={"cause": str(error)})
            else:
                simulate = failure if failure in ("CrashLoop", "OOMKilled") else ""
                try:
                    await container.run({**self._config.simulation, **values}, simulate)
                except NotReady as error:
                    container.waits("RunContainerError", str(error))
                else:
                    return
            await asyncio.sleep(_RETRY_S)

    async def _report(self) -> None:
        """Patch the status whenever something changed; several changes at once are one patch."""
        last: dict[str, Any] = {}
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self.frozen:
                await asyncio.sleep(_RETRY_S)
                self._dirty.set()
                continue
            status = self._status()
            if status == last:
                continue
            meta = self.pod["metadata"]
            try:
                await self._client.patch(
                    POD, meta["name"], {"status": status}, namespace=meta["namespace"], subresource="status"
                )
                last = status
            except NotReady:
                return
            except FlotillaError as error:
                log.warning("a pod's status is retried", extra={"pod": meta["name"], "cause": str(error)})
                await asyncio.sleep(_RETRY_S)
                self._dirty.set()

    def _status(self) -> dict[str, Any]:
        statuses = [container.status() for container in self._containers]
        ready = all(container.ready for container in self._containers)
        ended = [status["state"].get("terminated") for status in statuses]
        phase = "Running" if any("waiting" not in s["state"] or s["restartCount"] for s in statuses) else "Pending"
        if all(ended):
            phase = "Succeeded" if all(e and e["exitCode"] == 0 for e in ended) else "Failed"
        for type_, value in (
            ("PodReadyToStartContainers", True),
            ("Initialized", True),
            ("ContainersReady", ready),
            ("Ready", ready),
        ):
            status = "True" if value else "False"
            if self._conditions.get(type_, ("", ""))[0] != status:
                self._conditions[type_] = (status, rfc3339())
        kept = [
            condition
            for condition in (self.pod.get("status") or {}).get("conditions") or ()
            if condition["type"] not in self._conditions
        ]
        mine = [
            {"type": type_, "status": status, "lastTransitionTime": since}
            for type_, (status, since) in self._conditions.items()
        ]
        return {
            "phase": phase,
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "startTime": self._conditions["Initialized"][1],
            "conditions": [*kept, *mine],
            "containerStatuses": statuses,
        }

    async def _remove(self) -> None:
        meta = self.pod["metadata"]
        while True:
            try:
                await self._client.delete(
                    POD, meta["name"], namespace=meta["namespace"], uid=meta["uid"], grace_period_s=0
                )
            except FlotillaError as error:
                log.warning("a pod's removal is retried", extra={"pod": meta["name"], "cause": str(error)})
                await asyncio.sleep(_RETRY_S)
            else:
                return


def finished(pod: Mapping[str, Any]) -> bool:
    """Whether the pod has run to its end already."""
    return (pod.get("status") or {}).get("phase") in _TERMINAL
