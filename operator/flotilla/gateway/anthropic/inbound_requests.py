"""Requests of clients that speak Anthropic's API: /v1/messages becomes a chat completion. Pure.

The chat is what is decided about and sent. A field or block that a chat does not have is refused, with its path, if the
client would miss it in the answer; if it is only a hint, it is left out and its name is reported in `dropped`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from flotilla.gateway.openai.field_checks import items, mapping, only, text, unsupported
from flotilla.gateway.openai.requests import CLIENT_DATA_FIELDS, InvalidBody, TranslatedBody, parse_body

_ROLES: Final = ("system", "user", "assistant")
_TEXT: Final = frozenset({"type", "text", "cache_control", "citations"})
_IMAGE: Final = frozenset({"type", "source", "cache_control"})
_TOOL_USE: Final = frozenset({"type", "id", "name", "input", "cache_control", "caller"})
_TOOL_RESULT: Final = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})
Block = tuple[str, Mapping[str, Any]]
"""The path of a content block, and the block."""
MESSAGES_PATH: Final = "/v1/messages"
_OWN_DATA: Final = CLIENT_DATA_FIELDS | {"output_config", "system"}
"""A schema may well have a property called api_key."""
_FIELDS: Final = frozenset(
    {
        *("model", "messages", "system", "max_tokens", "stream", "stop_sequences", "metadata", "output_config"),
        *("temperature", "top_p", "top_k", "tools", "tool_choice", "thinking", "cache_control", "service_tier"),
        *("context_management", "speed", "betas", "mcp_servers", "diagnostics"),
    }
)
_UNCHANGED: Final = ("temperature", "top_p", "top_k")
"""`top_k` is not a field of OpenAI's API, but vLLM, SGLang and llama.cpp accept it."""
_HINTS: Final = ("cache_control", "service_tier", "thinking", "context_management", "speed", "betas", "diagnostics")
"""Fields that only steer Claude: left out for other models, and passed on to Claude."""
_DOCUMENT: Final = frozenset({"type", "source", "title", "context", "cache_control", "citations"})
_THINKING: Final = frozenset({"thinking", "redacted_thinking"})
_TOOL_HINTS: Final = ("cache_control", "eager_input_streaming", "input_examples")
_TOOL_FIELDS: Final = frozenset(
    {"type", "name", "description", "input_schema", "strict", "defer_loading", "allowed_callers", *_TOOL_HINTS}
)
_CHOICE: Final[Mapping[str, str]] = {"auto": "auto", "any": "required", "none": "none"}
_SCHEMA_NAME: Final = "answer"
"""OpenAI's API requires a name, which Anthropic's does not have."""


def read_request(raw: bytes) -> TranslatedBody:
    """Parse a body into the chat that it asks for; the client's own request is kept beside it. Raises InvalidBody."""
    asked = parse_body(raw, _OWN_DATA)
    dropped: set[str] = set()
    fields = _chat(asked.fields, dropped)
    try:
        return TranslatedBody(orjson.dumps(fields), fields, asked.fields, tuple(sorted(dropped)))
    except TypeError as error:
        raise InvalidBody("invalid_json", "The messages or the tools are nested too deeply.", "messages") from error


def read_count_request(raw: bytes) -> TranslatedBody:
    """Parse the body of a request to count its tokens, which has no `max_tokens`. Raises InvalidBody."""
    asked = parse_body(raw, _OWN_DATA)
    fields = _chat({"max_tokens": 1, **asked.fields}, set())
    return TranslatedBody(raw, fields, asked.fields, ())


def wants_thinking(message: Mapping[str, Any]) -> bool:
    """Whether the client of a request reads thinking blocks."""
    thinking = message.get("thinking")
    return isinstance(thinking, Mapping) and thinking.get("type") in ("enabled", "adaptive")


def _chat(body: Mapping[str, Any], dropped: set[str]) -> dict[str, Any]:
    only("", body, _FIELDS)
    if body.get("mcp_servers"):
        raise unsupported("mcp_servers", "The gateway calls no servers of tools. Leave it out.")
    limit = body.get("max_tokens")
    if type(limit) is not int or limit < 1:
        raise InvalidBody("invalid_type", "max_tokens: It must be a whole number above 0.", "max_tokens")
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
        # Anthropic's API guarantees the schema; OpenAI's only with `strict`.
        described = {"name": _SCHEMA_NAME, "schema": schema, "strict": True}
        out["response_format"] = {"type": "json_schema", "json_schema": described}
    if config.get("effort") is not None:
        out["reasoning_effort"] = config["effort"]
    return out


def chat_messages(system: Any, messages: Any, dropped: set[str]) -> list[dict[str, Any]]:
    """The messages of the chat. Names of fields that are left out are added to `dropped`.

    Consecutive messages of one role are one turn, as in Anthropic's API.
    """
    out: list[dict[str, Any]] = []
    if parts := [_text(*block, dropped) for block in _blocks("system", system)]:
        out.append({"role": "system", "content": _content(parts)})
    turns = list(_turns(messages))
    if not turns:
        raise InvalidBody("invalid_type", "messages: It must have at least one message.", "messages")
    for role, blocks in turns:
        if role == "user":
            out += _user(blocks, dropped)
        elif role == "assistant":
            out.append(_assistant(blocks, dropped))
        else:
            out.append({"role": "system", "content": _content([_text(*block, dropped) for block in blocks])})
    if turns[-1][0] == "assistant":
        raise unsupported("messages", "The last message must not be the assistant's: no answer is continued here.")
    return out


def _turns(messages: Any) -> Iterator[tuple[str, list[Block]]]:
    last, blocks = "", list[Block]()
    for index, message in enumerate(items("messages", messages)):
        path = f"messages[{index}]"
        message = mapping(path, message)
        only(path, message, frozenset({"role", "content"}))
        role = message.get("role")
        if role not in _ROLES:
            raise unsupported(f"{path}.role", f"{role!r} is none of {', '.join(_ROLES)}.")
        if role != last and blocks:
            yield last, blocks
            blocks = []
        last = role
        blocks += _blocks(f"{path}.content", message.get("content"))
    if blocks:
        yield last, blocks


def _blocks(path: str, content: Any) -> list[Block]:
    """The blocks of a content, which may be a string.

    Blocks of empty text are left out, as Anthropic's API refuses them.
    """
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    found = [
        (f"{path}[{index}]", mapping(f"{path}[{index}]", block)) for index, block in enumerate(items(path, content))
    ]
    return [block for block in found if block[1].get("type") != "text" or block[1].get("text") != ""]


def _user(blocks: list[Block], dropped: set[str]) -> Iterator[dict[str, Any]]:
    """The messages of a user's turn: tool results first, directly after their calls, then the user's content.

    A tool message has no images in OpenAI's API, so images of results go before the user's content.
    """
    parts: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for path, block in blocks:
        match block.get("type"):
            case "tool_result":
                result, images = _result(path, block, dropped)
                parts += images
                yield result
            case "image":
                said.append(_image(path, block, dropped))
            case "document":
                said += _document(path, block, dropped)
            case _:
                said.append(_text(path, block, dropped))
    if parts or said:
        yield {"role": "user", "content": _content(parts + said)}


def _result(path: str, block: Mapping[str, Any], dropped: set[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    only(path, block, _TOOL_RESULT)
    _hints(block, ("cache_control", "is_error"), dropped)
    words: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for place, inner in _blocks(f"{path}.content", block.get("content")):
        if inner.get("type") == "image":
            images.append(_image(place, inner, dropped))
        elif inner.get("type") == "document":
            images += _document(place, inner, dropped)
        else:
            words.append(_text(place, inner, dropped))
    answered = text(f"{path}.tool_use_id", block.get("tool_use_id"))
    return {"role": "tool", "tool_call_id": answered, "content": _content(words)}, images


def _assistant(blocks: list[Block], dropped: set[str]) -> dict[str, Any]:
    said: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for path, block in blocks:
        if block.get("type") in _THINKING:
            # What a model thought in an earlier turn is not shown to another one.
            dropped.add("messages.content.thinking")
        elif block.get("type") == "tool_use":
            calls.append(_call(path, block, dropped))
        else:
            said.append(_text(path, block, dropped))
    message: dict[str, Any] = {"role": "assistant", "content": _content(said) if said else None}
    return {**message, "tool_calls": calls} if calls else message


def _call(path: str, block: Mapping[str, Any], dropped: set[str]) -> dict[str, Any]:
    only(path, block, _TOOL_USE)
    if block.get("caller") not in (None, {"type": "direct"}):
        raise unsupported(f"{path}.caller", "Only the model itself calls tools here. Leave it out.")
    _hints(block, ("cache_control",), dropped)
    function = {
        "name": text(f"{path}.name", block.get("name")),
        "arguments": orjson.dumps(mapping(f"{path}.input", block.get("input"))).decode(),
    }
    return {"id": text(f"{path}.id", block.get("id")), "type": "function", "function": function}


def _text(path: str, block: Mapping[str, Any], dropped: set[str]) -> dict[str, Any]:
    if block.get("type") != "text":
        raise unsupported(path, f"A block of type {block.get('type')!r} cannot be kept for every model here.")
    only(path, block, _TEXT)
    _hints(block, ("cache_control", "citations"), dropped)
    return {"type": "text", "text": text(f"{path}.text", block.get("text"))}


def _image(path: str, block: Mapping[str, Any], dropped: set[str]) -> dict[str, Any]:
    only(path, block, _IMAGE)
    _hints(block, ("cache_control",), dropped)
    source = mapping(f"{path}.source", block.get("source"))
    if source.get("type") == "base64":
        kind, data = (text(f"{path}.source.{field}", source.get(field)) for field in ("media_type", "data"))
        url = f"data:{kind};base64,{data}"
    elif source.get("type") == "url":
        url = text(f"{path}.source.url", source.get("url"))
    else:
        raise unsupported(f"{path}.source.type", f"{source.get('type')!r} is not kept here. Use base64 or url.")
    return {"type": "image_url", "image_url": {"url": url}}


def _document(path: str, block: Mapping[str, Any], dropped: set[str]) -> Iterator[dict[str, Any]]:
    """A PDF as a file; text and blocks of text as text. Whether the model reads files, its target says."""
    only(path, block, _DOCUMENT)
    _hints(block, ("cache_control", "citations"), dropped)
    head = " ".join(text(f"{path}.{field}", block[field]) for field in ("title", "context") if block.get(field))
    source = mapping(f"{path}.source", block.get("source"))
    match source.get("type"):
        case "base64":
            kind, data = (text(f"{path}.source.{field}", source.get(field)) for field in ("media_type", "data"))
            name = block.get("title") or "document.pdf"
            yield {"type": "file", "file": {"filename": name, "file_data": f"data:{kind};base64,{data}"}}
        case "text":
            words = text(f"{path}.source.data", source.get("data"))
            yield {"type": "text", "text": f"{head}\n{words}" if head else words}
        case "content":
            for place, inner in _blocks(f"{path}.source.content", source.get("content")):
                is_image = inner.get("type") == "image"
                yield _image(place, inner, dropped) if is_image else _text(place, inner, dropped)
        case kind:
            raise unsupported(f"{path}.source.type", f"{kind!r} is not kept here. Use base64, text or content.")


def _content(parts: list[dict[str, Any]]) -> Any:
    """A single text becomes a string, because not every chat template reads parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts or ""


def _hints(block: Mapping[str, Any], names: tuple[str, ...], dropped: set[str]) -> None:
    dropped.update(f"messages.content.{name}" for name in names if block.get(name))
