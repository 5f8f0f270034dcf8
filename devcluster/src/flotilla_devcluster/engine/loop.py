"""The engine behind the HTTP server: it runs a Batcher in real time and puts the answers on the wire.

`EngineLoop` has one timer, few wake-ups and many streams; a `Ticket` is what one request waits on. `relay` streams a
ticket's tokens as server-sent events in the dialect of a `Writer`, `collect` waits for the end of one that does not
stream. `OpenAiWriter` is what the writers of the OpenAI endpoints share.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiohttp import web

from flotilla.simulation.engine import Batcher, Event, EventKind, Phase, SimulatedSequence, Steps
from flotilla_devcluster.engine.requests import Asked

DONE = b"data: [DONE]\n\n"
COMPACT = (",", ":")


class Ticket:
    """The sequences of one HTTP request, and a way to wait for their tokens."""

    def __init__(self, sequences: list[SimulatedSequence], *, streaming: bool) -> None:
        self.sequences = sequences
        self.streaming = streaming
        self._news = asyncio.Event()

    @property
    def finished(self) -> bool:
        return all(sequence.phase is Phase.FINISHED for sequence in self.sequences)

    def wake(self) -> None:
        self._news.set()

    async def news(self) -> None:
        """Wait until there may be new tokens (streams) or an end."""
        await self._news.wait()
        self._news.clear()


class EngineLoop:
    """The engine process behind the HTTP server.

    First tokens and ends wake their request at their own time; what streams get in between comes with a tick
    every `tick_s`. So a hundred streams cost a few dozen wake-ups a second, and the time to the first token
    is the model's.
    """

    def __init__(self, batcher: Batcher, *, on_event: Callable[[Event | Steps], None], tick_s: float) -> None:
        self.batcher = batcher
        self.dead = False
        self._on_event = on_event
        self._tick_s = tick_s
        self._loop = asyncio.get_running_loop()
        self._owners: dict[SimulatedSequence, Ticket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_tick_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, sequences: list[SimulatedSequence], *, streaming: bool) -> Ticket:
        """Queue the sequences; ValueError from the batcher where one can never run."""
        ticket = Ticket(sequences, streaming=streaming)
        now_s = self._loop.time()
        for sequence in sequences:
            self.batcher.submit(sequence, now_s)
            self._owners[sequence] = ticket
        self._idle.clear()
        self._deliver(now_s)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Abort what has not ended, because the client has left; a dead engine does nothing."""
        if self.dead:
            return
        now_s = self._loop.time()
        for sequence in ticket.sequences:
            self.batcher.abort(sequence, now_s)
        self._deliver(now_s)

    def refresh(self) -> None:
        """Bring the batcher's numbers up to now, for a scrape between two wake-ups."""
        if not self.dead:
            self._deliver(self._loop.time())

    def kill(self) -> None:
        """The engine process dies: requests that wait on a ticket get nothing more."""
        self.dead = True
        if self._timer is not None:
            self._timer.cancel()

    async def idle(self) -> None:
        """Wait until nothing runs and nothing waits."""
        await self._idle.wait()

    def _deliver(self, now_s: float) -> None:
        for event in self.batcher.advance(now_s):
            self._on_event(event)
            if isinstance(event, Event):
                self._forward(event)
        if not self._owners:
            self._idle.set()
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + self._tick_s
            for sequence in self.batcher.running:
                ticket = self._owners[sequence]
                if ticket.streaming and sequence.phase is Phase.DECODE:
                    ticket.wake()
        self._arm()

    def _forward(self, event: Event) -> None:
        if event.kind in (EventKind.FINISHED, EventKind.ABORTED):
            ticket = self._owners.pop(event.sequence)
            if ticket.streaming or ticket.finished:
                ticket.wake()
        elif event.kind is EventKind.FIRST_TOKEN and self._owners[event.sequence].streaming:
            self._owners[event.sequence].wake()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_s = self.batcher.next_event_s
        if wake_s is None:
            return
        if any(ticket.streaming for ticket in self._owners.values()):
            wake_s = min(wake_s, self._next_tick_s)
        self._timer = self._loop.call_at(wake_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._deliver(self._loop.time())


class Writer(Protocol):
    """The dialect of one endpoint."""

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        """Events for the tokens `start` to `end` of a choice; `last`: the choice ends with them."""

    def end(self) -> bytes:
        """Events after the last token of the last choice."""


class OpenAiWriter:
    """Renders the answer to one request of an OpenAI endpoint.

    Chunks are put together as text, without a JSON encoder: words are lower-case letters, which need no escapes. An
    engine says how a choice looks in a chunk (`tokens`) and in a document (`choice`).
    """

    def __init__(self, asked: Asked, *, identity: str, model: str) -> None:
        self.asked = asked
        self.identity = identity
        self.model = model
        self.created = int(time.time())
        self.head = f'data: {json.dumps(self.envelope(streamed=True), separators=COMPACT)[:-1]},"choices":['
        """The beginning of every chunk, up to its choices."""

    def envelope(self, *, streamed: bool) -> dict[str, Any]:
        """What stands before the choices."""
        chat = "chat.completion.chunk" if streamed else "chat.completion"
        kind = chat if self.asked.chat else "text_completion"
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.model}

    def tail(self) -> dict[str, Any]:
        """What stands after the usage in a document."""
        return {}

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        raise NotImplementedError

    def choice(self, index: int, words: str, reason: str) -> dict[str, Any]:
        """One whole answer."""
        raise NotImplementedError

    def usage(self) -> dict[str, Any]:
        """Token counts of the whole request."""
        prompt, completion = self.asked.prompt_tokens, self.asked.completion_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def end(self) -> bytes:
        """The chunk with the usage, where it is asked for, and the mark of the end."""
        if not self.asked.include_usage:
            return DONE
        return f'{self.head}],"usage":{compact(self.usage())}}}\n\n'.encode() + DONE

    def document(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        choices = [
            self.choice(index, answer.words(0, answer.tokens), answer.finish_reason)
            for index, answer in enumerate(self.asked.answers)
        ]
        return {**self.envelope(streamed=False), "choices": choices, "usage": self.usage(), **self.tail()}


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
    return json.dumps(document, separators=COMPACT, ensure_ascii=False)


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(text=compact(document), status=status, content_type="application/json", headers=headers)
