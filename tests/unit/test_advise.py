"""`flotilla advise`: the 100k-tasks-a-day table, the decisions, and what is refused."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flotilla.cli import app
from flotilla.cost import gpu_prices
from flotilla.cost.hosted_prices import HostedPrice, Tiers
from flotilla.simulation.advice import Machine, Terms, Workload, advise, tasks_per_second

D = Decimal
LIST_PRICE = ("--peak", "1", "--utilization", "100", "-a", "L4", "-a", "H100-80GB=2.69", "-a", "H100-80GB=6.88")
"""One replica, fully used, no overhead: the terms of the published analysis."""


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["advise", *arguments], env={"COLUMNS": "160"})


def answer(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("shape", "comparators"),
    [
        (
            (500, 10),
            {
                "openai/gpt-6-luna": (".055", 351_185, 1_173_818, 3_002_182),
                "anthropic/claude-haiku-5-5": (".055", 351_185, 1_173_818, 3_002_182),
                "openai/gpt-4.1-mini": (".216", 89_422, 298_889, 764_444),
                "anthropic/claude-sonnet-5-5": ("1.10", 17_559, 58_691, 150_109),
                "openai/gpt-6.1-sol": ("1.10", 17_559, 58_691, 150_109),
            },
        ),
        (
            (1000, 150),
            {
                "openai/gpt-6-luna": (".175", 110_373, 368_914, 943_543),
                "openai/gpt-5-mini": (".55", 35_119, 117_382, 300_218),
                "openai/gpt-4.1-mini": (".64", 30_180, 100_875, 258_000),
                "anthropic/claude-sonnet-5-5": ("3.50", 5_519, 18_446, 47_177),
            },
        ),
        (
            (3000, 300),
            {
                "openai/gpt-6-luna": (".45", 42_923, 143_467, 366_933),
                "openai/gpt-4o": ("10.5", 1_840, 6_149, 15_726),
            },
        ),
    ],
)
def test_the_table_of_100k_tasks_a_day_with_the_comparators_price_as_the_variable(
    shape: tuple[int, int], comparators: dict[str, tuple[str, int, int, int]]
) -> None:
    more = [part for name in comparators for part in ("--compare", name)]
    found = answer(
        "-n", "100000", "--input-tokens", str(shape[0]), "--output-tokens", str(shape[1]), *LIST_PRICE, *more
    )
    table: dict[str, list[int]] = {}
    for row in found["breakEven"]:
        table.setdefault(row["comparator"], []).append(int(row["tasksPerDay"]))
        if row["comparator"] in comparators:
            assert D(row["usdPerThousandTasks"]) == D(comparators[row["comparator"]][0])
    for comparator, (_, *tasks) in comparators.items():
        assert table[comparator] == tasks, comparator


@pytest.mark.parametrize(
    ("price", "decision"),
    [("0.19", "hosted small"), ("0.20", "self-hosted small")],
)
def test_the_slogan_holds_where_a_thousand_hosted_tasks_cost_more_than_a_hundredth_of_a_gpu_day(
    price: str, decision: str
) -> None:
    """On an L4 at 0.8048 USD/h that is 0.193 USD."""
    found = answer("-n", "100000", "-a", "L4", "--peak", "1", "--small", f"acme/small={price}/0")
    assert found["decision"]["kind"] == decision
    assert found["selfHostingPaysAboveUsdPerThousandTasks"] == "0.193"


def test_few_tasks_are_hosted_and_many_are_not() -> None:
    assert answer("-n", "1000")["decision"]["kind"] == "hosted small"
    many = answer("-n", "3000000", "-a", "H100-80GB=2.69")["decision"]
    assert many["kind"] == "self-hosted small"
    assert many["replicas"] > 1


def test_data_that_must_stay_decides_whatever_it_costs() -> None:
    found = answer("-n", "100", "--sovereignty", "cluster")
    assert found["decision"]["kind"] == "self-hosted small"
    refused = {option["kind"]: option["refused"] for option in found["options"] if "refused" in option}
    assert refused == dict.fromkeys(("hosted small", "frontier"), "data must stay in the cluster")


def test_what_is_beyond_a_small_model_is_mixed_or_left_to_the_frontier() -> None:
    mixed = answer("-n", "1000000", "--quality", "mixed")
    assert mixed["decision"]["kind"] == "mix"
    assert "20 % to anthropic/claude-sonnet-5-5" in mixed["decision"]["what"]
    assert answer("-n", "1000000", "--quality", "frontier")["decision"]["kind"] == "frontier"
    assert "35 % of the tasks are beyond a small model" in json.dumps(answer("-n", "10", "--escalation", "35"))


def test_where_nothing_is_allowed_that_is_the_answer() -> None:
    result = run("-n", "1000", "--quality", "mixed", "--sovereignty", "cluster")
    assert result.exit_code == 1
    assert "No option is allowed" in result.stdout
    assert answer("-n", "1000", "--quality", "mixed", "--sovereignty", "cluster")["decision"] is None


def test_what_may_wait_has_batch_prices_and_full_replicas() -> None:
    now, later = (answer("-n", "100000", "--latency", latency) for latency in ("interactive", "batch"))
    price = {name: next(o["usdPerDay"] for o in found["options"] if o["kind"] == "hosted small")
             for name, found in (("now", now), ("later", later))}  # fmt: skip
    assert D(price["later"]) * 2 == D(price["now"])
    assert any("1 times the mean load, and replicas are given 100 %" in line for line in later["assumptions"])


def test_the_words_say_decision_table_and_assumptions() -> None:
    shown = run("-n", "100000", "--compare", "openai/gpt-5-mini", "-a", "L4", "--overhead", "10").stdout
    for part in (
        "hosted small: openai/gpt-6-luna, 17.50 USD/day",
        "openai/gpt-6-luna costs 0.175",
        "nvidia-l4 at 0.8048",
        "Overhead beside the GPUs: 10 USD/day.",
        "openai/gpt-5-mini: 0.25 USD in, 2 USD out per million tokens (genai-prices",
        "built-in: AWS g6.xlarge us-east-1",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-n", "0"), "--tasks-per-day: 0 is less than 1"),
        (("-n", "5", "--quality", "good"), "--quality: 'good' must be one of small, mixed, frontier"),
        (("-n", "5", "--latency", "1s"), "--latency: '1s' must be one of"),
        (("-n", "5", "--sovereignty", "eu"), "--sovereignty: 'eu' must be one of"),
        (("-n", "5", "-a", "nvidia-l5"), "Did you mean nvidia-l4"),
        (("-n", "5", "-a", "L4=free"), "--accelerator: 'free' is not a number"),
        (("-n", "5", "-a", "MI300X"), "Give yours: -a MI300X=USD_PER_HOUR"),
        (("-n", "5", "--small", "luna"), "--small: 'luna' is not PROVIDER/MODEL"),
        (("-n", "5", "--small", "a/b=1"), "--small: '1' is not IN/OUT"),
        (("-n", "5", "--frontier", "openai/gpt-nonsense"), "--frontier.model: The price catalogue has no model"),
        (("-n", "5", "--peak", "0.5"), "--peak: '0.5' is not a number of at least 1"),
        (("-n", "5", "--overhead", "-1"), "--overhead: '-1' is not a number of at least 0"),
    ],
)
def test_a_wrong_question_names_the_option_and_the_value(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_class_that_nobody_measured_takes_your_speed_or_one_replica() -> None:
    assert tasks_per_second("nvidia-t4", input_tokens=1, output_tokens=1) is None
    told = answer("-n", "5", "-a", "T4")["assumptions"]
    assert any("an unknown speed, taken to be enough" in line for line in told)
    found = answer("-n", "864000", "-a", "T4=1", "--tasks-per-second", "1", "--peak", "1", "--utilization", "100")
    own = next(option for option in found["options"] if option["kind"] == "self-hosted small")
    assert own["replicas"] == 10


SMALL = HostedPrice("p", "small", "t", Tiers(D("0.1")), Tiers(D("0.5")), None)
TOP = HostedPrice("p", "top", "t", Tiers(D(2)), Tiers(D(10)), None)


@given(
    tasks=st.integers(1, 10**7), escalation=st.sampled_from([D(0), D("0.3"), D(1)]), sovereign=st.booleans(),
    usd=st.decimals(D("0.1"), D(10), places=2), speed=st.none() | st.decimals(D("0.1"), D(50), places=1),
)  # fmt: skip
def test_the_decision_is_the_cheapest_that_is_allowed_and_breaks_no_need(
    tasks: int, escalation: Decimal, sovereign: bool, usd: Decimal, speed: Decimal | None
) -> None:
    work = Workload(tasks, 1000, 150, escalation=escalation, sovereign=sovereign)
    found = advise(work, Terms(), machines=[Machine("gpu", usd, "t", speed)], small=SMALL, frontier=TOP)
    allowed = [option for option in found.options if not option.refused]
    assert found.decision == (min(allowed, key=lambda option: option.usd_per_day) if allowed else None)
    for option in allowed:
        assert option.kind == "self-hosted small" or not sovereign
        assert option.kind in ("frontier", "mix") or escalation == 0
    for option in found.options:
        if option.kind == "self-hosted small" and option.replicas is not None and speed is not None:
            assert option.usd_per_day == 24 * usd * option.replicas
            assert option.replicas * Terms().replica_tasks(Machine("gpu", usd, "t", speed)) >= tasks


GUIDE = (Path(__file__).parents[2] / "docs/guides/cost.md").read_text()


def test_the_guides_table_is_what_the_command_says() -> None:
    shape, checked = "", 0
    for line in GUIDE.splitlines():
        found = re.match(r"\|\s*(\d+/\d+)?\s*\| (\S+) \(([\d.]+)\) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", line)
        if found is None:
            continue
        shape = found[1] or shape
        tokens_in, tokens_out = shape.split("/")
        provider = "anthropic" if found[2].startswith("claude") else "openai"
        asked = ("--input-tokens", tokens_in, "--output-tokens", tokens_out, "--small", f"{provider}/{found[2]}")
        rows = [
            row for row in answer("-n", "1", *asked, *LIST_PRICE)["breakEven"] if row["comparator"].endswith(found[2])
        ]
        assert [int(row["tasksPerDay"]) for row in rows] == [int(cell.replace(",", "")) for cell in found.groups()[3:]]
        assert D(rows[0]["usdPerThousandTasks"]) == D(found[3])
        checked += 1
    assert checked == 8


def test_the_guides_catalogue_is_one() -> None:
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL) if b.startswith("source:"))
    catalog = gpu_prices.parse("the guide", block)
    assert len(catalog.gpus) == 4
    assert catalog.find_hosted("acme", "acme-8b") is not None
