"""Anthropic's system prompt and turns as OpenAI's messages."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from flotilla.gateway.body import BadBody
from flotilla.gateway.messages.fields import items, mapping, only, text, unsupported

_ROLES: Final = ("system", "user", "assistant")
_TEXT: Final = frozenset({"type", "text", "cache_control", "citations"})
_IMAGE: Final = frozenset({"type", "source", "cache_control"})
_TOOL_USE: Final = frozenset({"type", "id", "name", "input", "cache_control", "caller"})
_TOOL_RESULT: Final = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})

Block = tuple[str, Mapping[str, Any]]
"""A block of content behind its path."""


def chat_messages(system: Any, messages: Any, dropped: set[str]) -> list[dict[str, Any]]:
    """The chat. Names of fields that are left out are added to `dropped`.

    Messages of one side that follow each other are one turn, as Anthropic's API takes them.
    """
    out: list[dict[str, Any]] = []
    if parts := [_text(*block, dropped) for block in _blocks("system", system)]:
        out.append({"role": "system", "content": _content(parts)})
    turns = list(_turns(messages))
    if not turns:
        raise BadBody("invalid_type", "messages: It must have at least one message.", "messages")
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
    """Text is short for one block of it; blocks of nothing are left out, which the API does not take."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    found = [
        (f"{path}[{index}]", mapping(f"{path}[{index}]", block)) for index, block in enumerate(items(path, content))
    ]
    return [block for block in found if block[1].get("type") != "text" or block[1].get("text") != ""]


def _user(blocks: list[Block], dropped: set[str]) -> Iterator[dict[str, Any]]:
    """Results come first, right behind their calls, and then what the user says.

    A message of a tool has no images in OpenAI's API: those of results go before what the user says.
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
        else:
            words.append(_text(place, inner, dropped))
    answered = text(f"{path}.tool_use_id", block.get("tool_use_id"))
    return {"role": "tool", "tool_call_id": answered, "content": _content(words)}, images


def _assistant(blocks: list[Block], dropped: set[str]) -> dict[str, Any]:
    said: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for path, block in blocks:
        if block.get("type") == "tool_use":
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


def _content(parts: list[dict[str, Any]]) -> Any:
    """One text is written as such: not every chat template reads parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts or ""


def _hints(block: Mapping[str, Any], names: tuple[str, ...], dropped: set[str]) -> None:
    dropped.update(f"messages.content.{name}" for name in names if block.get(name))
