"""Measures the CPU time of a scrape of the cost metrics, and the number of its series.

    uv run python benchmarks/cost_metrics.py [--deployments 100] [--comparators 3]

The operator's own scaler, store, ledger and fleet, without a cluster and without engines: every deployment has traffic,
pods on a node, a price, a budget, a capacity and a Stalled condition, so that each metric has a sample. The time is CPU
time, the best and the median of twenty, of the whole text on a registry with the metrics of the operator itself.
"""

import argparse
import asyncio
import gc
import statistics
import time
import tracemalloc
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flotilla.addresses import AddressMap
from flotilla.api.model_deployment import ModelDeployment
from flotilla.console.metrics import Metrics, exposition
from flotilla.constants import API_VERSION, LABEL_MODEL, LABEL_TEAM
from flotilla.cost.accounting_loop import FleetAccounting
from flotilla.cost.gpu_prices import CostBasis
from flotilla.cost.hosted_prices import Comparator, HostedPrice, Tiers
from flotilla.cost.ledger import Ledger, dump_account
from flotilla.cost.price_loop import PriceCache
from flotilla.kube.kinds import MODEL_DEPLOYMENT, POD, Key
from flotilla.kube.store import Store, owner
from flotilla.planning.resolve import load_catalog, resolve
from flotilla.scaling.autoscaler import Demand, Sample
from flotilla.scaling.scaling_loop import Scaler
from flotilla.scaling.scrape_client import EngineSample, Scraper

_PODS = 4
_CATALOG = 'source: contract\nasOf: 2026-11-01\ngpus: [{class: nvidia-l4, usd: "0.62"}]\n'
_BEGIN_S, _DAY_S = 1_795_564_800.0, 86_400.0
"""The time at which the pods were scheduled, as in their conditions."""
D = Decimal


def comparator(number: int) -> Comparator:
    """Return one of several hosted models."""
    price = HostedPrice("provider", f"model-{number}", "genai-prices", Tiers(D("0.25")), Tiers(D(2)), Tiers(D("0.02")))
    return Comparator(price)


def _model(name: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {
            "name": name, "namespace": "models", "uid": f"uid-{name}", "resourceVersion": "1",
            "labels": {LABEL_TEAM: "search"},
        },
        "spec": {
            "model": {"source": "hf://Qwen/Qwen2.5-7B-Instruct"},
            "engine": {"name": "vllm"},
            "accelerator": {"class": "nvidia-l4"},
            "scaling": {"minReplicas": 1, "maxReplicas": 8},
        },
        "status": {"conditions": [{"type": "Stalled", "status": "False"}]},
    }  # fmt: skip


def _pod(model: str, number: int) -> dict[str, Any]:
    name = f"{model}-5d4f-{number}"
    return {
        "metadata": {
            "name": name, "namespace": "models", "uid": f"uid-{name}", "resourceVersion": "1",
            "labels": {LABEL_MODEL: model},
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{model}-5d4f", "uid": "r", "controller": True}],
        },
        "spec": {"nodeName": f"gpu-{number}", "containers": [{"name": "engine"}]},
        "status": {
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": "2026-11-25T00:00:00Z"}
                for kind in ("PodScheduled", "Ready")
            ],
        },
    }  # fmt: skip


class Bench:
    """The operator's own parts with an invented fleet, after a day of work."""

    def __init__(self, deployments: int, comparators: tuple[Comparator, ...], prices: Path) -> None:
        self._now_s = _BEGIN_S
        self.store, self.ledger = Store(owner), Ledger(gap_s=1e9)
        self.scaler = Scaler(
            self.store, Scraper(AddressMap()), interval_s=2, clock=lambda: self._now_s, enqueue=lambda _: None
        )
        book = PriceCache(lambda: None, lambda: self._now_s, 600, catalog_file=prices)
        book.reread()
        free = {"nvidia-l4": D("4.96")}
        bases: dict[Key, CostBasis] = {}
        self.fleet = FleetAccounting(
            self.store, self.scaler, self.ledger, book, bases, clock=lambda: self._now_s, unallocated=lambda: free
        )
        catalog = load_catalog()
        for number in range(deployments):
            name = f"model-{number}"
            live = _model(name)
            self.store.put(MODEL_DEPLOYMENT, live)
            for replica in range(_PODS):
                self.store.put(POD, _pod(name, replica))
            model = ModelDeployment.model_validate(live)
            resolved = resolve(name, model.spec, catalog)
            basis = CostBasis(
                resolved.accelerator, comparators=comparators, tokens_per_second=D(2400), budget_usd_per_month=D(4000)
            )
            key = Key(MODEL_DEPLOYMENT, "models", name)
            bases[key] = basis
            self.scaler.track(key, live, model, resolved)

    def day(self) -> None:
        """Simulate a day of a busy fleet, with one sample every five minutes."""
        for step in range(289):
            self.look(_BEGIN_S + step * 300.0, step * 1234.0)

    def look(self, now_s: float, work: float) -> None:
        """Take one sample: every engine answers, and every pod is charged."""
        self._now_s = now_s
        for entry in self.scaler.tracked.values():
            name = entry.uid.removeprefix("uid-")
            answer = EngineSample(
                running=4.0, waiting=1.0, kv_usage=0.5, prompt_tokens=work * 10, generation_tokens=work,
                cached_tokens=work * 2, requests_success=work / 10, requests_failed=work / 1000, rejected=0.0,
            )  # fmt: skip
            entry.answers = {f"uid-{name}-5d4f-{number}": answer for number in range(_PODS)}
            entry.sample = Sample(
                at=now_s, ready=_PODS, answered=_PODS, waiting=4.0, running=16.0, kv_full=0.0, rejected=0.0, served=0.0,
                demand=Demand(20.0), source="pods",
            )  # fmt: skip
        self.fleet.account()


def main() -> None:
    """Print series, milliseconds and bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, default=100)
    parser.add_argument("--comparators", type=int, default=3)
    arguments = parser.parse_args()
    comparators = tuple(map(comparator, range(arguments.comparators)))
    with TemporaryDirectory() as folder:
        prices = Path(folder) / "prices.yaml"
        prices.write_text(_CATALOG)
        bench = Bench(arguments.deployments, comparators, prices)
    tracemalloc.start()
    bench.day()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gc.set_threshold(10_000, 20, 50)  # as the operator does
    metrics = Metrics(version="bench")
    times = []
    for _ in range(20):
        started = time.process_time()
        text = exposition([*metrics.registry.collect(), *asyncio.run(bench.fleet.families())])
        times.append((time.process_time() - started) * 1000)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    started = time.process_time()
    for step in range(20):
        bench.look(_BEGIN_S + _DAY_S + 2 * step, 289 * 1234.0 + step)
    look_us = (time.process_time() - started) * 1e6 / 20 / arguments.deployments
    record = dump_account(bench.ledger.accounts["uid-model-0"])
    print(f"{arguments.deployments} deployments, {arguments.comparators} comparators, {_PODS} pods each")
    print(f"  series                   {series:>10,}")
    print(f"  scrape, best / median ms {min(times):>10.1f} / {statistics.median(times):.1f}")
    print(f"  text                     {len(text) / 1024:>10,.0f} KiB")
    print(f"  a look at a deployment   {look_us:>10.0f} us")
    print(f"  memory of an account     {kept / arguments.deployments / 1024:>10.1f} KiB")
    print(f"  its record               {len(record) / 1024:>10.1f} KiB")


if __name__ == "__main__":
    main()
