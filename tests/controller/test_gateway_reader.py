"""What pods of a gateway say of themselves, over real sockets."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from flotilla.addresses import AddressMap
from flotilla.controller.gateway import GatewayReader
from flotilla.controller.policy_status import GatewayReport

ANSWERS = {
    "127.0.1.1": '{"hash": "abc", "problem": "", "missingKeys": ["a/key"]}',
    "127.0.1.2": '{"hash": "abc"}',
    "127.0.1.3": '{"hash": 1}',
    "127.0.1.4": "no json",
    "127.0.1.5": '{"hash": "abc", "problem": 5, "missingKeys": "a"}',
}


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of pods that answer by the address that they were asked at."""

    async def config(request: web.Request) -> web.Response:
        host = request.host.partition(":")[0]
        return web.Response(text=ANSWERS[host]) if host in ANSWERS else web.Response(status=302)

    app = web.Application()
    app.router.add_get("/config", config)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "0.0.0.0", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def test_pods_are_asked_at_the_addresses_where_they_are_reached_and_nonsense_is_no_answer(port: int) -> None:
    reader = GatewayReader(AddressMap.parse("10.0.1.0/24=127.0.1.0/24"), port=port)
    pods = {f"u{n}": f"10.0.1.{n}" for n in range(1, 7)}
    try:
        answers = await reader.ask({**pods, "none": "127.0.0.1"})
    finally:
        await reader.close()
    assert answers == {
        "u1": GatewayReport("abc", "", ("a/key",)),
        "u2": GatewayReport("abc"),
        "u5": GatewayReport("abc"),
    }


async def test_a_pod_that_does_not_answer_is_left_out() -> None:
    reader = GatewayReader(AddressMap(), port=1)
    assert await reader.ask({"u": "127.0.0.1"}) == {}
    await reader.close()
