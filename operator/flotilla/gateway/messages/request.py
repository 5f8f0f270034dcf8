"""A request of Anthropic's /v1/messages as one of /v1/chat/completions."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from flotilla.gateway.body import OWN_DATA, BadBody, Translated, parse
from flotilla.gateway.messages.fields import items, mapping, only, unsupported
from flotilla.gateway.messages.turns import chat_messages

PATH: Final = "/v1/messages"

_OWN_DATA: Final = OWN_DATA | {"output_config", "system"}
"""The schema of an answer may well have a property called api_key."""
_FIELDS: Final = frozenset(
    {
        *("model", "messages", "system", "max_tokens", "stream", "stop_sequences", "metadata", "output_config"),
        *("temperature", "top_p", "top_k", "tools", "tool_choice", "thinking", "cache_control", "service_tier"),
    }
)
_UNCHANGED: Final = ("temperature", "top_p", "top_k")
"""`top_k` is no field of OpenAI's; vLLM, SGLang and llama.cpp take it."""
_HINTS: Final = ("cache_control", "service_tier", "thinking")
_TOOL_HINTS: Final = ("cache_control", "eager_input_streaming", "input_examples")
_TOOL_FIELDS: Final = frozenset(
    {"type", "name", "description", "input_schema", "strict", "defer_loading", "allowed_callers", *_TOOL_HINTS}
)
_CHOICE: Final[Mapping[str, str]] = {"auto": "auto", "any": "required", "none": "none"}
_SCHEMA_NAME: Final = "answer"
"""OpenAI wants a name, Anthropic's API has none."""


def read(raw: bytes) -> Translated:
    """Read a body: the chat that it asks for, with what the client wrote beside it. Raises BadBody."""
    asked = parse(raw, _OWN_DATA)
    dropped: set[str] = set()
    fields = _chat(asked.fields, dropped)
    try:
        return Translated(orjson.dumps(fields), fields, asked.fields, tuple(sorted(dropped)))
    except TypeError as error:
        raise BadBody("invalid_json", "The messages or the tools are nested too deeply.", "messages") from error


def _chat(body: Mapping[str, Any], dropped: set[str]) -> dict[str, Any]:
    only("", body, _FIELDS)
    thinking = body.get("thinking")
    if thinking is not None and (not isinstance(thinking, Mapping) or thinking.get("type") != "disabled"):
        raise unsupported("thinking", "Thinking has no place in chat completions. Leave it out, or disable it.")
    limit = body.get("max_tokens")
    if type(limit) is not int or limit < 1:
        raise BadBody("invalid_type", "max_tokens: It must be a whole number above 0.", "max_tokens")
    dropped.update(field for field in _HINTS if body.get(field) is not None)
    out: dict[str, Any] = {
        "model": body["model"],
        "messages": chat_messages(body.get("system"), body.get("messages"), dropped),
        "max_completion_tokens": limit,
    }
    if body.get("stream"):
        out |= {"stream": True, "stream_options": {"include_usage": True}}
    if stops := items("stop_sequences", body.get("stop_sequences")):
        out["stop"] = stops
    if tools := [_tool(f"tools[{i}]", tool, dropped) for i, tool in enumerate(items("tools", body.get("tools")))]:
        out["tools"] = tools
    if body.get("tool_choice") is not None:
        out |= _tool_choice(mapping("tool_choice", body["tool_choice"]))
    if body.get("output_config") is not None:
        out |= _output(mapping("output_config", body["output_config"]))
    if body.get("metadata") is not None:
        metadata = mapping("metadata", body["metadata"])
        only("metadata", metadata, frozenset({"user_id"}))
        if metadata.get("user_id") is not None:
            out["user"] = metadata["user_id"]
    return out | {field: body[field] for field in _UNCHANGED if body.get(field) is not None}


def _tool(path: str, tool: Any, dropped: set[str]) -> dict[str, Any]:
    tool = mapping(path, tool)
    if tool.get("type") not in (None, "custom"):
        raise unsupported(f"{path}.type", f"{tool['type']!r} is a tool of Anthropic's own. Describe it by a schema.")
    only(path, tool, _TOOL_FIELDS)
    if tool.get("defer_loading"):
        raise unsupported(f"{path}.defer_loading", "There is no search for tools here. Leave it out.")
    if tool.get("allowed_callers") not in (None, ["direct"]):
        raise unsupported(f"{path}.allowed_callers", "Only the model itself calls tools here. Leave it out.")
    dropped.update(f"tools.{field}" for field in _TOOL_HINTS if tool.get(field) is not None)
    function = {"name": tool.get("name"), "parameters": mapping(f"{path}.input_schema", tool.get("input_schema"))}
    function |= {field: tool[field] for field in ("description", "strict") if tool.get(field) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    only("tool_choice", choice, frozenset({"type", "name", "disable_parallel_tool_use"}))
    kind = choice.get("type")
    out: dict[str, Any]
    if kind == "tool":
        out = {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
    elif isinstance(kind, str) and kind in _CHOICE:
        out = {"tool_choice": _CHOICE[kind]}
    else:
        raise unsupported("tool_choice.type", f"{kind!r} is none of auto, any, tool and none.")
    return {**out, "parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else out


def _output(config: Mapping[str, Any]) -> dict[str, Any]:
    only("output_config", config, frozenset({"format", "effort"}))
    out: dict[str, Any] = {}
    wanted = config.get("format")
    if wanted is not None:
        path = "output_config.format"
        wanted = mapping(path, wanted)
        only(path, wanted, frozenset({"type", "schema"}))
        if wanted.get("type") != "json_schema":
            raise unsupported(f"{path}.type", f"{wanted.get('type')!r} is unknown. Use json_schema with a schema.")
        schema = mapping(f"{path}.schema", wanted.get("schema"))
        # Anthropic promises the schema; without `strict` OpenAI only tries.
        described = {"name": _SCHEMA_NAME, "schema": schema, "strict": True}
        out["response_format"] = {"type": "json_schema", "json_schema": described}
    if config.get("effort") is not None:
        out["reasoning_effort"] = config["effort"]
    return out
