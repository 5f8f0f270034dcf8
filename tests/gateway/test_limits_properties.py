"""Whatever is asked of them in whatever order, the store in memory and the one on Redis say the same."""

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.redis import RedisServer, running_redis

from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.gateway.limits.redis import RedisLimitStore
from flotilla.gateway.limits.store import LimitStore, RateTicket, Reservation, SubjectBudget, SubjectRate

BUDGETS = [SubjectBudget("uid", "hour", subject, Decimal(1), 3600) for subject in "ab"]
BUDGETS.append(SubjectBudget("uid", "day", "", Decimal("1.5"), 86_400))
RATES = [
    SubjectRate("uid", "requests", "", 3),
    SubjectRate("uid", "tokens", "", None, 100),
    SubjectRate("uid", "both", "x", 5, 200),
]
USD = st.decimals("0.1", "1.2", places=2)
SOME_BUDGETS = st.lists(st.sampled_from(BUDGETS), min_size=1, max_size=2, unique=True)
SOME_RATES = st.lists(st.sampled_from(RATES), min_size=1, max_size=3, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), SOME_BUDGETS, USD, st.sampled_from([10, 5000])),
        st.tuples(st.just("settle"), st.integers(0, 9), USD),
        st.tuples(st.just("admit"), SOME_RATES, st.integers(0, 120)),
        st.tuples(st.just("correct"), st.integers(0, 9), st.integers(0, 150)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 7, 61, 2000])),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


async def told(store: LimitStore, clock: list[float], steps: list[tuple[Any, ...]]) -> list[object]:
    """What a client can see of each step; ids are left out."""
    reservations: list[Reservation] = []
    tickets: list[RateTicket] = []
    seen: list[object] = []
    for step in steps:
        match step:
            case ("reserve", budgets, usd, ttl_s):
                found = await store.reserve(budgets, usd, ttl_s)
                if isinstance(found, Reservation):
                    reservations.append(found)
                seen.append((found.held, found.usd) if isinstance(found, Reservation) else found)
            case ("settle", number, usd) if number < len(reservations):
                await store.settle(reservations[number], usd)
            case ("admit", rates, tokens):
                admitted = await store.admit(rates, tokens)
                if isinstance(admitted, RateTicket):
                    tickets.append(admitted)
                seen.append(admitted)
            case ("correct", number, tokens) if number < len(tickets):
                await store.correct(tickets[number], tokens)
            case ("wait", seconds):
                clock[0] += seconds
        seen.append(store.reserved_usd)
    return seen


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_both_stores_say_the_same(server: RedisServer, steps: list[tuple[Any, ...]]) -> None:
    async def both() -> tuple[list[object], list[object]]:
        here, there = [1e9 + 0.25], [1e9 + 0.25]
        shared = RedisLimitStore(server.url, clock=lambda: there[0], server_clock=lambda: there[0], timeout_s=30)
        try:
            return await told(LocalLimitStore(lambda: here[0]), here, steps), await told(shared, there, steps)
        finally:
            await shared.close()

    with server.client() as client:
        client.flushall()
    in_memory, on_redis = asyncio.run(both())
    assert in_memory == on_redis


@settings(max_examples=60)
@given(steps=STEPS)
def test_never_more_than_a_budget_is_promised_and_never_more_than_a_rate_in_a_minute(
    steps: list[tuple[Any, ...]],
) -> None:
    async def run() -> None:
        now = [1e9]
        store = LocalLimitStore(lambda: now[0])
        promised: dict[tuple[SubjectBudget, int], Decimal] = {}
        passed: list[tuple[float, SubjectRate]] = []
        for step in steps:
            match step:
                case ("reserve", budgets, usd, _):
                    found = await store.reserve(budgets, usd, 1e9)
                    if isinstance(found, Reservation):
                        # Each is settled at what it reserved: the dearest that can honestly happen.
                        await store.settle(found, usd)
                        for held in found.held:
                            promised[held] = promised.get(held, Decimal(0)) + usd
                case ("admit", rates, _):
                    if isinstance(await store.admit(rates, 0), RateTicket):
                        passed += [(now[0], rate) for rate in rates]
                case ("wait", seconds):
                    now[0] += seconds
        assert all(total <= budget.limit for (budget, _), total in promised.items())
        for start, rate in passed:
            within = sum(1 for at, other in passed if other is rate and start <= at < start + 60)
            assert within <= (rate.requests_per_minute or within)

    asyncio.run(run())
