"""The bounds on what clients can make the gateway hold: bodies, what they become, answers, slow readers."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.gateway import Running, chat_body, document_of, eventually, running_gateway
from tests.support.hosted import HostedApi, Stream, Whole
from tests.support.hosted_answers import hosted_api, openai_chunks
from tests.support.routing import SOUND

from flotilla.gateway.app import memory_for_requests
from flotilla.gateway.http.message import MemoryBudget
from flotilla.gateway.http.server import ServerLimits
from flotilla.gateway.openai.requests import MAX_CONTAINERS, InvalidBody, parse_body

MIB = 2**20
LIMITS = ServerLimits(memory_bytes=8 * MIB, body_bytes=6 * MIB)
CLIENTS = [{"name": name, "secretRef": {"name": "clients", "key": name}} for name in ("one", "other")]


def gateway(tmp_path: Path, engine: HostedApi, spec: Any = SOUND, limits: ServerLimits = LIMITS) -> Any:
    return running_gateway(tmp_path, document_of(spec), engines={"qwen-medium": [engine]}, limits=limits)


def head(length: int, *lines: str) -> bytes:
    more = "".join(f"{line}\r\n" for line in lines)
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def large(size: int) -> bytes:
    return json.dumps(chat_body(text="x" * size)).encode()


async def nothing_is_held(gw: Running) -> None:
    await eventually(lambda: gw.gateway.state.memory.used_bytes == 0)


@given(
    steps=st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 60), st.booleans()), max_size=60),
    share=st.integers(10, 100),
)
def test_neither_the_budget_nor_a_share_is_exceeded(steps: list[tuple[str, int, bool]], share: int) -> None:
    memory, held = MemoryBudget(100, share_percent=share), list[tuple[str, int]]()
    for client, size, more in steps:
        if more and memory.take(client, size):
            held.append((client, size))
        elif more:
            mine = sum(s for c, s in held if c == client)
            status = 429 if mine + size > share else 503
            assert memory.shortage(client, size).status == status
        elif held:
            memory.give_back(*held.pop())
        sums = {name: sum(s for c, s in held if c == name) for name in "abc"}
        assert memory.used_bytes == sum(sums.values()) <= 100
        assert max(sums.values()) <= share
    for item in held:
        memory.give_back(*item)
    assert memory.used_bytes == 0


async def test_a_body_without_room_is_refused_by_its_head_and_others_are_served(tmp_path: Path) -> None:
    async with hosted_api() as engine, gateway(tmp_path, engine) as gw:
        _, writer = await asyncio.open_connection("127.0.0.1", gw.port)
        writer.write(head(3 * MIB) + b"{")
        await eventually(lambda: gw.gateway.state.memory.used_bytes > 0)
        refused = await gw.raw(head(2 * MIB))
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in refused
        assert b"memory_share_exceeded" in refused
        assert (await gw.chat())[0] == 200
        writer.close()
        await nothing_is_held(gw)
        assert (await gw.post(large(MIB // 2)))[0] == 200
        await nothing_is_held(gw)


async def test_the_whole_budget_is_shared_and_each_client_has_its_part(tmp_path: Path) -> None:
    spec = {**SOUND, "clients": [{**client, "dataClass": "sovereign"} for client in CLIENTS]}
    async with hosted_api() as engine, gateway(tmp_path, engine, spec) as gw:
        keys = [
            f"Authorization: Bearer {gw.secrets['clients'].removesuffix('other')}{name}" for name in ("one", "other")
        ]
        opened = []
        for key in keys:
            _, writer = await asyncio.open_connection("127.0.0.1", gw.port)
            writer.write(head(4 * MIB - 1, key) + b"{")
            opened.append(writer)
        await eventually(lambda: gw.gateway.state.memory.used_bytes == 2 * (4 * MIB - 1))
        assert b"memory_share_exceeded" in await gw.raw(head(MIB, keys[0]))
        opened.pop().close()
        await eventually(lambda: gw.gateway.state.memory.used_bytes == 4 * MIB - 1)
        for writer in opened:
            writer.close()
        await nothing_is_held(gw)


@pytest.mark.parametrize("sent", ["Content-Length: 5000000", "Transfer-Encoding: chunked", "Expect: 100-continue"])
async def test_a_wrong_key_is_refused_before_the_body_is_read(tmp_path: Path, sent: str) -> None:
    spec = {**SOUND, "clients": [{**client, "dataClass": "sovereign"} for client in CLIENTS]}
    async with hosted_api() as engine, gateway(tmp_path, engine, spec) as gw:
        answer = await gw.raw(f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{sent}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"invalid_api_key" in answer
        assert not engine.received
        await nothing_is_held(gw)


HOSTILE = {
    "lists": b'{"model":"support","messages":[' + b"[]," * 200_000 + b"[]]}",
    "objects": b'{"model":"support","x":[' + b"{}," * 200_000 + b"{}]}",
    "numbers": b'{"model":"support","input":[' + b"1," * 600_000 + b"1]}",
    "keys": b'{"model":"support","x":{' + b'"a":1,' * 600_000 + b'"a":1}}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_body_of_a_million_values_is_not_parsed(tmp_path: Path, body: bytes) -> None:
    async with hosted_api() as engine, gateway(tmp_path, engine, limits=ServerLimits()) as gw:
        answer = await gw.raw(head(len(body), "Connection: close") + body)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"too_many_values" in answer
        assert not engine.received
        await nothing_is_held(gw)


def test_commas_and_brackets_of_a_text_are_no_values() -> None:
    text = 'a, [b], {"c": \\"d\\"}, ' * MAX_CONTAINERS
    assert parse_body(json.dumps(chat_body(text=text)).encode()).fields["messages"][0]["content"] == text
    with pytest.raises(InvalidBody):
        parse_body(json.dumps({"model": "m", "x": [text, *[[]] * MAX_CONTAINERS]}).encode())


async def test_the_largest_body_fits_the_budget_of_the_smallest_pod_that_is_rendered(tmp_path: Path) -> None:
    limits = ServerLimits(memory_bytes=208 * MIB)
    async with hosted_api() as engine, gateway(tmp_path, engine, limits=limits) as gw:
        body = large(32 * MIB - 100)
        assert (await gw.raw(head(len(body), "Connection: close") + body)).startswith(b"HTTP/1.1 200 ")
        await nothing_is_held(gw)


async def test_answers_beyond_the_budget_are_not_collected(tmp_path: Path) -> None:
    async with hosted_api() as engine, gateway(tmp_path, engine) as gw:
        engine.script(Whole({"choices": [], "x": "x" * 5 * MIB}))
        status, answer, headers = await gw.chat()
        assert (status, answer["error"]["code"]) == (503, "upstream_rate_limited")
        assert headers["retry-after"] == "1"
        assert not gw.gateway.state.breakers
        await nothing_is_held(gw)
        assert (await gw.chat())[0] == 200


async def test_slow_readers_are_disconnected_when_the_memory_is_needed(tmp_path: Path) -> None:
    limits = ServerLimits(memory_bytes=MIB)
    async with hosted_api() as engine, gateway(tmp_path, engine, limits=limits) as gw:
        engine.script(*[Stream([b"data: " + b"x" * 65_000 + b"\n\n"] * 400) for _ in range(20)])
        body = json.dumps(chat_body(stream=True)).encode()
        writers = []
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", gw.port, limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(head(len(body)) + body)
            writers.append(writer)
        await engine.until(lambda api: len(api.received) == 20)
        await eventually(lambda: gw.gateway.server.in_flight < 20)
        assert gw.gateway.state.memory.used_bytes <= MIB
        assert (await gw.chat())[0] == 200
        for writer in writers:
            writer.close()
        await nothing_is_held(gw)


async def test_a_large_body_is_served_and_its_client_may_leave(tmp_path: Path) -> None:
    async with hosted_api() as engine, gateway(tmp_path, engine, limits=ServerLimits()) as gw:
        body = large(4 * MIB)
        assert (await gw.raw(head(len(body), "Connection: close") + body)).startswith(b"HTTP/1.1 200 ")
        assert len(engine.received[0].json["messages"][0]["content"]) == 4 * MIB
        engine.script(Stream(openai_chunks("One two"), hang_after=1))
        body = json.dumps(chat_body(text="x" * MIB, stream=True)).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", gw.port)
        writer.write(head(len(body)) + body)
        await engine.until(lambda api: len(api.received) == 2)
        writer.close()
        await engine.until(lambda api: api.abandoned == 1)
        await nothing_is_held(gw)
        assert gw.gateway.server.in_flight == 0


def test_the_budget_follows_the_limit_of_the_container(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    assert memory_for_requests(limit) == 256 * MIB
    for text, expected in (("max\n", 256), (f"{512 * MIB}\n", 208), (f"{64 * MIB}\n", 32)):
        limit.write_text(text)
        assert memory_for_requests(limit) == expected * MIB
