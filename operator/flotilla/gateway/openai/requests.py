"""The body of a request in OpenAI's format: parse and check it, and rewrite it for a target. Pure.

A body is parsed once. One that two programs could read differently (repeated keys, odd types) is refused, because what
was decided must be what the engine does. `rewrite_body` changes only what it must.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from flotilla.routing.check import base_url_problem

MAX_DEPTH: Final = 64
MAX_CONTAINERS: Final = 50_000
"""Lists and objects in one body; the longest conversations with the largest tools have a few thousand."""
MAX_VALUES: Final = 500_000
"""Values in one body: more than the token numbers of any prompt."""
_SLICE_BYTES: Final = 64 * 1024
_UNCOUNTED_BYTES: Final = 128 * 1024
"""A smaller body cannot have more containers than can be parsed in a few milliseconds."""
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
FORBIDDEN_FIELDS: Final = frozenset(
    {
        # Known to gateways and SDKs: the policy alone says where a request goes and with which key.
        "api_base",
        "api_key",
        "api_version",
        "base_url",
        "callback_url",
        "custom_llm_provider",
        "extra_body",
        "extra_headers",
        "extra_query",
        "litellm_params",
        "user_config",
        "webhook_url",
        # Known to engines: a template is a program, a processor is code, KV transfer names a host to connect to.
        "chat_template",
        "kv_transfer_params",
        "logits_processors",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "prompt_embeds",
    }
)
"""Field names that are refused at any depth, except in the client's own data."""
CLIENT_DATA_FIELDS: Final = frozenset(
    {
        "functions",
        "guided_json",
        "input",
        "messages",
        "metadata",
        "prompt",
        "response_format",
        "structured_outputs",
        "tools",
    }
)
"""Top-level fields that hold the client's own data: a tool may well have a parameter called api_key."""
_SPACED_KEY = re.compile(rb'"[ \t\r\n]+:')
_MODEL_KEY = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*')
_IMAGE_SCHEMES = ("data:", "https://", "http://")


class InvalidBody(Exception):
    """The body is refused. The message says why; `code` and `param` are those of OpenAI's errors."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Body:
    """A body as bytes and decoded."""

    raw: bytes
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TranslatedBody(Body):
    """A chat that was translated from a request of Anthropic's Messages API."""

    message: dict[str, Any]
    """The client's request, decoded."""
    dropped: tuple[str, ...]
    """Fields of `message` that a chat does not have, and that were left out."""


def parse_body(raw: bytes, own_data: frozenset[str] = CLIENT_DATA_FIELDS) -> Body:
    """Parse a body; raises InvalidBody. Forbidden names are allowed in the top-level fields `own_data`."""
    if len(raw) > _UNCOUNTED_BYTES:
        _check_size(raw)
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidBody("invalid_json", f"The body is not valid JSON: {error}.") from error
    if type(fields) is not dict:
        raise InvalidBody("invalid_json", "The body must be a JSON object.")
    keys = _check_fields(fields, own_data)
    if _may_repeat_key(raw, keys):
        _refuse_repeated_key(raw)
    model = fields.get("model")
    if type(model) is not str or not model:
        raise InvalidBody("missing_model", "The field model must name a model.", "model")
    for name in ("messages", "tools"):
        if fields.get(name) is not None and type(fields[name]) is not list:
            raise InvalidBody("invalid_type", f"The field {name} must be a list.", name)
    stream = fields.get("stream")
    if stream is not None and type(stream) is not bool:
        # Python takes "false" and 1 for true, and other programs do not.
        raise InvalidBody("invalid_type", "The field stream must be true or false.", "stream")
    return Body(raw, fields)


def rewrite_body(body: Body, model: str, *, usage: bool = False, logprobs: bool = False) -> bytes:
    """The body for a target, with its model name. With `usage` a stream ends with the usage; with `logprobs` the answer
    has token probabilities.

    If possible, bytes are replaced in place, so that everything else stays as the client wrote it. A body whose fields
    were changed has no bytes, and is written anew.
    """
    fields, raw = body.fields, body.raw
    added: dict[str, Any] = {}
    if usage:
        options = fields.get("stream_options")
        if options is None:
            added["stream_options"] = {"include_usage": True}
        elif isinstance(options, Mapping) and options.get("include_usage") is not True:
            added["stream_options"] = {**options, "include_usage": True}
    if logprobs and not fields.get("top_logprobs"):
        added |= {"logprobs": True, "top_logprobs": 2}
    if raw and fields.keys().isdisjoint(added):
        found = (b'"model":',) if raw.count(b'"model"') == 1 and b'"model":"' in raw else _MODEL_KEY.findall(raw)
        old = b'%b"%b"' % (found[0], fields["model"].encode()) if len(found) == 1 else b""
        start = raw.find(b"{") + 1
        if old and raw.count(old) == 1:
            changed = raw.replace(old, found[0] + orjson.dumps(model))
            return changed[:start] + orjson.dumps(added)[1:-1] + b"," + changed[start:] if added else changed
    return orjson.dumps({**fields, **added, "model": model})


def image_problem(messages: Any, *, allow_private: bool = False) -> str | None:
    """What is wrong with the URL of an image, audio or video, which an engine would fetch from inside the cluster.

    Host names are judged as they are written. What a public name resolves to only the engine sees; its NetworkPolicy
    limits that.
    """
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict):
                continue
            for name in ("image_url", "audio_url", "video_url"):
                value = part.get(name)
                url = value.get("url") if isinstance(value, dict) else value
                if url is None:
                    continue
                if not (isinstance(url, str) and url.startswith(_IMAGE_SCHEMES)):
                    return f"The URL of {name} must begin with data:, https:// or http://."
                if not allow_private and not url.startswith("data:") and _leads_inside(url):
                    return f"The URL of {name} does not lead to a public host."
    return None


def _leads_inside(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return True
    bracketed = f"[{host}]" if ":" in host else host
    return "@" in parts.netloc or "\\" in url or base_url_problem(f"https://{bracketed}") is not None


def count_up_to(limit: int, raw: bytes, *marks: bytes) -> int:
    """How often the marks occur; it stops soon beyond the limit, because counting many takes as long as parsing."""
    found = 0
    for start in range(0, len(raw), _SLICE_BYTES):
        end = start + _SLICE_BYTES
        for mark in marks:
            found += raw.count(mark, start, end)
        if found > limit:
            break
    return found


def _check_size(raw: bytes) -> None:
    """Raises InvalidBody for a body that would take many times its own size, and much time, when it is parsed."""
    if (
        count_up_to(MAX_CONTAINERS, raw, b"[", b"{") <= MAX_CONTAINERS
        and count_up_to(MAX_VALUES, raw, b",") <= MAX_VALUES
    ):
        return
    # Brackets and commas of a text do not count. They are looked at only now, for that takes longer.
    plain = _STRINGS.sub(b"", raw)
    if count_up_to(MAX_CONTAINERS, plain, b"[", b"{") > MAX_CONTAINERS:
        raise InvalidBody("too_many_values", f"The body has more than {MAX_CONTAINERS} lists and objects. Split it.")
    if count_up_to(MAX_VALUES, plain, b",") > MAX_VALUES:
        raise InvalidBody("too_many_values", f"The body has more than {MAX_VALUES} values. Split it.")


def _check_fields(fields: dict[str, Any], own_data: frozenset[str]) -> int:
    """Count the keys. Raises InvalidBody for forbidden names and for too deep nesting."""
    count = len(fields)
    if not FORBIDDEN_FIELDS.isdisjoint(fields):
        raise _forbidden_field(fields)
    mine: list[Any] = []
    theirs: list[Any] = []
    for name, value in fields.items():
        if type(value) is dict or type(value) is list:
            (theirs if name in own_data else mine).append(value)
    for level, guarded in ((mine, True), (theirs, False)):
        depth = 1
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidBody("invalid_json", f"The body nests deeper than {MAX_DEPTH} levels.")
            below: list[Any] = []
            for item in level:
                if type(item) is dict:
                    count += len(item)
                    if guarded and not FORBIDDEN_FIELDS.isdisjoint(item):
                        raise _forbidden_field(item)
                    item = item.values()
                below += [value for value in item if type(value) is dict or type(value) is list]
            level = below
    return count


def _forbidden_field(fields: Mapping[str, Any]) -> InvalidBody:
    name = min(FORBIDDEN_FIELDS.intersection(fields))
    return InvalidBody("forbidden_field", f"The field {name} is not accepted: the gateway decides that.", name)


def _may_repeat_key(raw: bytes, keys: int) -> bool:
    """Whether a key may be repeated. False only if there are as many `":` as keys.

    Outside of strings `":` ends a key. Inside of a string the quote is escaped and not counted; a string that begins
    with a colon is counted, which only causes a closer look. So does everything that could hide a key from the count:
    blanks before the colon, and an escaped backslash before the quote.
    """
    found = raw.count(b'":')
    if b"\\" in raw:
        if b'\\\\"' in raw:
            return True
        found -= raw.count(b'\\":')
    if found != keys:
        return True
    # Most bodies have no blank after a quote at all, which is found out faster than by the expression.
    blank = b'" ' in raw or b'"\n' in raw or b'"\t' in raw or b'"\r' in raw
    return blank and _SPACED_KEY.search(raw) is not None


def _refuse_repeated_key(raw: bytes) -> None:
    """Parse again, slowly, and raise InvalidBody for a key that is repeated within one object."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidBody("duplicate_key", f"The key {name[:100]!r} is given twice.", name[:100])
            seen.add(name)

    json.loads(raw, object_pairs_hook=once)
