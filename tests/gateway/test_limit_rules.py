"""Rate limits and budgets: the same behaviour in memory and on a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import pytest
from tests.support.redis import RedisServer, running_redis
from tests.support.routing import SOUND, compiled

from flotilla.errors import InvalidSpec
from flotilla.gateway.limits.accounts import store_from_environment
from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.gateway.limits.redis import RedisLimitStore
from flotilla.gateway.limits.store import (
    REDIS_URL,
    BudgetExceeded,
    LimitStore,
    RateExceeded,
    RateTicket,
    Reservation,
    SubjectBudget,
    SubjectRate,
    budgets_of,
    rates_of,
)
from flotilla.routing.request import Features

HOUR = 3600
START = 500_000 * HOUR + 100.25
"""100 s into a window of one hour."""
USD = Decimal


class Clock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[LimitStore]:
    if request.param == "memory":
        yield LocalLimitStore(clock)
        return
    server: RedisServer = request.getfixturevalue("server")
    with server.client() as client:
        client.flushall()
    limits = RedisLimitStore(server.url, clock=clock, server_clock=clock, timeout_s=30)
    yield limits
    await limits.close()


def budget(limit: str = "1", *, name: str = "monthly", subject: str = "", window_s: int = HOUR) -> SubjectBudget:
    return SubjectBudget("uid", name, subject, USD(limit), window_s)


def rate(
    requests: int | None = None, tokens: int | None = None, *, name: str = "fair", subject: str = ""
) -> SubjectRate:
    return SubjectRate("uid", name, subject, requests, tokens)


async def reserved(store: LimitStore, usd: str, *budgets: SubjectBudget, ttl_s: float = 60) -> Reservation:
    found = await store.reserve(budgets, USD(usd), ttl_s)
    assert isinstance(found, Reservation)
    return found


async def full(store: LimitStore, usd: str, *budgets: SubjectBudget) -> BudgetExceeded:
    found = await store.reserve(budgets, USD(usd), 60)
    assert isinstance(found, BudgetExceeded)
    return found


async def test_what_is_reserved_leaves_no_room_for_others(store: LimitStore) -> None:
    await reserved(store, "0.6", budget())
    await reserved(store, "0.4", budget())
    assert (await full(store, "0.000000001", budget())).budget.name == "monthly"
    assert store.reserved_usd == 1


async def test_what_was_not_spent_is_room_again(store: LimitStore) -> None:
    held = await reserved(store, "0.9", budget())
    await full(store, "0.2", budget())
    await store.settle(held, USD("0.25"))
    await reserved(store, "0.75", budget())
    await full(store, "0.01", budget())


async def test_a_settlement_counts_once_however_often_it_is_told(store: LimitStore) -> None:
    held = await reserved(store, "0.5", budget())
    for _ in range(3):
        await store.settle(held, USD("0.5"))
    await reserved(store, "0.5", budget())
    await full(store, "0.01", budget())


async def test_a_release_spends_nothing(store: LimitStore) -> None:
    held = await reserved(store, "1", budget())
    await store.settle(held, USD(0))
    await reserved(store, "1", budget())
    assert store.reserved_usd == 1


async def test_an_answer_that_cost_more_than_reserved_is_counted_whole(store: LimitStore) -> None:
    held = await reserved(store, "0.5", budget())
    await store.settle(held, USD("1.5"))
    await full(store, "0.01", budget())


async def test_the_reservation_of_a_dead_gateway_expires(store: LimitStore, clock: Clock) -> None:
    await reserved(store, "1", budget(), ttl_s=30)
    clock.now += 29
    await full(store, "0.1", budget())
    clock.now += 2
    await reserved(store, "1", budget())


async def test_what_is_settled_after_its_reservation_expired_still_counts_once(store: LimitStore, clock: Clock) -> None:
    held = await reserved(store, "0.5", budget(), ttl_s=30)
    clock.now += 31
    other = await reserved(store, "0.3", budget())
    for _ in range(2):
        await store.settle(held, USD("0.5"))
    await full(store, "0.21", budget())
    await store.settle(other, USD("0.3"))
    await reserved(store, "0.2", budget())
    await full(store, "0.01", budget())


async def test_a_budget_is_whole_again_in_the_next_window_and_says_when(store: LimitStore, clock: Clock) -> None:
    held = await reserved(store, "1", budget(), ttl_s=7200)
    assert (await full(store, "1", budget())).retry_after_s == HOUR - 100
    clock.now += HOUR - 100
    await reserved(store, "1", budget())
    # What was reserved in the last window is spent there.
    await store.settle(held, USD("1"))
    await full(store, "0.1", budget())


async def test_all_budgets_must_have_room_and_none_is_touched_where_one_has_not(store: LimitStore) -> None:
    wide, narrow = budget("10", name="wide"), budget("1", name="narrow")
    await reserved(store, "0.9", narrow)
    assert (await full(store, "0.5", wide, narrow)).budget.name == "narrow"
    await reserved(store, "10", wide)


async def test_subjects_names_and_policies_have_budgets_of_their_own(store: LimitStore) -> None:
    await reserved(store, "1", budget(subject="a"))
    await full(store, "1", budget(subject="a"))
    await reserved(store, "1", budget(subject="b"))
    await reserved(store, "1", budget(name="other", subject="a"))
    await reserved(store, "1", SubjectBudget("uid2", "monthly", "a", USD(1), HOUR))
    await reserved(store, "1", budget(subject="a", window_s=24 * HOUR))


async def test_a_budget_that_was_raised_keeps_what_was_spent(store: LimitStore) -> None:
    await store.settle(await reserved(store, "1", budget("1")), USD(1))
    await reserved(store, "1", budget("2"))
    await full(store, "0.1", budget("2"))


async def test_nothing_to_reserve_is_always_granted(store: LimitStore) -> None:
    await reserved(store, "1", budget())
    await store.settle(await reserved(store, "0", budget()), USD(0))
    await store.settle(await reserved(store, "5"), USD(5))


async def test_of_a_hundred_at_once_no_more_are_granted_than_the_budget_pays(store: LimitStore) -> None:
    found = await asyncio.gather(*(store.reserve([budget("1")], USD("0.07"), 60) for _ in range(100)))
    granted = [each for each in found if isinstance(each, Reservation)]
    assert len(granted) == 14
    await asyncio.gather(*(store.settle(each, USD("0.07")) for each in granted for _ in range(2)))
    assert store.reserved_usd == 0
    await full(store, "0.03", budget("1"))
    await reserved(store, "0.02", budget("1"))


async def test_requests_of_a_minute(store: LimitStore, clock: Clock) -> None:
    for _ in range(3):
        assert isinstance(await store.admit([rate(3)], 0), RateTicket)
    assert await store.admit([rate(3)], 0) == RateExceeded("fair", 61)
    clock.now += 60
    assert await store.admit([rate(3)], 0) == RateExceeded("fair", 1)
    clock.now += 1
    assert isinstance(await store.admit([rate(3)], 0), RateTicket)


async def test_the_time_to_wait_is_that_until_there_is_room(store: LimitStore, clock: Clock) -> None:
    for _ in range(4):
        await store.admit([rate(tokens=100)], 25)
        clock.now += 10
    limited = await store.admit([rate(tokens=100)], 50)
    assert limited == RateExceeded("fair", 31)  # The second of the four is 30 s old.
    clock.now += 31
    assert isinstance(await store.admit([rate(tokens=100)], 50), RateTicket)


async def test_tokens_are_corrected_when_they_are_known(store: LimitStore, clock: Clock) -> None:
    ticket = await store.admit([rate(tokens=100)], 60)
    assert isinstance(ticket, RateTicket)
    assert isinstance(await store.admit([rate(tokens=100)], 60), RateExceeded)
    await store.correct(ticket, 10)
    again = await store.admit([rate(tokens=100)], 60)
    assert isinstance(again, RateTicket)
    clock.now += 2
    await store.correct(again, 90)
    assert await store.admit([rate(tokens=100)], 1) == RateExceeded("fair", 59)


async def test_a_request_larger_than_a_whole_minute_passes_alone(store: LimitStore, clock: Clock) -> None:
    assert isinstance(await store.admit([rate(tokens=100)], 500), RateTicket)
    assert isinstance(await store.admit([rate(tokens=100)], 1), RateExceeded)
    clock.now += 61
    assert isinstance(await store.admit([rate(tokens=100)], 500), RateTicket)


async def test_a_request_that_one_rate_refuses_counts_in_none(store: LimitStore) -> None:
    wide, narrow = rate(2, name="wide"), rate(1, name="narrow")
    assert isinstance(await store.admit([wide, narrow], 0), RateTicket)
    assert await store.admit([wide, narrow], 0) == RateExceeded("narrow", 61)
    assert isinstance(await store.admit([wide], 0), RateTicket)
    assert isinstance(await store.admit([rate(1, name="narrow", subject="x")], 0), RateTicket)


async def test_without_rates_everything_passes(store: LimitStore) -> None:
    ticket = await store.admit([], 10)
    assert isinstance(ticket, RateTicket)
    await store.correct(ticket, 20)


async def test_of_a_hundred_at_once_no_more_pass_than_the_rate_allows(store: LimitStore) -> None:
    found = await asyncio.gather(*(store.admit([rate(30)], 1) for _ in range(100)))
    assert sum(isinstance(each, RateTicket) for each in found) == 30


async def test_in_memory_subjects_beyond_ten_thousand_share_one_count(clock: Clock) -> None:
    store = LocalLimitStore(clock)
    for number in range(10_000):
        assert isinstance(await store.admit([rate(1, subject=f"team-{number}")], 0), RateTicket)
    assert isinstance(await store.admit([rate(1, subject="one-more")], 0), RateTicket)
    assert isinstance(await store.admit([rate(1, subject="and-another")], 0), RateExceeded)
    clock.now += 61
    assert isinstance(await store.admit([rate(1, subject="and-another")], 0), RateTicket)


def test_limits_of_a_policy_are_counted_by_what_they_are_per() -> None:
    limits = {
        "rates": [{"name": "all", "requestsPerMinute": 5}, {"name": "team", "per": "Team", "tokensPerMinute": 7}],
        "budgets": [{"name": "client", "per": "Client", "amountUSD": "2.5", "windowHours": 24}],
    }
    policy = compiled({**SOUND, "limits": limits})
    features = Features(client="ann", team="red")
    assert rates_of(policy, features) == (
        SubjectRate(policy.uid, "all", "", 5, None),
        SubjectRate(policy.uid, "team", "red", None, 7),
    )
    assert budgets_of(policy, features) == (SubjectBudget(policy.uid, "client", "ann", USD("2.5"), 86_400),)
    assert budgets_of(policy, Features())[0].subject == ""


async def test_the_store_is_chosen_by_the_environment() -> None:
    assert isinstance(store_from_environment(environ={}), LocalLimitStore)
    shared = store_from_environment(environ={REDIS_URL: "redis://127.0.0.1:1"})
    assert isinstance(shared, RedisLimitStore)
    await shared.close()
    with pytest.raises(InvalidSpec, match="FLOTILLA_REDIS_URL must begin with"):
        store_from_environment(environ={REDIS_URL: "http://x"})
