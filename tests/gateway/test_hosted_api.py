"""The scripted hosted API: the vendors' clients can read it, and faults happen where the script says."""

import asyncio
import json
import ssl
from pathlib import Path

import aiohttp
import pytest
from openai import AsyncOpenAI
from tests.support.hosted import Garbage, Hang, Reset, Stream, Whole, fault
from tests.support.hosted_answers import chat, hosted_api, hosted_api_over_tls, openai_chunks

ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


async def test_the_openai_client_reads_whole_and_streamed_answers() -> None:
    async with hosted_api() as api, AsyncOpenAI(base_url=f"{api.url}/v1", api_key="k", max_retries=0) as client:
        whole = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        vectors = await client.embeddings.create(model="m", input=["a", "b"], encoding_format="float")

    assert whole.choices[0].message.content == "Hello there"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there"
    assert chunks[-1].usage is not None
    assert [v.embedding[2] for v in vectors.data] == [0, 1]
    assert api.received[0].headers["authorization"] == "Bearer k"
    assert api.received[1].json["stream"] is True


async def test_one_connection_takes_many_requests_and_the_script_goes_first() -> None:
    async with hosted_api() as api, aiohttp.ClientSession() as session:
        api.script(fault(429, retry_after_s=3))
        answers = []
        for _ in range(2):
            async with session.post(f"{api.url}/v1/chat/completions", json=ASKED) as answer:
                answers.append((answer.status, answer.headers.get("retry-after"), await answer.json()))

    assert [status for status, _, _ in answers] == [429, 200]
    assert answers[0][1] == "3"
    assert answers[0][2]["error"]["type"] == "rate_limit_error"
    assert answers[1][2] == chat(model="m")
    assert api.connections == 1


async def test_a_reset_before_the_first_byte_garbage_and_a_refusal() -> None:
    async with hosted_api() as api, aiohttp.ClientSession() as session:
        api.script(Reset(), Garbage())
        with pytest.raises(aiohttp.ClientOSError):
            await session.post(f"{api.url}/v1/chat/completions", json=ASKED)
        with pytest.raises(aiohttp.ClientResponseError):
            await session.post(f"{api.url}/v1/chat/completions", json=ASKED)
        async with api.refusing():
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.post(f"{api.url}/v1/chat/completions", json=ASKED)
        async with session.post(f"{api.url}/v1/chat/completions", json=ASKED) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("reply", [{"reset_after": 2}, {"close_after": 2}])
async def test_a_stream_that_dies_half_way_has_sent_what_the_script_says(reply: dict[str, int]) -> None:
    chunks = openai_chunks("one two three")
    async with hosted_api() as api, aiohttp.ClientSession() as session:
        api.script(Stream(chunks, gap_s=0.01, **reply))  # type: ignore[arg-type]
        got = b""
        with pytest.raises(aiohttp.ClientError):  # noqa: PT012
            async with session.post(f"{api.url}/v1/chat/completions", json=ASKED) as answer:
                async for piece in answer.content.iter_any():
                    got += piece

    assert got == b"".join(chunks[:2])


async def test_a_gate_holds_the_stream_and_a_client_that_leaves_is_counted() -> None:
    gate = asyncio.Event()
    async with hosted_api() as api, aiohttp.ClientSession() as session:
        api.script(Stream(openai_chunks("a b"), gate=gate, gate_after=1), Whole({}, gate=asyncio.Event()), Hang())
        async with session.post(f"{api.url}/v1/chat/completions", json=ASKED) as answer:
            first = await answer.content.readany()
            gate.set()
            rest = await answer.content.read()
        for number in (1, 2):
            waiting = asyncio.create_task(session.post(f"{api.url}/v1/chat/completions", json=ASKED))
            await api.until(lambda api, number=number: len(api.received) == number + 1)  # type: ignore[misc]
            waiting.cancel()
            await api.until(lambda api, number=number: api.abandoned == number)  # type: ignore[misc]

    assert first == openai_chunks("a b")[0]
    assert (first + rest).endswith(b"data: [DONE]\n\n")


async def test_over_tls_the_authority_is_trusted_and_anthropics_events_end_with_message_stop(tmp_path: Path) -> None:
    async with hosted_api_over_tls(tmp_path) as (api, trust), aiohttp.ClientSession() as session:
        tls = ssl.create_default_context(cafile=str(trust))
        async with session.post(f"{api.url}/v1/messages", json={**ASKED, "stream": True}, ssl=tls) as answer:
            text = await answer.text()

    kinds = [json.loads(line[6:])["type"] for line in text.splitlines() if line.startswith("data: ")]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
