"""Clusters that a user runs by name with `flotilla devcluster`.

`NamedCluster` is the folder, the lock and the published state of one. `foreground` runs a cluster until a signal ends
it, `background` starts such a process and waits until its cluster is ready.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from flotilla.errors import Conflict, InvalidSpec, NotReady
from flotilla_devcluster.apiserver import Api
from flotilla_devcluster.controlplane import CONTROLLER_MANAGER, ETCD, SCHEDULER, ControlPlane
from flotilla_devcluster.kubeconfig import Access, load
from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.stack import SIMULATION, Stack

DEFAULT_NAME = "default"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
_STOP_TIMEOUT_S = 20.0
_RETRY_S = 0.02
_ATTEMPTS = 10


class NamedCluster:
    """One folder under `$XDG_STATE_HOME/flotilla/devcluster`.

    A supervisor process holds an exclusive lock on `lock` for as long as the cluster lives and writes its
    PID into it. The kernel drops the lock with the process, so a held lock means "running" and a reused PID
    cannot mislead.
    """

    def __init__(self, name: str, *, environ: Mapping[str, str] = os.environ) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidSpec(
                f"The cluster name {name!r} is not usable. Take up to 40 lower-case letters, digits, dashes.",
                field="--name",
            )
        self.name = name
        base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".local" / "state"
        self.directory = Path(base) / "flotilla" / "devcluster" / name
        self.plane = self.directory / "plane"
        """The folder of the control plane itself."""
        self.log = self.directory / "supervisor.log"
        self._state = self.directory / "cluster.json"
        self._lock = self.directory / "lock"

    @property
    def kubeconfig(self) -> Path:
        return self.plane / "kubeconfig"

    def supervisor(self) -> int | None:
        """PID of the supervisor, None when the cluster does not run."""
        try:
            with self._lock.open() as file:
                while not _try_lock(file):
                    file.seek(0)
                    if pid := file.read():
                        return int(pid)
                    time.sleep(_RETRY_S)  # locked a moment ago; the PID follows
        except FileNotFoundError:
            pass
        return None

    def state(self) -> dict[str, Any]:
        """What the supervisor published once all was ready; raises NotReady when the cluster does not run."""
        if self.supervisor() is None:
            raise NotReady(
                f"The cluster {self.name!r} does not run. Start it with `flotilla devcluster up --name {self.name}`."
            )
        try:
            content: dict[str, Any] = json.loads(self._state.read_text())
        except FileNotFoundError:
            raise NotReady(f"The cluster {self.name!r} is still starting. Its log is {self.log}.") from None
        return content

    def publish(self, state: Mapping[str, Any]) -> None:
        """Make the state visible to other processes, in one step."""
        temporary = self._state.with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=2))
        temporary.replace(self._state)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the supervisor: hold the lock, with the remains of a dead predecessor removed.

        The folder disappears after a clean end and stays, with its logs, after a failure. Raises Conflict
        when the cluster runs already.
        """
        with self._acquire() as file:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            shutil.rmtree(self.plane, ignore_errors=True)
            self._state.unlink(missing_ok=True)
            yield
            shutil.rmtree(self.directory)

    def stop(self, *, timeout_s: float = _STOP_TIMEOUT_S) -> bool:
        """End the supervisor (SIGTERM, SIGKILL after `timeout_s` seconds) and remove the folder.

        False when there was nothing. The supervisor's death takes all its processes with it.
        """
        if not self.directory.exists():
            return False
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            pid = self.supervisor()
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, wanted)
                self._wait_released(timeout_s)
        shutil.rmtree(self.directory, ignore_errors=True)
        return True

    def _wait_released(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.supervisor() is not None and time.monotonic() < deadline:
            time.sleep(0.05)

    @contextmanager
    def _acquire(self) -> Iterator[IO[str]]:
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._lock.open("a+") as file:
                if not _try_lock(file, attempts=_ATTEMPTS):
                    raise Conflict(
                        f"The cluster {self.name!r} runs already. Stop it with"
                        f" `flotilla devcluster down --name {self.name}`, or choose another --name."
                    )
                # Another process may have removed the folder between our open and our lock.
                if self._lock.exists() and os.path.samestat(os.fstat(file.fileno()), self._lock.stat()):
                    yield file
                    return


def _try_lock(file: IO[str], *, attempts: int = 1) -> bool:
    """Another process that only looks for a supervisor holds the lock for a moment: several attempts get past it."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(_RETRY_S)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.5


def foreground(
    cluster: NamedCluster,
    *,
    crds: Path | None,
    controllers: bool,
    operator: bool,
    ready: Callable[[Mapping[str, Any]], None],
) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP, then stop all and remove the folder.

    With `operator` there are simulated GPU nodes and the operator too. `ready` gets what is published.

    Raises NotReady when a component ends by itself, after the others were stopped; the logs stay.
    """
    with (
        cluster.held(),
        _ended_by_signals(),
        ControlPlane.start(directory=cluster.plane, crds=crds, controllers=controllers) as plane,
    ):
        state = describe(plane)
        if operator:
            _add_operator(plane, state)
        cluster.publish(state)
        ready(state)
        while True:
            time.sleep(_POLL_S)
            plane.check()


def _add_operator(plane: ControlPlane, state: dict[str, Any]) -> None:
    """The node agent and the operator become processes of the plane, which watches and ends them with its own."""
    settings = {"console": "Enabled"}
    nodes = AgentConfig(simulation=SIMULATION)
    stack = Stack(plane, directory=plane.directory / "fleet", nodes=nodes, settings=settings)
    state["operator"] = stack.operator.url
    health = {
        "node-agent": f"{plane.url}/api/v1/nodes/{nodes.nodes[0].name}",
        "operator": f"{stack.operator.url}/healthz",
    }
    for name, process in (("node-agent", stack.agent.process), ("operator", stack.operator.process)):
        plane.processes[name] = process
        state["processes"][name] = {"pid": process.pid, "health": health[name], "log": str(process.log)}


def background(cluster: NamedCluster, arguments: list[str], *, timeout_s: float = 90.0) -> None:
    """Start `flotilla devcluster up ARGUMENTS` as a process of its own and return when the cluster is ready.

    Raises NotReady, with the end of its log, when it ends instead.
    """
    cluster.directory.mkdir(parents=True, exist_ok=True)
    with cluster.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flotilla_devcluster", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout_s
    try:
        while not _published(cluster, process):
            if time.monotonic() >= deadline:
                raise NotReady(f"The cluster {cluster.name!r} is not ready after {timeout_s:g} s; see {cluster.log}.")
            time.sleep(0.1)
    except BaseException:
        process.terminate()
        process.wait()
        raise


def describe(plane: ControlPlane) -> dict[str, Any]:
    """What other processes may know: addresses and PIDs."""
    ports = {
        ETCD: f"http://127.0.0.1:{plane.ports.etcd}/health",
        CONTROLLER_MANAGER: f"https://127.0.0.1:{plane.ports.controller_manager}/healthz",
        SCHEDULER: f"https://127.0.0.1:{plane.ports.scheduler}/healthz",
    }
    return {
        "url": plane.url,
        "kubeconfig": str(plane.kubeconfig),
        "processes": {
            name: {
                "pid": process.pid,
                "program": process.argv[0],
                "health": ports.get(name, f"{plane.url}/readyz"),
                "log": str(process.log),
            }
            for name, process in plane.processes.items()
        },
    }


def healthy(cluster: NamedCluster, url: str) -> bool:
    """Whether a health URL of the cluster answers 2xx within 2 s."""
    server, _, path = url.rpartition("/")
    administrator = load(cluster.kubeconfig)
    access = Access(
        server,
        authority=administrator.authority,
        certificate=administrator.certificate,
        key=administrator.key,
    )
    return Api(access, timeout_s=2.0).healthy(f"/{path}")


def _published(cluster: NamedCluster, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        text = cluster.log.read_text(errors="replace").strip()
        raise NotReady(f"The cluster {cluster.name!r} did not start:\n{text[-4000:]}")
    try:
        cluster.state()
    except NotReady:
        return False
    return True


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn the signals into one KeyboardInterrupt that ends the block; the rest of them is ignored.

    Swallows it: a cluster that ends on request has ended well.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            # A second Ctrl-C must not interrupt the cleaning up.
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
