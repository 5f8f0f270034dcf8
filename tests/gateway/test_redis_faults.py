"""Redis that dies, hangs or was never there: money is counted once, and no request waits for it."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from tests.support.redis import RedisServer, running_redis

from flotilla.gateway.limits import redis
from flotilla.gateway.limits.redis import RedisLimitStore
from flotilla.gateway.limits.store import (
    BudgetExceeded,
    Clock,
    RateExceeded,
    RateTicket,
    Reservation,
    StoreUnavailable,
    SubjectBudget,
    SubjectRate,
)

BUDGET = SubjectBudget("uid", "monthly", "", Decimal(1), 3600)
RATE = SubjectRate("uid", "fair", "", 2)
HALF = Decimal("0.5")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    with shared_server.client() as client:
        client.flushall()
    return shared_server


@asynccontextmanager
async def gateway(
    server: RedisServer, *, clock: Clock = lambda: 1e9, real: bool = False, timeout_s: float = 0.5
) -> AsyncIterator[RedisLimitStore]:
    """One replica's store, at a time that stands still unless `real`."""
    server_clock = None if real else clock
    limits = RedisLimitStore(
        server.url, clock=time.time if real else clock, server_clock=server_clock, timeout_s=timeout_s
    )
    try:
        yield limits
    finally:
        await limits.close()


async def reserved(store: RedisLimitStore, usd: Decimal = HALF, ttl_s: float = 60) -> Reservation:
    async with asyncio.timeout(30):
        while (found := await store.reserve([BUDGET], usd, ttl_s)) == StoreUnavailable():
            await asyncio.sleep(0.05)
    assert isinstance(found, Reservation)
    return found


async def refused(store: RedisLimitStore, usd: Decimal) -> None:
    """No room, once the server answers."""
    async with asyncio.timeout(30):
        while (found := await store.reserve([BUDGET], usd, 60)) == StoreUnavailable():
            await asyncio.sleep(0.05)
    assert isinstance(found, BudgetExceeded)


async def spent(server: RedisServer, expected: Decimal) -> None:
    """Wait until exactly this is spent and nothing is held."""
    async with asyncio.timeout(30):
        with server.client() as client:
            while True:
                windows = [client.hgetall(key) for key in client.scan_iter("flotilla:budget:*") if "until" not in key]
                counted = [(Decimal(w.get("spent", 0)) / 10**9, int(w.get("held", 0)), len(w)) for w in windows]
                if counted == [(expected, 0, 2)]:
                    return
                await asyncio.sleep(0.05)


async def test_a_server_killed_between_reserving_and_settling_counts_the_money_once(server: RedisServer) -> None:
    async with gateway(server) as store:
        held = await reserved(store)
        server.kill()
        await asyncio.gather(*(store.settle(held, HALF) for _ in range(3)))
        server.start()
        await spent(server, HALF)
        await store.settle(held, HALF)
        await spent(server, HALF)
        await refused(store, Decimal("0.6"))


async def test_a_client_killed_between_reserving_and_settling_loses_its_reservation_only(server: RedisServer) -> None:
    now = 1e9
    program = (
        "import asyncio, os, sys\n"
        "from decimal import Decimal\n"
        "from flotilla.gateway.limits.store import SubjectBudget\n"
        "from flotilla.gateway.limits.redis import RedisLimitStore\n"
        "async def main():\n"
        "    store = RedisLimitStore(sys.argv[1], clock=lambda: 1e9, server_clock=lambda: 1e9)\n"
        "    budget = [SubjectBudget('uid', 'monthly', '', Decimal(1), 3600)]\n"
        "    await store.settle(await store.reserve(budget, Decimal('0.25'), 60), Decimal('0.25'))\n"
        "    await store.reserve(budget, Decimal('0.5'), 60)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, server.url, env=dict(os.environ))
    assert await process.wait() == -signal.SIGKILL

    async with gateway(server, clock=lambda: now, timeout_s=30) as other:
        await refused(other, HALF)
        now += 61
        held = await reserved(other, Decimal("0.75"))
        await refused(other, Decimal("0.01"))
        await other.settle(held, Decimal(0))
        await spent(server, Decimal("0.25"))


async def test_a_server_that_hangs_holds_no_request_up(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flotilla.gateway.limits.redis")
    async with gateway(server) as store:
        held = await reserved(store)
        caplog.clear()
        with server.hanging():
            async with asyncio.timeout(20):
                assert store.available
                assert await store.reserve([BUDGET], HALF, 60) == StoreUnavailable()
                assert not store.available
                await store.settle(held, HALF)
                found = await asyncio.gather(*(store.reserve([BUDGET], HALF, 60) for _ in range(200)))
                assert set(found) == {StoreUnavailable()}
                # Rates go on, by what this process alone lets through.
                passed = [await store.admit([RATE], 1) for _ in range(3)]
        assert [type(each) for each in passed] == [RateTicket, RateTicket, RateExceeded]
        # The call that was given up and the one that was repeated are the same settlement.
        await spent(server, HALF)
        async with asyncio.timeout(30):
            while not store.available:
                await asyncio.sleep(0.05)
        # Told once, and not for each request.
        said = [record.message.split(":")[0] for record in caplog.records]
        assert said[:2] == ["Redis does not answer", "Redis answers again"]
        await store.settle(await reserved(store), HALF)
        await spent(server, Decimal(1))


async def test_what_was_reserved_without_an_answer_is_given_back(server: RedisServer) -> None:
    async with gateway(server) as store:
        await store.settle(await reserved(store), Decimal("0.1"))
        with server.hanging():
            assert await store.reserve([BUDGET], Decimal("0.9"), 3600) == StoreUnavailable()
        async with asyncio.timeout(30):
            with server.client() as client:
                while len(list(client.scan_iter("flotilla:settled:*"))) < 2:
                    await asyncio.sleep(0.05)
        await spent(server, Decimal("0.1"))
        await reserved(store, Decimal("0.9"))


async def test_a_gateway_that_ends_writes_what_it_still_has_to_settle(server: RedisServer) -> None:
    async with gateway(server) as store:
        held = await reserved(store)
        server.kill()
        await store.settle(held, HALF)
        server.start()
    await spent(server, HALF)


async def test_without_a_server_no_money_is_reserved_and_the_end_is_not_held_up(server: RedisServer) -> None:
    server.kill()
    try:
        async with asyncio.timeout(20), gateway(server) as store:
            assert await store.reserve([BUDGET], HALF, 60) == StoreUnavailable()
            assert isinstance(await store.admit([RATE], 1), RateTicket)
            assert store.reserved_usd == 0
    finally:
        server.start()


async def test_replicas_share_budgets_and_rates(server: RedisServer) -> None:
    async with gateway(server, timeout_s=30) as one, gateway(server, timeout_s=30) as two:
        await reserved(one)
        await reserved(two)
        await refused(one, HALF)
        assert isinstance(await one.admit([RATE], 1), RateTicket)
        assert isinstance(await two.admit([RATE], 1), RateTicket)
        assert isinstance(await one.admit([RATE], 1), RateExceeded)


async def test_by_the_servers_own_time(server: RedisServer) -> None:
    async with gateway(server, real=True, timeout_s=30) as store:
        ticket = await store.admit([RATE], 5)
        assert isinstance(ticket, RateTicket)
        await store.correct(ticket, 50)
        await store.settle(await reserved(store), HALF)
        await refused(store, Decimal("0.6"))
    await spent(server, HALF)


async def test_everything_that_is_stored_goes_away_by_itself(server: RedisServer) -> None:
    async with gateway(server, real=True, timeout_s=30) as store:
        await store.admit([RATE], 5)
        await reserved(store)
        await store.settle(await reserved(store), HALF)
        with server.client() as client:
            keys = list(client.scan_iter())
            assert len(keys) == 4
            assert all(client.ttl(key) > 0 for key in keys)


async def test_a_thousand_at_once_do_not_look_like_a_server_that_is_away(server: RedisServer) -> None:
    async with gateway(server, timeout_s=30) as store:
        found = await asyncio.gather(*(store.reserve([BUDGET], Decimal("0.002"), 60) for _ in range(1000)))
        assert [isinstance(each, Reservation) for each in found].count(True) == 500
        assert {type(each) for each in found} == {Reservation, BudgetExceeded}
        with server.client() as client:
            assert client.info("clients")["connected_clients"] <= 3


async def test_a_server_that_was_emptied_learns_its_scripts_again(server: RedisServer) -> None:
    async with gateway(server, timeout_s=30) as store:
        await reserved(store)
        with server.client() as client:
            client.script_flush()
        found = await asyncio.gather(*(store.reserve([BUDGET], Decimal("0.2"), 60) for _ in range(3)))
        assert [type(each) for each in found] == [Reservation, Reservation, BudgetExceeded]


async def test_who_waits_too_long_on_a_busy_server_calls_nobody_away(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "_BATCH", 1)
    piped, passed = redis.ScriptClient._piped, 0

    async def only_the_first(calls: redis.ScriptClient, batch: Any) -> Any:
        nonlocal passed
        passed += 1
        return await (piped(calls, batch) if passed == 1 else asyncio.sleep(30))

    async with gateway(server, timeout_s=2) as store:
        # The server knows the script from here on.
        assert isinstance(await store.admit([RATE], 1), RateTicket)
        monkeypatch.setattr(redis.ScriptClient, "_piped", only_the_first)
        found = await asyncio.gather(*(store.admit([SubjectRate("uid", "many", "", 9)], 1) for _ in range(5)))
        # Those that waited too long were counted here alone, and the server is none the worse for it.
        assert {type(each) for each in found} == {RateTicket}
        assert store.available
