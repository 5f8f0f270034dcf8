"""Responses to clients that speak Anthropic's API: chat completions, streams and errors become Anthropic's. Pure.

`MessagesResponse` stands in for the connection's `Response`, so that everything that answers a chat answers a message
too.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from flotilla.gateway.anthropic.inbound_requests import MESSAGES_PATH
from flotilla.gateway.anthropic.outbound_requests import FOREIGN_SIGNATURE
from flotilla.gateway.http import message
from flotilla.gateway.http.message import Response
from flotilla.gateway.openai import responses
from flotilla.gateway.openai.responses import reasoning_of
from flotilla.gateway.openai.translated_response import TranslatedResponse
from flotilla.routing.budgets import usage_of

_STOP: Final[Mapping[str, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES: Final = frozenset(
    {
        *("invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error"),
        *("request_too_large", "rate_limit_error", "timeout_error", "api_error", "overloaded_error"),
    }
)
_TYPE_BY_STATUS: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_STATUS_BY_CODE: Final[Mapping[str, int]] = {"no_capacity": 503, "upstream_rate_limited": 429, "upstream_timeout": 504}
"""The status that an error within a stream would have had outside of it, by its code."""
_STATUS_BY_TYPE: Final[Mapping[str, int]] = {"invalid_request_error": 400, "requests": 429, "insufficient_quota": 429}
PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_UNREADABLE_STREAM: Final = orjson.loads(
    responses.error_body("The target sent a stream that cannot be read.", kind="server_error")
)
_TEXT_BLOCK: Final = -1
_THINKING_BLOCK: Final = -2
_UNREADABLE_CODE = "answer_unreadable"


class MessagesResponse(TranslatedResponse):
    """Takes OpenAI's format and writes Anthropic's to the response `inner`."""

    __slots__ = ("_id", "_stream", "thinking")

    def __init__(self, inner: Response, request_id: str) -> None:
        super().__init__(inner)
        self._id = request_id
        self._stream = MessageStream(request_id)
        self.thinking = False
        """Whether the client asked for thinking blocks; set when its request was read."""

    def send(self, status: int, body: bytes, headers: bytes = b"", *, content_type: bytes = message.JSON) -> None:
        """Send a complete response; 502 if the target's answer cannot be translated."""
        if body and status < 300:
            try:
                body = message_from_completion(body, thinking=self.thinking)
            except ValueError as error:
                status, body = 502, responses.error_body(str(error), kind="server_error", code=_UNREADABLE_CODE)
        if status >= 300:
            body = _error_body(status, body, self._id)
        self._inner.send(status, body, headers + self._id_header(), content_type=content_type)

    def send_as_it_is(self, body: bytes) -> None:
        """Send a complete response that is in Anthropic's format already."""
        self._inner.send(200, body, self._id_header())

    def start(self, status: int, headers: bytes = b"", *, content_type: bytes = message.EVENT_STREAM) -> None:
        """Begin a stream."""
        self._inner.start(status, headers + self._id_header(), content_type=content_type)

    def write(self, data: bytes) -> None:
        """Send complete events. Events that cannot be translated are reported as a failure of the target."""
        self._stream.thinking = self.thinking
        out = self._stream.feed(data)
        if out:
            self._inner.write(out)
        if self._stream.failed and self.source is not None:
            self.source.fail(self._stream.failed)

    def end(self, *, close: bool = False) -> None:
        """End the stream."""
        self._inner.end(close=close or bool(self._stream.failed))

    def _id_header(self) -> bytes:
        return b"request-id: %b\r\n" % self._id.encode()


def error_body_for(path: str, status: int, body: bytes) -> bytes:
    """An error body in the format of the API at `path`, from one in OpenAI's format."""
    return _error_body(status, body, None) if path.startswith(MESSAGES_PATH) else body


def _error_body(status: int, body: bytes, request_id: str | None) -> bytes:
    error = orjson.loads(body) if body else {}
    return orjson.dumps(error_from_openai(error.get("error"), request_id, status))


class MessageStream:
    """Translates the stream of one answer. Feed it complete events and send what it returns."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._begun = False
        self._blocks = 0
        self._open: int | None = None
        """The open content block: _TEXT_BLOCK, or OpenAI's index of a tool call."""
        self._call_id: Any = None
        """The ID of the open tool call, as the target sent it."""
        self._called: set[int] = set()
        self._pieces = 0
        """About the number of tokens, if the target does not count them."""
        self._choice: dict[str, Any] = {}
        """The last choice with a finish reason."""
        self._refusal = ""
        self._usage: dict[str, Any] | None = None
        self._signature = FOREIGN_SIGNATURE
        self.thinking = False
        """Whether reasoning becomes thinking blocks; else it is left out."""
        self.failed = ""
        """Why an error was sent in the stream; nothing may follow it."""

    def feed(self, data: bytes) -> bytes:
        """Translate events. A comment, which keeps the connection alive, becomes Anthropic's ping."""
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
            return self._fail("events that cannot be read", _UNREADABLE_STREAM["error"])

    def _chunk(self, chunk: dict[str, Any]) -> list[bytes]:
        out = [self._begin(chunk)]
        self._usage = message_usage(chunk.get("usage")) or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if self.thinking:
                out += self._thought(delta)
            if delta.get("content"):
                out += self._text(_text_value(delta["content"]))
            for place, call in enumerate(delta.get("tool_calls") or ()):
                out += self._call(call.get("index", place), call)
            self._refusal += delta.get("refusal") or ""
            if choice.get("finish_reason"):
                self._choice = choice
        return out

    def _begin(self, head: Mapping[str, Any]) -> bytes:
        """The start event. Its token counts are 0: the target counts them at the end of the answer."""
        if self._begun:
            return b""
        self._begun = True
        begun: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        counted = {"input_tokens": 0, "output_tokens": 0}
        return _event("message_start", message={**message_head(head), **begun, "usage": counted})

    def _text(self, text: str) -> list[bytes]:
        out = [] if self._open == _TEXT_BLOCK else self._start(_TEXT_BLOCK, {"type": "text", "text": ""})
        return [*out, self._delta({"type": "text_delta", "text": text})]

    def _thought(self, delta: Mapping[str, Any]) -> list[bytes]:
        """A piece of reasoning, or the signature of Claude's own, which ends a block."""
        out: list[bytes] = []
        words = reasoning_of(delta)
        if words:
            if self._open != _THINKING_BLOCK:
                out += self._start(_THINKING_BLOCK, {"type": "thinking", "thinking": "", "signature": ""})
                self._signature = FOREIGN_SIGNATURE
            out.append(self._delta({"type": "thinking_delta", "thinking": words}))
        for block in delta.get("thinking_blocks") or ():
            if block.get("type") == "redacted_thinking":
                out += self._start(_THINKING_BLOCK, {"type": "redacted_thinking", "data": _text_value(block["data"])})
                out.append(self._stop(signed=False))
            elif block.get("signature"):
                if self._open != _THINKING_BLOCK:
                    # Claude may sign thinking that it does not show.
                    out += self._start(_THINKING_BLOCK, {"type": "thinking", "thinking": "", "signature": ""})
                self._signature = _text_value(block["signature"])
        return out

    def _call(self, index: int, call: dict[str, Any]) -> list[bytes]:
        """A piece of a tool call. Some APIs give all calls the same index, so a new ID begins a new call."""
        function, call_id = call.get("function") or {}, call.get("id")
        out = []
        if self._open != index or (call_id and self._call_id and call_id != self._call_id):
            if index in self._called and not call_id:
                raise KeyError("a piece of a call that has ended")
            self._called.add(index)
            self._call_id = call_id
            spare_id = f"toolu_{self._request_id}_{self._blocks}"
            block = {
                "type": "tool_use",
                "id": _text_value(call_id or spare_id),
                "name": _text_value(function["name"]),
                "input": {},
            }
            out = self._start(index, block)
        arguments = _text_value(function.get("arguments") or "")
        return [*out, self._delta({"type": "input_json_delta", "partial_json": arguments})] if arguments else out

    def _start(self, opened: int, block: dict[str, Any]) -> list[bytes]:
        out = [self._stop()]
        self._open = opened
        self._blocks += 1
        return [*out, _event("content_block_start", index=self._blocks - 1, content_block=block)]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        self._pieces += 1
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _stop(self, *, signed: bool = True) -> bytes:
        if self._open is None:
            return b""
        signature = b""
        if self._open == _THINKING_BLOCK and signed:
            signature = _event(
                "content_block_delta",
                index=self._blocks - 1,
                delta={"type": "signature_delta", "signature": self._signature},
            )
        self._open = None
        return signature + _event("content_block_stop", index=self._blocks - 1)

    def _end(self) -> bytes:
        out = self._begin({"id": f"msg_{self._request_id}"}) + self._stop()
        why = stop_fields(self._choice, refusal=self._refusal, calls=bool(self._called))
        counted = self._usage or {"output_tokens": self._pieces}
        return out + _event("message_delta", delta=why, usage=counted) + _event("message_stop")

    def _fail(self, why: str, said: Any) -> bytes:
        self.failed = why
        return b"event: error\ndata: " + orjson.dumps(error_from_openai(said, self._request_id)) + b"\n\n"


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _text_value(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def message_from_completion(content: bytes, *, thinking: bool = False) -> bytes:
    """Translate the body of a successful answer, with its reasoning if `thinking`.

    Raises ValueError if it cannot be translated.
    """
    body = orjson.loads(content)
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    said = choice.get("message")
    if not isinstance(said, dict):
        raise ValueError("The target's answer is not a chat completion.")
    text = said.get("content")
    blocks = _thinking_blocks(said) if thinking else []
    blocks += [{"type": "text", "text": text}] if isinstance(text, str) and text else []
    calls = said.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    blocks += [_tool_use(call, f"{body.get('id')}_{number}") for number, call in enumerate(calls)]
    end = stop_fields(choice, refusal=said.get("refusal"), calls=bool(calls))
    counted = message_usage(body.get("usage")) or {"input_tokens": 0, "output_tokens": 0}
    return orjson.dumps({**message_head(body), "content": blocks, **end, "usage": counted})


def _thinking_blocks(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Claude's own blocks as they are, or another model's reasoning as one block."""
    own = said.get("thinking_blocks")
    if isinstance(own, list) and own:
        return [block for block in own if isinstance(block, dict)]
    words = reasoning_of(said)
    return [{"type": "thinking", "thinking": words, "signature": FOREIGN_SIGNATURE}] if words else []


def message_head(head: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every message begins with; `head` is a completion or its first chunk."""
    found = {name: head[name] if isinstance(head.get(name), str) else "" for name in ("id", "model")}
    return {**found, "type": "message", "role": "assistant"}


def stop_fields(choice: Mapping[str, Any], *, refusal: Any, calls: bool) -> dict[str, Any]:
    """Why the answer ended. An engine that was forced to call a tool may report that as `stop`."""
    reason = choice.get("finish_reason")
    # The stop sequence is `stop_reason` in vLLM and `matched_stop` in SGLang. A number there is a token's ID.
    stop = choice.get("stop_reason")
    stop = stop if isinstance(stop, str) else choice.get("matched_stop")
    out: dict[str, Any] = {"stop_reason": _STOP.get(reason) if isinstance(reason, str) else None, "stop_sequence": None}
    refused = isinstance(refusal, str) and bool(refusal)
    if refused or reason == "content_filter":
        out["stop_reason"] = "refusal"
        out["stop_details"] = {"type": "refusal", "category": None, "explanation": refusal if refused else None}
    elif reason != "length" and calls:
        out["stop_reason"] = "tool_use"
    elif reason == "tool_calls":
        out["stop_reason"] = "end_turn"
    elif reason == "stop" and isinstance(stop, str):
        out |= {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return out


def message_usage(counted: Any) -> dict[str, Any] | None:
    """The usage.

    OpenAI counts cached tokens within the prompt's, Anthropic beside them. None if nothing was counted.
    """
    found = usage_of(counted)
    if found is None:
        return None
    out: dict[str, Any] = {
        "input_tokens": found.prompt_tokens - found.cached_tokens - found.cache_creation_tokens,
        "output_tokens": found.completion_tokens,
    }
    details = counted.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    if details.get("cached_tokens") is not None:
        out["cache_read_input_tokens"] = found.cached_tokens
    if details.get("cache_creation_tokens") is not None:
        out["cache_creation_input_tokens"] = found.cache_creation_tokens
    details = counted.get("completion_tokens_details")
    thought = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return {**out, "output_tokens_details": {"thinking_tokens": thought}} if isinstance(thought, int) else out


def error_from_openai(said: Any, request_id: str | None, status: int | None = None) -> dict[str, Any]:
    """An error from the field `error` of OpenAI's; `status` is None within a stream.

    OpenAI's code becomes `details.error_code`, where Anthropic's clients look for one.
    """
    said = said if isinstance(said, dict) else {}
    code, words, param = said.get("code"), said.get("message"), said.get("param")
    code = code if isinstance(code, str) else None
    if status is None:
        status = _STATUS_BY_CODE.get(code or "") or _STATUS_BY_TYPE.get(str(said.get("type")), 500)
    kind = _TYPE_BY_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    out: dict[str, Any] = {
        "type": code if code in _ERROR_TYPES else kind,
        "message": words if isinstance(words, str) else "The target refused the request without saying why.",
    }
    details = {"error_code": None if code in _ERROR_TYPES else code, "param": param if isinstance(param, str) else None}
    if told := {name: value for name, value in details.items() if value is not None}:
        out["details"] = told
    told_error = {"type": "error", "error": out}
    return told_error if request_id is None else {**told_error, "request_id": request_id}


def _tool_use(call: Any, spare_id: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("The target's answer has a call of no function.")
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except (orjson.JSONDecodeError, TypeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"The model called {function['name'][:100]!r} with arguments that are no JSON object.")
    call_id = call["id"] if isinstance(call.get("id"), str) and call["id"] else f"toolu_{spare_id}"
    return {"type": "tool_use", "id": call_id, "name": function["name"], "input": arguments}
