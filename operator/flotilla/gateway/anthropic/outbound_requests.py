"""Requests to targets that speak Anthropic's API: a chat completion becomes a request of /v1/messages. Pure.

A field that Anthropic's API does not have is refused if the client would miss it in the answer; if it only steers, it
is left out and its name is reported in `dropped`. A request that came in Anthropic's format is passed on as it is.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from flotilla.errors import UntranslatableRequest
from flotilla.routing.budgets import DEFAULT_MAX_TOKENS

_IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_DATA_URL: Final = re.compile(r"data:([^;,]*);base64,", re.ASCII)
_INVALID_IN_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")
_KNOWN: Final = frozenset({"role", "content", "tool_calls", "tool_call_id", "refusal"})
_KNOWN_IN_PARTS: Final = frozenset({"type", "text", "refusal", "image_url", "cache_control"})
TARGET_PATH: Final = "/messages"
"""Path below the target's base URL, which ends in /v1."""
API_VERSION: Final = "2026-10-21"
"""Since this version the API takes the key as a bearer token and refuses temperature, top_p and top_k."""
_TRANSLATED: Final = frozenset(
    {
        *("model", "messages", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options"),
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"),
        *("user", "safety_identifier", "n", "logprobs", "modalities"),
    }
)
FOREIGN_SIGNATURE: Final = "flotilla"
"""Signature of thinking blocks that were translated from another model's reasoning."""
_SAMPLING: Final = ("temperature", "top_p", "top_k")
_TAKEN_OF_FUNCTIONS: Final = frozenset({"name", "description", "parameters", "strict"})
_REFUSED: Final[Mapping[str, str]] = {
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
    "audio": "Ask a model that speaks.",
    "web_search_options": "Leave it out, or ask a model that searches.",
    "top_logprobs": "Leave it out, or ask a model that has log probabilities.",
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
class MessagesRequest:
    """A request for the API."""

    content: bytes
    dropped: tuple[str, ...]
    """Sorted names of the fields that were left out."""


def request_headers(key: str) -> dict[str, str]:
    """Headers of every request; `key` is the API key."""
    return {"authorization": f"Bearer {key}", "anthropic-version": API_VERSION, "content-type": "application/json"}


def message_from_chat(body: Mapping[str, Any], model: str) -> MessagesRequest:
    """Translate a chat for `model`, the provider's name of it.

    Raises UntranslatableRequest if the answer could not be what the client asked for.
    """
    dropped = _unsupported(body)
    system, messages = translate_turns(body.get("messages"), dropped)
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
    if tools := [_tool(index, tool, dropped) for index, tool in enumerate(list_field("tools", body.get("tools")))]:
        out["tools"] = tools
        if (choice := _tool_choice(body)) is not None:
            out["tool_choice"] = choice
    if config := _output_config(body, dropped):
        out["output_config"] = config
    if user := body.get("safety_identifier") or body.get("user"):
        out["metadata"] = {"user_id": user}
    try:
        return MessagesRequest(orjson.dumps(out), tuple(sorted(dropped)))
    except TypeError as error:
        raise UntranslatableRequest("messages", "It or the tools are nested too deeply.") from error


def message_unchanged(message: Mapping[str, Any], model: str) -> MessagesRequest:
    """A client's request in this API's format for `model`, without the fields that this version refuses.

    Thinking that another model than Claude was translated to, in an earlier turn, has no signature and is left out.
    """
    kept = {field: value for field, value in message.items() if field not in _SAMPLING}
    if _has_foreign_thinking(message.get("messages")):
        kept["messages"] = [_own_thinking(turn) for turn in message["messages"]]
    dropped = sorted(field for field in _SAMPLING if message.get(field) is not None)
    return MessagesRequest(orjson.dumps({**kept, "model": model}), tuple(dropped))


def _has_foreign_thinking(messages: Any) -> bool:
    turns = messages if isinstance(messages, list) else ()
    contents = (turn.get("content") for turn in turns if isinstance(turn, dict))
    return any(_foreign(block) for content in contents if isinstance(content, list) for block in content)


def _foreign(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "thinking" and block.get("signature") == FOREIGN_SIGNATURE


def _own_thinking(turn: Any) -> Any:
    content = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(content, list):
        return turn
    kept = [block for block in content if not _foreign(block)]
    return {**turn, "content": kept or [{"type": "text", "text": "(no text)"}]}


def _unsupported(body: Mapping[str, Any]) -> set[str]:
    """Names of the fields to leave out. Raises UntranslatableRequest for fields that must not be left out."""
    for field, remedy in _REFUSED.items():
        if body.get(field):
            raise UntranslatableRequest(field, f"{field} has no counterpart in Anthropic's API. {remedy}")
    if body.get("n") not in (None, 1):
        raise UntranslatableRequest(
            "n", f"n is {body['n']}, and Anthropic's API gives one answer. Ask as often as you need."
        )
    if body.get("logprobs"):
        raise UntranslatableRequest("logprobs", "Anthropic's API has no log probabilities. Leave logprobs out.")
    if "audio" in list_field("modalities", body.get("modalities")):
        raise UntranslatableRequest(
            "modalities", "Anthropic's API answers in text only. Leave audio out of modalities."
        )
    return {
        field
        for field, value in body.items()
        if field not in _TRANSLATED and field not in _REFUSED and value is not None
    }


def _stops(stop: Any, dropped: set[str]) -> list[Any]:
    stops = [stop] if isinstance(stop, str) else list_field("stop", stop)
    # The API refuses sequences of white space only.
    kept = [text for text in stops if not isinstance(text, str) or text.strip()]
    if len(kept) < len(stops):
        dropped.add("stop")
    return kept


def _tool(index: int, tool: Any, dropped: set[str]) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UntranslatableRequest(
            f"tools[{index}]", "Only tools of type function can be translated. Describe it as one."
        )
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
        raise UntranslatableRequest("tool_choice", "Use auto, none, required, or a function by its name.")
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
            raise UntranslatableRequest("response_format.json_schema.schema", "It must be a JSON schema.")
        config["format"] = {"type": "json_schema", "schema": schema}
    elif kind not in (None, "text"):
        raise UntranslatableRequest(
            "response_format.type", f"{kind!r} has no counterpart in Anthropic's API. Use json_schema with a schema."
        )
    effort = body.get("reasoning_effort")
    if isinstance(effort, str) and effort in _EFFORT:
        config["effort"] = _EFFORT[effort]
    elif effort is not None:
        dropped.add("reasoning_effort")
    return config


def list_field(path: str, value: Any) -> list[Any]:
    """A list; empty if it is left out. Any other value is refused."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise UntranslatableRequest(path, "It must be a list.")
    return value


def translate_turns(messages: Any, dropped: set[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The blocks of the system prompt, and the turns of user and assistant.

    All system and developer messages go into the system prompt, wherever they are. Consecutive messages of one role
    become one turn, because the results of parallel tool calls must all be in the turn after the calls. Names of
    fields that are left out are added to `dropped`.
    """
    system: list[dict[str, Any]] = []
    result: list[dict[str, Any]] = []
    for index, message in enumerate(list_field("messages", messages)):
        path = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise UntranslatableRequest(path, "It must be a message.")
        dropped.update(f"messages.{field}" for field, value in message.items() if field not in _KNOWN and value)
        role, blocks = _message(path, message, dropped)
        if role == "system":
            system += blocks
        elif result and result[-1]["role"] == role:
            result[-1]["content"] += blocks
        elif blocks:
            result.append({"role": role, "content": blocks})
    return system, result


def _message(path: str, message: Mapping[str, Any], dropped: set[str]) -> tuple[str, list[dict[str, Any]]]:
    match message.get("role"):
        case "system" | "developer":
            return "system", list(_parts(f"{path}.content", message.get("content"), dropped))
        case "user":
            return "user", list(_parts(f"{path}.content", message.get("content"), dropped, images=True))
        case "assistant":
            return "assistant", list(_assistant(path, message, dropped))
        case "tool":
            blocks = list(_parts(f"{path}.content", message.get("content"), dropped))
            result = {"type": "tool_result", "tool_use_id": _call_id(path, message.get("tool_call_id"))}
            return "user", [{**result, "content": blocks} if blocks else result]
        case role:
            raise UntranslatableRequest(
                f"{path}.role", f"{role!r} is none of system, developer, user, assistant and tool."
            )


def _assistant(path: str, message: Mapping[str, Any], dropped: set[str]) -> Iterator[dict[str, Any]]:
    yield from _parts(f"{path}.content", message.get("content"), dropped)
    if message.get("refusal"):
        yield {"type": "text", "text": message["refusal"]}
    for index, call in enumerate(list_field(f"{path}.tool_calls", message.get("tool_calls"))):
        place = f"{path}.tool_calls[{index}]"
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise UntranslatableRequest(place, "Only calls of functions can be translated.")
        try:
            arguments = orjson.loads(function.get("arguments") or "{}")
        except (orjson.JSONDecodeError, TypeError):
            arguments = None
        if not isinstance(arguments, dict):
            raise UntranslatableRequest(f"{place}.function.arguments", "It must be the text of a JSON object.")
        yield {
            "type": "tool_use",
            "id": _call_id(place, call.get("id")),
            "name": function.get("name"),
            "input": arguments,
        }


def _parts(path: str, content: Any, dropped: set[str], *, images: bool = False) -> Iterator[dict[str, Any]]:
    """Blocks of text, and of images if they are allowed. Empty text is left out; refusals become text."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for index, part in enumerate(list_field(path, content)):
        place = f"{path}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "refusal"):
            if not part.get(kind):
                continue
            block = {"type": "text", "text": part[kind]}
        elif kind == "image_url" and images:
            image = part.get("image_url")
            image = image if isinstance(image, Mapping) else {"url": image}
            block = _image(f"{place}.image_url.url", image.get("url"))
            dropped.update(f"messages.content.image_url.{field}" for field in image if field != "url")
        else:
            allowed = "text or image_url" if images else "text"
            raise UntranslatableRequest(place, f"A part of type {kind!r} cannot be translated here. Use {allowed}.")
        if part.get("cache_control") is not None:
            # Not a field of OpenAI's API, but clients that use many providers send it.
            block["cache_control"] = part["cache_control"]
        dropped.update(f"messages.content.{field}" for field in part if field not in _KNOWN_IN_PARTS)
        yield block


def _image(path: str, url: Any) -> dict[str, Any]:
    if isinstance(url, str) and (data := _DATA_URL.match(url)):
        if data[1] not in _IMAGES:
            raise UntranslatableRequest(
                path, f"Images of type {data[1]!r} are not read. Use {', '.join(sorted(_IMAGES))}."
            )
        source = {"type": "base64", "media_type": data[1], "data": url[data.end() :]}
    elif isinstance(url, str) and url.startswith("https://"):
        source = {"type": "url", "url": url}
    else:
        raise UntranslatableRequest(path, "It must be an https URL, or a data URL in base64.")
    return {"type": "image", "source": source}


def _call_id(path: str, call_id: Any) -> str:
    """An ID for the API, which allows letters, digits, _ and - only. Call and result are changed in the same way."""
    if not isinstance(call_id, str) or not call_id:
        raise UntranslatableRequest(path, "A tool call and its result need an id.")
    return _INVALID_IN_ID.sub("_", call_id)
