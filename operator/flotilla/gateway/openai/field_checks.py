"""Checks of the fields of a request that is translated to a chat: each raises InvalidBody with the path. Pure."""

from collections.abc import Collection, Mapping
from typing import Any

from flotilla.gateway.openai.requests import InvalidBody


def unsupported(path: str, message: str) -> InvalidBody:
    """The error for a field, at `path` of the body, that not every target can serve."""
    return InvalidBody("unsupported_field", f"{path}: {message}", path)


def items(path: str, value: Any) -> list[Any]:
    """A list; empty if it is left out."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidBody("invalid_type", f"{path}: It must be a list.", path)
    return value


def mapping(path: str, value: Any) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise InvalidBody("invalid_type", f"{path}: It must be an object.", path)
    return value


def text(path: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InvalidBody("invalid_type", f"{path}: It must be text.", path)
    return value


def only(path: str, fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse unknown fields, so that nothing that the client asked for is silently lost."""
    for name, value in fields.items():
        if name not in known and value is not None:
            where = f"{path}.{name[:100]}" if path else name[:100]
            raise unsupported(where, "The field cannot be kept for every model here. Leave it out.")
