"""Targets that fail, with real sockets: what the client hears, where the request goes, and what is given up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import Running, chat_body, document_of, events, eventually, running_gateway, said
from tests.support.hosted import Garbage, Hang, HostedApi, Reset, Stream, Whole, fault
from tests.support.hosted_answers import hosted_api, openai_chunks
from tests.support.routing import HOSTED, SOUND

from flotilla.gateway.config import Config
from flotilla.gateway.endpoints import BreakerState

CHUNKS = openai_chunks("One two three")


def routed(
    *, fallback: bool = True, on: list[str] | None = None, timeouts: dict[str, int] | None = None, attempts: int = 3
) -> dict[str, Any]:
    """Everything to `medium`, and from there to `small`."""
    route: dict[str, Any] = {"split": [{"target": "medium"}], "maxAttempts": attempts, "timeouts": timeouts or {}}
    if fallback:
        route["fallback"] = {"targets": ["small"], **({"on": on} if on else {})}
    return {**SOUND, "rules": [], "defaultRoute": route}


@asynccontextmanager
async def two(directory: Path, spec: dict[str, Any]) -> AsyncIterator[tuple[Running, HostedApi, HostedApi]]:
    """A gateway, the engine of `medium` and that of `small`."""
    async with hosted_api() as medium, hosted_api() as small:
        engines = {"qwen-medium": [medium], "qwen-small": [small]}
        async with running_gateway(directory, document_of(spec), engines=engines) as gw:
            yield gw, medium, small


FAULTS = {
    "resets before the first byte": Reset(),
    "sends garbage": Garbage(),
    "is at its limit": fault(429, retry_after_s=7),
    "is overloaded": fault(503),
    "does not know our key": fault(401),
    "does not know the model": fault(404),
    "redirects": Whole({}, 307, {"location": "http://169.254.169.254/"}),
    "answers no JSON": Whole(b"<html>ok</html>"),
    "answers a list": Whole([1]),
    "answers compressed": Whole(b"\x1f\x8b", 200, {"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("reply", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("stream", [False, True])
async def test_a_target_that_fails_before_its_first_byte_is_followed(tmp_path: Path, reply: Any, stream: bool) -> None:
    async with two(tmp_path, routed()) as (gw, medium, small):
        medium.script(reply)
        if stream:
            status, chunks, headers = await gw.stream()
            assert said(chunks) == "Hello there"
        else:
            status, body, headers = await gw.chat()
            assert body["choices"][0]["message"]["content"] == "Hello there"
        assert status == 200
        assert "target=small;attempts=2;" in headers["x-flotilla-route"]
        assert len(medium.received) == len(small.received) == 1


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (Reset(), 502, "upstream_unreachable"),
        (Garbage(), 502, "upstream_unreachable"),
        (fault(429, retry_after_s=7), 429, "upstream_rate_limited"),
        (fault(503, retry_after_s=7), 503, "upstream_error"),
        (fault(500), 502, "upstream_error"),
        (fault(403), 502, "upstream_unauthorized"),
        (Whole(b"<html>"), 502, "upstream_error"),
    ],
)
async def test_the_last_failure_is_told_in_openais_shape(tmp_path: Path, reply: Any, status: int, code: str) -> None:
    async with two(tmp_path, routed(fallback=False)) as (gw, medium, _):
        medium.script(reply)
        got, body, headers = await gw.chat()
        assert (got, body["error"]["code"]) == (status, code)
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert headers.get("retry-after") == ("7" if status in (429, 503) else None)
        assert "scripted" not in body["error"]["message"]


async def test_a_target_that_refuses_connections_is_followed(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, small), medium.refusing():
        status, _, headers = await gw.chat()
        assert status == 200
        assert "target=small;attempts=2;" in headers["x-flotilla-route"]
        assert len(small.received) == 1


async def test_a_target_that_hangs_is_followed_when_its_first_token_is_due(tmp_path: Path) -> None:
    async with two(tmp_path, routed(timeouts={"firstTokenSeconds": 1})) as (gw, medium, _):
        medium.script(Hang())
        _, chunks, headers = await gw.stream()
        assert said(chunks) == "Hello there"
        assert "target=small" in headers["x-flotilla-route"]
        await medium.until(lambda api: api.abandoned == 1)


async def test_the_total_time_bounds_all_attempts(tmp_path: Path) -> None:
    async with two(tmp_path, routed(timeouts={"totalSeconds": 1})) as (gw, medium, small):
        medium.script(Hang())
        status, body, _ = await gw.chat()
        assert (status, body["error"]["code"]) == (504, "upstream_timeout")
        assert not small.received


async def test_a_failure_that_is_not_listed_is_not_followed(tmp_path: Path) -> None:
    async with two(tmp_path, routed(on=["Timeout"])) as (gw, medium, small):
        medium.script(fault(500))
        assert (await gw.chat())[0] == 502
        assert not small.received


async def test_attempts_are_bounded(tmp_path: Path) -> None:
    async with two(tmp_path, routed(attempts=1)) as (gw, medium, small):
        medium.script(fault(500))
        assert (await gw.chat())[0] == 502
        assert not small.received


async def test_what_the_client_did_wrong_is_the_targets_to_say(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, small):
        medium.script(fault(400, message="temperature must be below 2"))
        status, body, _ = await gw.chat(temperature=3)
        assert (status, body["error"]["message"]) == (400, "temperature must be below 2")
        assert not small.received


@pytest.mark.parametrize("field", ["reset_after", "close_after"])
async def test_a_stream_that_dies_says_so_and_has_no_done(tmp_path: Path, field: str) -> None:
    async with two(tmp_path, routed()) as (gw, medium, small):
        medium.script(Stream(CHUNKS, **{field: 2}))  # type: ignore[arg-type]
        status, chunks, _ = await gw.stream()
        assert status == 200
        assert chunks[-1]["error"]["code"] == "upstream_stream_interrupted"
        assert "[DONE]" not in chunks
        assert not small.received


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"object": "error", "message": {"detail": [{"msg": "extra"}]}}, '{"detail":[{"msg":"extra"}]}'),
        ({"detail": "Field required"}, "Field required"),
        ({"error": "model is loading"}, "model is loading"),
        (b"context too long", "context too long"),
        (b"<html>422</html>", "The target refused the request without saying why."),
        ({}, "The target refused the request without saying why."),
    ],
)
async def test_a_refusal_in_another_format_keeps_its_reason(tmp_path: Path, body: Any, message: str) -> None:
    async with two(tmp_path, routed()) as (gw, medium, _):
        medium.script(Whole(body, 422))
        status, said_, _ = await gw.chat()
        assert (status, said_["error"]["message"]) == (422, message)


async def test_a_stream_that_turns_into_garbage_says_so_and_passes_none_of_it_on(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with two(tmp_path, routed()) as (gw, medium, small):
        medium.script(Garbage(b"%b%x\r\n%b\r\n\x00\x16garbage\r\n" % (head, len(CHUNKS[0]), CHUNKS[0])))
        status, chunks, _ = await gw.stream()
        assert status == 200
        assert [chunk.get("error", {}).get("code") for chunk in chunks] == [None, "upstream_stream_interrupted"]
        assert "garbage" not in str(chunks[0])
        assert not small.received


async def test_a_stream_that_ends_without_done_is_no_whole_answer(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, _):
        medium.script(Stream(CHUNKS[:2]))
        _, chunks, _ = await gw.stream()
        assert chunks[-1]["error"]["code"] == "upstream_stream_interrupted"


async def test_a_stream_that_dies_in_an_event_tells_no_half_of_it(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, _):
        medium.script(Stream([*CHUNKS[:2], CHUNKS[2][:20]], reset_after=3))
        _, chunks, _ = await gw.stream()
        assert len(chunks) == 3
        assert chunks[-1]["error"]["code"] == "upstream_stream_interrupted"


async def test_a_stream_that_falls_silent_is_cut_off(tmp_path: Path) -> None:
    async with two(tmp_path, routed(timeouts={"idleSeconds": 1})) as (gw, medium, _):
        medium.script(Stream(CHUNKS, hang_after=2))
        _, chunks, _ = await gw.stream()
        assert chunks[-1]["error"]["code"] == "upstream_stream_interrupted"
        await medium.until(lambda api: api.abandoned == 1)


async def test_a_stream_that_begins_with_an_error_is_followed(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, _):
        medium.script(Stream([b": ping\n\n", b'data: {"error": {"message": "no memory"}}\n\n', b"data: [DONE]\n\n"]))
        _, chunks, headers = await gw.stream()
        assert said(chunks) == "Hello there"
        assert "target=small" in headers["x-flotilla-route"]


async def test_a_whole_answer_that_is_cut_off_is_no_answer(tmp_path: Path) -> None:
    async with two(tmp_path, routed(fallback=False)) as (gw, medium, _):
        medium.script(Garbage(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"id"'))
        status, body, _ = await gw.chat()
        assert (status, body["error"]["code"]) == (502, "upstream_unreachable")


async def test_an_endpoint_that_is_removed_goes_on_with_its_stream(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, _):
        gate = asyncio.Event()
        medium.script(Stream(CHUNKS, gate=gate, gate_after=2))
        running = asyncio.create_task(gw.stream())
        await medium.until(lambda api: len(api.received) == 1)
        gw.gateway.endpoints.replace([])
        gate.set()
        _, chunks, _ = await running
        assert chunks[-1] == "[DONE]"
        assert said(chunks) == "One two three"


async def test_a_client_that_leaves_ends_the_generation(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, _):
        medium.script(Stream(CHUNKS, hang_after=1))
        async with gw.session.post(
            gw.url + "/v1/chat/completions", json={"model": "support", "messages": [], "stream": True}
        ) as answer:
            await answer.content.readany()
        await medium.until(lambda api: api.abandoned == 1)
        pool = gw.gateway.endpoints.pool("qwen-medium")
        await eventually(lambda: pool.endpoints[0].outstanding == 0)
        assert pool.endpoints[0].breaker.state(0) is BreakerState.CLOSED


async def test_a_client_that_reads_slowly_is_no_failure_of_the_target(tmp_path: Path) -> None:
    async with two(tmp_path, routed(timeouts={"idleSeconds": 1})) as (gw, medium, _):
        medium.script(Stream([b"data: " + b"x" * 65_000 + b"\n\n"] * 400 + [b"data: [DONE]\n\n"]))
        body = json.dumps({"model": "support", "messages": [], "stream": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", gw.port, limit=1024)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await medium.until(lambda api: len(api.received) == 1)
        await asyncio.sleep(1.5)  # longer than the target may be silent
        async with asyncio.timeout(20):
            text = await reader.read()
        writer.close()
        assert text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert not gw.gateway.state.breakers


async def test_a_kept_connection_that_was_closed_meanwhile_is_not_an_attempt(tmp_path: Path) -> None:
    async with two(tmp_path, routed(fallback=False)) as (gw, medium, _):
        assert (await gw.chat())[0] == 200
        medium.script(Reset())
        status, _, headers = await gw.chat()
        assert status == 200
        assert "attempts=1;" in headers["x-flotilla-route"]


async def test_another_replica_of_the_same_target_is_tried(tmp_path: Path) -> None:
    async with hosted_api() as gone, hosted_api() as there:
        engines = {"qwen-medium": [gone, there]}
        async with (
            running_gateway(tmp_path, document_of(routed(fallback=False)), engines=engines) as gw,
            gone.refusing(),
        ):
            for _ in range(6):
                status, _, headers = await gw.chat()
                assert status == 200
                assert "target=medium" in headers["x-flotilla-route"]
            assert len(there.received) == 6


async def test_retries_are_a_share_of_the_requests(tmp_path: Path) -> None:
    async with hosted_api() as one, hosted_api() as other:
        engines = {"qwen-medium": [one, other]}
        async with running_gateway(tmp_path, document_of(routed(fallback=False)), engines=engines) as gw:
            one.script(*[Reset()] * 60)
            other.script(*[Reset()] * 60)
            for number in range(40):
                assert (await gw.chat(user=str(number)))[0] in (502, 503)
            total = len(one.received) + len(other.received)
            assert total <= 40 + 10 + 40 * 0.2


async def test_an_open_breaker_sends_requests_elsewhere_at_once(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, small):
        medium.script(*[fault(503)] * 5)
        for _ in range(5):
            assert (await gw.chat())[0] == 200
        _, _, headers = await gw.chat()
        assert "target=small;attempts=1;" in headers["x-flotilla-route"]
        assert len(medium.received) == 5
        assert len(small.received) == 6


async def test_the_last_target_is_asked_although_its_breaker_is_open(tmp_path: Path) -> None:
    async with two(tmp_path, routed(fallback=False)) as (gw, medium, _):
        medium.script(*[fault(503)] * 8)
        for _ in range(8):
            assert (await gw.chat())[0] == 503
        assert len(medium.received) == 8
        assert (await gw.chat())[0] == 200


async def test_a_target_that_rests_is_not_asked_although_it_is_the_last(tmp_path: Path) -> None:
    async with two(tmp_path, routed(fallback=False)) as (gw, medium, _):
        state = gw.gateway.state
        state.breakers.rest(gw.document.policies[0].uid, "medium", 60, state.loop.time())
        status, body, headers = await gw.chat()
        assert (status, body["error"]["code"]) == (503, "no_capacity")
        assert int(headers["retry-after"]) > 0
        assert not medium.received


async def test_an_error_in_a_stream_that_is_held_back_is_followed(tmp_path: Path) -> None:
    spec = routed()
    escalation = {"target": "small", "signals": ["EmptyAnswer"]}
    spec = {**spec, "defaultRoute": {**spec["defaultRoute"], "escalation": escalation}}
    async with two(tmp_path, spec) as (gw, medium, _):
        medium.script(Stream([*CHUNKS[:2], b'data: {"error": {"message": "no memory"}}\n\n', b"data: [DONE]\n\n"]))
        _, chunks, headers = await gw.stream()
        assert said(chunks) == "Hello there"
        assert "target=small" in headers["x-flotilla-route"]


async def test_what_a_model_thinks_counts_as_output(tmp_path: Path) -> None:
    spec = routed(fallback=False)
    escalation = {"target": "small", "signals": ["EmptyAnswer"], "maxBufferedTokens": 3}
    spec = {**spec, "defaultRoute": {**spec["defaultRoute"], "escalation": escalation}}
    async with two(tmp_path, spec) as (gw, medium, _):
        gate = asyncio.Event()
        thoughts = [chunk.replace(b'"content"', b'"reasoning_content"') for chunk in CHUNKS[:3]] * 2
        medium.script(Stream([*thoughts, *CHUNKS], gate=gate, gate_after=len(thoughts)))
        async with gw.session.post(gw.url + "/v1/chat/completions", json=chat_body(stream=True)) as answer:
            assert b"reasoning_content" in await answer.content.readany()
            gate.set()
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def test_comments_are_sent_while_a_stream_is_held_back(tmp_path: Path) -> None:
    spec = routed(fallback=False)
    escalation = {"target": "small", "signals": ["EmptyAnswer"]}
    spec = {**spec, "defaultRoute": {**spec["defaultRoute"], "escalation": escalation}}
    async with two(tmp_path, spec) as (gw, medium, _):
        gw.gateway.state.pending.heartbeat_s = 0.01
        gate = asyncio.Event()
        medium.script(Stream(CHUNKS, gate=gate, gate_after=2))
        async with gw.session.post(gw.url + "/v1/chat/completions", json=chat_body(stream=True)) as answer:
            assert await answer.content.readline() == b": reading the answer\n"
            gate.set()
            assert said(events((await answer.read()).decode().lstrip())) == "One two three"


@pytest.mark.parametrize("status", [404, 405, 500, 501])
async def test_embeddings_of_a_chat_model_do_not_close_it_to_others(tmp_path: Path, status: int) -> None:
    async with two(tmp_path, routed(fallback=False)) as (gw, medium, _):
        medium.script(*[fault(status)] * 10)
        for _ in range(10):
            assert (await gw.post({"model": "support", "input": "x"}, "/v1/embeddings"))[0] == 502
        assert (await gw.chat())[0] == 200
        assert not gw.gateway.state.breakers
        pool = gw.gateway.endpoints.pool("qwen-medium")
        assert pool.endpoints[0].breaker.state(0) is BreakerState.CLOSED


async def test_a_stream_without_done_is_whole_when_it_has_its_finish_reason(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, _):
        medium.script(Stream(openai_chunks("One two three", usage=True, done=False)))
        _, chunks, _ = await gw.stream()
        assert said(chunks) == "One two three"
        assert chunks[-1] == "[DONE]"
        assert not any("error" in chunk for chunk in chunks)
        assert (await gw.counted("tokens_total"))["first", "medium", "output"] == 2


async def test_a_hosted_target_rests_for_as_long_as_it_asks(tmp_path: Path) -> None:
    async with hosted_api() as hosted, hosted_api() as small:
        external = {**HOSTED, "baseURL": f"{hosted.url}/v1"}
        targets = [
            {"name": "hosted", "external": external},
            {"name": "small", "modelDeploymentRef": {"name": "qwen-small"}},
        ]
        policy = {"unknownClass": "any", "classes": [{"name": "any", "allowBoundaries": ["Cluster", "External"]}]}
        route = {"split": [{"target": "hosted"}], "fallback": {"targets": ["small"]}}
        spec = {**SOUND, "targets": targets, "dataPolicy": policy, "rules": [], "defaultRoute": route}
        async with running_gateway(tmp_path, document_of(spec), engines={"qwen-small": [small]}) as gw:
            hosted.script(fault(429, retry_after_s=37))
            for _ in range(5):
                assert (await gw.chat())[0] == 200
            assert (len(hosted.received), len(small.received)) == (1, 5)


async def test_shutting_down_loses_no_request(tmp_path: Path) -> None:
    async with hosted_api() as engine:
        spec = document_of(routed())
        async with running_gateway(tmp_path, spec, engines={"qwen-medium": [engine]}) as gw:
            gate = asyncio.Event()
            engine.script(*[Stream(CHUNKS, gate=gate, gate_after=1) for _ in range(10)])
            running = [asyncio.create_task(gw.stream()) for _ in range(10)]
            await engine.until(lambda api: len(api.received) == 10)
            stopping = asyncio.create_task(gw.gateway.stop())
            await eventually(lambda: gw.gateway.server.closing)
            gate.set()
            for status, chunks, _ in await asyncio.gather(*running):
                assert status == 200
                assert chunks[-1] == "[DONE]"
            await stopping


async def test_ready_fails_while_requests_are_still_taken(tmp_path: Path) -> None:
    async with hosted_api() as engine:
        spec = document_of(routed())
        async with running_gateway(tmp_path, spec, engines={"qwen-medium": [engine]}, lame_duck_s=0.5) as gw:
            assert (await gw.admin("/readyz"))[0] == 200
            stopping = asyncio.create_task(gw.gateway.stop())
            await eventually(lambda: gw.gateway.server.closing)
            assert (await gw.admin("/readyz"))[0] == 503
            status, _, headers = await gw.chat()
            assert status == 200
            assert headers["connection"] == "close"
            await stopping


async def test_a_bad_document_changes_nothing(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, _, _):
        before = json.loads((await gw.admin("/config"))[1])
        assert before["hash"] == gw.document.hash
        (tmp_path / "document.json").write_bytes(b'{"format": 2}')
        gw.gateway.config.load()
        after = json.loads((await gw.admin("/config"))[1])
        assert after["hash"] == before["hash"]
        assert "Upgrade the gateway" in after["problem"]
        assert (await gw.chat())[0] == 200


async def test_a_restart_without_a_readable_document_serves_the_last_good_one(tmp_path: Path) -> None:
    document, file = document_of(routed()), tmp_path / "document"
    for text in (document.text, b"{}", None):
        if text is None:
            file.unlink()
        else:
            file.write_bytes(text)
        config = Config(file, tmp_path / "keys", tmp_path)
        config.load()
        assert config.current is not None
        assert config.current.document.hash == document.hash
        assert bool(config.problem) == (text != document.text)


async def test_a_new_document_is_taken_over_under_load(tmp_path: Path) -> None:
    async with two(tmp_path, routed()) as (gw, medium, _):
        gate = asyncio.Event()
        medium.script(Stream(CHUNKS, gate=gate, gate_after=1))
        running = asyncio.create_task(gw.stream())
        await medium.until(lambda api: len(api.received) == 1)
        gw.replace_document(document_of({**routed(), "hostModels": ["renamed"]}))
        await eventually(lambda: gw.serves("renamed"))
        gate.set()
        assert (await running)[1][-1] == "[DONE]"
        assert (await gw.chat())[0] == 404
        assert (await gw.chat(model="renamed"))[0] == 200
