"""A hosted target that speaks Anthropic's API, and fails."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import Running, document_of, events, running_gateway, said
from tests.support.hosted import HostedApi, Reset, Stream, Whole, fault
from tests.support.hosted_answers import anthropic_events, hosted_api, named
from tests.support.routing import HOSTED, SOUND

PUBLIC = {"x-data-class": "public"}
BUSY = named("error", error={"type": "overloaded_error", "message": "Busy."})


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[Running, HostedApi, HostedApi]]:
    """Requests go to Anthropic's API, then to a model of the cluster."""
    async with hosted_api() as claude, hosted_api() as engine:
        target = {"name": "frontier", "external": {**HOSTED, "provider": "Anthropic", "baseURL": f"{claude.url}/v1"}}
        route = {"split": [{"target": "frontier"}], "fallback": {"targets": ["medium"]}}
        spec = {**SOUND, "targets": [*SOUND["targets"][:2], target], "rules": [], "defaultRoute": route}
        async with running_gateway(directory, document_of(spec), engines={"qwen-medium": [engine]}) as gw:
            yield gw, claude, engine


WHOLE_FAILURES: list[Any] = [
    fault(529, anthropic=True),
    fault(429, anthropic=True),
    fault(401, anthropic=True),
    Whole({"type": "unknown"}),
    Whole(b"<html>"),
    Reset(),
]
STREAMED_FAILURES: list[Any] = [
    Stream([BUSY]),
    Stream([named("ping"), BUSY]),
    Stream([b"data: {\n\n"]),
    Stream(anthropic_events("Hello")[:1], close_after=1),
    Stream([*anthropic_events("Hello")[:3], BUSY], gap_s=0.01),
]


@pytest.mark.parametrize("reply", WHOLE_FAILURES)
async def test_a_failure_instead_of_an_answer_is_followed(tmp_path: Path, reply: Any) -> None:
    async with serving(tmp_path) as (gw, claude, engine):
        claude.script(reply)
        status, body, headers = await gw.chat(headers=PUBLIC)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello there")
        assert "target=medium;attempts=2" in headers["x-flotilla-route"]
        assert len(engine.received) == 1


@pytest.mark.parametrize("reply", [*WHOLE_FAILURES, *STREAMED_FAILURES])
async def test_a_failure_before_the_first_word_of_a_stream_is_followed(tmp_path: Path, reply: Any) -> None:
    async with serving(tmp_path) as (gw, claude, engine):
        claude.script(reply)
        status, chunks, headers = await gw.stream(headers=PUBLIC)
        assert (status, said(chunks), chunks[-1]) == (200, "Hello there", "[DONE]")
        assert "target=medium;attempts=2" in headers["x-flotilla-route"]
        assert len(engine.received) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Stream(anthropic_events("one two three")[:5], close_after=5, gap_s=0.01),
        Stream(anthropic_events("one two three"), reset_after=5, gap_s=0.01),
        Stream([*anthropic_events("one two three")[:5], BUSY], gap_s=0.01),
    ],
)
async def test_a_stream_that_dies_half_way_is_told_and_is_not_whole(tmp_path: Path, reply: Stream) -> None:
    async with serving(tmp_path) as (gw, claude, engine):
        claude.script(reply)
        body = {"model": "support", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with gw.session.post(gw.url + "/v1/chat/completions", json=body, headers=PUBLIC) as answer:
            chunks = events((await answer.read()).decode())
        assert said(chunks) == "one two"
        assert "error" in chunks[-1]
        assert "[DONE]" not in chunks
        assert engine.received == []


async def test_what_anthropic_refuses_is_the_clients_to_know(tmp_path: Path) -> None:
    async with serving(tmp_path) as (gw, claude, engine):
        claude.script(fault(400, message="messages: too long", anthropic=True))
        status, body, _ = await gw.chat(headers=PUBLIC)
        assert (status, body["error"]["message"]) == (400, "messages: too long")
        assert engine.received == []


async def test_a_request_that_cannot_be_translated_is_refused_by_the_field(tmp_path: Path) -> None:
    async with serving(tmp_path) as (gw, claude, _):
        status, body, _ = await gw.chat(headers=PUBLIC, response_format={"type": "json_object"})
        assert (status, body["error"]["code"]) == (400, "unsupported_by_targets")
        assert body["error"]["param"] == "response_format.type"
        assert claude.received == []
