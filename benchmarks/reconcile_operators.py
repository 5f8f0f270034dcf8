"""The two operators of benchmarks/reconcile.py as processes: Flotilla's, and one in Go on controller-runtime."""

import hashlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from flotilla_devcluster import programs
from flotilla_devcluster.controlplane import ControlPlane
from flotilla_devcluster.network import reserve
from flotilla_devcluster.process import Process, until
from flotilla_devcluster.programs import Build, Bundle
from flotilla_devcluster.stack import ACCOUNT, NAMESPACE, OperatorProcess

PEER_SOURCE = Path(__file__).parent / "peers" / "controller-runtime"
_PROGRAM = "controller-runtime"
_READY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Operator:
    """A running operator."""

    process: Process
    ready_s: float
    """From the start of the process until it leads and has listed everything, in seconds."""
    health_url: str
    metrics_url: str

    def cpu_s(self) -> float:
        """Return the user and system time of the process and all of its children since its start, in seconds."""
        own = psutil.Process(self.process.pid)
        times = own.cpu_times()
        # The kernel adds the time of ended children to the parent.
        total = float(times.user + times.system + times.children_user + times.children_system)
        for child in own.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += float(times.user + times.system)
        return total

    def rss_mib(self) -> float:
        """Return the resident memory of the process and its children."""
        own = psutil.Process(self.process.pid)
        total = float(own.memory_info().rss)
        for child in own.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += float(child.memory_info().rss)
        return total / 2**20

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL ten seconds later; both operators release their Lease in between."""
        self.process.stop(grace_s=10)


def store_bytecode() -> None:
    """Have Python store the bytecode of the modules, as in an image. Otherwise each start compiles them all."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-c", "import flotilla.app, flotilla.cli.operator"], check=True)


def flotilla(plane: ControlPlane, log: Path) -> Operator:
    """Start Flotilla's with its production defaults and wait until it is ready."""
    operator = OperatorProcess.start(plane, log=log, timeout_s=_READY_TIMEOUT_S)
    return Operator(operator.process, operator.ready_s, f"{operator.url}/healthz", f"{operator.url}/metrics")


def peer(plane: ControlPlane, log: Path) -> Operator:
    """Start the one in Go, under the same ServiceAccount and role, and wait until it is ready."""
    program = peer_program()
    health, metrics = (f"127.0.0.1:{port}" for port in reserve(2))
    account = plane.service_account_kubeconfig(NAMESPACE, ACCOUNT)
    addresses = [f"--health-address={health}", f"--metrics-address={metrics}"]
    started = time.monotonic()
    process = Process.start("peer", [str(program), f"--kubeconfig={account}", *addresses], log=log)

    def ready() -> bool:
        process.check()
        try:
            with urllib.request.urlopen(f"http://{health}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(ready, what="the peer to be ready", timeout_s=_READY_TIMEOUT_S)
    except BaseException:
        process.kill()
        raise
    return Operator(process, time.monotonic() - started, f"http://{health}/healthz", f"http://{metrics}/metrics")


OPERATORS: dict[str, Callable[[ControlPlane, Path], Operator]] = {"flotilla": flotilla, "peer": peer}


def peer_program(source: Path = PEER_SOURCE) -> Path:
    """Return the Go operator from the cache of the control plane's programs; a new source is built first."""
    bundle = Bundle(
        name="benchmark-controller-runtime",
        version=source_version(source),
        module=source.name,
        packages={_PROGRAM: f"flotilla.dev/benchmarks/peers/{_PROGRAM}"},
        version_variable="main.version",
    )
    return programs.ensure(bundle, environ=os.environ, builder=Build(hack=source.parent))[_PROGRAM]


def source_version(source: Path) -> str:
    """Return a hash of the source, so that a changed source is built again."""
    files = sorted(path for path in source.iterdir() if path.suffix in (".go", ".mod", ".sum"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
