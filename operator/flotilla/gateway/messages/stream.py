"""A stream of OpenAI's chunks as one of Anthropic's events: bytes in, bytes out."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from flotilla.gateway import wire
from flotilla.gateway.messages.answer import ending, error, message, usage

PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_GARBAGE: Final = orjson.loads(wire.error_body("The target sent a stream that cannot be read.", kind="server_error"))
_TEXT: Final = -1


class MessageStream:
    """One answer. Feed it whole events, as many as come together, and send on what it returns."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._begun = False
        self._blocks = 0
        self._open: int | None = None
        """The block that is being told: _TEXT, or OpenAI's index of a call."""
        self._call_id: Any = None
        """Of the open call, as the target named it."""
        self._called: set[int] = set()
        self._pieces = 0
        """About the answer's tokens, where the target does not count them."""
        self._choice: dict[str, Any] = {}
        """Why the answer ended."""
        self._refusal = ""
        self._usage: dict[str, Any] | None = None
        self.failed = ""
        """Why an error was told in the stream, which nothing may follow."""

    def feed(self, data: bytes) -> bytes:
        """Translate events; every comment is a sign of life, and becomes one of Anthropic's."""
        return b"".join([self._event(event) for event in data.split(b"\n\n") if event])

    def _event(self, raw: bytes) -> bytes:
        if self.failed:
            return b""
        data = b"\n".join(line[5:].strip() for line in raw.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return PING if raw.startswith(b":") else b""
        if data == b"[DONE]":
            return self._end()
        try:
            chunk = orjson.loads(data)
            if chunk.get("error"):
                return self._fail("an error in the stream", chunk["error"])
            return b"".join(self._chunk(chunk))
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            return self._fail("events that cannot be read", _GARBAGE["error"])

    def _chunk(self, chunk: dict[str, Any]) -> list[bytes]:
        out = [self._begin(chunk)]
        self._usage = usage(chunk.get("usage")) or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content"):
                out += self._text(_said(delta["content"]))
            for place, call in enumerate(delta.get("tool_calls") or ()):
                out += self._call(call.get("index", place), call)
            self._refusal += delta.get("refusal") or ""
            if choice.get("finish_reason"):
                self._choice = choice
        return out

    def _begin(self, head: Mapping[str, Any]) -> bytes:
        """The tokens of the prompt are told at the end: the target counts them when it has answered."""
        if self._begun:
            return b""
        self._begun = True
        begun: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        counted = {"input_tokens": 0, "output_tokens": 0}
        return _event("message_start", message={**message(head), **begun, "usage": counted})

    def _text(self, text: str) -> list[bytes]:
        out = [] if self._open == _TEXT else self._start(_TEXT, {"type": "text", "text": ""})
        return [*out, self._delta({"type": "text_delta", "text": text})]

    def _call(self, index: int, call: dict[str, Any]) -> list[bytes]:
        """A piece of a call. Some APIs give all calls one index, so that a new id begins a new one."""
        function, call_id = call.get("function") or {}, call.get("id")
        out = []
        if self._open != index or (call_id and self._call_id and call_id != self._call_id):
            if index in self._called and not call_id:
                raise KeyError("a piece of a call that has ended")
            self._called.add(index)
            self._call_id = call_id
            spare_id = f"toolu_{self._request_id}_{self._blocks}"
            block = {"type": "tool_use", "id": _said(call_id or spare_id), "name": _said(function["name"]), "input": {}}
            out = self._start(index, block)
        arguments = _said(function.get("arguments") or "")
        return [*out, self._delta({"type": "input_json_delta", "partial_json": arguments})] if arguments else out

    def _start(self, opened: int, block: dict[str, Any]) -> list[bytes]:
        out = [self._stop()]
        self._open = opened
        self._blocks += 1
        return [*out, _event("content_block_start", index=self._blocks - 1, content_block=block)]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        self._pieces += 1
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _stop(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._blocks - 1)

    def _end(self) -> bytes:
        out = self._begin({"id": f"msg_{self._request_id}"}) + self._stop()
        why = ending(self._choice, refusal=self._refusal, calls=bool(self._called))
        counted = self._usage or {"output_tokens": self._pieces}
        return out + _event("message_delta", delta=why, usage=counted) + _event("message_stop")

    def _fail(self, why: str, said: Any) -> bytes:
        self.failed = why
        return b"event: error\ndata: " + orjson.dumps(error(said, self._request_id)) + b"\n\n"


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _said(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
