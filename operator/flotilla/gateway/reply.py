"""What the client of one request hears: an answer or a stream, why there is none, and signs of life while it waits."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import orjson

from flotilla.gateway import wire
from flotilla.gateway.answers import Answered
from flotilla.gateway.anthropic import DROPPED_HEADER
from flotilla.gateway.intake import Accepted
from flotilla.gateway.outcome import Broken
from flotilla.gateway.record import Record
from flotilla.gateway.request import Answer
from flotilla.routing.decide import Refusal, decision_header

INTERRUPTED: Final = "upstream_stream_interrupted"
_WAITING: Final = b": waiting for a replica\n\n"


class Reply:
    """To one accepted request. Once a stream has begun, be it by a sign of life, failures are told in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Answer, accepted: Accepted, record: Record) -> None:
        self._loop, self._answer, self._accepted, self._record = loop, answer, accepted, record
        self.signal = ""
        """Why the answer was not good enough, for the header."""

    def give(self, answered: Answered) -> None:
        """The answer, as it is."""
        if answered.relay is not None and not answered.body:
            answered.relay.flush()
            self.end()
            return
        self._record.outcome = "ok" if answered.status < 400 else "client_error"
        if self._answer.started:
            # A target may have written its error in several lines, which are several fields of an event.
            self._tell(orjson.dumps(orjson.loads(answered.body)))
            return
        self._answer.whole(answered.status, answered.body, self._headers())
        if self._answer.status >= 500:
            # It could not be said in the words of the client's API.
            self._record.outcome = "failed"

    def commit(self) -> None:
        """The stream begins: its status is said."""
        if not self._answer.started:
            self._answer.start(200, self._headers())

    def end(self) -> None:
        """The stream is whole."""
        self._record.outcome = "ok"
        self._answer.end()

    def interrupt(self, outcome: Broken) -> None:
        """Tell in the stream that it is not whole; without [DONE] no client can take it for whole."""
        self._record.outcome, self._record.detail = "interrupted", outcome.detail
        self._answer.write(wire.error_event(f"The target broke off its answer: {outcome.detail}.", INTERRUPTED))
        self._answer.end(close=True)

    def refuse(self, refusal: Refusal) -> None:
        """There is no answer."""
        self._record.refusal = refusal
        body = wire.refusal_body(refusal)
        if self._answer.started:
            self._tell(body)
        else:
            self._answer.whole(refusal.status, body, self._headers() + wire.refusal_headers(refusal))

    @contextmanager
    def alive(self, every_s: float) -> Iterator[None]:
        """Send a comment so often, so that no proxy on the way takes a held stream for dead."""
        self._beat_after(every_s)
        try:
            yield
        finally:
            self._timer.cancel()

    def _beat_after(self, every_s: float) -> None:
        self._timer = self._loop.call_later(every_s, self._beat, every_s)

    def _beat(self, every_s: float) -> None:
        self.commit()
        self._answer.write(_WAITING)
        self._beat_after(every_s)

    def _tell(self, error: bytes) -> None:
        self._answer.write(b"data: %b\n\n" % error)
        self._answer.end(close=True)

    def _headers(self) -> bytes:
        lines = b"x-request-id: %b\r\n" % self._accepted.request_id.encode()
        route = decision_header(self._accepted.decision, self._record.ledger, self.signal)
        lines += wire.header("x-flotilla-route", route)
        if self._accepted.dialer.dropped:
            lines += wire.header(DROPPED_HEADER, ", ".join(self._accepted.dialer.dropped))
        return lines
