"""The life of a named cluster: start it, watch it, end it cleanly; and the same in the background."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from flotilla.errors import NotReady
from flotilla_devcluster.api import Api
from flotilla_devcluster.controlplane import CONTROLLER_MANAGER, ETCD, SCHEDULER, ControlPlane
from flotilla_devcluster.kubeconfig import Access, load
from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.registry import NamedCluster
from flotilla_devcluster.stack import SIMULATION, Stack

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

    With `operator` there are simulated GPU nodes and the operator too. `ready` is told what is published.

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

    Swallows it, so that a cluster that is told to end has ended well.
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
