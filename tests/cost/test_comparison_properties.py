"""Identities of money: what is split adds up, and break-even is where the bills cross."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from flotilla.cost.comparison import (
    NEVER,
    IdleRule,
    at_full_load,
    attribute,
    break_even,
    break_even_tasks_per_day,
    cost_ratio,
    idle_shares,
    own_usd_per_day,
    saturation_ratio,
)
from flotilla.cost.hosted_prices import MILLION, Terms, TokenPrices, TokenUsage, TokenWeights, hosted_usd, unit_costs

D = Decimal
CENT_OF_A_CENT = D("0.0001")


def decimals(low: str, high: str, places: int = 4) -> st.SearchStrategy[Decimal]:
    return st.decimals(D(low), D(high), places=places, allow_nan=False)


TOKENS = st.integers(0, 10**12).map(D)
USD = decimals("0", "1000000")
WEIGHTS = st.builds(TokenWeights, output=decimals("0.01", "20"), cached=decimals("0", "1"))
USAGES = st.tuples(TOKENS, TOKENS, decimals("0", "1")).map(
    lambda drawn: TokenUsage(prompt=drawn[0], generated=drawn[1], cached=(drawn[0] * drawn[2]).to_integral_value())
)


@given(usd=USD, usage=USAGES, weights=WEIGHTS)
def test_rates_times_tokens_are_the_cost(usd: Decimal, usage: TokenUsage, weights: TokenWeights) -> None:
    costs = unit_costs(usd, usage, weights)
    if costs is None:
        assert weights.work(usage) == 0 or usage.total == 0
        return
    parts = costs.input * usage.uncached + costs.cached_input * usage.cached + costs.output * usage.generated
    assert abs(parts / MILLION - usd) < CENT_OF_A_CENT
    assert abs(costs.blended * usage.total / MILLION - usd) < CENT_OF_A_CENT


@given(usd=USD, usages=st.dictionaries(st.sampled_from(["base", "triage", "legal", "code"]), USAGES, max_size=4))
def test_shares_of_adapters_are_the_cost(usd: Decimal, usages: dict[str, TokenUsage]) -> None:
    shares = attribute(usd, usages, TokenWeights(), owner="base")
    assert abs(sum(shares.values()) - usd) < CENT_OF_A_CENT
    assert min(shares.values()) >= -CENT_OF_A_CENT


def test_a_cost_is_divided_by_work_and_is_the_owners_without_any() -> None:
    usages = {"base": TokenUsage(D(300)), "triage": TokenUsage(D(100))}
    assert attribute(D(12), usages, TokenWeights()) == {"base": D(9), "triage": D(3)}
    assert attribute(D(12), {}, TokenWeights(), owner="base") == {"base": D(12)}


PARTS = st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any)


@given(parts=PARTS, rule=st.sampled_from(IdleRule))
def test_shares_of_idle_time_are_all_of_it_and_nobodys_who_did_not_work(parts: list[int], rule: IdleRule) -> None:
    work = {f"t{number}": D(part) / sum(parts) for number, part in enumerate(parts)}
    workers = {name for name, share in work.items() if share > 0}
    shares = idle_shares(work, rule, owner="owner")
    assert abs(sum(shares.values(), D(0)) - 1) < CENT_OF_A_CENT
    if rule is IdleRule.PROPORTIONAL:
        assert shares == work
    else:
        assert set(shares) == ({"owner"} if rule is IdleRule.OWNER else workers)
        assert max(shares.values()) - min(shares.values()) < CENT_OF_A_CENT


def test_idle_time_without_any_work_is_the_owners() -> None:
    assert all(idle_shares({"a": D(0)}, rule, owner="owner") == {"owner": 1} for rule in IdleRule)


STEPS = {
    "replica_usd_per_hour": decimals("0.01", "20", 2),
    "replica_tasks": st.integers(1, 100_000).map(D),
    "overhead_usd_per_day": st.sampled_from([D(0), D(10), D(500)]),
    "min_replicas": st.integers(1, 3),
}


@given(hosted=decimals("0.0001", "0.05"), maximum=st.integers(1, 20), **STEPS)
def test_break_even_is_the_first_load_at_which_whole_replicas_cost_no_more(
    hosted: Decimal, maximum: int, **steps: Decimal
) -> None:
    low, rate, tasks = int(steps["min_replicas"]), steps["replica_usd_per_hour"], steps["replica_tasks"]
    overhead = steps["overhead_usd_per_day"]
    even = break_even_tasks_per_day(
        replica_usd_per_hour=rate, hosted_usd_per_task=hosted, replica_tasks=tasks, min_replicas=low,
        max_replicas=maximum, overhead_usd_per_day=overhead,
    )  # fmt: skip
    by_step = [((24 * rate * m + overhead) / hosted, m) for m in range(low, max(low, maximum) + 1)]
    feasible = [n for n, m in by_step if n <= m * tasks]
    assert even == (min(feasible) if feasible else NEVER)
    if even.is_finite():
        own = own_usd_per_day(
            even, replica_usd_per_hour=rate, replica_tasks=tasks, min_replicas=low, overhead_usd_per_day=overhead
        )
        assert own <= even * hosted + CENT_OF_A_CENT


@given(
    hosted=decimals("0.0001", "0.05"),
    maximum=st.integers(1, 50),
    part=st.decimals("0", "1", places=4),
    **STEPS,
)
def test_what_is_said_of_break_even_is_true_at_every_load(
    hosted: Decimal, maximum: int, part: Decimal, **steps: Decimal
) -> None:
    low, rate, capacity = int(steps["min_replicas"]), steps["replica_usd_per_hour"], steps["replica_tasks"]
    overhead = steps["overhead_usd_per_day"]
    even = break_even(
        replica_usd_per_hour=rate, hosted_usd_per_task=hosted, replica_tasks=capacity, min_replicas=low,
        max_replicas=maximum, overhead_usd_per_day=overhead,
    )  # fmt: skip
    most = capacity * max(low, maximum)
    edges = [edge for band in even.dearer for edge in band]
    interesting = [part * most, even.first, even.for_good, *edges, *(edge + capacity / 1000 for edge in edges)]
    for tasks in (load for load in interesting if load.is_finite() and 0 < load <= most):
        own = own_usd_per_day(
            tasks, replica_usd_per_hour=rate, replica_tasks=capacity, min_replicas=low, overhead_usd_per_day=overhead
        )
        dearer = tasks < even.first or any(start < tasks < end for start, end in even.dearer)
        if dearer:
            assert own >= tasks * hosted - CENT_OF_A_CENT
            assert tasks < even.for_good
        else:
            assert own <= tasks * hosted + CENT_OF_A_CENT


def test_after_each_step_of_a_replica_the_hosted_model_may_be_cheaper_again() -> None:
    # A8 of the project's cases: an L4 at 0.8048 USD/h that does 80,000 tasks a day, against 0.25 USD per 1000 tasks.
    even = break_even(
        replica_usd_per_hour=D("0.8048"), hosted_usd_per_task=D("0.00025"), replica_tasks=D(80_000), max_replicas=100
    )

    assert round(even.first) == 77_261
    assert [(round(start), round(end)) for start, end in even.dearer[:2]] == [(80_000, 154_522), (160_000, 231_782)]
    assert even.dearer[0][0] < 90_000 < even.dearer[0][1]
    assert even.for_good > even.dearer[-1][0]


def test_where_a_replica_costs_more_than_its_tasks_no_number_of_replicas_pays() -> None:
    def even(replica_tasks: str) -> Decimal:
        return break_even_tasks_per_day(
            replica_usd_per_hour=D(1), hosted_usd_per_task=D("0.01"), replica_tasks=D(replica_tasks), max_replicas=900
        )

    assert even("2399") == NEVER
    assert even("2400") == 2400
    assert break_even_tasks_per_day(replica_usd_per_hour=D(1), hosted_usd_per_task=D(0)) == NEVER


@given(usage=USAGES, credit=st.sampled_from(["None", "Observed", "Fixed"]), share=decimals("0", "1"))
def test_credit_for_a_cache_only_lowers_the_hosted_bill(usage: TokenUsage, credit: str, share: Decimal) -> None:
    prices = TokenPrices(D(1), D(8), D("0.1"))
    terms = Terms(cache_credit=credit, cached_share=share)  # type: ignore[arg-type]
    assert 0 <= hosted_usd(usage, prices, terms) <= hosted_usd(usage, prices, Terms(cache_credit="None"))
    uncacheable = TokenPrices(D(1), D(8))
    assert hosted_usd(usage, uncacheable, terms) == hosted_usd(usage, uncacheable)


def test_factors_scale_what_the_other_tokenizer_would_count() -> None:
    usage, prices = TokenUsage(D(1_000_000), D(100_000), D(400_000)), TokenPrices(D(1), D(8), D("0.1"))
    assert hosted_usd(usage, prices) == D("0.6") + D("0.04") + D("0.8")
    assert hosted_usd(usage, prices, Terms(input_factor=D("1.2"), output_factor=D(3))) == D("0.768") + D("2.4")
    assert hosted_usd(usage, prices, Terms(cache_credit="Fixed", cached_share=D("0.5"))) == D("0.55") + D("0.8")


def test_a_ratio_has_no_figure_without_both_bills() -> None:
    assert cost_ratio(D(10), D(20)) == D("0.5")
    assert cost_ratio(D(0), D(5)) is None
    assert cost_ratio(D(5), D(0)) is None


def test_saturation_turns_one_unit_cost_into_the_other() -> None:
    saturation = saturation_ratio(D(250_000), seconds=D(1000), tokens_per_second=D(1000))
    assert saturation == D("0.25")
    assert at_full_load(D(4), saturation) == 1
    assert saturation_ratio(D(1), seconds=D(0), tokens_per_second=D(5)) is None
