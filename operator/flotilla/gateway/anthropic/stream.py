"""A stream of Anthropic's events as one of OpenAI's chunks: bytes in, bytes out."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from flotilla.gateway.anthropic.answer import error_object, finish, refusal, tool_call, usage

_MAX_EVENT_BYTES: Final = 4 * 2**20
_GARBAGE: Final = {"type": "api_error", "message": "The hosted model sent a stream that cannot be read."}

_NOT_YET: Final[Mapping[str, Any]] = {"finish_reason": None}


class StreamTranslator:
    """One answer. Feed it what comes from the socket, in pieces of any size, and send on what it returns.

    `created` is the time in Unix seconds. With `include_usage` a chunk with the usage ends the stream, as OpenAI's
    stream option of that name asks.
    """

    def __init__(self, *, created: int, include_usage: bool) -> None:
        self._head: dict[str, Any] = {"id": None, "object": "chat.completion.chunk", "created": created, "model": None}
        self._include_usage = include_usage
        self._begun = False
        """The first chunk is written. It waits for the first word: until then another target can be asked."""
        self._buffer = bytearray()
        self._counted: dict[str, Any] = {}
        self._calls: dict[Any, int] = {}
        """Anthropic's index of a block of a tool call to OpenAI's index of the call."""
        self._unsaid: dict[Any, str] = {}
        """Arguments of open calls that no delta has told."""
        self.done = False
        """The message has ended in order; what comes after is ignored."""
        self.failed = False
        """An error was told in the stream, and the stream ends without [DONE]."""

    @property
    def usage(self) -> dict[str, Any] | None:
        """What was counted so far, as OpenAI counts; None before the message has begun."""
        return usage(self._counted) if self._counted else None

    def feed(self, data: bytes) -> bytes:
        """Translate what is complete, and keep the rest."""
        self._buffer += data.replace(b"\r", b"") if b"\r" in data else data
        *events, rest = self._buffer.split(b"\n\n")
        self._buffer = rest
        out: list[bytes] = []
        for event in events:
            if self.done or self.failed:
                break
            out.append(self._event(bytes(event)))
        if len(self._buffer) > _MAX_EVENT_BYTES and not self.done and not self.failed:
            out.append(self._fail(_GARBAGE))
        if self.done or self.failed:
            self._buffer.clear()
        return b"".join(out)

    def _event(self, raw: bytes) -> bytes:
        data = b"\n".join(line[5:].lstrip(b" ") for line in raw.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return b""
        try:
            event = orjson.loads(data)
            return self._translate(event)
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            return self._fail(_GARBAGE)

    def _translate(self, event: dict[str, Any]) -> bytes:
        match event["type"]:
            case "message_start":
                message = event["message"]
                self._head.update(id=message.get("id"), model=message.get("model"))
                self._count(message.get("usage"))
                return b""
            case "content_block_start":
                return self._open(event["index"], event["content_block"])
            case "content_block_delta":
                return self._delta(event["index"], event["delta"])
            case "content_block_stop":
                unsaid = self._unsaid.pop(event["index"], "")
                return self._arguments(event["index"], unsaid) if unsaid else b""
            case "message_delta":
                self._count(event.get("usage"))
                return self._end(event["delta"])
            case "message_stop":
                self.done = True
                last = self._write({**self._head, "choices": [], "usage": self.usage}) if self._include_usage else b""
                return last + b"data: [DONE]\n\n"
            case "error":
                return self._fail(event.get("error"))
        return b""  # ping, and what later versions add

    def _open(self, index: Any, block: dict[str, Any]) -> bytes:
        if block["type"] == "text" and block.get("text"):
            return self._chunk({"content": block["text"]})
        if block["type"] != "tool_use":
            return b""
        number = self._calls[index] = len(self._calls)
        self._unsaid[index] = orjson.dumps(block.get("input") or {}).decode()
        call = {"index": number, **tool_call(block["id"], block["name"], "")}
        return self._chunk({"tool_calls": [call]})

    def _delta(self, index: Any, delta: dict[str, Any]) -> bytes:
        if delta["type"] == "text_delta":
            return self._chunk({"content": delta["text"]})
        if delta["type"] == "input_json_delta" and delta["partial_json"]:
            self._unsaid.pop(index, None)
            return self._arguments(index, delta["partial_json"])
        return b""  # thinking, signatures and citations have no place in OpenAI's chunks

    def _end(self, delta: dict[str, Any]) -> bytes:
        if delta.get("stop_reason") is None:
            return b""
        said = refusal(delta)
        return self._chunk({} if said is None else {"refusal": said}, finish(delta))

    def _arguments(self, index: Any, text: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": self._calls[index], "function": {"arguments": text}}]})

    def _count(self, counted: Any) -> None:
        """Later counts are sums, so they replace earlier ones; a count that is missing stays."""
        self._counted.update({name: value for name, value in (counted or {}).items() if value is not None})

    def _chunk(self, delta: dict[str, Any], end: Mapping[str, Any] = _NOT_YET) -> bytes:
        first = b""
        if not self._begun:
            self._begun = True
            first = self._chunk({"role": "assistant", "content": ""})
        choice = {"index": 0, "delta": delta, "logprobs": None, **end}
        return first + self._write({**self._head, "choices": [choice]})

    def _fail(self, said: Any) -> bytes:
        self.failed = True
        return self._write({"error": error_object(said)})

    def _write(self, chunk: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps(chunk) + b"\n\n"
