"""A whole answer or error of chat completions as one of Anthropic's API."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from flotilla.routing.budgets import usage_of

_STOP: Final[Mapping[str, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_TYPES: Final = frozenset(
    {
        *("invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error"),
        *("request_too_large", "rate_limit_error", "timeout_error", "api_error", "overloaded_error"),
    }
)
_OF_STATUS: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OF_CODE: Final[Mapping[str, int]] = {"no_capacity": 503, "upstream_rate_limited": 429, "upstream_timeout": 504}
"""The status that an error would have had, had its stream not begun."""
_OF_TYPE: Final[Mapping[str, int]] = {"invalid_request_error": 400, "requests": 429, "insufficient_quota": 429}


def answer(content: bytes) -> bytes:
    """Translate the body of a successful answer. Raises ValueError where it is none that can be told."""
    body = orjson.loads(content)
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    said = choice.get("message")
    if not isinstance(said, dict):
        raise ValueError("The target's answer is no chat completion.")
    text = said.get("content")
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if isinstance(text, str) and text else []
    calls = said.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    blocks += [_tool_use(call, f"{body.get('id')}_{number}") for number, call in enumerate(calls)]
    end = ending(choice, refusal=said.get("refusal"), calls=bool(calls))
    counted = usage(body.get("usage")) or {"input_tokens": 0, "output_tokens": 0}
    return orjson.dumps({**message(body), "content": blocks, **end, "usage": counted})


def message(head: Mapping[str, Any]) -> dict[str, Any]:
    """What every message begins with; `head` is an answer or its first chunk."""
    found = {name: head[name] if isinstance(head.get(name), str) else "" for name in ("id", "model")}
    return {**found, "type": "message", "role": "assistant"}


def ending(choice: Mapping[str, Any], *, refusal: Any, calls: bool) -> dict[str, Any]:
    """Why the answer ended. Engines that were made to call a tool may call that a stop."""
    reason = choice.get("finish_reason")
    # The text that ended the answer: vLLM's name, and SGLang's. A number is a token's.
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


def usage(counted: Any) -> dict[str, Any] | None:
    """OpenAI counts cached tokens among the prompt's, Anthropic beside them. None where nothing was counted."""
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


def error(said: Any, request_id: str | None, status: int | None = None) -> dict[str, Any]:
    """An error from the inner part of OpenAI's; `status` is None within a stream.

    Our code is `details.error_code`, where Anthropic's clients look for one.
    """
    said = said if isinstance(said, dict) else {}
    code, words, param = said.get("code"), said.get("message"), said.get("param")
    code = code if isinstance(code, str) else None
    if status is None:
        status = _OF_CODE.get(code or "") or _OF_TYPE.get(str(said.get("type")), 500)
    kind = _OF_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    out: dict[str, Any] = {
        "type": code if code in _TYPES else kind,
        "message": words if isinstance(words, str) else "The target refused the request without saying why.",
    }
    details = {"error_code": None if code in _TYPES else code, "param": param if isinstance(param, str) else None}
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
