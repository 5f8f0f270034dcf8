"""Two gateways as processes with one Redis: what they share, and what is left when one of them is killed."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.support.gateway import document_of, eventually
from tests.support.gateway_process import Client, client_of, gateway_process
from tests.support.hosted import Received, Reply, Stream, Whole
from tests.support.hosted_answers import chat, hosted_api, openai_chunks
from tests.support.redis import RedisServer, running_redis
from tests.support.routing import HOSTED, SOUND
from tests.support.slices_api import slices_api

from flotilla.gateway.limits.store import REDIS_URL
from flotilla.routing.budgets import ZERO, dollars

PUBLIC = {"x-data-class": "public"}
ANSWER_USD = Decimal("0.0045")
"""A thousand tokens at 3 and a hundred at 15 dollars per million."""


def answer(request: Received) -> Reply:
    """Whole answers cost ANSWER_USD; streams begin and go on for ever."""
    if request.json.get("stream"):
        return Stream(openai_chunks("a b c"), hang_after=2)
    return Whole(chat(usage=(1000, 100)))


def policy(model: str, base_url: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    """All to a hosted model."""
    frontier = {"name": "frontier", "external": {**HOSTED, "baseURL": f"{base_url}/v1"}}
    route = {"split": [{"target": "frontier"}]}
    targets = [*SOUND["targets"][:2], frontier]
    return {
        **SOUND,
        "hostModels": [model],
        "targets": targets,
        "rules": [],
        "defaultRoute": route,
        "limits": dict(limits),
    }


class Books:
    """What Redis knows of the one budget."""

    def __init__(self, server: RedisServer) -> None:
        # Decoded: text, whatever the client's types say.
        self._redis: Any = server.client()
        self.settled = 0
        """Reservations that became money."""
        self.open: list[str] = []
        self.spent_usd = self.held_usd = Decimal(0)

    def read(self) -> "Books":
        """At one moment."""
        (window,) = (key for key in self._redis.keys("flotilla:budget:*") if not key.endswith(":until"))
        settled, entries = self._redis.pipeline().keys("flotilla:settled:*").hgetall(window).execute()
        self.settled = len(settled)
        self.spent_usd, self.held_usd = dollars(int(entries.pop("spent", 0))), dollars(int(entries.pop("held", 0)))
        self.open = list(entries)
        return self

    def let_reservations_expire(self) -> None:
        """As if their time had passed."""
        (untils,) = self._redis.keys("flotilla:budget:*:until")
        self._redis.zadd(untils, dict.fromkeys(self.open, 1), xx=True)

    def close(self) -> None:
        self._redis.close()


async def test_a_killed_replica_loses_only_its_reservations_and_no_money_is_counted_twice(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(running_redis())
        books = Books(server)
        stack.callback(books.close)
        hosted = await stack.enter_async_context(hosted_api(answer))
        api = await stack.enter_async_context(slices_api())
        document = document_of(
            policy("support", hosted.url, {"budgets": [{"name": "month", "amountUSD": "1"}]}),
            policy("rare", hosted.url, {"rates": [{"name": "slow", "requestsPerMinute": 3}]}),
        )
        replicas: list[Client] = []
        for name in ("survivor", "victim"):
            running = gateway_process(tmp_path / name, document, api, environ={REDIS_URL: server.url})
            replicas.append(await stack.enter_async_context(client_of(stack.enter_context(running))))
        survivor, victim = replicas

        async def ask(replica: Client, **fields: Any) -> int:
            return (await replica.chat(headers=PUBLIC, **fields))[0]

        # A rate is one for both.
        assert [await ask(replica, model="rare") for replica in (*replicas, *replicas)] == [200, 200, 200, 429]

        # A budget is one for both, to the last billionth.
        assert set(await asyncio.gather(*(ask(replica, max_tokens=100) for replica in replicas * 20))) == {200}
        await eventually(lambda: not books.read().open)
        assert (books.settled, books.spent_usd, books.held_usd) == (40, 40 * ANSWER_USD, ZERO)

        # Killed while it streams, and while it reserves, asks and settles.
        already = len(hosted.received)
        streams = [asyncio.create_task(ask(victim, stream=True, max_tokens=20_000)) for _ in range(2)]
        await hosted.until(lambda api: len(api.received) == already + 2)
        asked = [asyncio.create_task(ask(victim, max_tokens=100)) for _ in range(30)]
        await hosted.until(lambda api: len(api.received) >= already + 12)
        victim.gateway.kill()
        heard = await asyncio.gather(*asked, *streams, return_exceptions=True)

        books.read()
        delivered = heard.count(200)
        assert books.spent_usd == books.settled * ANSWER_USD
        assert 40 <= books.settled <= len(hosted.received) - 3 - 2
        assert 2 <= len(books.open) <= 32
        assert Decimal("0.6") <= books.held_usd < Decimal("0.7")  # of the streams, and of what was on its way
        assert books.settled + len(books.open) >= 40 + delivered + 2  # what was paid for is known, or set aside still

        # Until they expire, the dead one's reservations are nobody else's money.
        assert await ask(survivor, max_tokens=20_000) == 429
        books.let_reservations_expire()
        settled = books.settled
        assert await ask(survivor, max_tokens=20_000) == 200
        await eventually(lambda: books.read().settled == settled + 1)
        assert (books.spent_usd, books.held_usd, len(books.open)) == ((settled + 1) * ANSWER_USD, ZERO, 0)
