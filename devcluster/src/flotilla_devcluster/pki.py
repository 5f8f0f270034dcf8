"""The files of one cluster's certificates, and the kubeconfigs made of them."""

from dataclasses import dataclass
from pathlib import Path

from flotilla_devcluster import certs, kubeconfig
from flotilla_devcluster.kubeconfig import Access

ADMIN_GROUP = "system:masters"
FRONT_PROXY = "front-proxy-client"
_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "127.0.0.1",
)


@dataclass(frozen=True)
class Pki:
    """Paths of the PEM files under one folder, and the authority that can issue more."""

    directory: Path
    authority: certs.Authority

    @classmethod
    def create(cls, directory: Path, *, service_ip: str) -> "Pki":
        """Write all that the components need; about 0.2 s, nearly all of it the RSA key."""
        authority, front_proxy = (
            certs.Authority("flotilla-devcluster"),
            certs.Authority("flotilla-front-proxy"),
        )
        authority.pair.write(directory, "ca")
        certs.write(directory / "front-proxy-ca.crt", front_proxy.pair.certificate)
        front_proxy.client(FRONT_PROXY).write(directory, "front-proxy-client")
        authority.server("kube-apiserver", [*_SERVER_NAMES, service_ip]).write(directory, "apiserver")
        authority.server("controllers", ["localhost", "127.0.0.1"]).write(directory, "controllers")
        authority.client("kube-apiserver-kubelet-client", [ADMIN_GROUP]).write(directory, "kubelet-client")
        private, public = certs.service_account_keys()
        certs.write(directory / "sa.key", private)
        certs.write(directory / "sa.pub", public)
        return cls(directory, authority)

    def path(self, name: str) -> Path:
        return self.directory / name

    def access(self, server: str, *, user: str, groups: tuple[str, ...] = ()) -> Access:
        """Credentials of a new client certificate."""
        pair = self.authority.client(user, groups)
        return Access(server, authority=self.authority.pair.certificate, certificate=pair.certificate, key=pair.key)

    def kubeconfig(self, path: Path, server: str, *, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Write a kubeconfig with a new client certificate."""
        return kubeconfig.write(path, self.access(server, user=user, groups=groups), name="devcluster")
