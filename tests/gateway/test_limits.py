"""Rates and budgets of requests through a running gateway."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import Running, document_of, eventually, running_gateway
from tests.support.hosted import HostedApi, Reset, Stream, Whole
from tests.support.hosted_answers import chat, hosted_api, openai_chunks
from tests.support.redis import running_redis
from tests.support.routing import HOSTED, SOUND

from flotilla.gateway.limits.accounts import LimitLease, StoreAccounts, store_from_environment
from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.gateway.limits.redis import RedisLimitStore
from flotilla.gateway.limits.store import REDIS_URL, BudgetExceeded, LimitStore, Reservation, SubjectBudget
from flotilla.routing.decide import Decision
from flotilla.routing.document import Policy
from flotilla.routing.request import Features

PUBLIC = {"x-data-class": "public"}
CHEAP = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
"""0.0045 dollars at 3 and 15 dollars per million."""


def spec(base_url: str, limits: Mapping[str, Any], *, to: str = "frontier", spare: str | None = None) -> dict[str, Any]:
    """All requests to one target, with one to fall back to."""
    hosted = {**HOSTED, "baseURL": f"{base_url}/v1"}
    targets = [*SOUND["targets"][:2], {"name": "frontier", "external": hosted}]
    route: dict[str, Any] = {"split": [{"target": to}], **({"fallback": {"targets": [spare]}} if spare else {})}
    return {**SOUND, "targets": targets, "rules": [], "defaultRoute": route, "limits": limits}


def budget(amount: str, on_exceeded: str = "Reject", **more: Any) -> dict[str, Any]:
    return {"budgets": [{"name": "month", "amountUSD": amount, "onExceeded": on_exceeded, **more}]}


@asynccontextmanager
async def serving(
    directory: Path, limits: Mapping[str, Any], *, store: LimitStore | None = None, **route: Any
) -> AsyncIterator[tuple[Running, HostedApi, HostedApi, LimitStore]]:
    """A gateway before a hosted API and a model of the cluster."""
    counts = store or LocalLimitStore()
    async with hosted_api() as hosted, hosted_api() as engine:
        document = document_of(spec(hosted.url, limits, **route))
        async with running_gateway(
            directory, document, engines={"qwen-medium": [engine]}, accounts=StoreAccounts(counts)
        ) as gw:
            yield gw, hosted, engine, counts


async def test_a_budget_is_spent_by_what_answers_cost_and_then_refuses(tmp_path: Path) -> None:
    async with serving(tmp_path, budget("0.01")) as (gw, hosted, _, store):
        hosted.script(*(Whole({**chat(), "usage": CHEAP}) for _ in range(2)))
        for _ in range(2):
            status, _, _ = await gw.chat(headers=PUBLIC, max_tokens=50)
            assert status == 200
        await eventually(lambda: store.reserved_usd == 0)

        status, body, headers = await gw.chat(headers=PUBLIC, max_tokens=100)

        assert (status, body["error"]["code"]) == (429, "budget_exceeded")
        assert headers["x-should-retry"] == "false"
        assert 0 < int(headers["retry-after"]) <= 720 * 3600
        assert len(hosted.received) == 2
        # What is left pays for a smaller answer.
        assert (await gw.chat(headers=PUBLIC, max_tokens=50))[0] == 200


async def test_a_spent_budget_leads_to_the_cluster_where_the_policy_says_so(tmp_path: Path) -> None:
    limits = budget("0.0001", "ClusterOnly")
    async with serving(tmp_path, limits, spare="medium") as (gw, hosted, engine, _):
        status, _, headers = await gw.chat(headers=PUBLIC)
        assert status == 200
        assert "target=medium" in headers["x-flotilla-route"]
        assert (len(hosted.received), len(engine.received)) == (0, 1)


async def test_requests_that_stay_in_the_cluster_need_no_budget(tmp_path: Path) -> None:
    async with serving(tmp_path, budget("0.0001"), to="medium") as (gw, _, engine, _):
        assert (await gw.chat(headers=PUBLIC))[0] == 200
        assert len(engine.received) == 1


async def test_a_failed_request_gives_its_reservation_back(tmp_path: Path) -> None:
    async with serving(tmp_path, budget("0.002")) as (gw, hosted, _, store):
        hosted.script(Reset(), Whole({"error": {"message": "no"}}, 400))
        statuses = [(await gw.chat(headers=PUBLIC, max_tokens=100))[0] for _ in range(3)]
        assert statuses == [502, 400, 200]
        await eventually(lambda: store.reserved_usd == 0)


async def test_a_client_that_leaves_pays_for_what_it_had(tmp_path: Path) -> None:
    async with serving(tmp_path, budget("0.003")) as (gw, hosted, _, store):
        hosted.script(Stream(openai_chunks("a b c"), hang_after=4))
        body = {"model": "support", "messages": [], "stream": True, "max_tokens": 100}
        async with gw.session.post(gw.url + "/v1/chat/completions", json=body, headers=PUBLIC) as answer:
            await answer.content.readany()
            assert store.reserved_usd == Decimal("0.0015")
            answer.close()
        await eventually(lambda: store.reserved_usd == 0)
        # Four pieces at 15 dollars per million, so that twice the largest answer no longer fits.
        status, error, _ = await gw.chat(headers=PUBLIC, max_tokens=199)
        assert (status, error["error"]["code"]) == (429, "budget_exceeded")


async def test_a_rate_refuses_with_the_time_to_wait_and_clients_have_rates_of_their_own(tmp_path: Path) -> None:
    limits = {"rates": [{"name": "fair", "per": "Team", "requestsPerMinute": 2}]}
    async with serving(tmp_path, limits, to="medium") as (gw, _, engine, _):
        red, blue = ({"x-flotilla-team": team} for team in ("red", "blue"))
        statuses = [(await gw.chat(headers=red))[0] for _ in range(2)]
        status, body, headers = await gw.chat(headers=red)
        assert statuses == [200, 200]
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(headers["retry-after"]) <= 61
        assert (await gw.chat(headers=blue))[0] == 200
        assert len(engine.received) == 3


async def test_tokens_are_counted_as_the_answer_told_them(tmp_path: Path) -> None:
    limits = {"rates": [{"name": "fair", "tokensPerMinute": 1200}]}
    async with serving(tmp_path, limits, to="medium") as (gw, _, engine, _):
        engine.script(Whole({**chat(), "usage": CHEAP}))
        assert (await gw.chat(max_tokens=10))[0] == 200
        assert (await gw.chat(max_tokens=200))[0] == 429
        assert (await gw.chat(max_tokens=10))[0] == 200


async def test_when_the_store_does_not_answer_no_money_is_spent_and_the_cluster_serves(tmp_path: Path) -> None:
    store = store_from_environment(environ={REDIS_URL: f"unix://{tmp_path}/nobody.sock"})
    limits = budget("500")
    async with serving(tmp_path, limits, store=store, spare="medium") as (gw, hosted, engine, _):
        assert (await gw.chat(headers=PUBLIC))[0] == 200
        assert (len(hosted.received), len(engine.received)) == (0, 1)
    await store.close()


async def test_when_the_store_does_not_answer_and_only_hosted_models_could_it_is_said(tmp_path: Path) -> None:
    store = store_from_environment(environ={REDIS_URL: f"unix://{tmp_path}/nobody.sock"})
    async with serving(tmp_path, budget("500"), store=store) as (gw, hosted, _, _):
        status, body, headers = await gw.chat(headers=PUBLIC)
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "budget_unknown", "1")
        assert hosted.received == []
    await store.close()


async def test_two_replicas_share_a_budget_through_redis(tmp_path: Path) -> None:
    with running_redis() as server:
        stores = [RedisLimitStore(server.url, timeout_s=30) for _ in range(2)]
        async with AsyncExitStack() as stack:
            replicas = []
            for number, store in enumerate(stores):
                (tmp_path / str(number)).mkdir()
                replicas.append(
                    await stack.enter_async_context(serving(tmp_path / str(number), budget("0.01"), store=store))
                )
            statuses = []
            for gw, hosted, _, counts in [*replicas, *replicas]:
                hosted.script(Whole({**chat(), "usage": CHEAP}))
                statuses.append((await gw.chat(headers=PUBLIC, max_tokens=100))[0])
                await eventually(lambda counts=counts: counts.reserved_usd == 0)
            # Two answers of 0.0045 dollars, one of each replica, leave no room for a third of up to 0.0015.
            assert statuses == [200, 200, 429, 429]
        for store in stores:
            await store.close()


class SlowStore:
    """Stands for accounts whose settlement waits for `answers`."""

    immediate = False

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.settling: asyncio.Task[Any] | None = None
        self.settled = False

    async def settle(self, usd: Decimal, tokens: int) -> None:
        self.settling = asyncio.current_task()
        await self.answers.wait()
        self.settled = True

    async def admit(self, policy: Policy, features: Features) -> LimitLease:
        return self

    async def reserve(self, decision: Decision) -> Decision:
        return decision

    async def reserve_call(self, usd: Decimal, timeout_s: float) -> bool:
        raise NotImplementedError

    async def settle_call(self, usd: Decimal) -> None:
        raise NotImplementedError


@asynccontextmanager
async def held_back(directory: Path, store: SlowStore, **settings: Any) -> AsyncIterator[Running]:
    """A gateway with one request in flight, which has a lease."""
    document = document_of(spec("http://127.0.0.1:1", budget("1"), to="medium"))
    async with running_gateway(directory, document, accounts=store, **settings) as gw:
        asking = asyncio.create_task(gw.chat(headers=PUBLIC))
        await eventually(lambda: gw.gateway.state.pending.count("qwen-medium") == 1)
        yield gw
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_a_request_whose_settlement_is_cancelled_too_is_counted_all_the_same(tmp_path: Path) -> None:
    store = SlowStore()
    async with held_back(tmp_path, store) as gw:
        for connection in list(gw.gateway.server.connections):
            connection.abort()  # the client leaves
        await eventually(lambda: store.settling is not None)
        assert store.settling is not None
        store.settling.cancel()  # and the process ends
        await eventually(lambda: gw.gateway.server.in_flight == 0)
        counted = gw.gateway.state.metrics.requests.values
        assert counted["policy-0", "default", "medium", "public", "cancelled"] == 1


async def test_requests_that_are_cut_off_at_the_end_settle_their_accounts_first(tmp_path: Path) -> None:
    store = SlowStore()
    async with held_back(tmp_path, store, grace_s=0) as gw:
        stopping = asyncio.create_task(gw.gateway.server.drain(0))
        await eventually(lambda: store.settling is not None)
        assert not stopping.done()
        store.answers.set()
        assert await stopping == 1
        assert store.settled


async def test_a_settlement_that_is_cancelled_is_made_up_for_before_the_store_is_closed() -> None:
    with running_redis() as server:
        store, other = (RedisLimitStore(server.url, timeout_s=30) for _ in range(2))
        month = SubjectBudget("uid", "month", "", Decimal(1), 3600)
        held = await store.reserve([month], Decimal("0.6"), 60)
        assert isinstance(held, Reservation)
        with server.hanging():
            settling = asyncio.create_task(store.settle(held, Decimal("0.5")))
            await asyncio.sleep(0)
            settling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await settling
        await store.close()
        assert isinstance(await other.reserve([month], Decimal("0.51"), 60), BudgetExceeded)
        assert isinstance(await other.reserve([month], Decimal("0.5"), 60), Reservation)
        await other.close()
