"""Whether two answers to one request are the same. Pure."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from flotilla.api.preference import AgreementMethod

_NOT_WORDS = re.compile(r"[\W_]+")
_FENCE = re.compile(r"^```[a-zA-Z]*\n(.*?)\n?```$", re.DOTALL)


def agree(method: AgreementMethod, one: str, other: str) -> bool:
    """Whether both texts are the same by the method. An answer that is no JSON agrees with none by JSON."""
    if method is AgreementMethod.EXACT:
        return one.strip() == other.strip()
    if method is AgreementMethod.LABEL:
        return _words(one) == _words(other)
    try:
        return bool(_json(one) == _json(other))
    except ValueError:
        return False


def text_of(fields: Mapping[str, Any]) -> str | None:
    """The text of a whole answer with one choice, None for anything else, such as calls of tools."""
    choices = fields.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return None
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else choices[0].get("text")
    return text if isinstance(text, str) else None


def _words(text: str) -> str:
    return _NOT_WORDS.sub(" ", text.casefold()).strip()


def _json(text: str) -> Any:
    fenced = _FENCE.match(text.strip())
    return orjson.loads(fenced[1] if fenced else text)
