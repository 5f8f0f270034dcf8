"""The operator as a process of a local cluster, under the ServiceAccount and role that production gives it."""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flotilla.render import rbac
from flotilla_devcluster.addresses import POD_ADDRESS_MAP
from flotilla_devcluster.cluster import Cluster
from flotilla_devcluster.process import Process
from flotilla_devcluster.wait import until

NAMESPACE = "flotilla-system"
ACCOUNT = "flotilla-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"


def install(cluster: Cluster, *, controllers: bool = True) -> None:
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
