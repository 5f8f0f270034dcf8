"""One pod on a simulated node, from its binding to its end.

Its containers get the environment that the kubelet would give them, and its ServiceAccount as a kubeconfig: a process
of this machine has no /var/run/secrets of its own.
"""

import asyncio
import base64
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flotilla.errors import FlotillaError, NotReady
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import POD, SECRET, SERVICE, Kind
from flotilla_devcluster import kubeconfig
from flotilla_devcluster.kubeconfig import Access
from flotilla_devcluster.network import local_address
from flotilla_devcluster.nodeagent.container import Container, Host
from flotilla_devcluster.nodeagent.kubelet_api import ContainerLogs
from flotilla_devcluster.nodeagent.nodes import rfc3339
from flotilla_devcluster.nodeagent.volumes import Mounts, Volumes

_SECONDS = 24 * 3600


async def login(client: KubeClient, access: Access, pod: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """KUBECONFIG for a pod with automountServiceAccountToken, or with an account of its own and without that field."""
    spec = pod["spec"]
    namespace, name = pod["metadata"]["namespace"], spec.get("serviceAccountName") or "default"
    if not spec.get("automountServiceAccountToken", name != "default"):
        return {}
    tokens = Kind("", "v1", f"serviceaccounts/{name}/token", "TokenRequest")
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": {"namespace": namespace},
        "spec": {"expirationSeconds": _SECONDS},
    }
    answer = await client.create(tokens, request)
    mine = replace(access, certificate=b"", key=b"", token=answer["status"]["token"])
    path = kubeconfig.write(folder / "kubeconfig", mine, name=name, namespace=namespace)
    return {"KUBECONFIG": str(path)}


_CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


async def environment(
    client: KubeClient, pod: Mapping[str, Any], container: Mapping[str, Any], address: str
) -> dict[str, str]:
    """All variables by name; raises NotReady with the kubelet's message when a Secret or ConfigMap is missing."""
    values: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        values |= await _all_of(client, pod, source)
    for variable in container.get("env") or ():
        source = variable.get("valueFrom")
        if source is None:
            values[variable["name"]] = expand(variable.get("value", ""), values)
        else:
            value = await _resolve(client, pod, source, address)
            if value is not None:
                values[variable["name"]] = value
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME) of known names; $$ escapes."""
    return _REFERENCE.sub(
        lambda match: "$" if match.group(0) == "$$" else values.get(match.group(1), match.group(0)), text
    )


async def service_hosts(client: KubeClient, namespace: str) -> dict[str, str]:
    """Addresses of the namespace's Services by their DNS names, for our own programs: this cluster has no DNS."""
    services = (await client.list(SERVICE, namespace=namespace)).items
    found = [
        f"{service['metadata']['name']}.{namespace}.svc={local_address(service['spec']['clusterIP'])}"
        for service in services
        if service["spec"].get("clusterIP") not in (None, "", "None")
    ]
    return {"FLOTILLA_SERVICE_HOSTS": ",".join(found)}


async def _all_of(client: KubeClient, pod: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, str]:
    """Every key of a Secret, as variables."""
    reference = source.get("secretRef") or {}
    obj = await client.get(SECRET, reference.get("name", ""), namespace=pod["metadata"]["namespace"])
    if obj is None:
        raise NotReady(f'secret "{reference.get("name", "")}" not found')
    return {name: base64.b64decode(value).decode() for name, value in (obj.get("data") or {}).items()}


async def _resolve(client: KubeClient, pod: Mapping[str, Any], source: Mapping[str, Any], address: str) -> str | None:
    meta = pod["metadata"]
    if field := source.get("fieldRef"):
        known = {
            "metadata.name": meta["name"],
            "metadata.namespace": meta["namespace"],
            "metadata.uid": meta["uid"],
            "spec.nodeName": pod["spec"]["nodeName"],
            "status.podIP": address,
        }
        return str(known.get(field["fieldPath"], ""))
    for name, kind, what in (("secretKeyRef", SECRET, "secret"), ("configMapKeyRef", _CONFIG_MAP, "configmap")):
        if reference := source.get(name):
            obj = await client.get(kind, reference["name"], namespace=meta["namespace"])
            value = None if obj is None else (obj.get("data") or {}).get(reference["key"])
            if value is not None:
                return base64.b64decode(value).decode() if kind is SECRET else str(value)
            if reference.get("optional"):
                return None
            if obj is None:
                raise NotReady(f'{what} "{reference["name"]}" not found')
            raise NotReady(
                f"couldn't find key {reference['key']} in {kind.kind} {meta['namespace']}/{reference['name']}"
            )
    return None


log = logging.getLogger(__name__)

FAILURE = "flotilla.dev/sim-failure"
"""Pod annotation: CrashLoop, OOMKilled, ImagePullBackOff or ErrImagePull."""
_RETRY_S = 1.0
_TERMINAL = frozenset({"Succeeded", "Failed"})


class PodWorker:
    """The kubelet's part for one pod: `run` lasts as long as the pod, `update` takes newer versions of it."""

    def __init__(
        self,
        host: Host,
        pod: dict[str, Any],
        *,
        address: str,
    ) -> None:
        self.pod = pod
        self.frozen = False
        """Set while the node is lost: the pod goes on, and its status is not reported."""
        self._address = address
        self._host = host
        self._client = host.client
        self._dirty = asyncio.Event()
        self._deleted = asyncio.Event()
        self._conditions: dict[str, tuple[str, str]] = {}
        meta = pod["metadata"]
        folder = host.directory / "pods" / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
        self._folder = folder
        self.volumes = Volumes(host.client, pod, folder)
        self._containers = [
            Container(
                host,
                spec,
                address=local_address(address),
                directory=folder / spec["name"],
                mounts=Mounts(pod, spec, folder=folder, claims=host.config.claims),
                restart=pod["spec"].get("restartPolicy", "Always"),
                changed=self._dirty.set,
            )
            for spec in pod["spec"]["containers"]
        ]

    def update(self, pod: dict[str, Any]) -> None:
        """A newer version of the pod."""
        self.pod = pod
        if pod["spec"].get("readinessGates"):
            self._dirty.set()
        if "deletionTimestamp" in pod["metadata"]:
            self._deleted.set()

    def logs(self, container: str) -> ContainerLogs | None:
        """None where the pod has no container of that name."""
        return next((one.logs for one in self._containers if one.spec["name"] == container), None)

    async def run(self) -> None:
        """Returns when the pod is deleted from the apiserver."""
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
                values |= await login(self._client, self._host.access, self.pod, self._folder)
                if container.spec.get("args", [])[:1] == ["evaluate"]:
                    values |= await service_hosts(self._client, self.pod["metadata"]["namespace"])
            except NotReady as missing:
                container.waits("CreateContainerConfigError", str(missing))
            except FlotillaError as error:
                log.warning("the environment of a container is retried", extra={"cause": str(error)})
            else:
                simulate = failure if failure in ("CrashLoop", "OOMKilled") else ""
                try:
                    await container.run({**self._host.config.simulation, **values}, simulate)
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
                    POD,
                    meta["name"],
                    {"status": status},
                    namespace=meta["namespace"],
                    subresource="status",
                    # Conditions are merged by type: others set those of readiness gates.
                    patch_type="strategic",
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
        contained = all(container.ready for container in self._containers)
        ready = contained and self._gates_open()
        ended = [status["state"].get("terminated") for status in statuses]
        phase = "Running" if any("waiting" not in s["state"] or s["restartCount"] for s in statuses) else "Pending"
        if all(ended):
            phase = "Succeeded" if all(e and e["exitCode"] == 0 for e in ended) else "Failed"
        for type_, value in (
            ("PodReadyToStartContainers", True),
            ("Initialized", True),
            ("ContainersReady", contained),
            ("Ready", ready),
        ):
            status = "True" if value else "False"
            if self._conditions.get(type_, ("", ""))[0] != status:
                self._conditions[type_] = (status, rfc3339())
        mine = [
            {"type": type_, "status": status, "lastTransitionTime": since}
            for type_, (status, since) in self._conditions.items()
        ]
        return {
            "phase": phase,
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "startTime": self._conditions["Initialized"][1],
            "conditions": mine,
            "containerStatuses": statuses,
        }

    def _gates_open(self) -> bool:
        """Whether others have set every condition that the pod's readiness waits for."""
        conditions = (self.pod.get("status") or {}).get("conditions") or ()
        true = {condition["type"] for condition in conditions if condition["status"] == "True"}
        return all(gate["conditionType"] in true for gate in self.pod["spec"].get("readinessGates") or ())

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
