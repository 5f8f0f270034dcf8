"""Sentences for pydantic's validation errors, so that its own phrases and URLs do not reach users."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flotilla.errors import InvalidSpec

_SENTENCES: Mapping[str, str] = {
    "bool_parsing": "it must be true or false",
    "bool_type": "it must be true or false",
    "decimal_parsing": "it must be a number",
    "decimal_type": "it must be a number",
    "dict_type": "it must be a mapping",
    "finite_number": "it must be a finite number",
    "float_parsing": "it must be a number",
    "float_type": "it must be a number",
    "greater_than": "it must be greater than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "int_from_float": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_type": "it must be a whole number",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "list_type": "it must be a list",
    "literal_error": "it must be {expected}",
    "enum": "it must be {expected}",
    "missing": "it is required",
    "model_type": "it must be a mapping",
    "path_type": "it must be a path",
    "string_pattern_mismatch": "it must match {pattern}",
    "string_too_long": "it must have at most {max_length} characters",
    "string_too_short": "it must have at least {min_length} characters",
    "string_type": "it must be text",
    "tuple_type": "it must be a list",
    "value_error": "{error}",
}
_SHOWN_CHARACTERS = 80


def reason(error: ErrorDetails) -> str:
    """What is wrong with the value, as the part of a sentence, without a full stop: `it must be at least 1`."""
    sentence = _SENTENCES.get(error["type"])
    if sentence is None:
        return error["msg"][:1].lower() + error["msg"][1:]
    return sentence.format(**{name: _number(value) for name, value in error.get("ctx", {}).items()})


def refused(error: ValidationError) -> InvalidSpec:
    """The first error of a model, with field, value and remedy."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    given = "" if first["type"] in ("missing", "value_error") else f", not {shown(first['input'])}"
    text = reason(first).rstrip(".")
    return InvalidSpec(f"{text[:1].upper()}{text[1:]}{given}.", field=field)


def shown(value: Any) -> str:
    """A value for a message: quoted, on one line, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the most similar known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]}?" if close else f"Known are {', '.join(names)}."


def _number(value: Any) -> Any:
    """Bounds of whole fields arrive as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
