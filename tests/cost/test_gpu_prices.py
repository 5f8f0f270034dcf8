"""Where the price of a GPU comes from, and what is said about it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from flotilla.catalog.accelerators import load_accelerators, parse
from flotilla.cost import gpu_prices, hosted_prices
from flotilla.cost.gpu_prices import CostBasis, NodeFacts, PriceSources, Rate, node_facts, pod_units, rate
from flotilla.cost.hosted_price_client import HostedPriceLookup
from flotilla.cost.hosted_prices import Comparator, HostedPrice, Tiers, token_factor
from flotilla.cost.price_loop import price_in_force, verdict
from flotilla.errors import InvalidSpec

D = Decimal
TABLE = load_accelerators()
L4 = TABLE["nvidia-l4"]
CATALOG = """
source: contract with a cloud
asOf: 2026-11-20
gpus:
- {class: nvidia-l4, usd: "0.62"}
- {class: nvidia-l4, usd: "0.20", capacityType: spot, source: "spot of last week", asOf: 2026-11-18}
- {instanceType: p5.48xlarge, nodeUsd: "40", gpus: 8}
- {class: nvidia-h100-80gb, instanceType: p5.48xlarge, region: eu-north-1, usd: "9"}
- {class: nvidia-a100-80gb, owned: {purchaseUsd: "280000", gpus: 8, years: 3, maintenancePercentPerYear: 10}}
hosted:
- {provider: acme, model: acme-8b, inputUsdPerMillion: "0.10", outputUsdPerMillion: "0.40", cachedUsdPerMillion: "0.02"}
"""


def node(
    *, labels: Mapping[str, str] | None = None, annotations: Mapping[str, str] | None = None, gpus: str = "8"
) -> NodeFacts:
    obj = {
        "metadata": {"name": "n", "labels": labels or {}, "annotations": annotations or {}},
        "status": {"capacity": {"nvidia.com/gpu": gpus, "cpu": "192"}},
    }
    return node_facts(obj, frozenset({"nvidia.com/gpu"}))


def test_each_source_yields_to_the_ones_before_it() -> None:
    sources = PriceSources(gpu_prices.parse("c", CATALOG), {"n": D("0.5")})
    annotated = node(annotations={"flotilla.dev/gpu-hourly-price": "0.7"})
    mine = Rate(D(3), "resource", "spec.cost.gpuHourlyPrice")
    plain = PriceSources(opencost=sources.opencost)

    def found(**known: Any) -> tuple[str, Decimal]:
        answer = rate(L4, **known)
        assert answer is not None
        return answer.source, answer.gpu_usd_per_hour

    assert found(override=mine, node=annotated, sources=sources) == ("resource", D(3))
    assert found(node=annotated, sources=sources) == ("node", D("0.7"))
    assert found(node=node(), sources=sources) == ("catalog", D("0.62"))
    assert found(node=node(), sources=plain) == ("opencost", D("0.5"))
    assert found(node=NodeFacts("other"), sources=plain) == ("built-in", D("0.8048"))
    assert found() == ("built-in", D("0.8048"))
    assert rate(TABLE["amd-mi300x"]) is None


def test_the_row_with_the_most_conditions_wins() -> None:
    catalog = gpu_prices.parse("c", CATALOG)

    def usd(class_name: str, **where: str) -> Decimal | None:
        wanted: Any = {"instance_type": "", "region": "", "capacity_type": "unknown", **where}
        row = catalog.find(class_name, **wanted)
        return None if row is None else row.gpu_usd_per_hour

    assert usd("nvidia-l4") == D("0.62")
    assert usd("nvidia-l4", capacity_type="spot") == D("0.20")
    assert usd("nvidia-h100-80gb") is None
    assert usd("nvidia-h100-80gb", instance_type="p5.48xlarge") == 5
    assert usd("nvidia-h100-80gb", instance_type="p5.48xlarge", region="eu-north-1") == 9
    owned = usd("nvidia-a100-80gb")
    assert owned is not None
    assert round(owned * 8, 6) == D("13.850837")
    row = catalog.find("nvidia-l4", instance_type="", region="", capacity_type="spot")
    assert row is not None
    assert (row.source, row.as_of) == ("spot of last week", date(2026, 11, 18))
    assert catalog.find_hosted("acme", "acme-8b") is not None
    assert catalog.find_hosted("acme", "acme-70b") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "c: while parsing"),
        ("- 1", "c: a mapping with source, asOf, gpus and hosted is needed, not a list."),
        ("{}", "c: source: Field required"),
        ("{source: s, asOf: yesterday}", "c: asOf: "),
        ("{source: s, asOf: 2026-01-01, gpu: []}", "c: gpu: Extra inputs"),
        ('{source: s, asOf: 2026-01-01, gpus: [{usd: "1"}]}', "c: gpus.0: Value error, neither class nor instanceType"),
        ("{source: s, asOf: 2026-01-01, gpus: [{class: a}]}", "exactly one of usd"),
        ('{source: s, asOf: 2026-01-01, gpus: [{class: a, usd: "1", nodeUsd: "2", gpus: 1}]}', "exactly one of usd"),
        ('{source: s, asOf: 2026-01-01, gpus: [{class: a, nodeUsd: "1"}]}', "nodeUsd and gpus belong together"),
        (
            '{source: s, asOf: 2026-01-01, gpus: [{class: a, usd: "-1"}]}',
            "c: gpus.0.usd: Input should be greater than 0",
        ),
        ("{source: s, asOf: 2026-01-01, gpus: [{class: a, usd: .nan}]}", "c: gpus.0.usd: "),
        ('{source: s, asOf: 2026-01-01, gpus: [{class: a, usd: "1", capacityType: free}]}', "c: gpus.0.capacityType: "),
        (
            "{source: s, asOf: 2026-01-01, hosted: [{provider: p, model: m, inputUsdPerMillion: -1000000, "
            "outputUsdPerMillion: 1}]}",
            "c: hosted.0.inputUsdPerMillion: Input should be greater than or equal to 0",
        ),
    ],
)
def test_a_wrong_catalogue_is_refused_by_file_row_and_field(text: str, message: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        gpu_prices.parse("c", text)
    assert message in str(refused.value)
    assert refused.value.reason == "PriceCatalogRefused"


def test_a_nodes_annotation_prices_a_gpu_or_the_whole_node() -> None:
    assert node(annotations={"flotilla.dev/node-hourly-price": "55.04"}).gpu_usd_per_hour == D("6.88")
    both = {"flotilla.dev/node-hourly-price": "55.04", "flotilla.dev/gpu-hourly-price": "2"}
    assert node(annotations=both).gpu_usd_per_hour == 2
    sliced = node(annotations={"flotilla.dev/node-hourly-price": "5"}, gpus="0")
    assert sliced.gpu_usd_per_hour is None
    assert "the node has no whole GPUs; write flotilla.dev/gpu-hourly-price" in sliced.problem


def test_a_time_sliced_node_has_fewer_gpus_than_it_advertises() -> None:
    sliced = node(labels={"nvidia.com/gpu.replicas": "4"}, annotations={"flotilla.dev/node-hourly-price": "8"})
    assert sliced.gpu_usd_per_hour == 4
    assert pod_units(L4, 1, sliced) == D("0.25")
    assert pod_units(L4, 1, node()) == 1
    assert pod_units(TABLE["nvidia-h100-80gb-mig-3g-40gb"], 1, sliced) == D("0.5")


@pytest.mark.parametrize("price", ["", "free", "-1", "0", "NaN", "Infinity"])
def test_an_annotation_that_is_no_price_is_not_used_and_said(price: str) -> None:
    facts = node(annotations={"flotilla.dev/gpu-hourly-price": price})
    assert facts.gpu_usd_per_hour is None
    assert f"annotation flotilla.dev/gpu-hourly-price is {price!r}" in facts.problem


def test_spot_is_a_part_of_the_list_price_and_an_estimate() -> None:
    found = rate(L4, node=node(labels={"karpenter.sh/capacity-type": "spot"}))
    assert found is not None
    assert found.gpu_usd_per_hour == D("0.8048") * D("0.42")
    assert found.estimated
    assert "0.42 of AWS g6.xlarge us-east-1, for spot" in str(found)


def test_a_slice_costs_its_share_of_a_whole_gpu_at_every_source() -> None:
    part = TABLE["nvidia-h100-80gb-mig-3g-40gb"]
    listed, mine = rate(part), rate(part, override=Rate(D(2), "resource", ""))
    assert listed is not None
    assert mine is not None
    assert listed.gpu_usd_per_hour == D("6.88")
    assert mine.gpu_usd_per_hour * pod_units(part, 1, None) == 1


def test_an_administrators_share_is_a_fraction() -> None:
    row = (
        '- {class: half, vendor: nvidia, memoryGib: 11, computeCapability: 8.9, shared: true, gfd: [X], gpuShare: "%s"}'
    )
    assert pod_units(parse("t", row % "1/2")["half"], 1, None) == D("0.5")
    with pytest.raises(InvalidSpec, match=r"t: half: gpuShare: .*'0.5' is not a share of a GPU"):
        parse("t", row % "0.5")


MINI = HostedPrice("openai", "gpt-5-mini", "genai-prices", Tiers(D("0.25")), Tiers(D(2)), None)
BASIS = CostBasis(L4, comparators=(Comparator(MINI),))
TODAY = date(2026, 11, 25)


def say(basis: CostBasis = BASIS, *nodes: NodeFacts, problems: Any = (), notes: Any = (), today: date = TODAY) -> Any:
    told = price_in_force(basis, nodes, PriceSources())
    return verdict(told, problems, notes=notes, today=today, stale_after_days=60)


def test_the_condition_names_price_source_and_comparators() -> None:
    told = say()
    assert (told.status, told.reason) == ("True", "Priced")
    assert told.message == (
        "One GPU costs 0.8048 USD/h (built-in: AWS g6.xlarge us-east-1), a list price: set your own where you pay "
        "another; compared with openai/gpt-5-mini."
    )
    mine = replace(BASIS, override=Rate(D("2.10"), "resource", "spec.cost.gpuHourlyPrice"))
    assert say(mine).message.startswith("One GPU costs 2.1 USD/h (resource: spec.cost.gpuHourlyPrice); compared")


def test_nodes_of_several_prices_are_said_with_both_ends() -> None:
    spot, dear = node(labels={"karpenter.sh/capacity-type": "spot"}), NodeFacts("m", gpu_usd_per_hour=D(1))
    message = say(BASIS, spot, dear, node()).message
    assert message.startswith("GPUs cost 0.338 (built-in: 0.42 of AWS")
    assert "to 1 USD/h (node: annotation of the node)" in message


def test_an_old_price_is_warned_about_with_its_date() -> None:
    told = say(today=date(2027, 1, 9))
    assert (told.status, told.reason) == ("True", "PriceStale")
    assert "The price is of 2026-11-09 and older than 60 days: check it" in told.message
    assert say(today=date(2027, 1, 8)).reason == "Priced"


def test_what_is_missing_is_said_and_what_is_wrong_with_a_source_is_added() -> None:
    unknown = say(CostBasis(TABLE["amd-mi300x"]), notes=["The new price catalogue is refused."])
    assert (unknown.status, unknown.reason) == ("False", "GpuPriceUnknown")
    assert "Set spec.cost.gpuHourlyPrice" in unknown.message
    assert unknown.message.endswith("The new price catalogue is refused.")
    problem = InvalidSpec("No such model.", field="spec.cost.compareWith[0].model", reason="UnknownHostedModel")
    wrong = say(problems=[problem])
    assert (wrong.status, wrong.reason) == ("False", "UnknownHostedModel")
    assert wrong.message == "spec.cost.compareWith[0].model: No such model."
    assert say(CostBasis(L4)).reason == "NoComparator"


@pytest.mark.parametrize(
    ("model", "factor"),
    [
        ("gpt-5-mini", "1"), ("llama-3.1-8b-instant", "1"), ("gemini-2.5-flash-lite", "1"),
        ("claude-3-5-sonnet", "1.20"), ("claude-haiku-4-5", "1.20"), ("claude-sonnet-4-20250514", "1.20"),
        ("claude-opus-4-7", "1.35"), ("claude-sonnet-5-5", "1.35"), ("claude-opus-5", "1.35"),
    ],
)  # fmt: skip
def test_claude_counts_more_tokens_of_the_same_text(model: str, factor: str) -> None:
    assert token_factor(model) == D(factor)


NOW = datetime(2026, 11, 25, tzinfo=UTC)


def test_batches_have_their_own_price_only_where_the_catalogue_says_so() -> None:
    plain = hosted_prices.find("openai", "gpt-5-mini", field="f", at=NOW)
    batch = hosted_prices.find("openai", "gpt-5-mini", field="f", at=NOW, batch=True)
    assert (plain.input.base, batch.input.base) == (D("0.25"), D("0.125"))
    with pytest.raises(InvalidSpec, match="no price for batches of") as refused:
        hosted_prices.find("together", "meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo", field="f", at=NOW, batch=True)
    assert refused.value.field == "f.mode"


@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-5.4"), ("google", "gemini-2.5-pro")])
def test_a_tier_holds_for_a_request_of_its_size_and_not_for_a_windows_sum(provider: str, model: str) -> None:
    price = hosted_prices.find(provider, model, field="f", at=NOW)
    small, sum_of_many = price.at(1000), price.at(1_000_000)
    assert sum_of_many.input_usd_per_million == 2 * small.input_usd_per_million


@pytest.mark.parametrize(
    ("provider", "model", "usd"),
    [
        ("openai", "gpt-6-luna", (".1", ".5", ".01")), ("openai", "gpt-4.1-mini", (".4", "1.6", ".1")),
        ("openai", "gpt-4o", ("2.5", "10", "1.25")), ("anthropic", "claude-sonnet-5-5", ("2", "10", ".1")),
        ("anthropic", "claude-haiku-5-5", (".1", ".5", ".01")),
    ],
)  # fmt: skip
def test_the_catalogues_prices_are_those_of_the_published_analysis(
    provider: str, model: str, usd: tuple[str, str, str]
) -> None:
    found = hosted_prices.find(provider, model, field="f", at=NOW).at(1000)
    assert found.input_usd_per_million == D(usd[0])
    assert found.output_usd_per_million == D(usd[1])
    assert found.cached_usd_per_million == D(usd[2])


async def test_hosted_prices_come_from_the_catalogue_and_unknown_names_get_near_ones() -> None:
    desk = HostedPriceLookup()
    price = await desk.find("openai", "gpt-5-mini", field="spec.cost.compareWith[0]")
    assert price.comparator == "openai/gpt-5-mini"
    assert price.input.base > 0
    with pytest.raises(InvalidSpec, match="Did you mean") as refused:
        await desk.find("openai", "gpt-nonsense", field="spec.cost.compareWith[0]")
    assert (refused.value.field, refused.value.reason) == ("spec.cost.compareWith[0].model", "UnknownHostedModel")
