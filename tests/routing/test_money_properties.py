"""Money: exact, never negative, and what is reserved covers what an answer within its bounds costs."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.api.routing_policy import Capabilities, Price
from flotilla.api.types import SecretKeyRef
from flotilla.routing.budgets import (
    DEFAULT_MAX_TOKENS,
    ZERO,
    Usage,
    cost,
    dollars,
    most,
    nanodollars,
    reservation,
    spent,
    usage_of,
)
from flotilla.routing.document import ClusterEndpoint, HostedEndpoint, Target
from flotilla.routing.request import Features, Operation

USD = st.decimals("0.01", "1000", places=4).map(lambda d: f"{d.normalize():f}")
TOKENS = st.integers(0, 2_000_000)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    paid, output = draw(USD), draw(USD)
    cached = draw(st.none() | st.decimals("0.01", paid, places=4).map(lambda d: f"{d.normalize():f}"))
    return Price(input_per_m_tok=paid, output_per_m_tok=output, cached_input_per_m_tok=cached)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt = draw(TOKENS)
    cached = draw(st.integers(0, prompt))
    return Usage(prompt, draw(TOKENS), cached, draw(st.integers(0, prompt - cached)))


def hosted(price: Price | None, *, provider: str = "OpenAI", context_length: int | None = None) -> Target:
    endpoint = HostedEndpoint(
        provider=provider,
        base_url="https://api.example.com/v1",
        served_model="m",
        secret_ref=SecretKeyRef(name="s", key="k"),
    )
    return Target(name="h", hosted=endpoint, price=price, capabilities=Capabilities(context_length=context_length))


CLUSTER = Target(name="c", cluster=ClusterEndpoint(model_deployment="d", served_model="m", engine="vllm"))


@st.composite
def features(draw: st.DrawFn) -> Features:
    return Features(
        prompt_tokens=draw(TOKENS),
        max_tokens=draw(st.none() | st.integers(1, 100_000)),
        answers=draw(st.integers(1, 4)),
        images=draw(st.integers(0, 3)),
    )


@given(usage=usages(), price=prices())
def test_a_cost_is_never_negative_and_free_only_without_tokens(usage: Usage, price: Price) -> None:
    assert cost(usage, price) >= 0
    assert (cost(usage, price) == 0) == (usage.prompt_tokens + usage.completion_tokens == 0)


@given(a=usages(), b=usages(), price=prices())
def test_two_answers_cost_what_each_costs(a: Usage, b: Usage, price: Price) -> None:
    assert cost(a + b, price) == cost(a, price) + cost(b, price)


@given(usage=usages(), price=prices())
def test_cached_tokens_never_cost_more_than_fresh_ones(usage: Usage, price: Price) -> None:
    fresh = Usage(usage.prompt_tokens, usage.completion_tokens, 0, usage.cache_creation_tokens)
    assert cost(usage, price) <= cost(fresh, price)


@given(
    wanted=features(),
    chosen=prices(),
    better=prices(),
    provider=st.sampled_from(["OpenAI", "Anthropic"]),
    share=st.floats(0, 1),
    part=st.floats(0, 1),
)
def test_a_reservation_covers_every_answer_within_its_bounds(
    wanted: Features, chosen: Price, better: Price, provider: str, share: float, part: float
) -> None:
    first, second = hosted(chosen), hosted(better, provider=provider)
    reserved = reservation(wanted, [CLUSTER, first], second)

    paid = ZERO
    for target in (first, second):
        bound = most(wanted, target)
        written = int(bound.prompt_tokens * part) if provider == "Anthropic" and target is second else 0
        paid += spent(target, Usage(bound.prompt_tokens, int(bound.completion_tokens * share), 0, written)) or ZERO
    assert paid <= reserved


@given(wanted=features(), some=st.lists(prices(), max_size=4), price=prices())
def test_one_more_candidate_never_makes_a_reservation_smaller(
    wanted: Features, some: list[Price], price: Price
) -> None:
    targets = [hosted(each) for each in some]
    assert reservation(wanted, [*targets, hosted(price)]) >= reservation(wanted, targets)


@given(usd=st.decimals("0", "9000000", places=12))
def test_stored_amounts_are_rounded_up_by_less_than_a_billionth(usd: Decimal) -> None:
    assert 0 <= dollars(nanodollars(usd)) - usd < Decimal("1e-9")
    assert nanodollars(usd) < 2**53


def test_pods_of_the_cluster_cost_nothing_and_an_unknown_price_is_unknown() -> None:
    assert spent(CLUSTER, Usage(10, 10)) == 0
    assert spent(hosted(None), Usage(10, 10)) is None
    assert reservation(Features(prompt_tokens=100), [CLUSTER]) == 0


def test_an_answer_without_a_bound_is_reserved_for_and_the_context_bounds_it() -> None:
    wanted = Features(prompt_tokens=1000)
    assert most(wanted, hosted(None)).completion_tokens == DEFAULT_MAX_TOKENS
    assert most(wanted, hosted(None, context_length=1500)).completion_tokens == 500
    assert most(Features(operation=Operation.EMBEDDINGS, prompt_tokens=5), hosted(None)) == Usage(5, 0)


def test_a_published_price_by_hand() -> None:
    # 1,000 prompt tokens, 400 of them cached, and 100 of the answer, at 2.50, 1.25 and 10 dollars per million.
    price = Price(input_per_m_tok="2.5", output_per_m_tok="10", cached_input_per_m_tok="1.25")
    counted = {"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 400}}
    usage = usage_of(counted)
    assert usage is not None
    assert cost(usage, price) == Decimal("0.003")


@pytest.mark.parametrize(
    "counted",
    [
        None,
        [],
        {},
        {"prompt_tokens": "7", "completion_tokens": 1},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 7, "completion_tokens": -1},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
    ],
)
def test_a_usage_that_makes_no_sense_is_none(counted: object) -> None:
    assert usage_of(counted) is None


@pytest.mark.parametrize(("total", "output"), [(315, 305), (15, 5), (None, 5), (400, 390)])
def test_reasoning_that_is_counted_beside_the_completion_is_output_too(total: int | None, output: int) -> None:
    counted = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 300}}
    assert usage_of({**counted, "total_tokens": total}) == Usage(10, output)


def test_more_cached_tokens_than_tokens_are_taken_for_all_of_them() -> None:
    counted = {"prompt_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 9}}
    assert usage_of(counted) == Usage(5, 0, 5, 0)
