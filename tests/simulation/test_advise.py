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

from flotilla.catalog.accelerators import load_accelerators
from flotilla.catalog.chips import load_chips
from flotilla.catalog.models import load_models
from flotilla.cli import app
from flotilla.cli.advise import DEFAULT_MODEL as MODEL
from flotilla.cli.advise import Wishes, machine
from flotilla.cli.estimate import two_digits
from flotilla.cost import gpu_prices
from flotilla.cost.gpu_prices import PriceSources
from flotilla.cost.hosted_prices import HostedPrice, Tiers, catalogue_date
from flotilla.errors import InvalidSpec
from flotilla.planning.resolve import load_catalog
from flotilla.simulation.advice import AdviceTerms, Machine, TaskLoad, advise

D = Decimal
FULL = ("--peak", "1", "--utilization", "100", "-a", "L4", "-a", "H100=2.69", "-a", "H100=6.88")
"""Replicas that are fully used, without overhead: the terms of the published analysis."""
FASTER_THAN_ANY = ("--tasks-per-second", "1000")
"""So that one replica does every load, as in the published analysis."""


def gpu(usd_per_hour: Decimal, tasks_per_second: Decimal) -> Machine:
    return Machine("gpu", usd_per_hour, "t", tasks_per_second, tasks_per_second, tasks_per_second, "Given.")


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
                "anthropic/claude-haiku-5-5": (".07425", 260_137, 869_495, 2_223_838),
                "openai/gpt-4.1-mini": (".216", 89_422, 298_889, 764_444),
                "anthropic/claude-sonnet-5-5": ("1.485", 13_007, 43_475, 111_192),
                "openai/gpt-6.1-sol": ("1.10", 17_559, 58_691, 150_109),
            },
        ),
        (
            (1000, 150),
            {
                "openai/gpt-6-luna": (".175", 110_373, 368_914, 943_543),
                "openai/gpt-5-mini": (".55", 35_119, 117_382, 300_218),
                "openai/gpt-4.1-mini": (".64", 30_180, 100_875, 258_000),
                "anthropic/claude-sonnet-5-5": ("4.725", 4_088, 13_663, 34_946),
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
        "-n",
        "100000",
        "--input-tokens",
        str(shape[0]),
        "--output-tokens",
        str(shape[1]),
        *FULL,
        *FASTER_THAN_ANY,
        *more,
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
    many = answer("-n", "3000000", "-a", "H100=2.69")["decision"]
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
        f"Hosted prices of genai-prices, which was published on {catalogue_date()}, are those for 20",
        "built-in: AWS g6.xlarge us-east-1, as of 2026-11-09",
        "meta-llama/Llama-3.1-8B-Instruct with fp8 weights: 1.9 tasks/s at saturation, 1.4 to 2.7, computed",
        "(2 to 4)",
        "228,893; 650,316",
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
        (("-n", "5", "--ttft-p99", "1", "--tasks-per-second", "2"), "--ttft-p99"),
        (("-n", "5", "--model", "acme/unknown"), "--model: no speed is known for a model that is not in the catalogue"),
        (("-n", "5", "--model", "nowhere/config.json"), "config.json"),
        (("-n", "5", "--model", "two words"), "--model: "),
        (("-n", "5", "-q", "fp3"), "--quantization: "),
        (
            ("-n", "5", "-a", "L4", "--model", "meta-llama/Llama-3.3-70B-Instruct", "--count", "1"),
            "cannot hold the model",
        ),
        (("-n", "5", "--overhead", "-1"), "--overhead: '-1' is not a number of at least 0"),
    ],
)
def test_a_wrong_question_names_the_option_and_the_value(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_class_without_published_figures_takes_your_speed() -> None:
    refused = run("-n", "5", "-a", "cpu-amd64=1", "--model", "Qwen/Qwen2.5-0.5B-Instruct")
    assert refused.exit_code == 2
    assert "--accelerator: no speed is known for cpu-amd64: give --tasks-per-second" in refused.stderr
    found = answer(
        "-n", "864000", "-a", "cpu-amd64=1", "--tasks-per-second", "1", "--peak", "1", "--utilization", "100"
    )
    own = next(option for option in found["options"] if option["kind"] == "self-hosted small")
    assert own["replicas"] == own["mostReplicas"] == 10
    assert any("Its speed was given: 1 tasks/s" in line for line in found["assumptions"])


def test_no_class_does_any_load_with_one_replica() -> None:
    """A hundred million tasks a day are 3,500 a second at the peak: more than any GPU does with a 0.5B model."""
    work, terms, catalog = TaskLoad(100_000_000, 1000, 150), AdviceTerms(), load_catalog()
    # vLLM has no kernels for a V100, and says so.
    known = sorted(name for name in set(load_accelerators()) & set(load_chips()) if "v100" not in name)
    assert len(known) >= 35
    for name in known:
        own = machine(f"{name}=1", work, Wishes("Qwen/Qwen2.5-0.5B-Instruct"), catalog=catalog, own=PriceSources())
        assert terms.replicas(own, D(work.tasks_per_day)) > 5, name
        assert own.slowest < own.tasks_per_second < own.fastest


def own_machine(*, cached: str = "0", input_tokens: int = 1000, output_tokens: int = 150, **wishes: Any) -> Machine:
    work = TaskLoad(1000, input_tokens, output_tokens, cached_share=D(cached))
    chosen = Wishes(**{"model": MODEL, **wishes})
    return machine("L4", work, chosen, catalog=load_catalog(), own=PriceSources())


def test_what_is_cached_is_cheaper_on_both_sides() -> None:
    found = {share: answer("-n", "100000", "-a", "L4", "--cached", share) for share in ("0", "90")}
    for kind in ("hosted small", "self-hosted small"):
        usd = {
            share: next(D(o["usdPerDay"]) for o in one["options"] if o["kind"] == kind) for share, one in found.items()
        }
        assert usd["90"] < usd["0"], kind
    assert own_machine(cached="0.9").tasks_per_second > 2 * own_machine().tasks_per_second


def test_a_request_of_one_token_is_bounded_by_its_overhead_and_says_so() -> None:
    tiny = own_machine(input_tokens=1, output_tokens=1)
    assert tiny.tasks_per_second < 1000
    assert "most of the time goes into the overhead per request, which is assumed to be 1 ms" in tiny.basis


def test_the_models_size_decides_how_fast_it_is(tmp_path: Path) -> None:
    small, middle = (own_machine(model=f"Qwen/Qwen2.5-{size}-Instruct").tasks_per_second for size in ("0.5B", "7B"))
    assert small > 5 * middle
    file = tmp_path / "config.json"
    file.write_text(json.dumps(load_models().rows["Qwen/Qwen2.5-7B-Instruct"]["config"]))
    # What a described checkpoint is quantized to is not known, so it counts as 16 bits unless the user says otherwise.
    described = own_machine(model=str(file), quantization="fp8").tasks_per_second
    assert described == pytest.approx(middle, rel=D("0.01"))
    for name in ("Qwen2.5-7B-Instruct", "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct"):
        assert own_machine(model=name).tasks_per_second == middle
    with pytest.raises(InvalidSpec, match="Did you mean"):
        own_machine(model="Qwen/Qwen2.5-7B-Instrukt")


def test_a_target_for_the_first_token_takes_load_away_or_is_refused() -> None:
    free, bound = (answer("-n", "1000000", "-a", "L4", *more) for more in ((), ("--ttft-p99", "0.5")))
    replicas = [
        next(o["replicas"] for o in found["options"] if o["kind"] == "self-hosted small") for found in (free, bound)
    ]
    assert replicas[0] < replicas[1]
    assert any("With the first token within 0.5 s (p99) it may be given" in line for line in bound["assumptions"])
    impossible = run("-n", "1000", "-a", "L4", "--ttft-p99", "0.01")
    assert impossible.exit_code == 2
    assert "--ttft-p99: On nvidia-l4 the first token takes longer than 0.01 s" in " ".join(impossible.stderr.split())


def test_a_longer_context_needs_more_gpus() -> None:
    assert answer("-n", "1000", "-a", "L4", "--context", "2000")["options"]
    more = run(
        "-n", "1000", "-a", "L4", "--model", "meta-llama/Llama-3.1-8B-Instruct", "--context", "131072", "-q", "none"
    )
    assert "2 x nvidia-l4" in more.stdout or "4 x nvidia-l4" in more.stdout


def test_a_class_has_the_name_that_people_use() -> None:
    assert "nvidia-h100-80gb at 2.69" in run("-n", "1000", "-a", "H100=2.69").stdout
    two = run("-n", "1000", "-a", "A100=2")
    assert two.exit_code == 2
    for name in ("nvidia-a100-40gb", "nvidia-a100-80gb"):
        assert name in two.stderr


def test_a_price_that_differs_by_the_hour_says_which_it_is() -> None:
    lines = answer("-n", "1000", "--compare", "deepseek/deepseek-chat")["assumptions"]
    assert any("deepseek/deepseek-chat" in line and "hour" in line for line in lines)


SMALL = HostedPrice("p", "small", "t", Tiers(D("0.1")), Tiers(D("0.5")), None)
TOP = HostedPrice("p", "top", "t", Tiers(D(2)), Tiers(D(10)), None)


@given(
    tasks=st.integers(1, 10**7), escalation=st.sampled_from([D(0), D("0.3"), D(1)]), sovereign=st.booleans(),
    usd=st.decimals(D("0.1"), D(10), places=2), speed=st.decimals(D("0.1"), D(50), places=1),
)  # fmt: skip
def test_the_decision_is_the_cheapest_that_is_allowed_and_breaks_no_need(
    tasks: int, escalation: Decimal, sovereign: bool, usd: Decimal, speed: Decimal
) -> None:
    work = TaskLoad(tasks, 1000, 150, escalation=escalation, sovereign=sovereign)
    found = advise(work, AdviceTerms(), machines=[gpu(usd, speed)], small=SMALL, frontier=TOP)
    allowed = [option for option in found.options if not option.refused]
    assert found.decision == (min(allowed, key=lambda option: option.usd_per_day) if allowed else None)
    for option in allowed:
        assert option.kind == "self-hosted small" or not sovereign
        assert option.kind in ("frontier", "mix") or escalation == 0
    for option in found.options:
        if option.kind == "self-hosted small" and option.replicas is not None:
            assert option.usd_per_day == 24 * usd * option.replicas
            assert option.replicas * AdviceTerms().replica_tasks(gpu(usd, speed)) >= tasks


@given(
    tasks=st.integers(1, 10**7), usd=st.decimals(D("0.1"), D(10), places=2), data=st.data(),
    speed=st.decimals(D("0.1"), D(50), places=1), hosted=st.decimals(D("0.01"), D(5), places=2),
    overhead=st.decimals(D(0), D(100), places=0), least=st.integers(1, 4),
)  # fmt: skip
def test_a_break_even_is_never_contradicted_by_the_options_of_the_same_answer(
    tasks: int, usd: Decimal, data: st.DataObject, speed: Decimal, hosted: Decimal, overhead: Decimal, least: int
) -> None:
    small = HostedPrice("p", "small", "t", Tiers(hosted), Tiers(hosted), None)
    terms = AdviceTerms(overhead_usd_per_day=overhead, min_replicas=least)

    def answered(load: int) -> tuple[Decimal, Decimal, Any]:
        found = advise(TaskLoad(load, 1000, 150), terms, machines=[gpu(usd, speed)], small=small, frontier=TOP)
        cost = {option.kind: option.usd_per_day for option in found.options if not option.refused}
        row = next(row for row in found.break_even if row.comparator == small.comparator)
        return cost["hosted small"], cost.get("self-hosted small", D("Infinity")), row.even

    even = answered(tasks)[2]
    edges = [int(edge) for band in even.dearer[:50] for edge in band if edge.is_finite()]
    near = [edge + step for edge in edges for step in (-1, 0, 1)] + [
        int(edge) + step for edge in (even.first, even.for_good) if edge.is_finite() for step in (-1, 0, 1)
    ]
    load = data.draw(st.sampled_from([tasks, *[one for one in near if one >= 1]]))
    theirs, ours, _ = answered(load)
    if ours.is_finite():
        cheaper = load >= even.first and not any(low < load < high for low, high in even.dearer)
        assert (ours <= theirs) == cheaper
        assert ours <= theirs or load < even.for_good


@pytest.mark.parametrize("load", [80_000, 90_000, 100_000, 150_000, 250_000])
def test_a_load_in_a_band_has_the_hosted_model_cheaper_in_both_tables(load: int) -> None:
    """At 0.25 USD per 1000 tasks one L4 is even at 77,261 a day, and can do more only with a second one."""
    found = answer("-n", str(load), "-a", "L4", "--small", "acme/s=0.10/1.0", "--tasks-per-second", "4.2")
    row = next(row for row in found["breakEven"] if row["comparator"] == "acme/s")
    assert (row["tasksPerDay"], found["breakEven"][0]["machine"]) == ("77261", "nvidia-l4 at 0.8048")
    usd = {option["kind"]: D(option["usdPerDay"]) for option in found["options"]}
    in_a_band = any(int(low) < load < int(high) for low, high in row["hostedCheaperAgainBetween"])
    assert (usd["hosted small"] < usd["self-hosted small"]) == in_a_band


GUIDE = (Path(__file__).parents[2] / "docs/guides/cost.md").read_text()


def test_the_guides_table_is_what_the_command_says() -> None:
    shape, checked = "", 0
    for line in GUIDE.splitlines():
        found = re.match(r"\|\s*(\d+/\d+)?\s*\| (\S+) \(([\d.]+)\) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", line)
        if found is None:
            continue
        shape = found[1] or shape
        tokens_in, tokens_out = shape.split("/")
        provider = "anthropic" if found[2].startswith("claude") else "openai"
        asked = ("--input-tokens", tokens_in, "--output-tokens", tokens_out, "--small", f"{provider}/{found[2]}")
        rows = [row for row in answer("-n", "1", *asked, *FULL)["breakEven"] if row["comparator"].endswith(found[2])]
        said = [
            "; ".join(
                "never" if load == "Infinity" else f"{int(load):,}"
                for load in dict.fromkeys((row["tasksPerDay"], row["forGoodTasksPerDay"]))
            )
            for row in rows
        ]
        assert said == list(found.groups()[3:])
        assert D(rows[0]["usdPerThousandTasks"]) == D(found[3])
        checked += 1
    assert checked == 8


def test_the_guides_catalogue_is_one() -> None:
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL) if b.startswith("source:"))
    catalog = gpu_prices.parse("the guide", block)
    assert len(catalog.gpus) == 4
    assert catalog.find_hosted("acme", "acme-8b") is not None


CONCEPT = (Path(__file__).parents[2] / "docs/concepts/cost.md").read_text()


def test_the_table_of_the_rules_of_thumb_is_what_the_model_computes() -> None:
    catalog, checked = load_catalog(), 0
    columns = {"A100-80GB": "none", "H100": "fp8", "L4": "fp8"}
    for line in CONCEPT.splitlines():
        found = re.match(r"\| (\d+)/(\d+) \| (\d+) % \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", line)
        if found is None:
            continue
        work = TaskLoad(1, int(found[1]), int(found[2]), cached_share=D(found[3]) / 100)
        computed = [
            two_digits(
                float(machine(name, work, Wishes(MODEL, method), catalog=catalog, own=PriceSources()).tasks_per_second)
            )
            for name, method in columns.items()
        ]
        assert computed == list(found.groups()[3:]), line
        checked += 1
    assert checked == 7


def test_the_figures_of_the_rules_of_thumb_are_those_of_the_command() -> None:
    said = " ".join(CONCEPT.split())
    found = answer("-n", "100000", "-a", "L4", "-a", "H100", "--compare", "openai/gpt-5-mini")
    usd = {option["what"]: f"{D(option['usdPerDay']):.2f}" for option in found["options"]}
    for name in ("nvidia-l4 at 0.8048", "anthropic/claude-sonnet-5-5", "openai/gpt-6-luna"):
        assert usd[name] in said, name
    for row in found["breakEven"]:
        if (row["comparator"], row["machine"][:9]) in {
            ("anthropic/claude-sonnet-5-5", "nvidia-l4"), ("anthropic/claude-sonnet-5-5", "nvidia-h1"),
            ("openai/gpt-5-mini", "nvidia-l4"),
        }:  # fmt: skip
            assert f"{int(row['forGoodTasksPerDay']):,}" in said, row
    never = [row for row in found["breakEven"] if row["tasksPerDay"] == "Infinity"]
    assert [row["comparator"] for row in never] == ["openai/gpt-6-luna"] * 2
    for name in ("L4", "H100"):
        own = machine(name, TaskLoad(1, 1000, 150), Wishes(MODEL), catalog=load_catalog(), own=PriceSources())
        full = 1000 * own.usd_per_hour / (3600 * own.tasks_per_second)
        assert f"{full:.3f}" in said
        assert f"{full * 3 / D('0.7'):.3f}" in said
