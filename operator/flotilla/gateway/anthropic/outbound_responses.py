"""Answers of targets that speak Anthropic's API: messages, streams and errors become OpenAI's. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

_FINISH: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_ERROR_TYPES: Final[Mapping[str, str]] = {
    "rate_limit_error": "requests",
    "billing_error": "insufficient_quota",
    "api_error": "server_error",
    "overloaded_error": "server_error",
    "timeout_error": "server_error",
}
"""OpenAI's error types. All others are invalid_request_error; the code is always Anthropic's type."""
THINKING: Final = ("thinking", "redacted_thinking")
_OVERLOADED: Final = 529
_MAX_EVENT_BYTES: Final = 4 * 2**20
_UNREADABLE_STREAM: Final = {"type": "api_error", "message": "The hosted model sent a stream that cannot be read."}
_NOT_YET: Final[Mapping[str, Any]] = {"finish_reason": None}


def completion_from_message(content: bytes, *, created: int) -> bytes:
    """Translate the body of a successful answer; `created` is the time in Unix seconds.

    Raises ValueError if it is not a message.
    """
    try:
        return _completion(orjson.loads(content), created)
    except TypeError as error:
        raise ValueError("The answer is nested too deeply.") from error


def _completion(message: Any, created: int) -> bytes:
    if not isinstance(message, dict) or message.get("type") != "message":
        raise ValueError("The answer is not a message of Anthropic's API.")
    blocks = [block for block in message.get("content") or () if isinstance(block, dict)]
    text = "".join(block.get("text") or "" for block in blocks if block.get("type") == "text")
    calls = [
        tool_call(block.get("id"), block.get("name"), orjson.dumps(block.get("input") or {}).decode())
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    said: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not calls else None,
        "refusal": refusal_text(message),
    }
    if calls:
        said["tool_calls"] = calls
    if thought := [block for block in blocks if block.get("type") in THINKING]:
        # OpenAI's API has no such fields; engines have the first one, and other gateways the second.
        said["reasoning_content"] = "".join(block.get("thinking") or "" for block in thought)
        said["thinking_blocks"] = thought
    choice = {"index": 0, "message": said, "logprobs": None, **finish_fields(message)}
    return orjson.dumps(
        {
            "id": message.get("id"),
            "object": "chat.completion",
            "created": created,
            "model": message.get("model"),
            "choices": [choice],
            "usage": completion_usage(message.get("usage") or {}),
        }
    )


def error_from_anthropic(status: int, content: bytes) -> tuple[int, bytes]:
    """Status and body in OpenAI's format. 529, with which Anthropic reports overload, becomes 503."""
    try:
        body = orjson.loads(content)
        said = body.get("error") if isinstance(body, dict) else None
    except orjson.JSONDecodeError:
        said = None
    return 503 if status == _OVERLOADED else status, orjson.dumps({"error": error_object(said)})


def error_object(said: Any) -> dict[str, Any]:
    """The field `error` of OpenAI's error from that of Anthropic's."""
    kind, message = (said.get("type"), said.get("message")) if isinstance(said, Mapping) else (None, None)
    return {
        "message": message
        if isinstance(message, str)
        else "The hosted model answered with an error without a message.",
        "type": _ERROR_TYPES.get(kind, "invalid_request_error") if isinstance(kind, str) else "server_error",
        "param": None,
        "code": kind if isinstance(kind, str) else None,
    }


def tool_call(call_id: Any, name: Any, arguments: str) -> dict[str, Any]:
    """A tool call in OpenAI's format."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def finish_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's finish reason, and the stop sequence in the field in which vLLM has it."""
    stop = message.get("stop_sequence")
    reason = {"finish_reason": _FINISH.get(message.get("stop_reason", ""), "stop")}
    return {**reason, "stop_reason": stop} if isinstance(stop, str) else reason


def refusal_text(message: Mapping[str, Any]) -> str | None:
    """Why the model's safeguards ended the answer; None if they did not, or gave no reason."""
    details = message.get("stop_details")
    explanation = details.get("explanation") if isinstance(details, Mapping) else None
    return explanation if isinstance(explanation, str) else None


def completion_usage(counted: Mapping[str, Any]) -> dict[str, Any]:
    """The usage. OpenAI counts cached tokens within the prompt's, Anthropic beside them.

    `cache_creation_tokens` is not a field of OpenAI's; it is needed for the cost, as cache writes cost more than reads.
    """
    read, written = _count(counted, "cache_read_input_tokens"), _count(counted, "cache_creation_input_tokens")
    prompt, output = _count(counted, "input_tokens") + read + written, _count(counted, "output_tokens")
    out: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    out["prompt_tokens_details"] = {"cached_tokens": read, "cache_creation_tokens": written}
    by_time = counted.get("cache_creation")
    if isinstance(by_time, Mapping) and (hour := _count(by_time, "ephemeral_1h_input_tokens")):
        out["prompt_tokens_details"]["cache_creation_1h_tokens"] = min(hour, written)
    if isinstance(counted.get("service_tier"), str):
        out["service_tier"] = counted["service_tier"]
    details = counted.get("output_tokens_details")
    if isinstance(details, Mapping):
        out["completion_tokens_details"] = {"reasoning_tokens": _count(details, "thinking_tokens")}
    return out


def _count(counted: Mapping[str, Any], name: str) -> int:
    value = counted.get(name)
    return value if isinstance(value, int) and value > 0 else 0


class StreamTranslator:
    """Translates the stream of one answer. Feed it bytes in pieces of any size and send what it returns.

    `created` is the time in Unix seconds. With `include_usage` a chunk with the usage ends the stream, as OpenAI's
    stream option of that name asks.
    """

    def __init__(self, *, created: int, include_usage: bool) -> None:
        self._head: dict[str, Any] = {"id": None, "object": "chat.completion.chunk", "created": created, "model": None}
        self._include_usage = include_usage
        self._begun = False
        """Whether the first chunk is written. It waits for content: until then another target can be tried."""
        self._buffer = bytearray()
        self._counted: dict[str, Any] = {}
        self._calls: dict[Any, int] = {}
        """OpenAI's index of a tool call by Anthropic's index of its block."""
        self._unsaid: dict[Any, str] = {}
        """Arguments of open tool calls that came with the start of the block and not in deltas."""
        self.done = False
        """Whether the message has ended in order. What follows is ignored."""
        self.failed = False
        """Whether an error was sent in the stream, which then ends without [DONE]."""

    @property
    def usage(self) -> dict[str, Any] | None:
        """The usage so far in OpenAI's format; None before the message has begun."""
        return completion_usage(self._counted) if self._counted else None

    def feed(self, data: bytes) -> bytes:
        """Translate complete events and keep the rest."""
        self._buffer += data.replace(b"\r", b"") if b"\r" in data else data
        *events, rest = self._buffer.split(b"\n\n")
        self._buffer = rest
        out: list[bytes] = []
        for event in events:
            if self.done or self.failed:
                break
            out.append(self._event(bytes(event)))
        if len(self._buffer) > _MAX_EVENT_BYTES and not self.done and not self.failed:
            out.append(self._fail(_UNREADABLE_STREAM))
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
            return self._fail(_UNREADABLE_STREAM)

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
        return b""  # ping, and events of later versions

    def _open(self, index: Any, block: dict[str, Any]) -> bytes:
        if block["type"] == "text" and block.get("text"):
            return self._chunk({"content": block["text"]})
        if block["type"] == "redacted_thinking":
            return self._chunk({"thinking_blocks": [block]})
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
        if delta["type"] == "thinking_delta":
            return self._chunk({"reasoning_content": delta["thinking"]})
        if delta["type"] == "signature_delta":
            return self._chunk({"thinking_blocks": [{"type": "thinking", "signature": delta["signature"]}]})
        return b""  # OpenAI's chunks have no field for citations

    def _end(self, delta: dict[str, Any]) -> bytes:
        if delta.get("stop_reason") is None:
            return b""
        said = refusal_text(delta)
        return self._chunk({} if said is None else {"refusal": said}, finish_fields(delta))

    def _arguments(self, index: Any, text: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": self._calls[index], "function": {"arguments": text}}]})

    def _count(self, counted: Any) -> None:
        """Update the counts. Later counts are totals and replace earlier ones; a count that is missing stays."""
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
