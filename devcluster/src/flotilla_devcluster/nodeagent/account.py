"""The ServiceAccount of a pod as a kubeconfig: a process of this machine has no /var/run/secrets of its own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import Kind
from flotilla_devcluster import kubeconfig
from flotilla_devcluster.kubeconfig import Access

_SECONDS = 24 * 3600


async def login(client: KubeClient, access: Access, pod: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """KUBECONFIG for a pod that says automountServiceAccountToken, or has an account of its own and does not say no."""
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
