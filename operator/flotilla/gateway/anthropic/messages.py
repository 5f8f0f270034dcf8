"""OpenAI's messages as Anthropic's system prompt and turns."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from flotilla.errors import FlotillaError

_IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_DATA_URL: Final = re.compile(r"data:([^;,]*);base64,", re.ASCII)
_NOT_OF_AN_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")
_TAKEN: Final = frozenset({"role", "content", "tool_calls", "tool_call_id", "refusal"})
_TAKEN_OF_PARTS: Final = frozenset({"type", "text", "refusal", "image_url", "cache_control"})


class Untranslatable(FlotillaError):
    """A request that Anthropic's API cannot serve as it was meant. `param` is the path of the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


def items(path: str, value: Any) -> list[Any]:
    """A list that may be left out; a value that is none is refused, for it would be lost."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Untranslatable(path, "It must be a list.")
    return value


def turns(messages: Any, dropped: set[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Blocks of the system prompt, and the turns of user and assistant.

    All system and developer messages go into the system prompt, wherever they stood. Messages of one side that follow
    each other become one turn: the results of parallel tool calls must all be in the turn after the calls. Names of
    fields that are left out are added to `dropped`.
    """
    system: list[dict[str, Any]] = []
    result: list[dict[str, Any]] = []
    for index, message in enumerate(items("messages", messages)):
        path = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise Untranslatable(path, "It must be a message.")
        dropped.update(f"messages.{field}" for field, value in message.items() if field not in _TAKEN and value)
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
            raise Untranslatable(f"{path}.role", f"{role!r} is none of system, developer, user, assistant and tool.")


def _assistant(path: str, message: Mapping[str, Any], dropped: set[str]) -> Iterator[dict[str, Any]]:
    yield from _parts(f"{path}.content", message.get("content"), dropped)
    if message.get("refusal"):
        yield {"type": "text", "text": message["refusal"]}
    for index, call in enumerate(items(f"{path}.tool_calls", message.get("tool_calls"))):
        place = f"{path}.tool_calls[{index}]"
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise Untranslatable(place, "Only calls of functions can be translated.")
        try:
            arguments = orjson.loads(function.get("arguments") or "{}")
        except (orjson.JSONDecodeError, TypeError):
            arguments = None
        if not isinstance(arguments, dict):
            raise Untranslatable(f"{place}.function.arguments", "It must be the text of a JSON object.")
        yield {
            "type": "tool_use",
            "id": _call_id(place, call.get("id")),
            "name": function.get("name"),
            "input": arguments,
        }


def _parts(path: str, content: Any, dropped: set[str], *, images: bool = False) -> Iterator[dict[str, Any]]:
    """Blocks of text, and of images where they may stand. The API refuses empty text; refusals count as text."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for index, part in enumerate(items(path, content)):
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
            raise Untranslatable(place, f"A part of type {kind!r} cannot be translated here. Use {allowed}.")
        if part.get("cache_control") is not None:
            # No field of OpenAI's, and the one of Anthropic's that clients of many providers send.
            block["cache_control"] = part["cache_control"]
        dropped.update(f"messages.content.{field}" for field in part if field not in _TAKEN_OF_PARTS)
        yield block


def _image(path: str, url: Any) -> dict[str, Any]:
    if isinstance(url, str) and (data := _DATA_URL.match(url)):
        if data[1] not in _IMAGES:
            raise Untranslatable(path, f"Images of type {data[1]!r} are not read. Use {', '.join(sorted(_IMAGES))}.")
        source = {"type": "base64", "media_type": data[1], "data": url[data.end() :]}
    elif isinstance(url, str) and url.startswith("https://"):
        source = {"type": "url", "url": url}
    else:
        raise Untranslatable(path, "It must be an https URL, or a data URL in base64.")
    return {"type": "image", "source": source}


def _call_id(path: str, call_id: Any) -> str:
    """The API takes letters, digits, _ and - only; both sides of a call are changed in the same way."""
    if not isinstance(call_id, str) or not call_id:
        raise Untranslatable(path, "A tool call and its result need an id.")
    return _NOT_OF_AN_ID.sub("_", call_id)
