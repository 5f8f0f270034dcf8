"""What one attempt at a target brings: the receivers of its answer, the outcomes, and what is wrong with the answer.

`ResponseSink` is the `http.client.ResponseHandler` of a complete answer, `StreamSink` that of a stream, whose events it
passes to a relay. Both are called by the connection, without a task in between, and report the outcome exactly once.
`Deadlines` ends attempts whose time is up. `read_answer` fills a `TargetAnswer` from a complete answer, and
`answer_signals` judges it by the signals of the rule.
"""

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from flotilla.api.routing_policy import Failure, Signal
from flotilla.gateway.dialect import Dialect
from flotilla.gateway.http.client import UpstreamConnection
from flotilla.gateway.http.message import MemoryBudget
from flotilla.gateway.openai import responses
from flotilla.gateway.openai.responses import StreamRelay, without_logprobs
from flotilla.routing import escalation as judgement
from flotilla.routing.budgets import Usage, usage_of
from flotilla.routing.check import choices_of
from flotilla.routing.decide import INVALID_REQUEST, SERVER_ERROR, Decision, Refusal
from flotilla.routing.request import Operation

_ANSWER_LIMIT_BYTES = 64 * 2**20
_ERROR_LIMIT_BYTES = 64 * 1024
_SMALL_ANSWER_BYTES = 256 * 1024
"""Larger answers take room in the budget of memory while they are collected."""
_SWEEP_S = 0.05
_REQUEST_STATUSES = frozenset({404, 405, 500, 501})
"""Statuses that a request can cause by what it asks for, such as embeddings of a chat model."""
_USAGE_SEARCH_BYTES = 4096
"""The usage of an embeddings answer is looked for in so many bytes of its end, and then of its beginning."""
_ERROR_CHARS = 500
_USAGE = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}]|\{[^{}]*\})*\})')
"""Providers have the tokens by kind in objects within the usage."""
_CODES = {
    Failure.CONNECT: "upstream_unreachable",
    Failure.TIMEOUT: "upstream_timeout",
    Failure.SERVER_ERROR: "upstream_error",
    Failure.RATE_LIMITED: "upstream_rate_limited",
    Failure.UNAUTHORIZED: "upstream_unauthorized",
    Failure.NO_ENDPOINTS: "no_capacity",
    Failure.CONTEXT_LENGTH: "context_length_exceeded",
    Failure.CONTENT_FILTER: "content_filter",
}


@dataclass(slots=True)
class Complete:
    """A complete answer: a success, or a refusal of the request itself (4xx), which the client gets as it is."""

    status: int
    body: bytes


@dataclass(slots=True)
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
    by_gateway: bool = False
    """Whether the gateway had no room for the answer, which says nothing about the target."""


@dataclass(slots=True)
class Streamed:
    """The client has received the complete stream."""


@dataclass(slots=True)
class HeldBack:
    """The stream is complete and still held back: the client has received nothing of it."""


@dataclass(slots=True)
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
    """Receives a complete answer. `total_s` is the deadline on the loop's clock.

    `on_outcome` is called once, with the outcome, unless `abandon` comes first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, total_s: float) -> None:
        self._loop = loop
        self._total_s = total_s
        self._status = 0
        self._failure: Failure | None = None
        self._retry_after: str | None = None
        self._parts: list[bytes] | None = None
        self._size = 0
        self.memory: MemoryBudget | None = None
        """Counts a large answer for `client` while it is collected."""
        self.client = ""
        self.held_bytes = 0
        self.deadline_s = total_s
        """When the attempt fails for lack of time, on the loop's clock."""
        self.first_byte_s = math.nan
        """When the first piece of the body came; NaN before."""
        self.connection: UpstreamConnection | None = None
        """The connection that brings the answer."""
        self.on_outcome: Callable[[Outcome], None] | None = None

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Decide by the status whether the answer is a failure."""
        self._status = status
        if status != 200:
            self._failure = failure_of_status(status)
            if b"retry-after" in headers:
                self._retry_after = headers[b"retry-after"].decode("latin-1")[:40]
        if b"content-encoding" in headers and headers[b"content-encoding"].lower() != b"identity":
            self._failure = Failure.SERVER_ERROR

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        if self._parts is None:
            self.first_byte_s = self._loop.time()
            self._parts = [data]
        else:
            self._parts.append(data)
        self._size += len(data)
        if self._size > _SMALL_ANSWER_BYTES:
            self._grow(len(data))

    def on_end(self) -> None:
        """The answer is complete."""
        parts = self._parts or ()
        if self._failure is None:
            self._finish(Complete(self._status, parts[0] if len(parts) == 1 else b"".join(parts)))
        else:
            self._finish(self._failed())

    def on_lost(self, reason: str) -> None:
        """The connection was lost before the answer was complete."""
        self._finish(Failed(Failure.CONNECT, reason))

    def expire(self) -> None:
        """The deadline has passed."""
        self._finish(Failed(Failure.TIMEOUT, "no answer in time", 504))

    def release_memory(self) -> None:
        """The answer is not held any more."""
        if self.held_bytes and self.memory is not None:
            self.memory.give_back(self.client, self.held_bytes)
            self.held_bytes = 0

    def _grow(self, more: int) -> None:
        """A large answer has grown."""
        if self._size > (_ANSWER_LIMIT_BYTES if self._failure is None else _ERROR_LIMIT_BYTES):
            self._finish(Failed(Failure.SERVER_ERROR, "the answer is too large"))
        elif self.memory is not None:
            # Twice: the pieces and the joined body exist at the same time.
            more = 2 * (more if self.held_bytes else self._size)
            if self.memory.take(self.client, more):
                self.held_bytes += more
            else:
                full = "there is no memory for its answer, try again later"
                self._finish(Failed(Failure.RATE_LIMITED, full, 503, "1", by_gateway=True))

    def _failed(self) -> Failed:
        assert self._failure is not None
        status = self._status if self._status in (429, 503) else 504 if self._failure is Failure.TIMEOUT else 502
        by_request = self._status in _REQUEST_STATUSES
        return Failed(self._failure, f"HTTP {self._status}", status, self._retry_after, by_request=by_request)

    def _finish(self, outcome: Outcome) -> None:
        report, self.on_outcome = self.on_outcome, None
        if report is not None:
            self._parts = None
            report(outcome)


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
        if self.on_outcome is None:
            return
        if self._translate is not None:
            data = self._translate(data)
            if not data:
                return
        relay = self._relay
        problem = relay.feed(data)
        if relay.events:
            now = self._loop.time()
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


_NOTHING: Mapping[str, Any] = {}


class TargetAnswer:
    """What one attempt brought for the client."""

    __slots__ = ("body", "fields", "relay", "signals", "status", "target")

    def __init__(self, target: str) -> None:
        self.target = target
        self.body = b""
        self.fields: Mapping[str, Any] = _NOTHING
        """`body`, decoded."""
        self.status = 200
        self.relay: StreamRelay | None = None
        """Set for a stream. The relay may hold events back until the answer has been judged."""
        self.signals: tuple[Signal, ...] | None = None
        """What is wrong with the answer; None if it has not been judged yet."""

    def set_error(self, status: int, body: bytes) -> Outcome:
        """Take an error that is about the request itself, and that the client gets as it is."""
        self.status, self.body = status, body
        return Complete(status, body)

    def usage(self, prompt_tokens: int) -> Usage | None:
        """Tokens as the target counted them; of a stream without a count, its events. None if nothing came."""
        if self.relay is not None and self.relay.events:
            return self.relay.usage or Usage(prompt_tokens, self.relay.events)
        return usage_of(self.fields.get("usage"), self.fields.get("service_tier")) if self.status < 300 else None


def read_answer(
    outcome: Complete, answer: TargetAnswer, dialect: Dialect, operation: Operation, created: int
) -> Outcome:
    """Read a complete answer into `answer`; one that is not valid JSON of its API becomes a failure."""
    try:
        status, content = dialect.to_openai(outcome.status, outcome.body, created)
        fields = answer_fields(content, operation)
    except ValueError:
        if outcome.status < 300:
            return Failed(Failure.SERVER_ERROR, "the answer is not valid JSON of its API")
        status, fields, content = outcome.status, {}, b""
    answer.fields, answer.status, answer.body = fields, status, content
    if status >= 300 and type(fields.get("error")) is not dict:
        text = _error_text(fields, outcome.body) or "The target refused the request without saying why."
        answer.body = responses.error_body(text)
    return outcome


def remove_logprobs(answer: TargetAnswer) -> None:
    """Remove the token probabilities that only the gateway asked for from a complete answer."""
    if answer.status < 300:
        fields = dict(answer.fields)
        without_logprobs(fields)
        answer.body = orjson.dumps(fields)


def _error_text(fields: Mapping[str, Any], body: bytes) -> str:
    """What an error says that is not in OpenAI's format: its message or detail, of any type, or a plain text."""
    for value in (fields.get("message"), fields.get("detail"), fields.get("error")):
        if value:
            return value if isinstance(value, str) else orjson.dumps(value).decode()[:_ERROR_CHARS]
    text = body[:_ERROR_CHARS].decode(errors="replace").strip()
    return "" if fields or text.startswith(("<", "{", "[")) else text


def answer_fields(content: bytes, operation: Operation) -> dict[str, Any]:
    """The decoded answer. Of embeddings, which are long lists of numbers, only the usage. Raises ValueError."""
    if operation is Operation.EMBEDDINGS and len(content) > _USAGE_SEARCH_BYTES:
        if not (content.lstrip()[:1] == b"{" and content.rstrip()[-1:] == b"}"):
            raise ValueError("not a JSON object")
        found = _USAGE.search(content[-_USAGE_SEARCH_BYTES:]) or _USAGE.search(content[:_USAGE_SEARCH_BYTES])
        return {"usage": orjson.loads(found[1])} if found else {}
    fields = orjson.loads(content)
    if type(fields) is not dict:
        raise ValueError("not a JSON object")
    return fields


def answer_signals(
    answer: TargetAnswer, decision: Decision, signals: frozenset[Signal], asked: Mapping[str, Any]
) -> tuple[Signal, ...]:
    """What is wrong with an answer, of the rule's `signals`; `asked` are the fields of the request.

    Empty for a stream that was not held back to be judged.
    """
    if answer.signals is None:
        answer.signals = _judged(answer, decision, signals, asked)
    return answer.signals


def _judged(
    answer: TargetAnswer, decision: Decision, signals: frozenset[Signal], asked: Mapping[str, Any]
) -> tuple[Signal, ...]:
    escalation = decision.route.escalation
    if escalation is None or not signals:
        return ()
    if answer.relay is None:
        choices = choices_of(answer.fields)
    elif answer.relay.collected is None:
        return ()
    else:
        choices = answer.relay.collected.choices()
    return judgement.signals(choices, judgement.expectations(asked, signals, escalation.confidence))


def failure_refusal(target: str, outcome: Failed) -> Refusal:
    """The error for the client after the last attempt failed."""
    wait = outcome.retry_after
    return Refusal(
        outcome.status,
        _CODES[outcome.failure],
        f"Target {target!r} did not serve the request: {outcome.detail}.",
        type=INVALID_REQUEST if outcome.status == 400 else SERVER_ERROR,
        retry_after_s=int(wait) if wait is not None and wait.isascii() and wait.isdigit() else None,
    )
