"""Money: published figures, to the digits that their sources give."""

from decimal import Decimal

import pytest

from flotilla.domain.cost import (
    TokenPrices,
    Usage,
    accrued_usd,
    break_even_tasks_per_day,
    hosted_usd,
    usd_per_million,
    usd_per_million_at,
)

D = Decimal


def close(got: Decimal | None, published: str) -> bool:
    assert got is not None
    wanted = D(published)
    exponent = wanted.as_tuple().exponent
    assert isinstance(exponent, int)
    return abs(got - wanted) <= D(1).scaleb(exponent)


@pytest.mark.parametrize(
    ("usd_per_hour", "tokens_per_second", "published"),
    [
        pytest.param("2.69", "16541.95386", "0.04517134", id="SilyBench Qwen3-8B FP8 H100 128/128, output"),
        pytest.param("6.98", "8155.0661", "0.2377527", id="vllm-cost-meter Llama-3.1-8B H100"),
        pytest.param("6.98", "2492.8951", "0.7777659", id="vllm-cost-meter at lower load"),
        pytest.param("6.98", "255.38374", "7.592061", id="vllm-cost-meter almost idle"),
        pytest.param("3.67", "2906.2669", "0.3507745", id="vllm-cost-meter A100"),
        pytest.param("0.54", "620", "0.241935", id="neelmishra L4"),
        pytest.param("1.01", "850", "0.330065", id="neelmishra A10G"),
        pytest.param("4.50", "4800", "0.260417", id="neelmishra H100"),
        pytest.param("2.50", "700", "0.992063", id="dreaming.press"),
        pytest.param("3.00", "5000", "0.166667", id="mohithg"),
        pytest.param("10.00", "3400", "0.816993", id="learnAI"),
    ],
)
def test_dollars_per_million_tokens_of_published_throughputs(
    usd_per_hour: str, tokens_per_second: str, published: str
) -> None:
    assert close(usd_per_million_at(D(usd_per_hour), D(tokens_per_second)), published)


@pytest.mark.parametrize(
    ("usd", "tokens", "published"),
    [("3.20", "15000000", ".2133333"), ("42.50", "15000000", "2.8333"), ("28.40", "12000000", "2.3667")],
)
def test_dollars_per_million_tokens_of_opencosts_examples(usd: str, tokens: str, published: str) -> None:
    assert close(usd_per_million(D(usd), D(tokens)), published)


@pytest.mark.parametrize(
    ("prompt", "output", "prices", "gpu_usd_per_hour", "tasks"),
    [
        pytest.param(1000, 150, ("0.25", "2.00"), "0.8048", 35119, id="extract, gpt-5-mini, L4"),
        pytest.param(1000, 150, ("0.25", "2.00"), "2.69", 117382, id="extract, gpt-5-mini, H100"),
        pytest.param(1000, 150, ("0.40", "1.60"), "2.69", 100875, id="extract, gpt-4.1-mini, H100"),
        pytest.param(3000, 300, ("2.50", "10.00"), "6.88", 15726, id="RAG, gpt-4o, H100 on AWS"),
    ],
)
def test_break_even_of_the_100k_tasks_a_day_claim(
    prompt: int, output: int, prices: tuple[str, str], gpu_usd_per_hour: str, tasks: int
) -> None:
    per_task = hosted_usd(Usage(D(prompt), D(output)), TokenPrices(D(prices[0]), D(prices[1])))
    even = break_even_tasks_per_day(accrued_usd(D(gpu_usd_per_hour), D(86_400)), per_task)
    assert even is not None
    assert round(even) == tasks


def test_cached_input_has_its_own_price_where_there_is_one() -> None:
    usage = Usage(prompt=D(1_000_000), generated=D(0), cached=D(400_000))
    assert hosted_usd(usage, TokenPrices(D(1), D(8), D("0.1"))) == D("0.64")
    assert hosted_usd(usage, TokenPrices(D(1), D(8))) == D(1)


def test_without_tokens_or_price_there_is_no_figure_rather_than_zero() -> None:
    assert usd_per_million(D(5), D(0)) is None
    assert usd_per_million_at(D(5), D(0)) is None
    assert break_even_tasks_per_day(D(5), D(0)) is None
