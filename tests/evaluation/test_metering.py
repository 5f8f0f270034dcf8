"""GPU dollars: the parts of all who used a deployment add up to what the ledger charged, to the cent."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from flotilla.cost.hosted_prices import TokenUsage, TokenWeights
from flotilla.evaluation.metering import MeterReading, own_usd

TOKENS = st.integers(0, 10**9)
WEIGHTS = TokenWeights()


@st.composite
def usages(draw: st.DrawFn) -> TokenUsage:
    prompt = draw(TOKENS)
    return TokenUsage(Decimal(prompt), Decimal(draw(TOKENS)), Decimal(draw(st.integers(0, prompt))))


@given(
    st.lists(usages(), min_size=1, max_size=8),
    st.decimals(0, 10**6, places=9),
    st.decimals(0, 10**4, places=9),
    usages(),
)
def test_the_parts_add_up_to_the_ledgers_dollars(
    users: list[TokenUsage], before_usd: Decimal, spent: Decimal, earlier: TokenUsage
) -> None:
    total = sum(users, TokenUsage())
    before = MeterReading(before_usd, earlier)
    after = MeterReading(before_usd + spent, earlier + total)
    parts = [own_usd(before, after, own, WEIGHTS) for own in users]
    if WEIGHTS.work(total) == 0:
        assert parts == [None] * len(users)
    else:
        assert abs(sum((part or Decimal(0) for part in parts), Decimal(0)) - spent) < Decimal("0.01")
        assert all(part is not None and 0 <= part <= spent for part in parts)


def test_counters_that_lag_charge_no_more_than_was_spent() -> None:
    before, after = MeterReading(Decimal(5), TokenUsage()), MeterReading(Decimal(6), TokenUsage(Decimal(10)))
    assert own_usd(before, after, TokenUsage(Decimal(20)), WEIGHTS) == 1


def test_a_ledger_that_went_back_gives_no_dollars() -> None:
    assert own_usd(MeterReading(Decimal(2), TokenUsage()), MeterReading(Decimal(1), TokenUsage()),
                   TokenUsage(Decimal(1)), WEIGHTS) is None  # fmt: skip
