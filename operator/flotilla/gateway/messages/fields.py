"""Reads the fields of a request of Anthropic's: what is not what it should be is refused by its path."""

from collections.abc import Collection, Mapping
from typing import Any

from flotilla.gateway.body import BadBody


def unsupported(path: str, message: str) -> BadBody:
    """What cannot be kept for every target, at `path` of the body."""
    return BadBody("unsupported_field", f"{path}: {message}", path)


def items(path: str, value: Any) -> list[Any]:
    """A list that may be left out."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadBody("invalid_type", f"{path}: It must be a list.", path)
    return value


def mapping(path: str, value: Any) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise BadBody("invalid_type", f"{path}: It must be an object.", path)
    return value


def text(path: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise BadBody("invalid_type", f"{path}: It must be text.", path)
    return value


def only(path: str, fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse what is not known: nothing that the client asked for is lost in silence."""
    for name, value in fields.items():
        if name not in known and value is not None:
            where = f"{path}.{name[:100]}" if path else name[:100]
            raise unsupported(where, "The field cannot be kept for every model here. Leave it out.")
