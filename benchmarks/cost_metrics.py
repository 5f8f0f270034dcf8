"""What a scrape of the cost metrics costs, and how many series it has.

    uv run python benchmarks/cost_metrics.py [--deployments 100] [--comparators 3]

Every deployment has traffic, a price, a budget and a capacity, so that each metric has a sample. The time is CPU time,
the best and the median of twenty, of the whole text on a registry with the metrics of the operator itself.
"""

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from flotilla.domain.accelerators import load_accelerators
from flotilla.domain.prices import Comparator, HostedPrice, Tiers
from flotilla.domain.pricing import CostBasis, Rate
from flotilla.telemetry import exposition, ledger_record
from flotilla.telemetry.collector import DeploymentView, FleetCollector
from flotilla.telemetry.ledger import Account, Counters, Ledger, PodObservation
from flotilla.telemetry.metrics import Metrics

_PODS = 4
D = Decimal


@dataclass
class Fleet:
    """Deployments that do not change between scrapes."""

    views: list[DeploymentView]
    unpriced: Mapping[str, int]
    catalog_version: str = "abcd1234"

    def view(self) -> Iterable[DeploymentView]:
        return self.views

    def rates(self) -> Iterable[Rate]:
        return [Rate(D("0.62"), "catalog", "contract", date(2026, 11, 1))]


def comparator(number: int) -> Comparator:
    """One hosted model of several."""
    price = HostedPrice("provider", f"model-{number}", "genai-prices", Tiers(D("0.25")), Tiers(D(2)), Tiers(D("0.02")))
    return Comparator(price)


def view(number: int, basis: CostBasis, account: Account) -> DeploymentView:
    """One deployment as the operator shows it."""
    return DeploymentView(
        namespace="models",
        name=f"model-{number}",
        model="hf://Qwen/Qwen2.5-7B-Instruct",
        engine="vllm",
        team="search",
        gpu_type="nvidia-l4",
        basis=basis,
        replica_usd_per_hour=D("0.62"),
        account=account,
        min_replicas=1,
        max_replicas=8,
        desired_replicas=4,
        ready_replicas=4,
        waiting=1.0,
        running=4.0,
    )


def day(ledger: Ledger, uid: str, comparators: tuple[Comparator, ...]) -> None:
    """A day of a busy deployment, a look each five minutes."""
    for step in range(289):
        work = step * 1234.0
        pods = [
            PodObservation(
                f"{uid}-{number}", 0, "serving", D(1), Counters(work * 10, work, work * 2, work / 10), D("0.62"),
                "on-demand", "catalog", scheduled_at=0.0, ready_at=60.0,
            )
            for number in range(_PODS)
        ]  # fmt: skip
        ledger.observe(uid, pods, now=step * 300.0, comparators=comparators)


def main() -> None:
    """Print series, milliseconds and bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, default=100)
    parser.add_argument("--comparators", type=int, default=3)
    arguments = parser.parse_args()
    comparators = tuple(map(comparator, range(arguments.comparators)))
    l4 = load_accelerators()["nvidia-l4"]
    basis = CostBasis(l4, comparators=comparators, tokens_per_second=D(2400), budget_usd_per_month=D(4000))
    ledger = Ledger(gap_s=1e9)
    tracemalloc.start()
    for number in range(arguments.deployments):
        day(ledger, f"uid-{number}", comparators)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    views = [view(number, basis, ledger.accounts[f"uid-{number}"]) for number in range(arguments.deployments)]
    gc.set_threshold(10_000, 20, 50)  # as the operator does
    metrics = Metrics(version="bench")
    metrics.registry.register(FleetCollector(Fleet(views, {})))
    times = []
    for _ in range(20):
        started = time.process_time()
        text = exposition.text(metrics.registry)
        times.append((time.process_time() - started) * 1000)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    uid = "uid-0"
    started = time.process_time()
    for step in range(100):
        pods = [
            PodObservation(f"{uid}-{n}", 0, "serving", D(1), Counters(5e6 + step, 5e6), D("0.62")) for n in range(_PODS)
        ]
        ledger.observe(uid, pods, now=86_400.0 + 2 * step, comparators=comparators)
    look_us = (time.process_time() - started) * 1e4
    record = ledger_record.dump(ledger.accounts[uid])
    print(f"{arguments.deployments} deployments, {arguments.comparators} comparators, {_PODS} pods each")
    print(f"  series                   {series:>10,}")
    print(f"  scrape, best / median ms {min(times):>10.1f} / {statistics.median(times):.1f}")
    print(f"  text                     {len(text) / 1024:>10,.0f} KiB")
    print(f"  a look at a deployment   {look_us:>10.0f} us")
    print(f"  memory of an account     {kept / arguments.deployments / 1024:>10.1f} KiB")
    print(f"  its record               {len(record) / 1024:>10.1f} KiB")


if __name__ == "__main__":
    main()
