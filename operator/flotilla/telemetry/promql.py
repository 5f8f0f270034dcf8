"""Query text from values: pure, and whatever a value holds, it stays a value."""

import re
from collections.abc import Iterable, Mapping

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
"""What RE2 gives a meaning to. `re.escape` knows more, and RE2 refuses escapes that it does not know."""


def quoted(value: str) -> str:
    """A string literal. Raises ValueError for what UTF-8 cannot hold."""
    value.encode()
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def one_of(values: Iterable[str]) -> str:
    """A literal of a regular expression that matches the values and nothing else."""
    return quoted("|".join(_SPECIAL.sub(r"\\\g<0>", value) for value in values))


def selector(names: Iterable[str], labels: Mapping[str, Iterable[str]]) -> str:
    """The series that have one of the names and, for each label, one of its values.

    Raises ValueError where a name is none, or where nothing is left to choose from: the empty expression would match
    series without the label.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no metric name.")
    matchers = [("__name__", chosen), *((label, list(dict.fromkeys(values))) for label, values in labels.items())]
    parts = []
    for label, values in matchers:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label name.")
        if not values or "" in values:
            raise ValueError(f"Label {label} needs values that are not empty.")
        parts.append(f"{label}={quoted(values[0])}" if len(values) == 1 else f"{label}=~{one_of(values)}")
    return "{" + ",".join(parts) + "}"


def window(seconds: float) -> str:
    """A range of whole milliseconds; at least one."""
    return f"[{max(1, round(seconds * 1000))}ms]"
