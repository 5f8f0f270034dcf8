"""A whole answer or error of Anthropic's API as one of OpenAI's."""

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
"""OpenAI's word; the others are invalid_request_error, and the code tells Anthropic's word in any case."""
_OVERLOADED: Final = 529


def answer(content: bytes, *, created: int) -> bytes:
    """Translate the body of a successful answer; `created` is the time in Unix seconds.

    Raises ValueError where it is no message.
    """
    try:
        return _completion(orjson.loads(content), created)
    except TypeError as error:
        raise ValueError("The answer is nested too deeply.") from error


def _completion(message: Any, created: int) -> bytes:
    if not isinstance(message, dict) or message.get("type") != "message":
        raise ValueError("The answer is no message of Anthropic's API.")
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
        "refusal": refusal(message),
    }
    if calls:
        said["tool_calls"] = calls
    choice = {"index": 0, "message": said, "logprobs": None, **finish(message)}
    return orjson.dumps(
        {
            "id": message.get("id"),
            "object": "chat.completion",
            "created": created,
            "model": message.get("model"),
            "choices": [choice],
            "usage": usage(message.get("usage") or {}),
        }
    )


def error(status: int, content: bytes) -> tuple[int, bytes]:
    """Status and body in OpenAI's shape. 529 is Anthropic's own word for overload, and becomes 503."""
    try:
        body = orjson.loads(content)
        said = body.get("error") if isinstance(body, dict) else None
    except orjson.JSONDecodeError:
        said = None
    return 503 if status == _OVERLOADED else status, orjson.dumps({"error": error_object(said)})


def error_object(said: Any) -> dict[str, Any]:
    """The inner part of OpenAI's error from that of Anthropic's."""
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
    """One call as OpenAI writes it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def finish(message: Mapping[str, Any]) -> dict[str, Any]:
    """Why the answer ended, in OpenAI's word, and the stop sequence that did it where vLLM writes it."""
    stop = message.get("stop_sequence")
    reason = {"finish_reason": _FINISH.get(message.get("stop_reason", ""), "stop")}
    return {**reason, "stop_reason": stop} if isinstance(stop, str) else reason


def refusal(message: Mapping[str, Any]) -> str | None:
    """Why the model's safeguards ended the answer, where they did and said so."""
    details = message.get("stop_details")
    explanation = details.get("explanation") if isinstance(details, Mapping) else None
    return explanation if isinstance(explanation, str) else None


def usage(counted: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI counts cached tokens among the prompt's, Anthropic beside them.

    `cache_creation_tokens` is not OpenAI's; writing the cache costs more than reading it, and money must know.
    """
    read, written = _count(counted, "cache_read_input_tokens"), _count(counted, "cache_creation_input_tokens")
    prompt, output = _count(counted, "input_tokens") + read + written, _count(counted, "output_tokens")
    out: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    out["prompt_tokens_details"] = {"cached_tokens": read, "cache_creation_tokens": written}
    details = counted.get("output_tokens_details")
    if isinstance(details, Mapping):
        out["completion_tokens_details"] = {"reasoning_tokens": _count(details, "thinking_tokens")}
    return out


def _count(counted: Mapping[str, Any], name: str) -> int:
    value = counted.get(name)
    return value if isinstance(value, int) and value > 0 else 0
