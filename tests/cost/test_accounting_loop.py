"""What the ledger is told of pods: their state, their price by node, and what they serve while they go."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.cost import accounting_loop
from flotilla.cost.accounting_loop import Draining, FleetAccounting, Turns
from flotilla.cost.gpu_prices import CostBasis
from flotilla.cost.ledger import Ledger
from flotilla.cost.price_loop import NodeLister, PriceCache
from flotilla.kube.client import ObjectList
from flotilla.kube.kinds import MODEL_DEPLOYMENT, POD, Key, Kind
from flotilla.kube.observed import Workloads
from flotilla.kube.store import Store, owner
from flotilla.planning.resolve import load_catalog, resolve
from flotilla.scaling.scrape_client import EngineSample, ScrapeError, ScrapeTarget
from flotilla.scaling.speed_observation import SpeedObserver

D = Decimal
KEY = Key(MODEL_DEPLOYMENT, "ns", "m")
SPEC = ModelDeploymentSpec.model_validate(
    {"model": {"source": "hf://a/b"}, "engine": {"name": "vllm"}, "accelerator": {"class": "nvidia-l4", "count": 2}}
)
RESOLVED = resolve("m", SPEC, load_catalog())


def at(second: int) -> str:
    return f"2026-11-25T08:{second // 60:02}:{second % 60:02}Z"


EPOCH_S = 1_795_593_600.0
"""Of at(0)."""


def fake(**members: Any) -> Any:
    """Stands for whatever has these members."""
    return SimpleNamespace(**members)


def pod(
    uid: str, node: str = "", *, scheduled: int, ready: int | None = None, version: int = 1, **meta: Any
) -> dict[str, Any]:
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at(scheduled)}]
    if ready is not None:
        conditions.append({"type": "Ready", "status": "True", "lastTransitionTime": at(ready)})
    reference = {"controller": True, "kind": "ReplicaSet", "name": "m-1"}
    labels = {"flotilla.dev/model": "m"}
    return {
        "metadata": {
            "name": uid, "namespace": "ns", "uid": uid, "resourceVersion": str(version), "labels": labels,
            "ownerReferences": [reference], **meta,
        },
        "spec": {"nodeName": node},
        "status": {"podIP": "10.0.0.1", "conditions": conditions},
    }  # fmt: skip


class Bench:
    """A store, a scaler's table of one deployment, and a fleet over them."""

    def __init__(self, **more: Any) -> None:
        self.store, self.now, self.ledger = Store(owner), EPOCH_S, Ledger(gap_s=1e9)
        live = {"metadata": {"name": "m", "namespace": "ns", "uid": "u", "resourceVersion": "1"}, "spec": {}}
        self.store.put(MODEL_DEPLOYMENT, live)
        self.entry = fake(uid="u", resolved=RESOLVED, answers={}, sample=None, speed=SpeedObserver())
        self.bases = {KEY: CostBasis(RESOLVED.accelerator)}
        self.scaler = fake(tracked={KEY: self.entry}, workloads=Workloads(self.store))
        self.book = PriceCache(lambda: None, lambda: 0.0, 600, **more)
        self.gone: dict[str, EngineSample | ScrapeError] = {}
        self.fleet = FleetAccounting(
            self.store,
            self.scaler,
            self.ledger,
            self.book,
            self.bases,
            clock=lambda: self.now,
            draining=lambda: self.gone,
        )

    def tick(self, second: int) -> None:
        self.now = EPOCH_S + second
        self.fleet.account()


def test_a_pods_time_is_startup_until_it_is_ready_then_by_its_requests() -> None:
    bench = Bench()
    bench.tick(0)
    bench.store.put(POD, pod("a", scheduled=1))
    bench.tick(10)
    bench.store.put(POD, pod("a", scheduled=1, ready=15, version=2))
    bench.entry.answers = {"a": EngineSample(running=1.0, waiting=0.0)}
    bench.tick(20)
    bench.entry.answers = {"a": EngineSample(running=0.0, waiting=0.0)}
    bench.tick(30)
    account = bench.ledger.accounts["u"]
    assert account.pod_seconds == {"startup": 14, "serving": 5, "idle": 10, "draining": 0}
    assert {kind: round(hours, 9) for kind, hours in account.gpu_hours.items()} == {"unknown": round(D(58) / 3600, 9)}
    assert round(account.total_usd, 9) == round(2 * D("0.8048") * 29 / 3600, 9)


async def test_a_deployment_that_goes_while_metrics_are_made_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounting_loop, "_SLICE", 1)
    bench, gone = Bench(), Key(MODEL_DEPLOYMENT, "ns", "gone")
    bench.entry.spec, bench.entry.state = fake(min_replicas=1, max_replicas=1), fake(desired=1)
    bench.scaler.tracked[gone] = bench.entry
    making = asyncio.create_task(bench.fleet.families())
    await asyncio.sleep(0)
    del bench.scaler.tracked[gone]
    bench.scaler.workloads.forget(gone)
    found = {sample.labels.get("modeldeployment") for family in await making for sample in family.samples}
    assert found & {"m", "gone"} == {"m"}
    assert set(bench.scaler.workloads._known) == {KEY}


def test_what_a_pod_serves_while_it_goes_is_counted() -> None:
    bench = Bench()
    bench.store.put(POD, pod("a", scheduled=0, ready=0))
    bench.entry.answers = {"a": EngineSample(running=1.0, waiting=0.0, generation_tokens=100.0)}
    bench.tick(10)
    bench.store.put(POD, pod("a", scheduled=0, ready=0, version=2, deletionTimestamp=at(11)))
    bench.entry.answers = {}
    bench.gone = {"a": EngineSample(running=1.0, waiting=0.0, generation_tokens=160.0)}
    bench.tick(20)
    account = bench.ledger.accounts["u"]
    assert account.usage.generated == 160
    assert account.pod_seconds["draining"] == 10


async def test_pods_that_go_are_asked_at_their_address_and_others_are_not() -> None:
    bench, asked = Bench(), []

    async def scrape(targets: list[ScrapeTarget]) -> dict[str, EngineSample]:
        asked.extend(targets)
        return {target.uid: EngineSample(running=0.0, waiting=0.0) for target in targets}

    bench.store.put(POD, pod("stays", scheduled=0, ready=0))
    draining = Draining(bench.store, bench.scaler, fake(scrape=scrape), interval_s=2)
    await draining.refresh()
    assert (asked, draining.answers) == ([], {})
    bench.store.put(POD, pod("goes", scheduled=0, deletionTimestamp=at(9)))
    await draining.refresh()
    assert [(target.uid, target.address, target.port) for target in asked] == [("goes", "10.0.0.1", RESOLVED.port)]
    assert set(draining.answers) == {"goes"}


async def test_a_pods_price_and_capacity_type_are_those_of_its_node() -> None:
    spot = {"metadata": {"name": "n", "labels": {"karpenter.sh/capacity-type": "spot"}}}
    pages = _pages(spot)
    bench = Bench(nodes=NodeLister(fake(pages=pages), frozenset()))
    bench.store.put(POD, pod("a", "n", scheduled=0, ready=0))
    bench.tick(10)
    assert list(bench.ledger.accounts["u"].rates) == [("unknown", "built-in")]
    await bench.book.refresh()
    bench.tick(20)
    rates = bench.ledger.accounts["u"].rates
    assert list(rates) == [("spot", "built-in")]
    assert rates["spot", "built-in"] == 2 * D("0.8048") * D("0.42")
    assert {rate.detail for rate in bench.fleet.rates(KEY)} == {"0.42 of AWS g6.xlarge us-east-1, for spot"}


def _pages(*objects: dict[str, Any]) -> Callable[[Kind], Any]:
    async def pages(kind: Kind) -> Any:
        yield ObjectList(list(objects), "1")

    return pages


def test_what_is_missing_is_counted_by_reason() -> None:
    bench = Bench()
    bench.store.put(POD, pod("a", scheduled=0, ready=0))
    bench.entry.answers = {"a": ScrapeError("no answer")}
    bench.bases[KEY] = CostBasis(load_catalog().accelerators["amd-mi300x"], unknown_comparators=1)
    bench.tick(10)
    assert bench.fleet.unpriced == {"gpu_unknown": 1, "model_unknown": 1, "usage_missing": 1}


def test_an_account_outlives_a_spec_that_is_wrong_for_a_while_and_ends_with_its_resource() -> None:
    bench = Bench()
    bench.store.put(POD, pod("a", scheduled=0, ready=0))
    bench.tick(10)
    bench.scaler.tracked = {}
    bench.tick(20)
    assert "u" in bench.ledger.accounts
    gone = {"name": "m", "namespace": "ns", "uid": "u", "resourceVersion": "99"}
    bench.store.drop(MODEL_DEPLOYMENT, {"metadata": gone})
    bench.tick(30)
    assert bench.ledger.accounts == {}


def test_a_turn_comes_soon_although_a_large_fleet_has_gone() -> None:
    turns, fleet = Turns(), [Key(MODEL_DEPLOYMENT, "ns", str(number)) for number in range(1000)]
    first = turns.take(fleet, 0.2)
    assert len(first) == 200
    last = fleet[-1]
    assert last not in first
    assert turns.take({last}, 0.2) == {last}
    rounds = [turns.take(fleet[:7], 0.2) for _ in range(4)]
    assert (set().union(*rounds), sum(map(len, rounds))) == (set(fleet[:7]), 7)
