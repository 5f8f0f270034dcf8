"""Control plane, node agent and operator together: what the demo shows and the cluster tests run against.

The operator runs under the ServiceAccount and role that production gives it.
"""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from flotilla.render import rbac
from flotilla_devcluster.apiserver import AuditLog
from flotilla_devcluster.controlplane import Cluster, ControlPlane
from flotilla_devcluster.network import POD_ADDRESS_MAP
from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.process import Process, until

NAMESPACE = "flotilla-system"
ACCOUNT = "flotilla-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"


def install_operator(cluster: Cluster, *, controllers: bool = True) -> None:
    """Namespace, ServiceAccount and roles, as manifests/base has them."""
    if cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}") is None:
        cluster.create_namespace(NAMESPACE, controllers=controllers)
    for manifest in rbac.manifests(name=ACCOUNT, namespace=NAMESPACE):
        cluster.api.apply(_path(manifest), manifest)


def _path(manifest: Mapping[str, Any]) -> str:
    version, meta = manifest["apiVersion"], manifest["metadata"]
    root = f"/api/{version}" if version == "v1" else f"/apis/{version}"
    scope = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
    return f"{root}{scope}/{manifest['kind'].lower()}s/{meta['name']}"


class OperatorProcess:
    """`flotilla operator`, started and ready; `settings` are those of `flotilla.config.OperatorConfig`."""

    def __init__(self, process: Process, ready_s: float, port: int) -> None:
        self.process = process
        self.ready_s = ready_s
        """From the start of the process to its readiness, in seconds."""
        self.port = port

    @classmethod
    def start(
        cls,
        cluster: Cluster,
        *,
        log: Path,
        settings: Mapping[str, Any] | None = None,
        kubeconfig: Path | None = None,
        timeout_s: float = 30.0,
    ) -> "OperatorProcess":
        """Start and wait until it is ready; raises NotReady with the end of its log when it dies instead."""
        values: dict[str, Any] = {
            "kubeconfig": str(kubeconfig or cluster.service_account_kubeconfig(NAMESPACE, ACCOUNT)),
            "listen_host": "127.0.0.1",
            "listen_port": 0,
            "pod_address_map": POD_ADDRESS_MAP,
            **(settings or {}),
        }
        config = log.with_suffix(".yaml")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(values))
        started = time.monotonic()
        env = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        argv = [sys.executable, "-m", "flotilla", "operator", "--config", str(config)]
        process = Process.start("operator", argv, log=log, env=env)

        def ready() -> bool:
            process.check()
            return bool(_logged(log, "ready"))

        try:
            until(ready, what="the operator to be ready", timeout_s=timeout_s)
        except BaseException:
            process.kill()
            raise
        port = int(_logged(log, "listening")["port"])
        return cls(process, time.monotonic() - started, port)

    @property
    def url(self) -> str:
        """Of /healthz, /readyz and /metrics."""
        return f"http://127.0.0.1:{self.port}"

    def metrics(self) -> str:
        """The text of /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:  # noqa: S310 - our own server
            text: str = answer.read().decode()
            return text

    def stop(self, *, grace_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL."""
        self.process.stop(grace_s=grace_s)


def _logged(log: Path, message: str) -> dict[str, Any]:
    """The last log line with that message, empty when there is none yet. The log is one JSON object a line."""
    found: dict[str, Any] = {}
    for line in log.read_text(errors="replace").splitlines():
        if f'"{message}"' in line:
            entry = json.loads(line)
            if entry.get("message") == message:
                found = entry
    return found


MODEL_DEPLOYMENTS = "/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/modeldeployments"

SIMULATION = {"FLOTILLA_SIM_LOAD_SECONDS": "2", "FLOTILLA_SIM_TOKENS_PER_SECOND": "1800"}
"""Of the engines that people look at: quick enough to wait for, slow enough to see."""


class NodeAgent:
    """The agent as a process of its own; its pods die with it."""

    def __init__(self, process: Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        """Holds `pods/<namespace>_<name>_<uid>/<container>/<restart>.log`."""

    @classmethod
    def start(cls, kubeconfig: Path, config: AgentConfig, directory: Path, *, timeout_s: float = 30.0) -> "NodeAgent":
        """Start and wait until the nodes are registered; raises NotReady with the log when it dies instead."""
        config.write(directory / "config.json")
        log = directory / "nodeagent.log"
        process = Process.start(
            "nodeagent",
            [
                sys.executable,
                "-m",
                "flotilla_devcluster.nodeagent",
                "--kubeconfig",
                str(kubeconfig),
                "--config",
                str(directory / "config.json"),
                "--directory",
                str(directory),
            ],
            log=log,
        )

        def ready() -> bool:
            process.check()
            return '"ready"' in log.read_text(errors="replace")

        try:
            until(ready, what="the simulated nodes to register", timeout_s=timeout_s)
        except BaseException:
            process.kill()
            raise
        return cls(process, directory)

    def stop(self) -> None:
        """End the agent and every process of its pods."""
        self.process.stop(grace_s=5)


class Stack:
    """A small production: simulated GPU nodes, and the operator under its own ServiceAccount."""

    def __init__(
        self, plane: ControlPlane, *, directory: Path, nodes: AgentConfig, settings: Mapping[str, Any]
    ) -> None:
        self.plane = plane
        self.audit = AuditLog(plane.audit_log)
        self._directory = directory
        self.settings = settings
        """Of the operator, from its next start on."""
        self._starts = 0
        try:
            with ThreadPoolExecutor(max_workers=1) as pool:
                agent = pool.submit(NodeAgent.start, plane.kubeconfig, nodes, directory / "nodes")
                install_operator(plane)
                self.kubeconfig = plane.service_account_kubeconfig(NAMESPACE, ACCOUNT)
                self.operator = self._start_operator()
                self.agent = agent.result()
        except BaseException:
            plane.stop(grace_s=0)
            raise

    @classmethod
    def start(
        cls,
        *,
        directory: Path,
        crds: Path,
        nodes: AgentConfig | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> "Stack":
        """Start all three; the node agent registers its nodes while the operator imports. Blocks about 8 s."""
        plane = ControlPlane.start(directory=directory / "plane", crds=crds)
        return cls(plane, directory=directory, nodes=nodes or AgentConfig(), settings=settings or {})

    def _start_operator(self) -> OperatorProcess:
        self._starts += 1
        return OperatorProcess.start(
            self.plane,
            log=self._directory / f"operator-{self._starts}.log",
            settings=self.settings,
            kubeconfig=self.kubeconfig,
        )

    def restart_operator(self, *, kill: bool = False) -> None:
        """Stop the operator, by SIGKILL if so asked, and start a new one."""
        self.operator.stop(grace_s=0 if kill else 10)
        self.start_operator()

    def start_operator(self) -> None:
        """After `operator.stop()`."""
        self.operator = self._start_operator()

    def models(self, namespace: str = "default") -> list[dict[str, Any]]:
        """All ModelDeployments of a namespace."""
        items: list[dict[str, Any]] = self.plane.api.request("GET", MODEL_DEPLOYMENTS.format(namespace=namespace))[
            "items"
        ]
        return items

    def apply_model(self, manifest: Mapping[str, Any], namespace: str = "default") -> dict[str, Any]:
        """Server-side apply as a user of kubectl would."""
        path = MODEL_DEPLOYMENTS.format(namespace=namespace)
        return self.plane.api.apply(f"{path}/{manifest['metadata']['name']}", manifest, manager="kubectl")

    def service_url(self, name: str, namespace: str = "default") -> str | None:
        """Where this machine reaches the model's Service; None while it has no address.

        The node agent's proxy listens on the loopback twin of each ClusterIP.
        """
        service = self.plane.api.get(f"/api/v1/namespaces/{namespace}/services/{name}")
        if service is None:
            return None
        address = service["spec"]["clusterIP"].replace("10.", "127.", 1)
        return f"http://{address}:{service['spec']['ports'][0]['port']}/v1"

    def stop(self) -> None:
        """End everything, the operator first."""
        self.operator.stop()
        self.agent.stop()
        self.plane.stop()

    def __enter__(self) -> "Stack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


Samples = dict[str, list[tuple[dict[str, str], Decimal]]]


def samples(text: str) -> Samples:
    """Group the samples of a /metrics text by name."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, Decimal(str(sample.value))))
    return found


def value(of: Samples, name: str, **labels: str) -> Decimal | None:
    """The sum of the samples that carry `labels`; None when there is none, which is not 0."""
    matching = [v for have, v in of.get(name, ()) if labels.items() <= have.items()]
    return sum(matching, Decimal(0)) if matching else None
