"""What one ModelDeployment costs the operator and the apiserver, on a real apiserver and etcd.

    uv run python benchmarks/reconcile.py [--counts 200 1000] [--json FILE]

For each count, in a control plane of its own: create all objects at once, wait until every status is written; then
idle; then restart the operator over them. Calls are counted in the apiserver's audit log by user, CPU and memory come
from the operator's process. The controllers do not run: they would add their own load and no call of the operator's
but one status write per object when its pods become ready.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from flotilla.constants import API_VERSION
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import MODEL_DEPLOYMENT
from flotilla_devcluster.apiserver import WRITE_VERBS, AuditLog, select
from flotilla_devcluster.controlplane import ControlPlane
from flotilla_devcluster.stack import USER, OperatorProcess, install_operator

ROOT = Path(__file__).parent.parent
SUBMITTERS = 16
IDLE_S = 20.0
_OWN_AFFAIRS = ("coordination.k8s.io", "authorization.k8s.io")


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds, CPU in milliseconds, memory in MiB."""

    count: int
    start_to_ready_s: float
    converge_s: float
    calls_per_object: float
    writes_per_object: float
    cpu_ms_per_object: float
    rss_mib: float
    idle_cpu_percent: float
    idle_calls: int
    restart_ready_s: float
    restart_cpu_s: float
    restart_writes: int
    restart_rss_mib: float


def model(name: str) -> dict[str, Any]:
    """A typical ModelDeployment."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen2.5-7B-Instruct"},
            "engine": {"name": "vllm"},
            "accelerator": {"class": "nvidia-l4"},
            "scaling": {"maxReplicas": 4},
            "cost": {"compareWith": [{"provider": "openai", "model": "gpt-5-mini"}]},
        },
    }


def verbs(audit: AuditLog, since: int) -> Counter[str]:
    """Calls of the operator by verb from byte `since` of the audit log on, without its Lease and its access check."""
    return Counter(event.verb for event in select(audit.since(since), user=USER) if event.group not in _OWN_AFFAIRS)


class Measured:
    """CPU and memory of an operator's process."""

    def __init__(self, operator: OperatorProcess) -> None:
        self._ps = psutil.Process(operator.process.pid)

    def cpu_s(self) -> float:
        """User and system time since its start."""
        times = self._ps.cpu_times()
        return float(times.user + times.system)

    def rss_mib(self) -> float:
        """Resident memory."""
        return float(self._ps.memory_info().rss) / 2**20


async def create_all(client: KubeClient, count: int) -> None:
    """Create `count` objects with 16 submitters."""
    names: Iterator[str] = iter([f"model-{number:04d}" for number in range(count)])

    async def submit() -> None:
        for name in names:
            await client.create(MODEL_DEPLOYMENT, model(name))

    await asyncio.gather(*(submit() for _ in range(SUBMITTERS)))


async def answered(client: KubeClient) -> int:
    """How many objects have a status of their generation."""
    items = (await client.list(MODEL_DEPLOYMENT, namespace="default")).items
    return sum(item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"] for item in items)


async def measure(plane: ControlPlane, directory: Path, count: int) -> Row:
    """Create, idle, restart."""
    audit = AuditLog(plane.audit_log)
    client = await KubeClient.connect(kubeconfig=plane.kubeconfig, user_agent="benchmark")
    try:
        operator = OperatorProcess.start(plane, log=directory / "operator-1.log")
        measured = Measured(operator)
        mark = audit.mark()
        cpu, started = measured.cpu_s(), time.monotonic()
        await create_all(client, count)
        while await answered(client) < count:
            await asyncio.sleep(0.5)
        converge_s = time.monotonic() - started
        await asyncio.sleep(5)
        calls, mark = verbs(audit, mark), audit.mark()
        cpu_ms = 1000 * (measured.cpu_s() - cpu) / count
        rss = measured.rss_mib()
        cpu, started = measured.cpu_s(), time.monotonic()
        await asyncio.sleep(IDLE_S)
        idle = 100 * (measured.cpu_s() - cpu) / (time.monotonic() - started)
        idle_calls = verbs(audit, mark)
        operator.stop()
        mark = audit.mark()
        again = OperatorProcess.start(plane, log=directory / "operator-2.log")
        await asyncio.sleep(5)
        restart_calls = verbs(audit, mark)
        row = Row(
            count=count,
            start_to_ready_s=operator.ready_s,
            converge_s=converge_s,
            calls_per_object=sum(calls.values()) / count,
            writes_per_object=sum(n for verb, n in calls.items() if verb in WRITE_VERBS) / count,
            cpu_ms_per_object=cpu_ms,
            rss_mib=rss,
            idle_cpu_percent=idle,
            idle_calls=sum(idle_calls.values()),
            restart_ready_s=again.ready_s,
            restart_cpu_s=Measured(again).cpu_s(),
            restart_writes=sum(n for verb, n in restart_calls.items() if verb in WRITE_VERBS),
            restart_rss_mib=Measured(again).rss_mib(),
        )
        again.stop()
        return row
    finally:
        await client.close()


def run(count: int) -> Row:
    """Measure one count in a fresh control plane."""
    directory = Path(tempfile.mkdtemp(prefix="flotilla-bench-"))
    try:
        with ControlPlane.start(directory=directory / "plane", crds=ROOT / "crds", controllers=False) as plane:
            install_operator(plane, controllers=False)
            return asyncio.run(measure(plane, directory, count))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, one column per count."""
    lines = [
        "| | " + " | ".join(f"{row.count} objects" for row in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
    ]
    for name in list(asdict(rows[0]))[1:]:
        cells = [f"{getattr(row, name):.4g}" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [run(count) for count in options.counts]
    sys.stdout.write(table(rows) + "\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
