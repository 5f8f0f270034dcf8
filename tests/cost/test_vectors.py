"""Money: published figures, to the digits that their sources give. The numbers are of docs/guides/cost.md's sources."""

from decimal import Decimal

import pytest

from flotilla.cost.comparison import break_even_tasks_per_day
from flotilla.cost.gpu_prices import HOURS_PER_YEAR, Owned, node_inclusive
from flotilla.cost.hosted_prices import (
    MILLION,
    TokenPrices,
    TokenUsage,
    TokenWeights,
    accrued_usd,
    hosted_usd,
    unit_costs,
    usd_per_million,
    usd_per_request,
)

D = Decimal
HOUR = D(3600)


def at_throughput(usd_per_hour: Decimal, tokens_per_second: Decimal) -> Decimal | None:
    """US dollars per million tokens of hardware that serves so many tokens per second."""
    return usd_per_million(usd_per_hour, tokens_per_second * HOUR)


def close(got: Decimal | None, published: str) -> bool:
    """Whether both agree to one of the last digit that was published."""
    assert got is not None
    exponent = D(published).as_tuple().exponent
    assert isinstance(exponent, int)
    return abs(got - D(published)) <= D(1).scaleb(exponent)


@pytest.mark.parametrize(
    ("usd_per_hour", "tokens_per_second", "published"),
    [
        pytest.param("6.98", "8155.0661", "0.2377527", id="vllm-cost-meter Llama-3.1-8B FP8 H100"),
        pytest.param("6.98", "2492.8951", "0.7777659", id="vllm-cost-meter at lower load"),
        pytest.param("6.98", "255.38374", "7.592061", id="vllm-cost-meter almost idle"),
        pytest.param("6.98", "6237.5925", "0.310839", id="vllm-cost-meter FP16"),
        pytest.param("3.67", "2906.2669", "0.3507745", id="vllm-cost-meter A100"),
        pytest.param("3.67", "254.38753", "4.007447", id="vllm-cost-meter A100 almost idle"),
        pytest.param("0.54", "620", "0.241935", id="neelmishra L4"),
        pytest.param("1.01", "850", "0.330065", id="neelmishra A10G"),
        pytest.param("2.21", "2900", "0.211686", id="neelmishra A100"),
        pytest.param("4.50", "4800", "0.260417", id="neelmishra H100"),
        pytest.param("2.50", "700", "0.992063", id="dreaming.press"),
        pytest.param("3.00", "5000", "0.166667", id="mohithg"),
        pytest.param("10.00", "3400", "0.816993", id="learnAI on demand"),
        pytest.param("6.40", "3400", "0.522876", id="learnAI reserved"),
    ],
)
def test_dollars_per_million_tokens_of_published_throughputs(
    usd_per_hour: str, tokens_per_second: str, published: str
) -> None:
    assert close(at_throughput(D(usd_per_hour), D(tokens_per_second)), published)


@pytest.mark.parametrize(
    ("usd_per_hour", "shape", "requests_per_second", "output", "total", "per_thousand"),
    [
        pytest.param(
            "2.69", (128, 128), "129.2340145", ".04517134", ".02258567", ".005781932", id="FP8 128/128, H100 2.69"
        ),
        pytest.param("2.69", (128, 128), "113.5900537", ".05139247", ".02569624", ".006578236", id="BF16 128/128"),
        pytest.param("2.69", (1024, 128), "23.57562326", ".2476148", ".02751276", ".03169470", id="BF16 1024/128"),
        pytest.param("2.69", (128, 1024), "14.74949037", ".04947352", ".04397646", ".05066088", id="FP8 128/1024"),
        pytest.param("2.69", (2048, 2048), "1.7837399", ".2045447", ".1022724", ".4189076", id="FP8 2048/2048"),
        pytest.param("2.69", (8192, 512), "1.5368732", ".9496024", ".0558590", ".4861964", id="FP8 8192/512"),
        pytest.param("10.9791", (128, 128), "129.2340145", ".1843646", None, ".02359866", id="FP8 128/128 on GCP"),
    ],
)
def test_silybench_qwen3_8b(
    usd_per_hour: str,
    shape: tuple[int, int],
    requests_per_second: str,
    output: str,
    total: str | None,
    per_thousand: str,
) -> None:
    rate, requests = D(usd_per_hour), D(requests_per_second)
    assert close(at_throughput(rate, requests * shape[1]), output)
    if total is not None:
        assert close(at_throughput(rate, requests * sum(shape)), total)
    per_request = usd_per_request(rate, requests * HOUR)
    assert per_request is not None
    assert close(per_request * 1000, per_thousand)


@pytest.mark.parametrize(("usd_per_hour", "published"), [("2.69", "1963.70"), ("10.9791", "8014.74")])
def test_silybench_month_is_730_hours(usd_per_hour: str, published: str) -> None:
    assert close(D(usd_per_hour) * HOURS_PER_YEAR / 12, published)


@pytest.mark.parametrize(
    ("usd", "tokens", "published"),
    [("3.20", "15e6", ".2133333"), ("42.50", "15e6", "2.8333"), ("28.40", "12e6", "2.3667"), ("14.10", "3e6", "4.70")],
)
def test_dollars_per_million_tokens_of_opencosts_examples(usd: str, tokens: str, published: str) -> None:
    assert close(usd_per_million(D(usd), D(tokens)), published)


def test_opencosts_example_split_by_half_and_by_its_fallback_weight() -> None:
    usage = TokenUsage(prompt=12 * MILLION, generated=3 * MILLION, cached=D("0.8") * MILLION)
    assert close(usd_per_million(D("1.60"), usage.uncached), ".1428571")
    assert close(usd_per_million(D("1.60"), usage.generated), ".5333333")
    weights = TokenWeights(output=D("2.5"), cached=D(0))
    assert weights.work(usage) == D("18.7") * MILLION
    costs = unit_costs(D("3.20"), usage, weights)
    assert costs is not None
    assert close(costs.input, ".1711230")
    assert close(costs.output, ".4278075")
    assert close(costs.blended, ".2133333")


@pytest.mark.parametrize(
    ("full", "now", "penalty"),
    [("8155.0661", "2492.8951", "3.2713"), ("8155.0661", "255.38374", "31.932"), ("2906.2669", "254.38753", "11.424")],
)
def test_a_cost_that_ignores_utilization_is_too_low_by_its_inverse(full: str, now: str, penalty: str) -> None:
    at_full = at_throughput(D("6.98"), D(full))
    assert at_full is not None
    dear = at_full / (D(now) / D(full))
    assert close(dear / at_full, penalty)
    assert abs(dear - (at_throughput(D("6.98"), D(now)) or 0)) < D("1e-20")


@pytest.mark.parametrize(
    ("usd_per_hour", "tokens_per_second", "utilization", "published"),
    [
        pytest.param("8.84", "2400", ".7", "1.461640", id="neelmishra, four A100"),
        pytest.param("2.50", "700", ".1", "9.920635", id="dreaming.press at a tenth"),
        pytest.param("3.00", "5000", ".5", ".333333", id="mohithg at half"),
        pytest.param("3.00", "5000", ".3", ".555556", id="mohithg at 0.3"),
    ],
)
def test_published_costs_at_a_utilization(
    usd_per_hour: str, tokens_per_second: str, utilization: str, published: str
) -> None:
    full = at_throughput(D(usd_per_hour), D(tokens_per_second))
    assert full is not None
    assert close(full / D(utilization), published)


def test_a_month_of_720_hours_against_a_capacity_of_730_is_not_our_figure() -> None:
    capacity = D(3400) * HOUR * 730
    assert close(capacity / MILLION, "8935.2")
    mixed = usd_per_million(D("6.40") * 720, capacity)
    assert close(mixed, ".5157")
    assert not close(mixed, ".522876")
    assert close(usd_per_million(D("6.40") * 730, capacity), ".522876")


def test_break_even_tokens_of_4608_dollars_are_460_8_million_and_not_0_46() -> None:
    even = break_even_tasks_per_day(
        replica_usd_per_hour=D("4608") / 24, hosted_usd_per_task=D(10), max_replicas=1
    )  # a task is a million tokens at 10 USD
    assert close(even, "460.8")


def test_owned_hardware_pays_maintenance_in_each_year_and_its_power() -> None:
    mine = Owned(D(280_000), gpus=8, years=3, maintenance_percent_per_year=10, power_watts=2400,
                 usd_per_kwh=D("0.12"), pue_percent=140)  # fmt: skip
    assert close(mine.capital_usd_per_hour, "13.850837")
    once = D(280_000) * D("1.1") / (3 * HOURS_PER_YEAR)
    assert close(once, "11.719939")
    assert not close(mine.capital_usd_per_hour, "11.719939")
    assert mine.power_usd_per_hour == D(".4032")
    assert mine.gpu_usd_per_hour * 8 == mine.capital_usd_per_hour + mine.power_usd_per_hour


def test_a_gpu_of_a_rented_node_costs_its_part_of_the_whole() -> None:
    whole = node_inclusive(D("55.04"), node_gpus=D(8), gpu_units=D(1))
    assert whole == D("6.88")


CLASSIFY, EXTRACT, RAG = (500, 10), (1000, 150), (3000, 300)
LUNA, MINI_41, GPT5_MINI = ("0.10", "0.50"), ("0.40", "1.60"), ("0.25", "2.00")
SONNET, GPT_4O = ("2.00", "10.00"), ("2.50", "10.00")


@pytest.mark.parametrize(
    ("shape", "prices", "usd_per_thousand", "l4", "h100", "h100_aws"),
    [
        pytest.param(CLASSIFY, LUNA, ".055", 351_185, 1_173_818, 3_002_182, id="classify, luna"),
        pytest.param(CLASSIFY, MINI_41, ".216", 89_422, 298_889, 764_444, id="classify, gpt-4.1-mini"),
        pytest.param(CLASSIFY, SONNET, "1.10", 17_559, 58_691, 150_109, id="classify, sonnet-5-5"),
        pytest.param(EXTRACT, LUNA, ".175", 110_373, 368_914, 943_543, id="extract, luna"),
        pytest.param(EXTRACT, GPT5_MINI, ".55", 35_119, 117_382, 300_218, id="extract, gpt-5-mini"),
        pytest.param(EXTRACT, MINI_41, ".64", 30_180, 100_875, 258_000, id="extract, gpt-4.1-mini"),
        pytest.param(EXTRACT, SONNET, "3.50", 5_519, 18_446, 47_177, id="extract, sonnet-5-5"),
        pytest.param(RAG, LUNA, ".45", 42_923, 143_467, 366_933, id="RAG, luna"),
        pytest.param(RAG, GPT_4O, "10.5", 1_840, 6_149, 15_726, id="RAG, gpt-4o"),
    ],
)
def test_break_even_of_the_100k_tasks_a_day_claim(
    shape: tuple[int, int], prices: tuple[str, str], usd_per_thousand: str, l4: int, h100: int, h100_aws: int
) -> None:
    per_task = hosted_usd(TokenUsage(D(shape[0]), D(shape[1])), TokenPrices(D(prices[0]), D(prices[1])))
    assert per_task * 1000 == D(usd_per_thousand)
    for rate, tasks in (("0.8048", l4), ("2.69", h100), ("6.88", h100_aws)):
        even = break_even_tasks_per_day(replica_usd_per_hour=D(rate), hosted_usd_per_task=per_task)
        assert round(even) == tasks


@pytest.mark.parametrize(
    ("usd_per_hour", "published"),
    [(".8048", ".193"), ("1.006", ".241"), ("1.39", ".334"), ("1.861", ".447"), ("2.69", ".646"), ("3.4309", ".823"),
     ("6.88", "1.651")],
)  # fmt: skip
def test_the_claim_says_that_a_thousand_tasks_cost_a_hundredth_of_a_gpu_day(usd_per_hour: str, published: str) -> None:
    assert close(accrued_usd(D(usd_per_hour), D(86_400)) / 100, published)
