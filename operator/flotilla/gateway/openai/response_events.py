"""Answers to clients of the Responses API: chat completions and streams become responses and their events. Pure.

`ResponsesResponse` stands in for the connection's `Response`, so that everything that answers a chat answers a response
too.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from flotilla.gateway.http import message
from flotilla.gateway.http.message import Response
from flotilla.gateway.openai import responses
from flotilla.gateway.openai.responses import reasoning_of
from flotilla.gateway.openai.translated_response import TranslatedResponse

_ECHOED: Final = (
    *("instructions", "max_output_tokens", "metadata", "reasoning", "temperature", "text", "tools", "top_p", "user"),
    *("parallel_tool_calls", "tool_choice", "truncation", "top_logprobs", "max_tool_calls", "service_tier"),
)
_DEFAULTS: Final[Mapping[str, Any]] = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
}
_INCOMPLETE: Final[Mapping[str, str]] = {"length": "max_output_tokens", "content_filter": "content_filter"}
_MESSAGE, _REASONING = "message", "reasoning"
_UNREADABLE: Final = "The target sent a stream that cannot be read."


class ResponsesResponse(TranslatedResponse):
    """Takes chat completions and writes responses to the response `inner`. `asked` must be set before an answer."""

    __slots__ = ("_id", "_stream", "asked")

    def __init__(self, inner: Response, request_id: str) -> None:
        super().__init__(inner)
        self._id = request_id
        self._stream: ResponseEvents | None = None
        self.asked: Mapping[str, Any] = {}
        """The fields of the request, which the answer repeats."""

    def send(self, status: int, body: bytes, headers: bytes = b"", *, content_type: bytes = message.JSON) -> None:
        """Send a complete response; 502 if the target's answer cannot be translated. Errors have the same form."""
        if body and status < 300:
            try:
                body = response_from_completion(body, self.asked, self._id)
            except ValueError as error:
                status = 502
                body = responses.error_body(str(error), kind="server_error", code="answer_unreadable")
        self._inner.send(status, body, headers, content_type=content_type)

    def write(self, data: bytes) -> None:
        """Send complete events of a chat's stream."""
        if self._stream is None:
            self._stream = ResponseEvents(self.asked, self._id)
        out = self._stream.feed(data)
        if out:
            self._inner.write(out)
        if self._stream.failed and self.source is not None:
            self.source.fail(self._stream.failed)

    def end(self, *, close: bool = False) -> None:
        """End the stream."""
        self._inner.end(close=close or (self._stream is not None and bool(self._stream.failed)))


def response_from_completion(content: bytes, asked: Mapping[str, Any], request_id: str) -> bytes:
    """Translate the body of a successful answer. Raises ValueError if it cannot be translated."""
    body = orjson.loads(content)
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    said = choice.get("message")
    if not isinstance(said, dict):
        raise ValueError("The target's answer is not a chat completion.")
    output: list[dict[str, Any]] = []
    thought = reasoning_of(said)
    if thought:
        output.append(_reasoning_item(f"rs_{request_id}", thought))
    calls = said.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    if said.get("content") or said.get("refusal") or not calls:
        output.append(_message_item(f"msg_{request_id}", said.get("content") or "", said.get("refusal")))
    output += [_call_item(f"fc_{request_id}_{index}", call) for index, call in enumerate(calls)]
    head = _head(body, asked, request_id)
    return orjson.dumps(
        {**head, **_ending(choice), "output": output, "usage": response_usage(body.get("usage"))},
    )


def response_usage(counted: Any) -> dict[str, Any] | None:
    """The usage; None if nothing was counted."""
    if not isinstance(counted, dict) or not isinstance(counted.get("prompt_tokens"), int):
        return None
    prompt, output = counted["prompt_tokens"], counted.get("completion_tokens") or 0
    read, made = counted.get("prompt_tokens_details") or {}, counted.get("completion_tokens_details") or {}
    written = read.get("cache_write_tokens") or read.get("cache_creation_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": read.get("cached_tokens") or 0, "cache_write_tokens": written},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": made.get("reasoning_tokens") or 0},
        "total_tokens": counted.get("total_tokens") or prompt + output,
    }


def _head(completion: Mapping[str, Any], asked: Mapping[str, Any], request_id: str) -> dict[str, Any]:
    echoed = {name: asked[name] for name in _ECHOED if asked.get(name) is not None}
    return {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": completion.get("created") if isinstance(completion.get("created"), int) else 0,
        "model": completion.get("model") if isinstance(completion.get("model"), str) else asked.get("model"),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "previous_response_id": None,
        "store": False,
        "background": False,
        **_DEFAULTS,
        **echoed,
    }


def _ending(choice: Mapping[str, Any]) -> dict[str, Any]:
    why = _INCOMPLETE.get(str(choice.get("finish_reason")))
    if why is None:
        return {"status": "completed"}
    return {"status": "incomplete", "incomplete_details": {"reason": why}}


def _text_part(words: str) -> dict[str, Any]:
    return {"type": "output_text", "text": words, "annotations": [], "logprobs": []}


def _message_item(item_id: str, words: Any, refusal: Any = None, status: str = "completed") -> dict[str, Any]:
    parts = [_text_part(words if isinstance(words, str) else "")] if words or not refusal else []
    if isinstance(refusal, str) and refusal:
        parts.append({"type": "refusal", "refusal": refusal})
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": parts}


def _reasoning_item(item_id: str, thought: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": thought}],
    }


def _call_item(item_id: str, call: Any, status: str = "completed") -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("The target's answer has a call of no function.")
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call["id"] if isinstance(call.get("id"), str) and call["id"] else f"call_{item_id}",
        "name": function["name"],
        "arguments": function.get("arguments") or "",
        "status": status,
    }


class ResponseEvents:
    """Translates the stream of one chat. Feed it complete events and send what it returns."""

    def __init__(self, asked: Mapping[str, Any], request_id: str) -> None:
        self._asked, self._id = asked, request_id
        self._head: dict[str, Any] | None = None
        self._number = 0
        self._output: list[dict[str, Any]] = []
        """The items that are complete."""
        self._open: int | str | None = None
        """The open item: _MESSAGE, _REASONING, or OpenAI's index of a tool call."""
        self._item: dict[str, Any] = {}
        self._text = ""
        self._choice: Mapping[str, Any] = {}
        self._usage: Any = None
        self.failed = ""
        """Why an error was sent in the stream; nothing may follow it."""

    def feed(self, data: bytes) -> bytes:
        """Translate events. Comments, which keep the connection alive, are passed on."""
        return b"".join([self._event(event) for event in data.split(b"\n\n") if event.strip()])

    def _event(self, raw: bytes) -> bytes:
        if self.failed:
            return b""
        data = b"\n".join(line[5:].strip() for line in raw.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return raw + b"\n\n" if raw.startswith(b":") else b""
        if data == b"[DONE]":
            return self._end()
        out: list[bytes] = []
        try:
            chunk = orjson.loads(data)
            if chunk.get("error"):
                return self._fail("an error in the stream", chunk["error"])
            self._chunk(chunk, out)
            return b"".join(out)
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
            return b"".join(out) + self._fail("events that cannot be read", {"message": _UNREADABLE})

    def _chunk(self, chunk: dict[str, Any], out: list[bytes]) -> None:
        """Add the events of one chunk to `out`, which keeps those before a failure."""
        out += self._begin(chunk)
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if thought := reasoning_of(delta):
                out += self._piece(_REASONING, thought)
            if delta.get("content"):
                out += self._piece(_MESSAGE, delta["content"])
            if delta.get("refusal"):
                out += self._piece(_MESSAGE, "")
                self._item["refusal"] = self._item.get("refusal", "") + delta["refusal"]
            for place, call in enumerate(delta.get("tool_calls") or ()):
                out += self._call(call.get("index", place), call)
            if choice.get("finish_reason"):
                self._choice = choice

    def _begin(self, head: Mapping[str, Any]) -> list[bytes]:
        if self._head is not None:
            return []
        self._head = _head(head, self._asked, self._id)
        began = {**self._head, "output": [], "usage": None}
        return [self._write("response.created", response=began), self._write("response.in_progress", response=began)]

    def _piece(self, kind: str, words: str) -> list[bytes]:
        """A piece of text or of reasoning."""
        if not isinstance(words, str):
            raise TypeError("no text")
        out: list[bytes] = []
        if self._open != kind:
            out += self._close()
            self._open, self._text = kind, ""
            if kind == _MESSAGE:
                self._item = {"id": f"msg_{self._id}_{len(self._output)}"}
                item = {**_message_item(self._item["id"], "", status="in_progress"), "content": []}
                part = _text_part("")
            else:
                self._item = {"id": f"rs_{self._id}_{len(self._output)}"}
                item = {**_reasoning_item(self._item["id"], ""), "content": []}
                part = {"type": "reasoning_text", "text": ""}
            out.append(self._write("response.output_item.added", item=item, **self._place()))
            out.append(self._write("response.content_part.added", part=part, **self._inside()))
        self._text += words
        if words and kind == _MESSAGE:
            out.append(self._write("response.output_text.delta", delta=words, logprobs=[], **self._inside()))
        elif words:
            out.append(self._write("response.reasoning_text.delta", delta=words, **self._inside()))
        return out

    def _call(self, index: int, call: dict[str, Any]) -> list[bytes]:
        function = call.get("function") or {}
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            raise TypeError("no text")
        out: list[bytes] = []
        if self._open != index:
            given = {**call, "function": {**function, "arguments": ""}}
            number = len(self._output) + (self._open is not None)
            item = _call_item(f"fc_{self._id}_{number}", given, "in_progress")
            out += self._close()
            self._open, self._text, self._item = index, "", item
            out.append(self._write("response.output_item.added", item=self._item, **self._place()))
        self._text += arguments
        if arguments:
            place = {"item_id": self._item["id"], **self._place()}
            out.append(self._write("response.function_call_arguments.delta", delta=arguments, **place))
        return out

    def _close(self) -> list[bytes]:
        """The end of the open item."""
        if self._open is None:
            return []
        words = self._text
        out: list[bytes] = []
        if self._open == _MESSAGE:
            item = _message_item(self._item["id"], words, self._item.get("refusal"))
            out.append(self._write("response.output_text.done", text=words, logprobs=[], **self._inside()))
            out.append(self._write("response.content_part.done", part=_text_part(words), **self._inside()))
        elif self._open == _REASONING:
            item = _reasoning_item(self._item["id"], words)
            out.append(self._write("response.reasoning_text.done", text=words, **self._inside()))
            part = {"type": "reasoning_text", "text": words}
            out.append(self._write("response.content_part.done", part=part, **self._inside()))
        else:
            item = {**self._item, "arguments": words, "status": "completed"}
            done = {"arguments": words, "name": item["name"], "item_id": item["id"]}
            out.append(self._write("response.function_call_arguments.done", **done, **self._place()))
        out.append(self._write("response.output_item.done", item=item, **self._place()))
        self._output.append(item)
        self._open = None
        return out

    def _end(self) -> bytes:
        out = self._begin({}) + self._close()
        assert self._head is not None
        if not self._output:
            self._output.append(_message_item(f"msg_{self._id}", ""))
        ending = _ending(self._choice)
        whole = {**self._head, **ending, "output": self._output, "usage": response_usage(self._usage)}
        return b"".join([*out, self._write(f"response.{ending['status']}", response=whole)])

    def _fail(self, why: str, said: Any) -> bytes:
        """The stream's last event: a response that failed, as the SDKs expect it."""
        self.failed = why
        said = said if isinstance(said, Mapping) else {}
        words = said.get("message") if isinstance(said.get("message"), str) else "The target's answer was broken off."
        out = self._begin({})
        assert self._head is not None
        error = {"code": "server_error", "message": words}
        whole = {**self._head, "status": "failed", "error": error, "output": self._output, "usage": None}
        return b"".join([*out, self._write("response.failed", response=whole)])

    def _place(self) -> dict[str, Any]:
        return {"output_index": len(self._output)}

    def _inside(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "content_index": 0, **self._place()}

    def _write(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        event = {"type": kind, "sequence_number": number, **fields}
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(event))
