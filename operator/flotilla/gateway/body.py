"""A request's body: read once, refused where programs could read it differently, and changed without touching the rest.

Pure functions over bytes.
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
FORBIDDEN: Final = frozenset(
    {
        # Of gateways and SDKs: where a request goes and with whose key is the policy's to say.
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
        # Of engines: a template is a program, a processor is code, and KV transfer names a host to connect to.
        "chat_template",
        "kv_transfer_params",
        "logits_processors",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "prompt_embeds",
    }
)
"""Refused at any depth, but not in the client's own data."""
OWN_DATA: Final = frozenset(
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
"""Top-level fields in which these names are data: a tool may well have a parameter called api_key."""
_SPACED_KEY = re.compile(rb'"[ \t\r\n]+:')
_MODEL_KEY = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*')
_IMAGE_SCHEMES = ("data:", "https://", "http://")


class BadBody(Exception):
    """The body is refused; the message says why and the code names the kind."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Body:
    """A body and what it says."""

    raw: bytes
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Translated(Body):
    """A chat that a client of Anthropic's Messages API asked for."""

    message: dict[str, Any]
    """What the client wrote."""
    dropped: tuple[str, ...]
    """Fields of `message` that a chat has no word for."""


def parse(raw: bytes, own_data: frozenset[str] = OWN_DATA) -> Body:
    """Read a body; raises BadBody. Forbidden names are no matter in the top-level fields `own_data`."""
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadBody("invalid_json", f"The body is not valid JSON: {error}.") from error
    if type(fields) is not dict:
        raise BadBody("invalid_json", "The body must be a JSON object.")
    keys = _walk(fields, own_data)
    if _may_repeat(raw, keys):
        _find_repeated(raw)
    model = fields.get("model")
    if type(model) is not str or not model:
        raise BadBody("missing_model", "The field model must name a model.", "model")
    for name in ("messages", "tools"):
        if fields.get(name) is not None and type(fields[name]) is not list:
            raise BadBody("invalid_type", f"The field {name} must be a list.", name)
    stream = fields.get("stream")
    if stream is not None and type(stream) is not bool:
        # Python would take "false" and 1 for true, others would not: what was decided must be what is done.
        raise BadBody("invalid_type", "The field stream must be true or false.", "stream")
    return Body(raw, fields)


def rewritten(body: Body, model: str, *, usage: bool = False, logprobs: bool = False) -> bytes:
    """The body for a target: its model name, `usage` asked for in a stream, token probabilities where a rule needs
    them.

    Where it can be, bytes are exchanged in place, so that everything else is as the client wrote it.
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
    if fields.keys().isdisjoint(added):
        found = (b'"model":',) if raw.count(b'"model"') == 1 and b'"model":"' in raw else _MODEL_KEY.findall(raw)
        old = b'%b"%b"' % (found[0], fields["model"].encode()) if len(found) == 1 else b""
        start = raw.find(b"{") + 1
        if old and raw.count(old) == 1:
            changed = raw.replace(old, found[0] + orjson.dumps(model))
            return changed[:start] + orjson.dumps(added)[1:-1] + b"," + changed[start:] if added else changed
    return orjson.dumps({**fields, **added, "model": model})


def image_problem(messages: Any, *, allow_private: bool = False) -> str | None:
    """What is wrong with an image's URL: the engine would fetch it, from inside of the cluster.

    Names are judged by their spelling; where a public one leads to only the engine sees, and its NetworkPolicy.
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
                if not allow_private and not url.startswith("data:") and _inside(url):
                    return f"The URL of {name} does not lead to a public host."
    return None


def _inside(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return True
    bracketed = f"[{host}]" if ":" in host else host
    return "@" in parts.netloc or "\\" in url or base_url_problem(f"https://{bracketed}") is not None


def _walk(fields: dict[str, Any], own_data: frozenset[str]) -> int:
    """Count the keys; raises BadBody for forbidden ones and for too deep a nesting."""
    count = len(fields)
    if not FORBIDDEN.isdisjoint(fields):
        raise _forbidden(fields)
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
                raise BadBody("invalid_json", f"The body nests deeper than {MAX_DEPTH} levels.")
            below: list[Any] = []
            for item in level:
                if type(item) is dict:
                    count += len(item)
                    if guarded and not FORBIDDEN.isdisjoint(item):
                        raise _forbidden(item)
                    item = item.values()
                below += [value for value in item if type(value) is dict or type(value) is list]
            level = below
    return count


def _forbidden(fields: Mapping[str, Any]) -> BadBody:
    name = min(FORBIDDEN.intersection(fields))
    return BadBody("forbidden_field", f"The field {name} is not accepted: the gateway decides that.", name)


def _may_repeat(raw: bytes, keys: int) -> bool:
    """Whether a key may have come twice: False only where there are as many `":` as there are keys.

    Outside of texts `":` ends a key. Inside of one the quote is escaped and not counted; a text that begins with a
    colon is counted, which only makes us look. What could hide a key from the count (blanks before the colon, an
    escaped backslash before the quote) makes us look too.
    """
    found = raw.count(b'":')
    if b"\\" in raw:
        if b'\\\\"' in raw:
            return True
        found -= raw.count(b'\\":')
    return found != keys or _SPACED_KEY.search(raw) is not None


def _find_repeated(raw: bytes) -> None:
    """Read again, slowly, and raise BadBody for a key that came twice in one object."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise BadBody("duplicate_key", f"The key {name[:100]!r} is given twice.", name[:100])
            seen.add(name)

    json.loads(raw, object_pairs_hook=once)
