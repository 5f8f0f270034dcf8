"""Answers on the wire: server-sent events as the engine produces them, or one JSON document at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from flotilla_devcluster.engine.engine_loop import EngineLoop, Ticket

DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """The dialect of one endpoint."""

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        """Events for the tokens `start` to `end` of a choice; `last`: the choice ends with them."""

    def end(self) -> bytes:
        """Events after the last token of the last choice."""


async def relay(
    request: web.Request, *, loop: EngineLoop, ticket: Ticket, writer: Writer, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Stream a ticket's tokens to the client; a client that leaves aborts them."""
    response = event_stream(headers)
    sent = [0] * len(ticket.sequences)
    try:
        await response.prepare(request)
        while sent != [sequence.output_tokens for sequence in ticket.sequences]:
            await ticket.news()
            events = _news(loop, ticket, writer, sent)
            if events:
                await response.write(events)
    except (asyncio.CancelledError, ConnectionError):
        loop.cancel(ticket)
        raise
    await response.write(writer.end())
    await response.write_eof()
    return response


def _news(loop: EngineLoop, ticket: Ticket, writer: Writer, sent: list[int]) -> bytes:
    """What was produced since the last call; `sent` is brought up to date."""
    events: list[bytes] = []
    for index, sequence in enumerate(ticket.sequences):
        tokens = loop.batcher.tokens(sequence)
        if tokens > sent[index]:
            last = tokens == sequence.output_tokens
            events.append(writer.tokens(index, sent[index], tokens, last=last))
            sent[index] = tokens
    return b"".join(events)


async def collect(*, loop: EngineLoop, ticket: Ticket) -> None:
    """Wait for the end of a ticket that does not stream; a client that leaves aborts it."""
    try:
        while not ticket.finished:
            await ticket.news()
    except asyncio.CancelledError:
        loop.cancel(ticket)
        raise


async def failed_stream(
    request: web.Request, document: object, *, tail: bytes, headers: Mapping[str, str]
) -> web.StreamResponse:
    """A stream that begins with 200 and holds an error only."""
    response = event_stream(headers)
    await response.prepare(request)
    await response.write(f"data: {compact(document)}\n\n".encode() + tail)
    await response.write_eof()
    return response


def event_stream(headers: Mapping[str, str]) -> web.StreamResponse:
    return web.StreamResponse(headers=headers)


def compact(document: object) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(text=compact(document), status=status, content_type="application/json", headers=headers)
