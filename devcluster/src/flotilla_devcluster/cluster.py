"""A cluster as the tools and tests see it, whoever runs it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flotilla.errors import InvalidSpec, NotReady
from flotilla_devcluster import crds, kubeconfig
from flotilla_devcluster.api import Api
from flotilla_devcluster.kubeconfig import Access
from flotilla_devcluster.wait import until

TOKEN_SECONDS = 24 * 3600


class Cluster:
    """An apiserver that somebody runs, reached as the administrator of a kubeconfig."""

    def __init__(self, path: Path, *, directory: Path) -> None:
        """`directory` receives the kubeconfigs of other users."""
        self.kubeconfig = path
        self.directory = directory
        self.access = kubeconfig.load(path)
        self.api = Api(self.access)

    @property
    def url(self) -> str:
        return self.access.server

    @property
    def audit_log(self) -> Path:
        """The apiserver's audit log, for `audit.AuditLog`."""
        raise self._foreign("The audit log")

    def client_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig with a client certificate of any user, such as `system:node:NAME`."""
        raise self._foreign("Signing a certificate")

    def restart_apiserver(self, *, timeout_s: float = 60.0) -> None:
        """Kill the apiserver as a crash would, start it again on the same port, wait until it is ready."""
        raise self._foreign("Restarting the apiserver")

    def pause_apiserver(self) -> None:
        """Freeze the apiserver: connections stay open and requests hang until `resume_apiserver`."""
        raise self._foreign("Pausing the apiserver")

    def resume_apiserver(self) -> None:
        """Undo `pause_apiserver`."""
        raise self._foreign("Resuming the apiserver")

    def _foreign(self, what: str) -> NotReady:
        return NotReady(f"{what} needs a control plane that Flotilla started: unset USE_EXISTING_CLUSTER.")

    def apply_crds(self, directory: Path) -> None:
        """Apply the folder's CRDs and wait until they are served."""
        crds.apply(self.api, crds.read(directory))

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig with a 24-hour token of a ServiceAccount, and with no rights but what RBAC grants it.

        Through the TokenRequest API; raises `api.NotFound` when the ServiceAccount does not exist.
        """
        answer = self.api.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": TOKEN_SECONDS},
            },
        )
        access = Access(
            self.url,
            authority=self.access.authority,
            token=answer["status"]["token"],
            insecure=self.access.insecure,
        )
        path = self.directory / "kubeconfigs" / f"{namespace}.{name}"
        return kubeconfig.write(path, access, name=f"{namespace}.{name}", namespace=namespace)

    def create_namespace(self, name: str, *, controllers: bool = True, timeout_s: float = 20.0) -> None:
        """Create a namespace and, where controllers run, wait for the ServiceAccount that its pods need."""
        self.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        if controllers:
            path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
            until(lambda: self.api.get(path), what=f"the ServiceAccount {name}/default", timeout_s=timeout_s)

    def delete_namespace(self, name: str) -> None:
        """Start the deletion; the namespace controller finishes it."""
        self.api.request("DELETE", f"/api/v1/namespaces/{name}")


def existing(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The kubeconfig of a cluster that is there, when USE_EXISTING_CLUSTER (envtest's name) asks for it.

    Raises InvalidSpec when it is asked for and no kubeconfig is found.
    """
    wanted = environ.get("USE_EXISTING_CLUSTER", "").strip().lower()
    if wanted in {"", "0", "false", "no"}:
        return None
    if wanted not in {"1", "true", "yes"}:
        raise InvalidSpec(f"USE_EXISTING_CLUSTER is {wanted!r}. Set it to true or false.", field="USE_EXISTING_CLUSTER")
    names = [name for name in environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    path = Path(names[0]) if names else Path(environ.get("HOME", "~")).expanduser() / ".kube" / "config"
    if not path.is_file():
        raise NotReady(
            f"USE_EXISTING_CLUSTER is set, but the kubeconfig {path} does not exist. Set KUBECONFIG to the"
            " file of the cluster."
        )
    return path
