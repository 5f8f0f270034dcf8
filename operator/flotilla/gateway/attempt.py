"""One attempt: the receiver of a target's answer, bounded in time and size, and the outcomes that it can have.

`ResponseSink` is the `http.client.ResponseHandler` of a complete answer, `StreamSink` that of a stream, whose events it
passes to a relay. Either sets the future `outcome` exactly once. `Deadlines` ends attempts whose time is up.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from flotilla.api.routing_policy import Failure
from flotilla.gateway.http.client import UpstreamConnection
from flotilla.gateway.openai.responses import StreamRelay

_ANSWER_LIMIT_BYTES = 64 * 2**20
_ERROR_LIMIT_BYTES = 64 * 1024
_SWEEP_S = 0.05
_REQUEST_STATUSES = frozenset({404, 405, 500, 501})
"""Statuses that a request can cause by what it asks for, such as embeddings of a chat model."""


@dataclass(frozen=True, slots=True)
class Complete:
    """A complete answer: a success, or a refusal of the request itself (4xx), which the client gets as it is."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed before a byte reached the client, so that another attempt may be made."""

    failure: Failure
    detail: str
    """The reason, for the log and the client. Never a text of the target's, which may quote the prompt."""
    status: int = 502
    """The HTTP status that the client gets if this was the last attempt."""
    retry_after: str | None = None
    """The target's Retry-After header."""
    nothing_sent: bool = False
    """Whether the target has certainly not seen the request."""
    by_request: bool = False
    """Whether the request itself may be the cause, so that it says little about the target."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """The client has received the complete stream."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """The stream is complete and still held back: the client has received nothing of it."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The client has received a part of the stream, and the rest will not come."""

    detail: str
    by_client: bool = False
    """Whether the client read too slowly, which says nothing about the target."""


Outcome = Complete | Failed | Streamed | HeldBack | Interrupted


class Deadlines:
    """Ends attempts whose time is up.

    One timer looks at all attempts: restarting a timer for every chunk would cost more than relaying the chunk.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.sinks: set[ResponseSink] = set()
        self._timer = loop.call_later(_SWEEP_S, self._tick)

    def add(self, sink: "ResponseSink") -> None:
        """Watch the deadline of an attempt."""
        self.sinks.add(sink)

    def discard(self, sink: "ResponseSink") -> None:
        """The attempt has ended."""
        self.sinks.discard(sink)

    def close(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        for sink in [sink for sink in self.sinks if sink.deadline_s <= now]:
            sink.expire()
        self._timer = self._loop.call_later(_SWEEP_S, self._tick)


class ResponseSink:
    """Receives a complete answer. `total_s` is the deadline on the loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, total_s: float) -> None:
        self._loop = loop
        self._total_s = total_s
        self._status = 0
        self._failure: Failure | None = None
        self._retry_after: str | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self.deadline_s = total_s
        """When the attempt fails for lack of time, on the loop's clock."""
        self.first_byte_s = math.nan
        """When the first piece of the body came; NaN before."""
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self.connection: UpstreamConnection | None = None
        """The connection that brings the answer."""

    def reset(self) -> None:
        """Start again on another connection. The deadline stays."""
        self.outcome = self._loop.create_future()

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Decide by the status whether the answer is a failure."""
        self._status = status
        self._failure = failure_of_status(status)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._failure = Failure.SERVER_ERROR
        if b"retry-after" in headers:
            self._retry_after = headers[b"retry-after"].decode("latin-1")[:40]

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        if self.first_byte_s != self.first_byte_s:
            self.first_byte_s = self._loop.time()
        self._parts.append(data)
        self._size += len(data)
        if self._size > (_ANSWER_LIMIT_BYTES if self._failure is None else _ERROR_LIMIT_BYTES):
            self._finish(Failed(Failure.SERVER_ERROR, "the answer is too large"))

    def on_end(self) -> None:
        """The answer is complete."""
        if self._failure is None:
            self._finish(Complete(self._status, self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)))
        else:
            self._finish(self._failed())

    def on_lost(self, reason: str) -> None:
        """The connection was lost before the answer was complete."""
        self._finish(Failed(Failure.CONNECT, reason))

    def expire(self) -> None:
        """The deadline has passed."""
        self._finish(Failed(Failure.TIMEOUT, "no answer in time", 504))

    def _failed(self) -> Failed:
        assert self._failure is not None
        status = self._status if self._status in (429, 503) else 504 if self._failure is Failure.TIMEOUT else 502
        by_request = self._status in _REQUEST_STATUSES
        return Failed(self._failure, f"HTTP {self._status}", status, self._retry_after, by_request=by_request)

    def _finish(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class StreamSink(ResponseSink):
    """Receives a stream and passes its events to a relay. `translate` turns another API's events into OpenAI's."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        relay: StreamRelay,
        *,
        total_s: float,
        first_token_s: float,
        idle_s: float,
        translate: Callable[[bytes], bytes] | None = None,
    ) -> None:
        super().__init__(loop, total_s=total_s)
        self._relay = relay
        self._idle_s = idle_s
        self._translate = translate
        self._streams = False
        self.deadline_s = min(total_s, loop.time() + first_token_s)

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Decide by status and content type whether the answer is a stream or a failure."""
        super().on_head(status, headers)
        self._streams = self._failure is None and headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if status == 200 and not self._streams:
            self._failure = Failure.SERVER_ERROR

    def on_body(self, data: bytes) -> None:
        """Pass a piece to the relay."""
        if not self._streams:
            super().on_body(data)
            return
        if self.outcome.done():
            return
        now = self._loop.time()
        if self._translate is not None:
            data = self._translate(data)
            if not data:
                return
        problem = self._relay.feed(data)
        if self._relay.events:
            if self.first_byte_s != self.first_byte_s:
                self.first_byte_s = now
            self.deadline_s = min(self._total_s, now + self._idle_s)
        if problem is not None:
            self.on_lost(problem)

    def on_end(self) -> None:
        """The body has ended. A stream without [DONE] and without a finish reason was cut off on the way."""
        if not self._streams:
            super().on_end()
        elif not self._relay.complete():
            self.on_lost("the stream ended without [DONE]")
        else:
            self._finish(Streamed() if self._relay.started else HeldBack())

    def on_lost(self, reason: str) -> None:
        """The connection was lost, which does not matter if the last event has come."""
        if self._relay.done:
            self._finish(Streamed() if self._relay.started else HeldBack())
        elif self._relay.started:
            self._finish(Interrupted(reason))
        else:
            self._finish(Failed(Failure.CONNECT, reason))

    def expire(self) -> None:
        """The deadline has passed. A target that waits for a slow client gets more time, up to the total."""
        waiting = self.connection is not None and self.connection.paused
        now = self._loop.time()
        if waiting and now < self._total_s:
            self.deadline_s = min(self._total_s, now + self._idle_s)
        elif self._relay.started:
            self._finish(Interrupted("nothing more came in time", by_client=waiting))
        else:
            super().expire()


def failure_of_status(status: int) -> Failure | None:
    """The failure that a status means; None if the target answered, even if it refused the request itself."""
    if status == 429:
        return Failure.RATE_LIMITED
    if status in (401, 403):
        return Failure.UNAUTHORIZED
    if status == 408:
        return Failure.TIMEOUT
    # 404 and 405 are about our path and model name; following a redirect would leave what the policy permits.
    if status >= 500 or status < 200 or 300 <= status < 400 or status in (404, 405):
        return Failure.SERVER_ERROR
    return None
