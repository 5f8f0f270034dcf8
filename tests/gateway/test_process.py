"""The gateway as a process of its own: endpoints by list and watch, a busy loop and its probes, the end by SIGTERM."""

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.engine_sim import eventually
from tests.support.gateway import chat_body, document_of, endpoint_slice, events
from tests.support.gateway_process import client_of, gateway_process
from tests.support.hosted import Stream
from tests.support.hosted_answers import hosted_api, openai_chunks
from tests.support.routing import SOUND
from tests.support.slices_api import slices_api

DOCUMENT = document_of({**SOUND, "rules": [], "defaultRoute": {"split": [{"target": "small"}]}})


async def test_endpoints_are_followed_and_outlast_the_apiserver(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(hosted_api()) for _ in range(2)]
        api = await stack.enter_async_context(slices_api([endpoint_slice("qwen-small", [one.port])]))
        running = stack.enter_context(gateway_process(tmp_path, DOCUMENT, api))
        async with client_of(running) as gw:
            assert (await gw.chat())[0] == 200
            assert len(one.received) == 1
            api.put(endpoint_slice("qwen-small", [two.port], name=f"qwen-small-{one.port}"))

            async def moved() -> bool:
                await gw.chat()
                return bool(two.received)

            await eventually(moved, timeout_s=20)
            lists = api.lists
            api.gone = True
            api.end_watches()

            async def listed_again() -> bool:
                return api.lists > lists

            await eventually(listed_again, timeout_s=20)
            assert (await gw.chat())[0] == 200
            assert running.process.poll() is None


async def test_what_is_known_is_served_while_the_apiserver_is_away(tmp_path: Path) -> None:
    async with hosted_api() as engine, AsyncExitStack() as stack:
        async with slices_api([endpoint_slice("qwen-small", [engine.port])]) as api:
            running = stack.enter_context(gateway_process(tmp_path, DOCUMENT, api))
            gw = await stack.enter_async_context(client_of(running))
        assert (await gw.chat())[0] == 200
        assert await gw.ready()


async def test_sigterm_under_load_loses_no_request_that_was_taken(tmp_path: Path) -> None:
    async with (
        hosted_api() as engine,
        slices_api([endpoint_slice("qwen-small", [engine.port])]) as api,
        AsyncExitStack() as stack,
    ):
        running = stack.enter_context(gateway_process(tmp_path, DOCUMENT, api, "--lame-duck", "1"))
        gw = await stack.enter_async_context(client_of(running))
        gate = asyncio.Event()
        engine.script(*[Stream(openai_chunks("a b c"), gate=gate, gate_after=1) for _ in range(20)])
        streams = [asyncio.create_task(gw.chat(stream=True)) for _ in range(20)]
        await engine.until(lambda hosted: len(hosted.received) == 20)
        running.process.send_signal(signal.SIGTERM)

        async def leaving() -> bool:
            return not await gw.ready()

        await eventually(leaving, timeout_s=20)
        late = await asyncio.gather(*(gw.chat() for _ in range(10)))
        assert [status for status, _ in late] == [200] * 10
        gate.set()
        for status, text in await asyncio.gather(*streams):
            assert status == 200
            assert events(text)[-1] == "[DONE]"
        assert await asyncio.to_thread(running.process.wait, 20) == 0


async def test_a_stream_is_passed_on_piece_by_piece(tmp_path: Path) -> None:
    """Each piece reaches the client before the engine sends the next one: nothing on the way gathers them."""
    async with (
        hosted_api() as engine,
        slices_api([endpoint_slice("qwen-small", [engine.port])]) as api,
        AsyncExitStack() as stack,
    ):
        gw = await stack.enter_async_context(client_of(stack.enter_context(gateway_process(tmp_path, DOCUMENT, api))))
        chunks = openai_chunks("a b c")
        gate = asyncio.Event()
        engine.script(Stream(chunks, gate=gate, gate_after=2))
        url = f"{gw.gateway.url}/v1/chat/completions"
        async with gw.session.post(url, json=chat_body(stream=True)) as answer:
            seen = b""
            async with asyncio.timeout(10):
                while seen.count(b"data: ") < 2:
                    seen += await answer.content.readany()
            assert b"[DONE]" not in seen
            gate.set()
            assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")
