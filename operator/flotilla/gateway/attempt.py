"""One attempt's answer as it comes from a target: whole or as a stream, bounded in time and size."""

import asyncio
import math
from collections.abc import Callable

from flotilla.api.routing_policy import Failure
from flotilla.gateway.outcome import Broken, Failed, HeldBack, Outcome, Streamed, Whole
from flotilla.gateway.relay import Relay
from flotilla.gateway.upstream_connection import Connection

_ANSWER_LIMIT = 64 * 2**20
_ERROR_LIMIT = 64 * 1024
_SWEEP_S = 0.05


class Clocks:
    """Ends attempts whose time is up. One timer for all: a timer per attempt and chunk costs more than the relay."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._attempts: set[Attempt] = set()
        self._timer = loop.call_later(_SWEEP_S, self._tick)

    def add(self, attempt: "Attempt") -> None:
        """Watch an attempt."""
        self._attempts.add(attempt)

    def discard(self, attempt: "Attempt") -> None:
        """It has ended."""
        self._attempts.discard(attempt)

    def close(self) -> None:
        """Watch nothing any more."""
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        for attempt in [attempt for attempt in self._attempts if attempt.deadline_s <= now]:
            attempt.expire()
        self._timer = self._loop.call_later(_SWEEP_S, self._tick)


class Attempt:
    """What all answers have in common: a head, a deadline, one outcome."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, total_s: float) -> None:
        self._loop = loop
        self._total_s = total_s
        self._status = 0
        self._failure: Failure | None = None
        self._retry_after: str | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self.deadline_s = total_s
        """By the loop's clock."""
        self.first_byte_s = math.nan
        """When the first piece of the body came."""
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self.connection: Connection | None = None
        """That brings the answer."""

    def renew(self) -> None:
        """The same attempt over another connection; the deadline stays."""
        self.outcome = self._loop.create_future()

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Judge by the status."""
        self._status = status
        self._failure = failure_of(status)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._failure = Failure.SERVER_ERROR
        if b"retry-after" in headers:
            self._retry_after = headers[b"retry-after"].decode("latin-1")[:40]

    def on_body(self, data: bytes) -> None:
        """Keep a piece of a whole answer."""
        if self.first_byte_s != self.first_byte_s:
            self.first_byte_s = self._loop.time()
        self._parts.append(data)
        self._size += len(data)
        if self._size > (_ANSWER_LIMIT if self._failure is None else _ERROR_LIMIT):
            self._end(Failed(Failure.SERVER_ERROR, "the answer is too large"))

    def on_end(self) -> None:
        """The answer is whole."""
        if self._failure is None:
            self._end(Whole(self._status, self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)))
        else:
            self._end(self._failed())

    def on_lost(self, reason: str) -> None:
        """The answer will not become whole."""
        self._end(Failed(Failure.CONNECT, reason))

    def expire(self) -> None:
        """The time is up."""
        self._end(Failed(Failure.TIMEOUT, "no answer in time", 504))

    def _failed(self) -> Failed:
        assert self._failure is not None
        status = self._status if self._status in (429, 503) else 504 if self._failure is Failure.TIMEOUT else 502
        return Failed(self._failure, f"HTTP {self._status}", status, self._retry_after)

    def _end(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class StreamAttempt(Attempt):
    """A stream: its events go through a relay."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        relay: Relay,
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
        """Judge by status and type."""
        super().on_head(status, headers)
        self._streams = self._failure is None and headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if status == 200 and not self._streams:
            self._failure = Failure.SERVER_ERROR

    def on_body(self, data: bytes) -> None:
        """Pass a piece on."""
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
        wrong = self._relay.feed(data)
        if self._relay.events:
            if self.first_byte_s != self.first_byte_s:
                self.first_byte_s = now
            self.deadline_s = min(self._total_s, now + self._idle_s)
        if wrong is not None:
            self.on_lost(wrong)

    def on_end(self) -> None:
        """A stream without its last event was cut off somewhere on the way."""
        if not self._streams:
            super().on_end()
        elif not self._relay.done:
            self.on_lost("the stream ended without [DONE]")
        else:
            self._end(Streamed() if self._relay.committed else HeldBack())

    def on_lost(self, reason: str) -> None:
        """The stream will not become whole; if it was, that is no loss."""
        if self._relay.done:
            self._end(Streamed() if self._relay.committed else HeldBack())
        elif self._relay.committed:
            self._end(Broken(reason))
        else:
            self._end(Failed(Failure.CONNECT, reason))

    def expire(self) -> None:
        """The time is up; not that of a target which waits for the client to read."""
        waiting = self.connection is not None and self.connection.paused
        now = self._loop.time()
        if waiting and now < self._total_s:
            self.deadline_s = min(self._total_s, now + self._idle_s)
        elif self._relay.committed:
            self._end(Broken("nothing more came in time", by_client=waiting))
        else:
            super().expire()


def failure_of(status: int) -> Failure | None:
    """What a status says about the target; None where it answered, be it by refusing what the client asked for."""
    if status == 429:
        return Failure.RATE_LIMITED
    if status in (401, 403):
        return Failure.UNAUTHORIZED
    if status == 408:
        return Failure.TIMEOUT
    # 404 and 405 are about our path and model name, and a redirect would lead past the policy.
    if status >= 500 or status < 200 or 300 <= status < 400 or status in (404, 405):
        return Failure.SERVER_ERROR
    return None
