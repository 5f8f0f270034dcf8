"""A Kubernetes control plane, as the tools and tests use it.

`Cluster` is an apiserver that another program runs, reached through a kubeconfig. `ControlPlane` is a cluster whose
etcd, kube-apiserver, kube-controller-manager and kube-scheduler are processes of the user; it can sign certificates,
and kill, pause and restart its apiserver.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from flotilla.errors import InvalidSpec, NotReady
from flotilla_devcluster import components, kubeconfig
from flotilla_devcluster.apiserver import Api, apply_crds, read_crds
from flotilla_devcluster.components import Ports, Tuning
from flotilla_devcluster.kubeconfig import Access
from flotilla_devcluster.network import egress_proxy, reserve
from flotilla_devcluster.pki import ADMIN_GROUP, Pki
from flotilla_devcluster.process import Process, until
from flotilla_devcluster.programs import find_control_plane

ETCD, APISERVER = "etcd", "kube-apiserver"
CONTROLLER_MANAGER, SCHEDULER = "kube-controller-manager", "kube-scheduler"
START_TIMEOUT_S = 60.0
_TOKEN_SECONDS = 24 * 3600


class Cluster:
    """An apiserver that another program runs, reached as the administrator of a kubeconfig."""

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
        """The apiserver's audit log, for `apiserver.AuditLog`."""
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
        apply_crds(self.api, read_crds(directory))

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig with a 24-hour token of a ServiceAccount, and with the rights that RBAC grants it.

        Through the TokenRequest API; raises `apiserver.NotFound` when the ServiceAccount does not exist.
        """
        answer = self.api.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": _TOKEN_SECONDS},
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


class ControlPlane(Cluster):
    """A running control plane in a folder of its own; make one with `start`, end it with `stop` or `with`."""

    def __init__(
        self,
        *,
        directory: Path,
        pki: Pki,
        ports: Ports,
        programs: Mapping[str, Path],
        tuning: Tuning,
        controllers: bool,
    ) -> None:
        self.ports = ports
        self.controllers = controllers
        self.processes: dict[str, Process] = {}
        self._pki = pki
        self._programs = programs
        self._tuning = tuning
        self._closing = ExitStack()
        server = f"https://127.0.0.1:{ports.apiserver}"
        path = pki.kubeconfig(directory / "kubeconfig", server, user="flotilla-admin", groups=(ADMIN_GROUP,))
        super().__init__(path, directory=directory)

    @classmethod
    def start(
        cls,
        *,
        directory: Path,
        crds: Path | None = None,
        controllers: bool = True,
        tuning: Tuning | None = None,
        programs: Mapping[str, Path] | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> "ControlPlane":
        """Start everything and return when it is ready; blocks 3 to 5 s.

        `directory` must be empty or missing. `crds` is a folder of CustomResourceDefinitions, applied before
        the controllers start: the garbage collector reads the list of kinds every 30 s only, so it would
        ignore the children of a kind that comes later for that long. `timeout_s` bounds each step. Raises
        NotReady, with the end of the log, when a component dies or does not answer; then no process is left
        behind.
        """
        _claim(directory)
        programs = programs or find_control_plane(controllers=controllers)
        ports = Ports(*reserve(5))
        etcd_argv = components.etcd(programs[ETCD], data=directory / "etcd", ports=ports)
        etcd = Process.start(ETCD, etcd_argv, log=directory / "logs" / "etcd.log")
        try:
            # etcd elects itself for about a second: time enough for the certificates.
            pki = Pki.create(directory / "pki", service_ip=components.SERVICE_IP)
            plane = cls(
                directory=directory,
                pki=pki,
                ports=ports,
                programs=programs,
                tuning=tuning or Tuning(),
                controllers=controllers,
            )
            plane.processes[ETCD] = etcd
        except BaseException:
            etcd.kill()
            raise
        try:
            plane._bring_up(crds, timeout_s)
        except BaseException:
            plane.stop(grace_s=0)
            raise
        return plane

    @property
    def audit_log(self) -> Path:
        """One JSON event a line, for every request but the control plane's own reads."""
        return self.directory / "audit.log"

    def client_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        path = self.directory / "kubeconfigs" / user.replace(":", ".")
        return self._pki.kubeconfig(path, self.url, user=user, groups=tuple(groups))

    def run(self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Process:
        """Start one more process of this cluster: it is stopped first, and is killed when this process ends."""
        process = Process.start(name, argv, log=self.directory / "logs" / f"{name}.log", env=env)
        self.processes[name] = process
        return process

    def check(self) -> None:
        """Raise NotReady when any process has ended by itself."""
        for process in self.processes.values():
            process.check()

    def restart_apiserver(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        self.processes[APISERVER].resume()
        self.processes[APISERVER].kill()
        self._start_apiserver()
        self._wait_apiserver(timeout_s)

    def pause_apiserver(self) -> None:
        self.processes[APISERVER].pause()

    def resume_apiserver(self) -> None:
        self.processes[APISERVER].resume()

    def stop(self, *, grace_s: float = 3.0) -> None:
        """End all processes, the last started first, and delete etcd's data; logs stay. May be called twice.

        In this order no process loses the server that it talks to, which would fill the logs. `grace_s` is for each.
        """
        for process in reversed(self.processes.values()):
            if grace_s > 0:
                process.stop(grace_s=grace_s)
            else:
                process.kill()
        self._closing.close()
        shutil.rmtree(self.directory / "etcd", ignore_errors=True)

    def __enter__(self) -> "ControlPlane":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _bring_up(self, crds: Path | None, timeout_s: float) -> None:
        documents = read_crds(crds) if crds is not None else []
        socket = self._closing.enter_context(egress_proxy())
        (self.directory / "egress.yaml").write_text(components.egress_text(socket))
        self._start_apiserver()
        if documents:
            # It answers about a second before it is ready (its own roles come last), and that is enough for the CRDs.
            self._wait_healthy(self.api, "/livez/ping", APISERVER, timeout_s)
            apply_crds(self.api, documents, timeout_s=timeout_s)
        self._wait_apiserver(timeout_s)
        if self.controllers:
            self._start_scheduler()
            self._start_controller_manager()
            self._wait_controllers(timeout_s)

    def _start_apiserver(self) -> None:
        policy = self.directory / "audit-policy.yaml"
        policy.write_text(components.audit_policy_text())
        self.run(
            APISERVER,
            components.apiserver(
                self._programs[APISERVER],
                pki=self._pki.directory,
                ports=self.ports,
                audit_policy=policy,
                audit_log=self.audit_log,
                egress=self.directory / "egress.yaml",
                tuning=self._tuning,
                controllers=self.controllers,
            ),
        )

    def _start_scheduler(self) -> None:
        path = self._component_kubeconfig(SCHEDULER)
        port = self.ports.scheduler
        self.run(
            SCHEDULER,
            components.scheduler(self._programs[SCHEDULER], pki=self._pki.directory, port=port, kubeconfig=path),
        )

    def _start_controller_manager(self) -> None:
        argv = components.controller_manager(
            self._programs[CONTROLLER_MANAGER],
            pki=self._pki.directory,
            port=self.ports.controller_manager,
            kubeconfig=self._component_kubeconfig(CONTROLLER_MANAGER),
            tuning=self._tuning,
        )
        self.run(CONTROLLER_MANAGER, argv)

    def _component_kubeconfig(self, component: str) -> Path:
        path = self._pki.path(f"{component}.kubeconfig")
        return self._pki.kubeconfig(path, self.url, user=f"system:{component}")

    def _wait_apiserver(self, timeout_s: float) -> None:
        self._wait_healthy(self.api, "/readyz", APISERVER, timeout_s)

    def _wait_controllers(self, timeout_s: float) -> None:
        for name, port in (
            (CONTROLLER_MANAGER, self.ports.controller_manager),
            (SCHEDULER, self.ports.scheduler),
        ):
            api = Api(Access(f"https://127.0.0.1:{port}", authority=self.access.authority))
            self._wait_healthy(api, "/healthz", name, timeout_s)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        until(lambda: self.api.get(account), what="the ServiceAccount default/default", timeout_s=timeout_s)

    def _wait_healthy(self, api: Api, path: str, name: str, timeout_s: float) -> None:
        def probe() -> bool:
            self.check()
            return api.healthy(path)

        until(probe, what=f"{name} to answer {path}", timeout_s=timeout_s)


def _claim(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise InvalidSpec(
            f"The folder {directory} of the new control plane is not empty. Stop the cluster that uses it, or"
            " give another folder.",
            field="directory",
        )
