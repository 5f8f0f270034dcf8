"""Anthropic's Messages API at the gateway: what it has of all that a chat has, and how it is told."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_sim import running_vllm
from tests.support.gateway import Running, document_of, endpoint_slice, eventually, running_gateway
from tests.support.hosted import HostedApi, Stream, Whole, fault
from tests.support.hosted_answers import chat, event, hosted_api, openai_chunks, tool_call
from tests.support.messages import message_events, put_together
from tests.support.routing import HOSTED, SOUND
from tests.support.sdk import anthropic

from flotilla.gateway.http.server import ServerLimits
from flotilla.gateway.limits.accounts import StoreAccounts
from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.gateway.limits.store import LimitStore

PATH = "/v1/messages"
PUBLIC = {"x-data-class": "public"}
HELLO = {"model": "support", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
BUDGET = {"budgets": [{"name": "month", "amountUSD": "0.003"}]}


@asynccontextmanager
async def serving(
    directory: Path, *, provider: str = "OpenAI", to: str = "medium", route: Mapping[str, Any] = {}, **policy: Any
) -> AsyncIterator[tuple[Running, HostedApi, HostedApi, LimitStore]]:
    """All requests to one target: a model of the cluster, or a hosted one."""
    store = LocalLimitStore()
    settings = {name: policy.pop(name) for name in ("limits_of_server", "access_log") if name in policy}
    async with hosted_api() as engine, hosted_api() as hosted:
        frontier = {"name": "frontier", "external": {**HOSTED, "provider": provider, "baseURL": f"{hosted.url}/v1"}}
        default = {"split": [{"target": to}], **route}
        spec = {**SOUND, "targets": [*SOUND["targets"][:2], frontier], "rules": [], "defaultRoute": default, **policy}
        async with running_gateway(
            directory,
            document_of(spec),
            engines={"qwen-medium": [engine]},
            accounts=StoreAccounts(store),
            limits=settings.pop("limits_of_server", None),
            **settings,
        ) as gw:
            yield gw, engine, hosted, store


async def ask(gw: Running, path: str = PATH, headers: Mapping[str, str] = PUBLIC, **fields: Any) -> tuple[Any, ...]:
    """Status, message or error, and headers; of a stream the events."""
    body = {**HELLO, **fields}
    async with gw.session.post(gw.url + path, json=body, headers=headers) as answer:
        text = await answer.text()
        streamed = answer.headers["content-type"].startswith("text/event-stream")
        return answer.status, message_events(text) if streamed else json.loads(text), answer.headers


def error_of(told: Any) -> tuple[str, str]:
    """Type and code."""
    assert told["type"] == "error"
    return told["error"]["type"], told["error"]["details"]["error_code"]


async def test_a_key_may_be_shown_in_either_header(tmp_path: Path) -> None:
    clients = [{"name": "ann", "secretRef": {"name": "clients", "key": "ann"}}]
    async with serving(tmp_path, clients=clients) as (gw, engine, _, _):
        for shown in ({"x-api-key": "key-of-clients-ann"}, {"authorization": "Bearer key-of-clients-ann"}):
            assert (await ask(gw, headers={"anthropic-version": "2023-06-01", **shown}))[0] == 200
        for wrong in ({}, {"x-api-key": "no"}, {"authorization": "Bearer no", "x-api-key": "key-of-clients-ann"}):
            status, told, _ = await ask(gw, headers=wrong)
            assert (status, error_of(told)) == (401, ("authentication_error", "invalid_api_key"))
        assert all("x-api-key" not in received.headers for received in engine.received)
        assert len(engine.received) == 2


async def test_a_model_at_zero_is_waited_for_with_pings(tmp_path: Path) -> None:
    async with serving(tmp_path) as (gw, engine, _, _):
        gw.gateway.endpoints.replace([])
        gw.gateway.state.pending.heartbeat_s = 0.01
        async with gw.session.post(gw.url + PATH, json={**HELLO, "stream": True}) as answer:
            for _ in range(2):
                assert await answer.content.readuntil(b"\n\n") == b'event: ping\ndata: {"type":"ping"}\n\n'
            gw.serve("qwen-medium", [engine])
            events = [e for e in message_events(await answer.read()) if e["type"] != "ping"]
        assert put_together(events)["content"] == [{"type": "text", "text": "Hello there"}]
        assert answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_a_failure_after_pings_is_told_in_the_stream(tmp_path: Path) -> None:
    async with serving(tmp_path) as (gw, engine, _, _):
        gw.gateway.endpoints.replace([])
        gw.gateway.state.pending.heartbeat_s = 0.01
        async with gw.session.post(gw.url + PATH, json={**HELLO, "stream": True}) as answer:
            await answer.content.readuntil(b"\n\n")
            engine.script(fault(429))
            gw.serve("qwen-medium", [engine])
            *_, told = message_events(await answer.read())
        assert (answer.status, error_of(told)) == (200, ("rate_limit_error", "upstream_rate_limited"))


async def test_a_client_that_leaves_a_stream_pays_for_what_it_had(tmp_path: Path) -> None:
    async with serving(tmp_path, to="frontier", limits=BUDGET) as (gw, _, hosted, store):
        hosted.script(Stream(openai_chunks("a b c"), hang_after=4))
        async with gw.session.post(gw.url + PATH, json={**HELLO, "stream": True}, headers=PUBLIC) as answer:
            await answer.content.readany()
            assert store.reserved_usd > 0
            answer.close()
        await eventually(lambda: store.reserved_usd == 0)
        counted = await gw.counted("requests_total")
        assert set(counted) == {("public", "cancelled", "default", "frontier")}
        # Something was paid: what a fresh budget has room for no longer fits.
        status, told, headers = await ask(gw, max_tokens=199)
        assert (status, error_of(told)) == (429, ("rate_limit_error", "budget_exceeded"))
        assert headers["x-should-retry"] == "false"


async def test_usage_is_counted_as_a_chats_is(tmp_path: Path) -> None:
    async with serving(tmp_path, provider="Anthropic", to="frontier") as (gw, _, _, _):
        for stream in (False, True):
            assert (await ask(gw, stream=stream))[0] == 200
        tokens = await gw.counted("tokens_total")
        assert {key[2]: value for key, value in tokens.items()} == {"input": 14, "output": 4}
        assert (await gw.counted("requests_total")) == {("public", "ok", "default", "frontier"): 2}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_answer_is_asked_again(tmp_path: Path, stream: bool) -> None:
    route = {"escalation": {"target": "frontier", "signals": ["EmptyAnswer"]}}
    async with serving(tmp_path, provider="Anthropic", route=route) as (gw, engine, hosted, _):
        engine.script(Stream(openai_chunks("")) if stream else Whole(chat("")))
        status, told, headers = await ask(gw, stream=stream)
        said = put_together(told) if stream else told
        assert (status, said["content"]) == (200, [{"type": "text", "text": "Hello there"}])
        assert "escalated=frontier;reason=EmptyAnswer" in headers["x-flotilla-route"]
        assert hosted.received[0].json == {**HELLO, "model": "big-1", "stream": stream}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_target_that_fails_is_followed_by_one_of_another_api(tmp_path: Path, stream: bool) -> None:
    route = {"fallback": {"targets": ["medium"]}}
    async with serving(tmp_path, provider="Anthropic", to="frontier", route=route) as (gw, engine, hosted, _):
        hosted.script(fault(529, anthropic=True))
        status, told, headers = await ask(gw, stream=stream, top_k=5, service_tier="auto")
        said = put_together(told) if stream else told
        assert (status, said["content"]) == (200, [{"type": "text", "text": "Hello there"}])
        assert "target=medium;attempts=2" in headers["x-flotilla-route"]
        # Each API has its own words: Anthropic's knows no top_k any more, OpenAI's no service tier of Anthropic's.
        assert ("top_k" in hosted.received[0].json, engine.received[0].json["top_k"]) == (False, 5)
        assert headers["x-flotilla-dropped"] == "service_tier"


async def test_an_answer_that_cannot_be_told_is_a_failure(tmp_path: Path) -> None:
    async with serving(tmp_path) as (gw, engine, _, _):
        calls = [tool_call("weather", '{"city": "Ro')]
        engine.script(Whole(chat(None, tool_calls=calls, finish_reason="tool_calls")))
        status, told, _ = await ask(gw)
        assert (status, error_of(told)) == (502, ("api_error", "answer_unreadable"))
        assert "weather" in told["error"]["message"]
        assert set(await gw.counted("requests_total")) == {("public", "failed", "default", "medium")}


@pytest.mark.parametrize(
    "piece", [b"data: {\n\n", event({"error": {"message": "Gone.", "type": "server_error", "code": 500}})]
)
async def test_a_stream_that_cannot_be_told_is_broken_off(tmp_path: Path, piece: bytes) -> None:
    async with serving(tmp_path) as (gw, engine, _, _):
        chunks = openai_chunks("one two three")
        engine.script(Stream([*chunks[:3], piece, *chunks[3:]], gap_s=0.01))
        _, events, _ = await ask(gw, stream=True)
        assert [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"] == ["one", " two"]
        assert [e["error"]["type"] for e in events if e["type"] == "error"] == ["api_error"]
        assert events[-1]["type"] == "error"
        assert set(await gw.counted("requests_total")) == {("public", "interrupted", "default", "")}


async def test_the_way_to_it_fails_in_anthropics_words_too(tmp_path: Path) -> None:
    async with serving(tmp_path, limits_of_server=ServerLimits(body_bytes=500)) as (gw, _, _, _):
        unknown = await ask(gw, f"{PATH}/batches")
        uncounted = await ask(gw, f"{PATH}/count_tokens", model="other")
        large = await ask(gw, metadata={"user_id": "x" * 500})
        async with gw.session.get(gw.url + PATH) as answer:
            got = (answer.status, await answer.json(), answer.headers["allow"])
        async with gw.session.options(gw.url + PATH) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        async with gw.session.post(gw.url + PATH, data=b"{") as answer:
            garbled = (answer.status, await answer.json())

    assert (unknown[0], error_of(unknown[1])) == (404, ("not_found_error", "unknown_url"))
    assert (uncounted[0], error_of(uncounted[1])) == (404, ("not_found_error", "model_not_found"))
    assert (large[0], error_of(large[1])) == (413, ("request_too_large", "body_too_large"))
    assert (got[0], error_of(got[1]), got[2]) == (405, ("invalid_request_error", "method_not_allowed"), "POST, OPTIONS")
    assert (garbled[0], error_of(garbled[1])) == (400, ("invalid_request_error", "invalid_json"))


async def test_what_is_refused_by_name_is_counted_and_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with serving(tmp_path, access_log=True) as (gw, _, _, _):
        refused = await ask(gw, headers={"x-request-id": "mine"}, container="c")
        await ask(gw)
        assert (await gw.counted("requests_total"))["", "refused", "", ""] == 1

    assert (refused[0], error_of(refused[1])) == (400, ("invalid_request_error", "unsupported_field"))
    assert refused[1]["request_id"] == refused[2]["request-id"] == "mine"
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["path"], first["id"], first["status"], first["code"]) == (PATH, "mine", 400, "unsupported_field")
    assert (second["path"], second["status"], second["tokens"]) == (PATH, 200, 9)


async def test_a_client_that_does_not_read_slows_the_engine_down(tmp_path: Path) -> None:
    async with serving(tmp_path) as (gw, engine, _, _):
        engine.script(Stream(openai_chunks(" ".join(["x" * 4000] * 5000))))
        with socket.create_connection(("127.0.0.1", gw.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = json.dumps({**HELLO, "stream": True}).encode()
            client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            sinks = gw.gateway.state.deadlines.sinks
            await eventually(lambda: any(s.connection is not None and s.connection.paused for s in sinks))
        await eventually(lambda: gw.gateway.server.in_flight == 0)


async def ask_by_its_client(url: str) -> tuple[Any, ...]:
    """A message whole and streamed, and the refusal of one that is too long."""
    asked: Any = {**HELLO, "max_tokens": 5, "system": "Be brief."}
    async with anthropic.AsyncAnthropic(api_key="any", base_url=url, max_retries=0) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(**{**asked, "messages": [{"role": "user", "content": "word " * 9000}]})
        return whole, streamed, refused.value


async def test_anthropics_client_is_answered_by_a_simulated_engine_as_the_engine_counts(tmp_path: Path) -> None:
    arguments = ("--served-model-name", "qwen2.5-7b", "--max-model-len", "4096")
    async with running_vllm(*arguments) as sim, serving(tmp_path) as (gw, _, _, _):
        gw.gateway.endpoints.replace([endpoint_slice("qwen-medium", [int(sim.url.rpartition(":")[2])])])
        # An error that left this block would hold the engine's server by its frames, and uvloop would wait for it.
        answers: list[Any] = await asyncio.gather(ask_by_its_client(gw.url), return_exceptions=True)

    assert isinstance(answers[0], tuple), answers[0]
    *messages, refused = answers[0]
    for found in messages:
        assert (found.stop_reason, found.usage.output_tokens, found.model) == ("max_tokens", 5, "qwen2.5-7b")
        assert found.usage.input_tokens > 0
        assert found.content[0].type == "text"
    assert refused.type == "invalid_request_error"
    assert "4096" in refused.api_message


async def test_a_chat_is_not_touched(tmp_path: Path) -> None:
    async with serving(tmp_path) as (gw, engine, _, _):
        body = b'{"model":"support","messages":[{"role":"user","content":"Hi"}],"thinking":{"type":"x"}}'
        async with gw.session.post(gw.url + "/v1/chat/completions", data=body) as answer:
            assert (answer.status, "request-id" in answer.headers) == (200, False)
        assert engine.received[0].body == body.replace(b'"support"', b'"qwen2.5-7b"')
