"""Requests of clients of the Responses API: /v1/responses becomes a chat completion. Pure.

The API is served without state: what a client wants remembered it sends itself, as SDKs do with `store: false`. Fields
and items that a chat does not have are refused, with their path, if the client would miss them in the answer; if they
only steer, they are left out and named.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from flotilla.gateway.openai.field_checks import items, mapping, text, unsupported
from flotilla.gateway.openai.requests import CLIENT_DATA_FIELDS, Body, InvalidBody, parse_body

RESPONSES_PATH: Final = "/v1/responses"
_OWN_DATA: Final = CLIENT_DATA_FIELDS | {"instructions", "text"}
_UNCHANGED: Final = (
    *("temperature", "top_p", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key", "service_tier"),
    *("seed", "stop", "frequency_penalty", "presence_penalty", "top_k", "min_p", "chat_template_kwargs"),
)
_HINTS: Final = frozenset(
    {
        *("store", "include", "metadata", "truncation", "max_tool_calls", "stream_options", "prompt_cache_retention"),
        *("prompt_cache_options", "moderation", "context_management"),
    }
)
"""Fields that only steer; `metadata` and `store` are in the answer."""
_READ: Final = frozenset(
    {
        *("model", "input", "instructions", "max_output_tokens", "stream", "text", "reasoning", "tools", "tool_choice"),
        "top_logprobs",
    }
)
_STATEFUL: Final[Mapping[str, str]] = {
    "previous_response_id": "Nothing is stored here. Send the items of the conversation as input.",
    "conversation": "Nothing is stored here. Send the items of the conversation as input.",
    "background": "Responses are not made in the background here. Leave it out.",
    "prompt": "There are no stored prompts here. Send instructions and input.",
}
_ROLES: Final = ("user", "system", "developer", "assistant")
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})


def read_response_request(raw: bytes) -> tuple[Body, dict[str, Any]]:
    """The chat that a body asks for, and the fields of the body itself. Raises InvalidBody."""
    asked = parse_body(raw, _OWN_DATA)
    fields = _chat(asked.fields)
    try:
        return Body(orjson.dumps(fields), fields), asked.fields
    except TypeError as error:
        raise InvalidBody("invalid_json", "The input or the tools are nested too deeply.", "input") from error


def _chat(body: Mapping[str, Any]) -> dict[str, Any]:
    for name, remedy in _STATEFUL.items():
        if body.get(name):
            raise unsupported(name, remedy)
    for name, value in body.items():
        if name not in _READ and name not in _HINTS and name not in _STATEFUL and name not in _UNCHANGED and value:
            raise unsupported(name[:100], "The field cannot be kept for every model here. Leave it out.")
    out: dict[str, Any] = {"model": body["model"], "messages": _messages(body.get("instructions"), body.get("input"))}
    if body.get("max_output_tokens") is not None:
        out["max_completion_tokens"] = body["max_output_tokens"]
    if body.get("stream"):
        out |= {"stream": True, "stream_options": {"include_usage": True}}
    if tools := [_tool(f"tools[{i}]", tool) for i, tool in enumerate(items("tools", body.get("tools")))]:
        out["tools"] = tools
    if body.get("tool_choice") is not None:
        out["tool_choice"] = _tool_choice(body["tool_choice"])
    if body.get("text") is not None:
        out |= _text_config(mapping("text", body["text"]))
    if body.get("reasoning") is not None:
        effort = mapping("reasoning", body["reasoning"]).get("effort")
        if effort is not None:
            out["reasoning_effort"] = effort
    if body.get("top_logprobs"):
        out |= {"logprobs": True, "top_logprobs": body["top_logprobs"]}
    return out | {name: body[name] for name in _UNCHANGED if body.get(name) is not None}


def _tool(path: str, tool: Any) -> dict[str, Any]:
    tool = mapping(path, tool)
    if tool.get("type") != "function":
        raise unsupported(f"{path}.type", f"{tool.get('type')!r} is a tool of OpenAI's own. Describe it as a function.")
    function = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**function, "parameters": tool.get("parameters") or {"type": "object"}}}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    choice = mapping("tool_choice", choice)
    if choice.get("type") != "function":
        raise unsupported("tool_choice.type", "Use auto, none, required, or a function by its name.")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {} if config.get("verbosity") is None else {"verbosity": config["verbosity"]}
    wanted = config.get("format")
    if wanted is None:
        return out
    wanted = mapping("text.format", wanted)
    match wanted.get("type"):
        case "text":
            return out
        case "json_object":
            return {**out, "response_format": {"type": "json_object"}}
        case "json_schema":
            described = {name: value for name, value in wanted.items() if name != "type" and value is not None}
            return {**out, "response_format": {"type": "json_schema", "json_schema": described}}
        case kind:
            raise unsupported("text.format.type", f"{kind!r} is none of text, json_object and json_schema.")


def _messages(instructions: Any, asked: Any) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if instructions is not None:
        out.append({"role": "system", "content": text("instructions", instructions)})
    if isinstance(asked, str):
        return [*out, {"role": "user", "content": asked}]
    for index, item in enumerate(items("input", asked)):
        for message in _item(f"input[{index}]", mapping(f"input[{index}]", item)):
            last = out[-1] if out else {}
            if message.get("tool_calls") and last.get("role") == "assistant":
                # Text and calls of one turn are items of their own in this API.
                last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
            else:
                out.append(message)
    if not out:
        raise InvalidBody("invalid_type", "input: It must be text or a list of items.", "input")
    return out


def _item(path: str, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if role not in _ROLES:
                raise unsupported(f"{path}.role", f"{role!r} is none of {', '.join(_ROLES)}.")
            yield {"role": role, "content": _content(f"{path}.content", item.get("content"))}
        case "function_call":
            call_id, name, arguments = (text(f"{path}.{f}", item.get(f)) for f in ("call_id", "name", "arguments"))
            call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            yield {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            answered = text(f"{path}.call_id", item.get("call_id"))
            yield {"role": "tool", "tool_call_id": answered, "content": _content(f"{path}.output", item.get("output"))}
        case "reasoning":
            return  # what a model thought in an earlier turn is not shown to it again
        case kind:
            raise unsupported(f"{path}.type", f"An item of type {kind!r} cannot be kept for every model here.")


def _content(path: str, content: Any) -> Any:
    """Text as text, parts as parts of a chat; a single text becomes a string, as not every template reads parts."""
    if isinstance(content, str):
        return content
    parts = [
        _part(f"{path}[{index}]", mapping(f"{path}[{index}]", part)) for index, part in enumerate(items(path, content))
    ]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts or ""


def _part(path: str, part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXT_PARTS:
        return {"type": "text", "text": text(f"{path}.text", part.get("text"))}
    match kind:
        case "refusal":
            return {"type": "text", "text": text(f"{path}.refusal", part.get("refusal"))}
        case "input_image" if part.get("image_url") is not None:
            image = {"url": text(f"{path}.image_url", part["image_url"])}
            return {"type": "image_url", "image_url": image | _given(part, "detail")}
        case "input_file" if part.get("file_data") is not None:
            return {"type": "file", "file": _given(part, "file_data", "filename")}
        case "input_audio":
            return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise unsupported(path, f"A part of type {kind!r} cannot be kept here. Send its content, not a reference to it.")


def _given(part: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: part[name] for name in names if part.get(name) is not None}
