"""The gateway as a process of its own: endpoints by list and watch, a busy loop and its probes, the end by SIGTERM."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tests.support.engine_sim import eventually
from tests.support.gateway import chat_body, document_of, endpoint_slice, events
from tests.support.hosted import Stream
from tests.support.hosted_answers import hosted_api, openai_chunks
from tests.support.routing import SOUND
from tests.support.slices_api import SlicesApi, slices_api

from flotilla.domain.routing.document import GatewayDocument

SPEC = {**SOUND, "rules": [], "defaultRoute": {"split": [{"target": "small"}]}}


@dataclass
class GatewayProcess:
    """`flotilla gateway`, and where it listens."""

    process: asyncio.subprocess.Process
    session: aiohttp.ClientSession
    port: int
    admin_port: int

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(f"http://127.0.0.1:{self.admin_port}{path}") as answer:
            return answer.status, await answer.text()

    async def chat(self, **fields: Any) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        async with self.session.post(url, json=chat_body(**fields)) as answer:
            return answer.status, await answer.text()

    async def ready(self) -> bool:
        return (await self.get("/readyz"))[0] == 200


@asynccontextmanager
async def process(
    directory: Path, document: GatewayDocument, api: SlicesApi, *options: str
) -> AsyncIterator[GatewayProcess]:
    (directory / "document.json").write_bytes(document.text)
    files = ["--document", str(directory / "document.json"), "--keys", str(directory), "--state", str(directory)]
    listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--no-access-log"]
    arguments = [*files, *listen, "--kubeconfig", str(api.kubeconfig(directory)), *options]
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flotilla", "gateway", *arguments, stderr=asyncio.subprocess.PIPE
    )
    assert started.stderr is not None
    reader = asyncio.create_task(_ports(started.stderr))
    try:
        async with asyncio.timeout(30):
            port, admin_port = await reader
        draining = asyncio.create_task(started.stderr.read())
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            yield GatewayProcess(started, session, port, admin_port)
        if started.returncode is None:
            started.terminate()
        async with asyncio.timeout(20):
            await started.wait()
        await draining
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def _ports(stream: asyncio.StreamReader) -> tuple[int, int]:
    while line := await stream.readline():
        entry = json.loads(line)
        if entry["message"] == "listening":
            return entry["port"], entry["admin_port"]
    raise AssertionError("the gateway ended before it listened")


async def test_endpoints_are_followed_and_outlast_the_apiserver(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(hosted_api()) for _ in range(2)]
        api = await stack.enter_async_context(slices_api([endpoint_slice("qwen-small", [one.port])]))
        async with process(tmp_path, document_of(SPEC), api, "--lame-duck", "0") as gw:
            await eventually(gw.ready, timeout_s=20)
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
            assert gw.process.returncode is None
        assert gw.process.returncode == 0


async def test_what_is_known_is_served_while_the_apiserver_is_away(tmp_path: Path) -> None:
    async with hosted_api() as engine:
        async with slices_api([endpoint_slice("qwen-small", [engine.port])]) as api:
            running = process(tmp_path, document_of(SPEC), api, "--lame-duck", "0")
            gw = await running.__aenter__()
            await eventually(gw.ready, timeout_s=20)
        assert (await gw.chat())[0] == 200
        assert await gw.ready()
        await running.__aexit__(None, None, None)
        assert gw.process.returncode == 0


async def test_sigterm_under_load_loses_no_request_that_was_taken(tmp_path: Path) -> None:
    async with (
        hosted_api() as engine,
        slices_api([endpoint_slice("qwen-small", [engine.port])]) as api,
        process(tmp_path, document_of(SPEC), api, "--lame-duck", "1") as gw,
    ):
        await eventually(gw.ready, timeout_s=20)
        gate = asyncio.Event()
        engine.script(*[Stream(openai_chunks("a b c"), gate=gate, gate_after=1) for _ in range(20)])
        streams = [asyncio.create_task(gw.chat(stream=True)) for _ in range(20)]
        await engine.until(lambda hosted: len(hosted.received) == 20)
        os.kill(gw.process.pid, signal.SIGTERM)

        async def leaving() -> bool:
            return not await gw.ready()

        await eventually(leaving, timeout_s=20)
        late = await asyncio.gather(*(gw.chat() for _ in range(10)))
        assert [status for status, _ in late] == [200] * 10
        gate.set()
        for status, text in await asyncio.gather(*streams):
            assert status == 200
            assert events(text)[-1] == "[DONE]"
        async with asyncio.timeout(20):
            assert await gw.process.wait() == 0


async def test_a_stream_is_passed_on_piece_by_piece(tmp_path: Path) -> None:
    """Each piece reaches the client before the engine sends the next one: nothing on the way gathers them."""
    async with (
        hosted_api() as engine,
        slices_api([endpoint_slice("qwen-small", [engine.port])]) as api,
        process(tmp_path, document_of(SPEC), api, "--lame-duck", "0") as gw,
    ):
        await eventually(gw.ready, timeout_s=20)
        chunks = openai_chunks("a b c")
        gate = asyncio.Event()
        engine.script(Stream(chunks, gate=gate, gate_after=2))
        url = f"http://127.0.0.1:{gw.port}/v1/chat/completions"
        async with gw.session.post(url, json=chat_body(stream=True)) as answer:
            seen = b""
            async with asyncio.timeout(10):
                while seen.count(b"data: ") < 2:
                    seen += await answer.content.readany()
            assert b"[DONE]" not in seen
            gate.set()
            assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")
