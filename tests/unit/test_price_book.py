"""Prices that change while the operator runs, and the accounts that it keeps."""

import os
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.support.prometheus import running_prometheus, serving

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.config import HostedModel
from flotilla.control.keys import owner
from flotilla.control.ledger_store import KEY, LABEL_LEDGER, LedgerStore
from flotilla.control.price_book import NodeLister, PriceBook
from flotilla.control.pricing import Pricing
from flotilla.domain.pricing import NodeFacts
from flotilla.domain.resolve import load_catalog, resolve
from flotilla.errors import FlotillaError, Forbidden, InvalidSpec, Transient
from flotilla.kube.kinds import MODEL_DEPLOYMENT, Kind
from flotilla.kube.protocol import ObjectList
from flotilla.kube.store import Store
from flotilla.telemetry.ledger import Counters, Ledger, PodObservation
from flotilla.telemetry.opencost import gpu_prices
from flotilla.telemetry.price_desk import PriceDesk
from flotilla.telemetry.prometheus import PrometheusClient

D = Decimal
GOOD = 'source: contract\nasOf: 2026-11-20\ngpus: [{class: nvidia-l4, usd: "%s"}]\n'


class Seen:
    """Counts how often the book says that something is new."""

    def __init__(self) -> None:
        self.changes = 0

    def __call__(self) -> None:
        self.changes += 1


def replaced(file: Path, text: str) -> None:
    """As the kubelet does it: another file in its place."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, file)


def test_a_catalogue_is_read_again_when_it_changes_and_only_then(tmp_path: Path) -> None:
    file, seen = tmp_path / "prices.yaml", Seen()
    file.write_text(GOOD % "0.62")
    book = PriceBook(seen, lambda: 0.0, 600, catalog_file=file)
    book.reread()
    book.reread()
    assert (seen.changes, book.sources.catalog.gpus[0].usd) == (1, D("0.62"))
    replaced(file, GOOD % "0.50")
    book.reread()
    assert (seen.changes, book.sources.catalog.gpus[0].usd) == (2, D("0.50"))


def test_a_wrong_catalogue_leaves_the_last_good_one_in_force_and_is_said_until_it_is_right(tmp_path: Path) -> None:
    file, seen = tmp_path / "prices.yaml", Seen()
    file.write_text(GOOD % "0.62")
    book = PriceBook(seen, lambda: 0.0, 600, catalog_file=file)
    book.reread()
    replaced(file, GOOD % "-1")
    book.reread()
    assert book.sources.catalog.gpus[0].usd == D("0.62")
    assert "The new price catalogue is refused and the last good one stays in force" in book.problem
    assert "gpus.0.usd: Input should be greater than 0 (value: '-1')" in book.problem
    file.unlink()
    book.reread()
    assert "No such file" in book.problem
    replaced(file, GOOD % "0.62")
    book.reread()
    assert (book.problem, seen.changes) == ("", 4)


def test_a_wrong_catalogue_at_the_start_ends_the_start(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(GOOD % "free")
    with pytest.raises(InvalidSpec, match=r"prices\.yaml: gpus\.0\.usd"):
        load_catalog(prices=file)
    with pytest.raises(InvalidSpec, match="No such file"):
        load_catalog(prices=tmp_path / "none")


class Nodes:
    """Stands for KubeClient."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.objects = list(objects)
        self.fails: FlotillaError | None = None
        self.lists = 0

    async def pages(self, kind: Kind, **_: object) -> Any:
        self.lists += 1
        if self.fails is not None:
            raise self.fails
        yield ObjectList(self.objects, "1")


def node(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {key.replace("__", "/"): value for key, value in labels.items()}}}


async def test_nodes_are_listed_when_pods_are_on_unknown_ones_and_forgotten_with_them() -> None:
    client, seen = Nodes(node("a"), node("b")), Seen()
    book = PriceBook(seen, lambda: 0.0, 600, nodes=NodeLister(client, frozenset()))  # type: ignore[arg-type]
    assert book.node("a") is None
    assert book.node("") is None
    await book.look()
    assert book.node("a") == NodeFacts("a")
    assert (client.lists, seen.changes) == (1, 1)
    await book.look()
    assert client.lists == 1
    client.objects = [node("b")]
    assert book.node("b") is None
    await book.look()
    assert (book.node("a"), book.node("b"), client.lists) == (None, NodeFacts("b"), 2)


async def test_an_operator_that_may_not_see_nodes_stops_asking() -> None:
    client, seen = Nodes(node("a")), Seen()
    book = PriceBook(seen, lambda: 0.0, 600, nodes=NodeLister(client, frozenset()))  # type: ignore[arg-type]
    book.node("a")
    client.fails = Transient("later")
    await book.look()
    client.fails = Forbidden("no")
    book.node("b")
    await book.look()
    book.node("c")
    await book.look()
    assert (client.lists, book.node("a"), seen.changes) == (2, None, 0)


OPENCOST = """
node_total_hourly_cost{node="p5",instance_type="p5.48xlarge"} 55.04
node_gpu_hourly_cost{node="p5",instance_type="p5.48xlarge"} 2.339855
node_gpu_count{node="p5",instance_type="p5.48xlarge"} 8
node_total_hourly_cost{node="cpu"} 0.2
node_gpu_count{node="cpu"} 0
node_total_hourly_cost{node="free"} 0
node_gpu_count{node="free"} 4
node_total_hourly_cost{node="odd"} NaN
node_gpu_count{node="odd"} 1
"""


async def test_a_gpu_costs_its_part_of_the_node_by_opencost_and_zero_and_nan_are_missing_prices(tmp_path: Path) -> None:
    with serving(OPENCOST) as page, running_prometheus(tmp_path, pages=[page]) as running:
        running.until("count(node_gpu_count) == 4")
        client = PrometheusClient(running.url)
        try:
            assert await gpu_prices(client) == {"p5": D("6.88")}
        finally:
            await client.close()


async def test_opencost_is_asked_at_its_interval_and_its_last_prices_stay_when_it_fails() -> None:
    now, answers, seen = [0.0], [{"a": D(1)}, {"a": D(1)}, None], Seen()

    async def opencost() -> Mapping[str, Decimal]:
        answer = answers.pop(0)
        if answer is None:
            raise Transient("no answer")
        return answer

    book = PriceBook(seen, lambda: now[0], 600, opencost=opencost)
    for at in (0.0, 5.0, 600.0, 1200.0):
        now[0] = at
        await book.look()
    assert (answers, book.sources.opencost, seen.changes) == ([], {"a": D(1)}, 1)


def spec(**cost: Any) -> ModelDeploymentSpec:
    wanted = {"model": {"source": "hf://a/b"}, "engine": {"name": "vllm"}, "accelerator": {"class": "nvidia-l4"}}
    return ModelDeploymentSpec.model_validate({**wanted, "cost": cost})


async def basis(book: PriceBook, default: HostedModel | None = None, **cost: Any) -> Any:
    desk: Any = PriceDesk()
    pricing = Pricing(desk, book, default, today=lambda: date(2026, 11, 25), stale_after_days=60)
    wanted = spec(**cost)
    found = await pricing.basis(wanted, resolve("m", wanted, load_catalog()))
    return found, *pricing.verdict(found, [])


def book_of(text: str, tmp_path: Path) -> PriceBook:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    book = PriceBook(Seen(), lambda: 0.0, 600, catalog_file=file)
    book.reread()
    return book


async def test_each_field_of_the_spec_reaches_the_basis() -> None:
    prices = {"inputUsdPerMillion": "0.25", "outputUsdPerMillion": "2", "cachedUsdPerMillion": "0.025"}
    comparator = {
        "provider": "acme", "model": "acme-8b", "prices": prices, "inputTokensPercent": 103,
        "outputTokensPercent": 150, "cacheCredit": "Fixed", "cachedPercent": 40,
    }  # fmt: skip
    owned = {
        "purchaseUsd": "280000", "gpus": 8, "years": 3, "maintenancePercentPerYear": 10, "powerWatts": 2400,
        "usdPerKwh": "0.12", "puePercent": 140,
    }  # fmt: skip
    found, told, verdict = await basis(
        PriceBook(Seen(), lambda: 0.0, 600), compareWith=[comparator], owned=owned, outputTokenWeightPercent=250,
        cachedTokenWeightPercent=10, maxTokensPerSecond=2400, overheadUsdPerDay="12.50", monthlyBudgetUsd="4000",
    )  # fmt: skip
    mine = found.basis
    assert (mine.weights.output, mine.weights.cached) == (D("2.5"), D("0.1"))
    assert (mine.tokens_per_second, mine.overhead_usd_per_day, mine.budget_usd_per_month) == (2400, D("12.5"), 4000)
    assert round(told.rates[0].gpu_usd_per_hour * 8, 6) == D("13.850837") + D("0.4032")
    assert verdict.message.startswith(
        "One GPU costs 1.7818 USD/h (owned: spec.cost.owned); compared with acme/acme-8b."
    )
    one = mine.comparators[0]
    assert (one.terms.input_factor, one.terms.output_factor) == (D("1.03"), D("1.5"))
    assert (one.terms.cache_credit, one.terms.cached_share) == ("Fixed", D("0.4"))
    assert (one.price.source, one.price.output.base) == ("spec.cost.compareWith", 2)


async def test_the_operators_hosted_model_stands_in_and_the_catalogues_price_of_one_wins(tmp_path: Path) -> None:
    text = (
        GOOD % "0.62"
        + "hosted: [{provider: openai, model: gpt-5-mini, inputUsdPerMillion: 1, outputUsdPerMillion: 2}]\n"
    )
    book = book_of(text, tmp_path)
    found, told, verdict = await basis(book, HostedModel(provider="openai", model="gpt-5-mini"))
    assert found.basis.comparators[0].price.source == "catalog: contract"
    assert str(told.rates[0]) == "catalog: contract"
    assert verdict.message == "One GPU costs 0.62 USD/h (catalog: contract); compared with openai/gpt-5-mini."


async def test_an_unknown_comparator_is_named_and_the_others_are_used(tmp_path: Path) -> None:
    wanted = [
        {"provider": "openai", "model": "gpt-nonsense"},
        {"provider": "openai", "model": "gpt-5-mini", "mode": "Batch"},
    ]
    found, _, verdict = await basis(book_of(GOOD % "1", tmp_path), compareWith=wanted)
    assert [comparator.name for comparator in found.basis.comparators] == ["openai/gpt-5-mini@batch"]
    assert found.basis.comparators[0].price.input.base == D("0.125")
    assert found.basis.unknown_comparators == 1
    assert (verdict.status, verdict.reason) == ("False", "UnknownHostedModel")
    assert verdict.message.startswith("spec.cost.compareWith[0].model: ")


class Records:
    """Stands for KubeClient: remembers ConfigMaps."""

    def __init__(self) -> None:
        self.maps: dict[str, dict[str, Any]] = {}
        self.writes = 0
        self.fails: FlotillaError | None = None

    async def pages(self, kind: Kind, *, namespace: str | None, label_selector: str) -> Any:
        assert label_selector == LABEL_LEDGER
        yield ObjectList([obj for obj in self.maps.values() if LABEL_LEDGER in obj["metadata"].get("labels", {})], "1")

    async def get(self, kind: Kind, name: str, *, namespace: str) -> dict[str, Any] | None:
        return self.maps.get(name)

    async def apply(self, kind: Kind, obj: dict[str, Any], *, manager: str) -> dict[str, Any]:
        if self.fails is not None:
            raise self.fails
        assert manager == "flotilla-ledger"
        self.writes += 1
        self.maps[obj["metadata"]["name"]] = obj
        return obj


def fleet(client: Records, now: list[float], uid: str = "u") -> tuple[Ledger, LedgerStore]:
    store, ledger = Store(owner), Ledger()
    store.put(MODEL_DEPLOYMENT, {"metadata": {"name": "m", "namespace": "ns", "uid": uid, "resourceVersion": "1"}})
    kept = LedgerStore(client, store, ledger, namespaces=(), interval_s=300, clock=lambda: now[0])  # type: ignore[arg-type]
    return ledger, kept


def observe(ledger: Ledger, now: float, *uids: str) -> None:
    pods = [PodObservation(uid, 0, "serving", D(1), Counters(prompt=now), D(1)) for uid in uids]
    ledger.observe("u", pods, now=now)


async def test_a_record_is_written_when_the_pods_change_and_at_a_slow_cadence_and_not_without_pods() -> None:
    client, now = Records(), [0.0]
    ledger, kept = fleet(client, now)
    writes = []
    for at, uids in (
        (0, ""),
        (10, "a"),
        (20, "a"),
        (30, "ab"),
        (40, "ab"),
        (330, "ab"),
        (340, "ab"),
        (350, ""),
        (9000, ""),
    ):
        now[0] = float(at)
        observe(ledger, now[0], *uids)
        await kept.write_due()
        writes.append(client.writes)
    assert writes == [0, 1, 1, 2, 2, 3, 3, 4, 4]


async def test_a_successor_goes_on_where_the_operator_ended() -> None:
    client, now = Records(), [10.0]
    ledger, kept = fleet(client, now)
    observe(ledger, 10.0, "a")
    observe(ledger, 20.0, "a")
    await kept.save()
    assert client.maps["m-flotilla-ledger"]["metadata"]["ownerReferences"][0]["uid"] == "u"
    again, taken_up = fleet(client, now)
    await taken_up.load()
    observe(again, 30.0, "a")
    assert round(again.accounts["u"].total_usd * 3600, 6) == 20
    assert again.accounts["u"].usage.prompt == 30
    await taken_up.write_due()
    assert client.writes == 1, "nothing changed but time, and the interval is not over"


async def test_a_record_of_a_namesake_or_one_that_is_broken_is_not_taken_up() -> None:
    client, now = Records(), [0.0]
    ledger, kept = fleet(client, now)
    observe(ledger, 10.0, "a")
    await kept.save()
    namesake, other = fleet(client, now, uid="later")
    await other.load()
    assert namesake.accounts == {}
    client.maps["m-flotilla-ledger"]["data"][KEY] = "{"
    again, broken = fleet(client, now)
    await broken.load()
    assert again.accounts == {}


async def test_a_strangers_configmap_is_left_alone() -> None:
    client, now = Records(), [0.0]
    client.maps["m-flotilla-ledger"] = {"metadata": {"name": "m-flotilla-ledger"}, "data": {"mine": "x"}}
    ledger, kept = fleet(client, now)
    observe(ledger, 10.0, "a")
    await kept.save()
    assert (client.writes, client.maps["m-flotilla-ledger"]["data"]) == (0, {"mine": "x"})


async def test_a_write_that_failed_is_tried_again() -> None:
    client, now = Records(), [0.0]
    client.fails = Transient("later")
    ledger, kept = fleet(client, now)
    observe(ledger, 10.0, "a")
    await kept.write_due()
    client.fails = None
    await kept.write_due()
    assert client.writes == 1
