"""Prices that change while the operator runs."""

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
from flotilla.cost.gpu_prices import NodeFacts, load_price_catalog
from flotilla.cost.hosted_price_client import HostedPriceLookup
from flotilla.cost.price_loop import NodeLister, PriceCache, Pricing, opencost_prices
from flotilla.errors import FlotillaError, Forbidden, InvalidSpec, Transient
from flotilla.kube.client import ObjectList
from flotilla.kube.kinds import Kind
from flotilla.planning.resolve import load_catalog, resolve
from flotilla.prometheus.client import PrometheusClient

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
    book = PriceCache(seen, lambda: 0.0, 600, catalog_file=file)
    book.reread()
    book.reread()
    assert (seen.changes, book.sources.catalog.gpus[0].usd) == (1, D("0.62"))
    replaced(file, GOOD % "0.50")
    book.reread()
    assert (seen.changes, book.sources.catalog.gpus[0].usd) == (2, D("0.50"))


def test_a_wrong_catalogue_leaves_the_last_good_one_in_force_and_is_said_until_it_is_right(tmp_path: Path) -> None:
    file, seen = tmp_path / "prices.yaml", Seen()
    file.write_text(GOOD % "0.62")
    book = PriceCache(seen, lambda: 0.0, 600, catalog_file=file)
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
        load_price_catalog(file)
    with pytest.raises(InvalidSpec, match="No such file"):
        load_price_catalog(tmp_path / "none")


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
    book = PriceCache(seen, lambda: 0.0, 600, nodes=NodeLister(client, frozenset()))  # type: ignore[arg-type]
    assert book.node("a") is None
    assert book.node("") is None
    await book.refresh()
    assert book.node("a") == NodeFacts("a")
    assert (client.lists, seen.changes) == (1, 1)
    await book.refresh()
    assert client.lists == 1
    client.objects = [node("b")]
    assert book.node("b") is None
    await book.refresh()
    assert (book.node("a"), book.node("b"), client.lists) == (None, NodeFacts("b"), 2)


async def test_a_failed_list_of_nodes_is_retried_in_half_a_minute_and_not_sooner() -> None:
    now, client, seen = [0.0], Nodes(node("a"), node("b")), Seen()
    book = PriceCache(seen, lambda: now[0], 600, nodes=NodeLister(client, frozenset()))  # type: ignore[arg-type]
    book.node("a")
    client.fails = Transient("later")
    await book.refresh()
    book.node("b")
    for at in (2.0, 29.0):
        now[0] = at
        await book.refresh()
    assert (client.lists, book.node("a")) == (1, None)
    now[0], client.fails = 30.0, None
    await book.refresh()
    assert (client.lists, book.node("a"), book.node("b")) == (2, NodeFacts("a"), NodeFacts("b"))
    for at, lists in ((629.0, 2), (630.0, 3), (632.0, 3)):
        now[0] = at
        await book.refresh()
        assert client.lists == lists


async def test_an_operator_that_may_not_see_nodes_stops_asking() -> None:
    now, client, seen = [0.0], Nodes(node("a")), Seen()
    book = PriceCache(seen, lambda: now[0], 600, nodes=NodeLister(client, frozenset()))  # type: ignore[arg-type]
    book.node("a")
    client.fails = Forbidden("no")
    await book.refresh()
    book.node("b")
    now[0] = 3600.0
    await book.refresh()
    assert (client.lists, book.node("a"), seen.changes) == (1, None, 0)


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
            assert await opencost_prices(client) == {"p5": D("6.88")}
        finally:
            await client.close()


async def test_opencost_is_asked_at_its_interval_and_its_last_prices_stay_when_it_fails() -> None:
    now, answers, seen = [0.0], [{"a": D(1)}, {"a": D(1)}, None], Seen()

    async def opencost() -> Mapping[str, Decimal]:
        answer = answers.pop(0)
        if answer is None:
            raise Transient("no answer")
        return answer

    book = PriceCache(seen, lambda: now[0], 600, opencost=opencost)
    for at in (0.0, 5.0, 600.0, 1200.0):
        now[0] = at
        await book.refresh()
    assert (answers, book.sources.opencost, seen.changes) == ([], {"a": D(1)}, 1)
    answers.append({"a": D(2)})
    for at, left in ((1229.0, 1), (1230.0, 0)):
        now[0] = at
        await book.refresh()
        assert len(answers) == left
    assert book.sources.opencost == {"a": D(2)}


def spec(**cost: Any) -> ModelDeploymentSpec:
    wanted = {"model": {"source": "hf://a/b"}, "engine": {"name": "vllm"}, "accelerator": {"class": "nvidia-l4"}}
    return ModelDeploymentSpec.model_validate({**wanted, "cost": cost})


async def basis(book: PriceCache, default: HostedModel | None = None, **cost: Any) -> Any:
    desk: Any = HostedPriceLookup()
    pricing = Pricing(desk, book, default, today=lambda: date(2026, 11, 25), stale_after_days=60)
    wanted = spec(**cost)
    found = await pricing.basis(wanted, resolve("m", wanted, load_catalog()))
    return found, *pricing.verdict(found, [])


def book_of(text: str, tmp_path: Path) -> PriceCache:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    book = PriceCache(Seen(), lambda: 0.0, 600, catalog_file=file)
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
        PriceCache(Seen(), lambda: 0.0, 600), compareWith=[comparator], owned=owned, outputTokenWeightPercent=250,
        cachedTokenWeightPercent=10, maxTokensPerSecond=2400, overheadUsdPerDay="12.50", monthlyBudgetUsd="4000",
    )  # fmt: skip
    mine = found.cost_basis
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
    assert found.cost_basis.comparators[0].price.source == "catalog: contract"
    assert str(told.rates[0]) == "catalog: contract"
    assert verdict.message == "One GPU costs 0.62 USD/h (catalog: contract); compared with openai/gpt-5-mini."


async def test_an_unknown_comparator_is_named_and_the_others_are_used(tmp_path: Path) -> None:
    wanted = [
        {"provider": "openai", "model": "gpt-nonsense"},
        {"provider": "openai", "model": "gpt-5-mini", "mode": "Batch"},
    ]
    found, _, verdict = await basis(book_of(GOOD % "1", tmp_path), compareWith=wanted)
    assert [comparator.name for comparator in found.cost_basis.comparators] == ["openai/gpt-5-mini@batch"]
    assert found.cost_basis.comparators[0].price.input.base == D("0.125")
    assert found.cost_basis.unknown_comparators == 1
    assert (verdict.status, verdict.reason) == ("False", "UnknownHostedModel")
    assert verdict.message.startswith("spec.cost.compareWith[0].model: ")
