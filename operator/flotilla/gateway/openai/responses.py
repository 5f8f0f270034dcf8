"""Responses in OpenAI's format: error bodies and events, and the relay of a stream. Pure.

`StreamRelay` passes on complete events only, so that an error can be sent between two of them. It reads the usage,
removes what only the gateway asked for, and holds the beginning back as long as a rule may replace the answer.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from flotilla.gateway.http.message import Response
from flotilla.routing.budgets import Usage, usage_of
from flotilla.routing.check import Collector
from flotilla.routing.decide import INVALID_REQUEST, SERVER_ERROR, Refusal


def error_body(
    message: str, *, kind: str = INVALID_REQUEST, code: str | None = None, param: str | None = None
) -> bytes:
    """An error body."""
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": error})


def error_event(message: str, code: str) -> bytes:
    """An error as an event within a stream. No [DONE] may follow it."""
    return b"data: " + error_body(message, kind=SERVER_ERROR, code=code) + b"\n\n"


def refusal_body(refusal: Refusal) -> bytes:
    """The error body of a refusal."""
    return error_body(refusal.message, kind=refusal.type, code=refusal.code, param=refusal.param)


def refusal_headers(refusal: Refusal) -> bytes:
    """The header lines of a refusal: when and whether to retry."""
    lines = b""
    if refusal.retry_after_s is not None:
        lines += b"retry-after: %d\r\n" % refusal.retry_after_s
    if not refusal.retryable:
        lines += b"x-should-retry: false\r\n"
    return lines


_EVENT_LIMIT = 8 * 2**20
_HELD_LIMIT_BYTES = 2**20
_DONE = b"data: [DONE]\n\n"
_TAIL = 3
"""The finish reason is in the last chunk, or before one with the usage."""
_FINISHED = (b'"finish_reason":"', b'"finish_reason": "')


@dataclass(slots=True)
class Buffering:
    """How much of a stream is held back so that it can be judged before the client gets it."""

    limit: int
    """Pieces of text, each about a token. Beyond this number the stream is sent."""
    collector: Collector


class StreamRelay:
    """Relays the events of one attempt to the client. `on_start` is called before the first one is sent."""

    def __init__(
        self,
        response: Response,
        *,
        on_start: Callable[[], None],
        strip_usage: bool,
        strip_logprobs: bool = False,
        buffering: Buffering | None = None,
    ) -> None:
        self._response = response
        self._on_start = on_start
        self._strip_usage = strip_usage
        self._strip_logprobs = strip_logprobs
        self._buffering = buffering
        self._partial = b""
        self._held: list[bytes] = []
        self.captured: Collector | None = None
        """Set where the answer may be kept as a training example."""
        self._held_bytes = 0
        self.usage: Usage | None = None
        self.events = 0
        """Events that were sent or held back: about the number of tokens, if the target does not count them."""
        self.started = False
        self.done = False
        """Whether the stream is complete: [DONE] has come, or `complete` was called."""
        self._tail: deque[bytes] = deque(maxlen=_TAIL)
        """The last pieces, in which `complete` looks for the finish reason: looking at each would cost more."""

    def feed(self, data: bytes) -> str | None:
        """Relay bytes, cut anywhere. Returns why the stream is broken, None if it is not."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if not data.endswith((b"\n\n", b"\r\n\r\n")):
            end = _end_of_last_event(data)
            if len(data) - end > _EVENT_LIMIT:
                return "an event without an end"
            self._partial = data[end:]
            data = data[:end]
            if not data:
                return None
        if self.done:
            return None
        if not self.started:
            return self._feed_before_start(data)
        self._forward(data)
        return None

    def complete(self) -> bool:
        """The target's body has ended in order. Without [DONE] it is complete if the answer has its finish reason.

        Returns whether the stream is complete; if so, the client gets the [DONE] that the target left out.
        """
        finished = any(mark in data for data in self._tail for mark in _FINISHED)
        if not self.done and finished and not self._partial:
            self.done = True
            if self.started:
                self._response.write(_DONE)
            else:
                self._held.append(_DONE)
        return self.done

    def flush(self) -> None:
        """Start the stream if it has not started, and send what was held back."""
        self._buffering = None
        held, self._held = self._held, []
        self._start_stream()
        if held:
            self._response.write(b"".join(held))

    @property
    def holds(self) -> bool:
        """Whether the stream is held back to be judged, and nothing of it was sent."""
        return self._buffering is not None and not self.started

    @property
    def collected(self) -> Collector | None:
        """The answer so far, if it is held back to be judged; else None."""
        return None if self._buffering is None else self._buffering.collector

    def _feed_before_start(self, data: bytes) -> str | None:
        """Nothing was sent yet.

        Comments do not start the stream, and an error can still be answered by another attempt.
        """
        if data.startswith(b":") and b"\ndata:" not in data:
            return None
        if b'{"error"' in data and any(
            _event_data(event).startswith(b'{"error"') for event in data.replace(b"\r", b"").split(b"\n\n")
        ):
            return "an error instead of a stream" if self.events == 0 else "an error in the stream"
        if self._buffering is None:
            self._start_stream()
        self._forward(data)
        return None

    def _start_stream(self) -> None:
        self.started = True
        start, self._on_start = self._on_start, _nothing
        start()

    def _forward(self, data: bytes) -> None:
        self._tail.append(data)
        if (
            b'"usage"' in data
            or b"[DONE]" in data
            or b"\r" in data
            or self._buffering is not None
            or self._strip_logprobs
            or self.captured is not None
        ):
            data = self._inspect(data)
            if not data:
                return
        else:
            self.events += data.count(b"\n\n")
        if self.started:
            self._response.write(data)
        else:
            self._hold_back(data)

    def _hold_back(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        assert self._buffering is not None
        if self._buffering.collector.pieces > self._buffering.limit or self._held_bytes > _HELD_LIMIT_BYTES:
            self.flush()

    def _inspect(self, data: bytes) -> bytes:
        out = []
        for event in data.replace(b"\r\n", b"\n").split(b"\n\n"):
            if not event.strip():
                continue
            if _event_data(event) == b"[DONE]":
                self.done = True
                out.append(event)
                break
            changed = self._inspect_event(event)
            if changed:
                self.events += 1
                out.append(changed)
        return b"\n\n".join(out) + b"\n\n" if out else b""

    def _inspect_event(self, event: bytes) -> bytes:
        """The event as the client gets it; empty if only the gateway asked for it."""
        data = _event_data(event)
        if not data:
            return event
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return event
        if not isinstance(chunk, dict):
            return event
        if self._buffering is not None:
            self._buffering.collector.add(chunk)
        if self.captured is not None:
            self.captured.add(chunk)
        changed = False
        nested = chunk.get("x_groq")
        if isinstance(nested, dict):
            # Groq has the usage there, in the chunk with the finish reason.
            self.usage = usage_of(nested.get("usage"), chunk.get("service_tier")) or self.usage
        if "usage" in chunk:
            self.usage = usage_of(chunk["usage"], chunk.get("service_tier")) or self.usage
            if self._strip_usage:
                changed = True
                del chunk["usage"]
                if not chunk.get("choices"):
                    return b""
        if self._strip_logprobs:
            changed = without_logprobs(chunk) or changed
        return _with_data(event, orjson.dumps(chunk)) if changed else event


def _nothing() -> None:
    """Stands for the function that starts the stream after it was called, which refers to all of the request."""


def reasoning_of(said: Mapping[str, Any]) -> str:
    """What the model thought, in the field of vLLM, SGLang, llama.cpp or others; empty if it says nothing of it."""
    found = said.get("reasoning_content") or said.get("reasoning")
    return found if isinstance(found, str) else ""


def without_logprobs(chunk: dict[str, Any]) -> bool:
    """Remove token probabilities from a chunk or an answer. Returns whether there were any."""
    found = False
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("logprobs") is not None:
            choice["logprobs"] = None
            found = True
    return found


def _event_data(event: bytes) -> bytes:
    """The data of an event; it may also have the fields event, id and retry, and comments."""
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    lines = event.replace(b"\r", b"").split(b"\n")
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


def _with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data and the same other lines."""
    kept = [line for line in event.split(b"\n") if line and not line.startswith(b"data:")]
    return b"\n".join([*kept, b"data: " + data])


def _end_of_last_event(data: bytes) -> int:
    """The offset at which the last complete event ends."""
    plain, carriage = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, carriage + 4 if carriage >= 0 else 0)
