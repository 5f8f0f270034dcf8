"""Control plane, node agent and operator together: what the demo shows and the cluster tests run against."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from flotilla_devcluster import operator
from flotilla_devcluster.audit import AuditLog
from flotilla_devcluster.controlplane import ControlPlane
from flotilla_devcluster.nodeagent import NodeAgent
from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.operator import OperatorProcess

MODEL_DEPLOYMENTS = "/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/modeldeployments"

SIMULATION = {"FLOTILLA_SIM_LOAD_SECONDS": "2", "FLOTILLA_SIM_TOKENS_PER_SECOND": "1800"}
"""Of the engines that people look at: quick enough to wait for, slow enough to see."""


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
                operator.install(plane)
                self.kubeconfig = plane.service_account_kubeconfig(operator.NAMESPACE, operator.ACCOUNT)
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
