"""The simulated engine as a process, as the node agent starts it, under a real OpenAI client."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import openai
import psutil
import pytest
from tests.support.engine_sim import ADDRESS, engine, free_port


async def connects(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(ADDRESS, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def ready(port: int, *, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not await connects(port):
            await asyncio.sleep(0.02)


async def test_it_refuses_connections_while_it_loads_then_streams_to_the_openai_client_and_drains() -> None:
    port = free_port()
    arguments = ["m/x", "--served-model-name", "lamp", "--port", str(port), "--shutdown-timeout", "20"]
    started_s = time.monotonic()
    async with engine("vllm", *arguments, LOAD_SECONDS="1.5", STEP_SECONDS="0.02") as process:
        while time.monotonic() - started_s < 1.2:
            assert not await connects(port)
            await asyncio.sleep(0.1)
        await ready(port)
        assert time.monotonic() - started_s >= 1.5
        assert psutil.Process(process.pid).memory_info().rss < 45 * 2**20
        async with openai.AsyncOpenAI(base_url=f"http://{ADDRESS}:{port}/v1", api_key="-", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["lamp"]
            stream = await client.chat.completions.create(
                model="lamp",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=60,
                stream=True,
                stream_options={"include_usage": True},
            )
            words, reasons, usage = "", [], None
            async for chunk in stream:
                if not words and chunk.choices and chunk.choices[0].delta.content:
                    process.send_signal(signal.SIGTERM)
                for choice in chunk.choices:
                    words += choice.delta.content or ""
                    reasons.append(choice.finish_reason)
                usage = chunk.usage or usage
            assert len(words.split()) == 60
            assert [reason for reason in reasons if reason] == ["length"]
            assert usage is not None
            assert usage.completion_tokens == 60
            with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
                await client.chat.completions.create(model="lamp", messages=[{"role": "user", "content": "too late"}])
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_the_openai_client_maps_the_errors() -> None:
    port = free_port()
    async with engine("vllm", "m/x", "--port", str(port), "--api-key", "k", LOAD_SECONDS="0") as process:
        await ready(port)
        url = f"http://{ADDRESS}:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await client.completions.create(model="other", prompt="x")
            with pytest.raises(openai.BadRequestError, match="cannot be greater than"):
                await client.completions.create(model="m/x", prompt="x", max_tokens=10**6)
        async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.completions.create(model="m/x", prompt="x")
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_tgi_serves_the_openai_client_and_ends_with_zero() -> None:
    port = free_port()
    async with engine("tgi", "--model-id", "m/x", "--port", str(port), LOAD_SECONDS="0") as process:
        await ready(port)
        async with openai.AsyncOpenAI(base_url=f"http://{ADDRESS}:{port}/v1", api_key="-") as client:
            stream = await client.chat.completions.create(
                model="tgi", messages=[{"role": "user", "content": "hello"}], max_tokens=7, stream=True
            )
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert len("".join(parts).split()) == 7
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize(
    ("name", "argv", "code", "message"),
    [
        ("vllm", ["m", "--swap-space", "4"], 2, "vllm: error: unrecognized arguments: --swap-space 4"),
        ("tgi", ["--swap-space", "4"], 2, "error: unexpected argument '--swap-space' found"),
        ("vllm", ["m", "--quantization", "gguf"], 1, "Unknown quantization method: gguf."),
        ("triton", [], 2, "usage: python -m flotilla_devcluster.engine"),
    ],
)
async def test_a_refusal_ends_the_process_with_the_real_exit_code_and_text(
    name: str, argv: list[str], code: int, message: str
) -> None:
    async with engine(name, *argv, LOAD_SECONDS="0.1") as process:
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == code
    assert message in errors.decode()


async def test_a_port_that_is_taken_is_found_before_loading() -> None:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with engine("vllm", "m", "--port", str(port), LOAD_SECONDS="60") as process:
            _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert "Address already in use" in errors.decode()


async def test_an_engine_that_listens_on_loopback_cannot_be_reached_at_the_pod_s_address() -> None:
    port = free_port()
    arguments = ["m", "--port", str(port), "--host", "127.0.0.1"]
    async with engine("vllm", *arguments, LOAD_SECONDS="0") as process:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        assert line == b"Application startup complete.\n"
        assert not await connects(port)
