"""A request of /v1/chat/completions as one of Anthropic's /v1/messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from flotilla.gateway.anthropic.messages import Untranslatable, items, turns
from flotilla.routing.budgets import DEFAULT_MAX_TOKENS

PATH: Final = "/messages"
"""Below the target's base URL, which ends in /v1."""
VERSION: Final = "2026-10-21"
"""From this version on the API takes the key as a bearer token and refuses temperature, top_p and top_k."""
DROPPED_HEADER: Final = "x-flotilla-dropped"
"""Header of the answer: names of the request's fields that had no effect."""

_TRANSLATED: Final = frozenset(
    {
        *("model", "messages", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options"),
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"),
        *("user", "safety_identifier", "n", "logprobs", "modalities"),
    }
)
_SAMPLING: Final = ("temperature", "top_p", "top_k")
_NAMES: Final = 20
_NAME_LENGTH: Final = 60
_TAKEN_OF_FUNCTIONS: Final = frozenset({"name", "description", "parameters", "strict"})
_REFUSED: Final[Mapping[str, str]] = {
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
    "audio": "Ask a model that speaks.",
    "web_search_options": "Leave it out, or ask a model that searches.",
    "top_logprobs": "Leave it out, or ask a model that tells log probabilities.",
}
_EFFORT: Final[Mapping[str, str]] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
}
_CHOICE: Final[Mapping[str, str]] = {"auto": "auto", "required": "any", "none": "none"}


@dataclass(frozen=True, slots=True)
class Request:
    """What to send."""

    content: bytes
    dropped: tuple[str, ...]
    """Names of the fields that were left out, sorted: the value of DROPPED_HEADER."""


def headers(key: str) -> dict[str, str]:
    """Headers of every request; `key` is the API key."""
    return {"authorization": f"Bearer {key}", "anthropic-version": VERSION, "content-type": "application/json"}


def request(body: Mapping[str, Any], model: str) -> Request:
    """Translate a body for `model`, the provider's name of it.

    Raises Untranslatable where the answer could not be what the client asked for.
    """
    dropped = _unsupported(body)
    system, messages = turns(body.get("messages"), dropped)
    limit = body.get("max_completion_tokens")
    limit = body.get("max_tokens") if limit is None else limit
    out: dict[str, Any] = {
        "model": model,
        "max_tokens": DEFAULT_MAX_TOKENS if limit is None else limit,
        "messages": messages,
    }
    if system:
        out["system"] = system
    if body.get("stream"):
        out["stream"] = True
    if stops := _stops(body.get("stop"), dropped):
        out["stop_sequences"] = stops
    if tools := [_tool(index, tool, dropped) for index, tool in enumerate(items("tools", body.get("tools")))]:
        out["tools"] = tools
        if (choice := _tool_choice(body)) is not None:
            out["tool_choice"] = choice
    if config := _output_config(body, dropped):
        out["output_config"] = config
    if user := body.get("safety_identifier") or body.get("user"):
        out["metadata"] = {"user_id": user}
    try:
        return Request(orjson.dumps(out), _told(dropped))
    except TypeError as error:
        raise Untranslatable("messages", "It or the tools are nested too deeply.") from error


def passed_on(message: Mapping[str, Any], model: str) -> Request:
    """A client's own request of this API for `model`: as it came, but for what this version refuses."""
    kept = {field: value for field, value in message.items() if field not in _SAMPLING}
    dropped = sorted(field for field in _SAMPLING if message.get(field) is not None)
    return Request(orjson.dumps({**kept, "model": model}), tuple(dropped))


def _told(dropped: set[str]) -> tuple[str, ...]:
    """Names are the client's own: a header must hold them."""
    names = [name[:_NAME_LENGTH] for name in sorted(dropped)]
    return (*names[:_NAMES], f"and {len(names) - _NAMES} more") if len(names) > _NAMES else tuple(names)


def _unsupported(body: Mapping[str, Any]) -> set[str]:
    """Names of the fields to drop; raises for those that must not be."""
    for field, remedy in _REFUSED.items():
        if body.get(field):
            raise Untranslatable(field, f"{field} has no counterpart in Anthropic's API. {remedy}")
    if body.get("n") not in (None, 1):
        raise Untranslatable("n", f"n is {body['n']}, and Anthropic's API gives one answer. Ask as often as you need.")
    if body.get("logprobs"):
        raise Untranslatable("logprobs", "Anthropic's API tells no log probabilities. Leave logprobs out.")
    if "audio" in items("modalities", body.get("modalities")):
        raise Untranslatable("modalities", "Anthropic's API answers in text only. Leave audio out of modalities.")
    return {
        field
        for field, value in body.items()
        if field not in _TRANSLATED and field not in _REFUSED and value is not None
    }


def _stops(stop: Any, dropped: set[str]) -> list[Any]:
    stops = [stop] if isinstance(stop, str) else items("stop", stop)
    # The API refuses sequences of nothing but white space.
    kept = [text for text in stops if not isinstance(text, str) or text.strip()]
    if len(kept) < len(stops):
        dropped.add("stop")
    return kept


def _tool(index: int, tool: Any, dropped: set[str]) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Untranslatable(f"tools[{index}]", "Only tools of type function can be translated. Describe it as one.")
    parameters = function.get("parameters") or {}
    out: dict[str, Any] = {
        "name": function["name"],
        "input_schema": {"type": "object", **parameters} if isinstance(parameters, Mapping) else parameters,
    }
    for place, field in ((function, "description"), (function, "strict"), (tool, "cache_control")):
        if place.get(field) is not None:
            out[field] = place[field]
    dropped.update(f"tools.function.{field}" for field in function if field not in _TAKEN_OF_FUNCTIONS)
    return out


def _tool_choice(body: Mapping[str, Any]) -> dict[str, Any] | None:
    wanted, parallel = body.get("tool_choice"), body.get("parallel_tool_calls")
    choice: dict[str, Any]
    if wanted is None:
        choice = {"type": "auto"}
        if parallel is not False:
            return None
    elif isinstance(wanted, str) and wanted in _CHOICE:
        choice = {"type": _CHOICE[wanted]}
    elif (
        isinstance(wanted, Mapping) and wanted.get("type") == "function" and isinstance(wanted.get("function"), Mapping)
    ):
        choice = {"type": "tool", "name": wanted["function"].get("name")}
    else:
        raise Untranslatable("tool_choice", "Use auto, none, required, or a function by its name.")
    if parallel is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return choice


def _output_config(body: Mapping[str, Any], dropped: set[str]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    wanted = body.get("response_format") or {}
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, Mapping):
            raise Untranslatable("response_format.json_schema.schema", "It must be a JSON schema.")
        config["format"] = {"type": "json_schema", "schema": schema}
    elif kind not in (None, "text"):
        raise Untranslatable(
            "response_format.type", f"{kind!r} has no counterpart in Anthropic's API. Use json_schema with a schema."
        )
    effort = body.get("reasoning_effort")
    if isinstance(effort, str) and effort in _EFFORT:
        config["effort"] = _EFFORT[effort]
    elif effort is not None:
        dropped.add("reasoning_effort")
    return config
