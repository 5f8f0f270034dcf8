"""Compares the cost of a ModelDeployment in Flotilla's operator with an operator on controller-runtime.

    uv run python -m benchmarks.reconcile [--counts 1000 5000] [--rounds 1] [--operators flotilla peer] [--json FILE]

Both make the same calls to a real apiserver with etcd. For each count and round, each operator gets a separate control
plane, one operator after the other, in the reverse order in every second round. The benchmark creates all objects at
once and waits until every status is written; then it lets the operator idle; then it restarts the operator while the
objects exist. Calls are counted by user in the apiserver's audit log; CPU and memory are those of the operator's
process and its children. Kubernetes' controllers do not run: they would add their own load, and cause only one
more call of the operator, a status write per object when its pods become ready. The peer is in
benchmarks/peers/controller-runtime; the first run builds it, which takes minutes.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.healthz import HealthProbe
from benchmarks.reconcile_load import Load
from benchmarks.reconcile_operators import OPERATORS, Operator, peer_program, store_bytecode
from benchmarks.reconcile_table import Row, answered_at_half_percent, tables, waits_s

from flotilla.kube.client import KubeClient
from flotilla_devcluster.apiserver import WRITE_VERBS, AuditLog, select
from flotilla_devcluster.controlplane import ControlPlane
from flotilla_devcluster.stack import USER, install_operator

ROOT = Path(__file__).parent.parent
IDLE_S = 20.0
_OWN_AFFAIRS = ("coordination.k8s.io", "authorization.k8s.io")


def verbs(audit: AuditLog, since: int) -> Counter[str]:
    """Return the calls of the operator by verb, from byte `since` of the audit log on.

    Calls for the Lease, the access check at the start, and the event with which client-go announces a new leader (in
    the core group, which Flotilla's role does not allow) are not counted.
    """
    return Counter(
        event.verb
        for event in select(audit.since(since), user=USER)
        if event.group not in _OWN_AFFAIRS and (event.group, event.resource) != ("", "events")
    )


def writes(calls: Counter[str]) -> int:
    """Return the number of calls that change something."""
    return sum(number for verb, number in calls.items() if verb in WRITE_VERBS)


async def stall_ms(operator: Operator) -> float:
    """Return the longest time of an answer of /healthz, in ms, while /metrics is read five times."""
    probe = HealthProbe(operator.health_url, interval_s=0.01)
    for _ in range(5):
        await asyncio.sleep(0.5)
        await asyncio.to_thread(read, operator.metrics_url)
    return probe.stop().longest_ms


def read(url: str) -> bytes:
    """Return the body of the URL's answer."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        body: bytes = answer.read()
        return body


async def measure(plane: ControlPlane, name: str, count: int, directory: Path) -> Row:
    """Measure the creation of objects, idling and a restart."""
    audit = AuditLog(plane.audit_log)
    client = await KubeClient.connect(kubeconfig=plane.kubeconfig, user_agent="benchmark")
    start_operator = OPERATORS[name]
    operators = list[Operator]()
    try:
        operators.append(operator := start_operator(plane, directory / "operator-1.log"))
        probe = HealthProbe(operator.health_url, interval_s=0.2)
        load = Load(client, count)
        mark, cpu_s, start = audit.mark(), operator.cpu_s(), time.monotonic()
        await load.run(timeout_s=60 + count * 0.2)
        await asyncio.sleep(5)
        health = probe.stop()
        calls, mark = verbs(audit, mark), audit.mark()
        cpu_s = operator.cpu_s() - cpu_s
        rss_mib = operator.rss_mib()
        idle_cpu_s, idle_start = operator.cpu_s(), time.monotonic()
        await asyncio.sleep(IDLE_S)
        idle_percent = 100 * (operator.cpu_s() - idle_cpu_s) / (time.monotonic() - idle_start)
        idle_calls = verbs(audit, mark)
        metrics_stall_ms = await stall_ms(operator)
        operator.stop()
        mark = audit.mark()
        operators.append(again := start_operator(plane, directory / "operator-2.log"))
        await asyncio.sleep(5 + count / 500)
        restart_calls = verbs(audit, mark)
        waits = waits_s(load.created, load.answered)
        return Row(
            operator=name,
            count=count,
            cpu_ms_per_object=1000 * cpu_s / count,
            calls_per_object=calls.total() / count,
            writes_per_object=writes(calls) / count,
            created_s=max(load.created.values()) - start,
            converged_s=max(load.answered.values()) - start,
            answered_at_half_percent=answered_at_half_percent(start, load.answered.values()),
            rest_at_half_percent=answered_at_half_percent(max(load.created.values()), load.answered.values()),
            newcomer_s=load.newcomer_s,
            longest_wait_s=max(waits),
            healthz_longest_ms=health.longest_ms,
            metrics_stall_ms=metrics_stall_ms,
            rss_mib=rss_mib,
            idle_cpu_percent=idle_percent,
            idle_calls=idle_calls.total(),
            start_ready_s=operator.ready_s,
            restart_ready_s=again.ready_s,
            restart_cpu_s=again.cpu_s(),
            restart_writes=writes(restart_calls),
            restart_rss_mib=again.rss_mib(),
        )
    finally:
        for started in operators:
            started.stop()
        await client.close()


def run(name: str, count: int) -> Row:
    """Measure one operator with one count in a fresh control plane."""
    directory = Path(tempfile.mkdtemp(prefix="flotilla-bench-"))
    try:
        with ControlPlane.start(directory=directory / "plane", crds=ROOT / "crds", controllers=False) as plane:
            install_operator(plane, controllers=False)
            return asyncio.run(measure(plane, name, count, directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def order(counts: Sequence[int], operators: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Return the measurements in their order, which is reversed in every second round so that a drift cancels out."""
    for count in counts:
        for number in range(rounds):
            for name in operators if number % 2 == 0 else reversed(operators):
                yield count, name


def machine() -> str:
    """Return where and when this was measured; the load is that of the machine before the run."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{now}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the start"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--rounds", type=int, default=1, help="of each count; the tables show medians")
    parser.add_argument("--operators", nargs="+", choices=list(OPERATORS), default=list(OPERATORS))
    parser.add_argument("--json", type=Path, help="write the row of every run to this file")
    options = parser.parse_args()
    if "peer" in options.operators:
        peer_program()
    store_bytecode()
    where, rows = machine(), list[Row]()
    for count, name in order(options.counts, options.operators, options.rounds):
        sys.stderr.write(f"{name}, {count} objects\n")
        rows.append(run(name, count))
    sys.stdout.write(f"{where}\n\n{tables(rows)}\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": where, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
