"""Read values.yaml with its comments, from which the chart's table of values and the schema are generated.

`# -- text` above a key describes it, and further comment lines continue the text. `# @schema {json}` adds to the schema
that follows from the default value. A mapping with keys in values.yaml allows no other keys.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")
_TYPES = {str: "string", bool: "boolean", int: "integer", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Value:
    """One key of values.yaml."""

    path: tuple[str, ...]
    default: Any
    description: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_group(self) -> bool:
        """A mapping whose keys are values of their own."""
        return isinstance(self.default, dict) and bool(self.default) and not self.schema and not self.description


def parse(text: str) -> list[Value]:
    """Every key in the order of the file, groups too; raises ValueError for one without a description."""
    found = list(_walk(text, yaml.safe_load(text)))
    if undescribed := [value for value in found if not value.description and not value.is_group]:
        raise ValueError(f"values.yaml: {'.'.join(undescribed[0].path)} has no `# -- ` comment above it")
    return found


def _walk(text: str, defaults: Mapping[str, Any]) -> Iterator[Value]:
    comment: list[str] = []
    parents: list[tuple[int, str]] = []
    closed: int | None = None  # the indent of a value whose keys are its default, and no values
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip()[1:].strip())
            continue
        match = _KEY.match(line)
        if match is None:
            comment = []
            continue
        indent, name = len(match[1]), match[2]
        if closed is not None and indent > closed:
            continue
        parents = [parent for parent in parents if parent[0] < indent] + [(indent, name)]
        path = tuple(part for _, part in parents)
        value = _value(path, defaults, comment)
        closed = None if value.is_group else indent
        comment = []
        yield value


def _value(path: tuple[str, ...], defaults: Mapping[str, Any], comment: list[str]) -> Value:
    default: Any = defaults
    for part in path:
        default = default[part]
    words: list[str] = []
    schema: dict[str, Any] = {}
    for line in comment:
        if line.startswith("@schema "):
            schema = json.loads(line.removeprefix("@schema "))
        elif line.startswith("-- ") or words:
            words.append(line.removeprefix("-- "))
    return Value(path, default, " ".join(words), schema)


def schema(values: list[Value]) -> dict[str, Any]:
    """The JSON schema of the file."""
    root: dict[str, Any] = _closed()
    nodes: dict[tuple[str, ...], dict[str, Any]] = {(): root}
    for value in values:
        node = _closed() if value.is_group else _leaf(value)
        nodes[value.path[:-1]]["properties"][value.path[-1]] = nodes[value.path] = node
    return root


def _closed() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _leaf(value: Value) -> dict[str, Any]:
    described = {"description": value.description}
    if "$ref" in value.schema:
        return {**described, **value.schema}
    node = {**described, "type": _TYPES[type(value.default)], **value.schema}
    if node["type"] == "array" and "items" not in node:
        raise ValueError(f"values.yaml: {'.'.join(value.path)} needs `# @schema` with the items of the list")
    if node["type"] == "object" and "additionalProperties" not in node:
        raise ValueError(f"values.yaml: {'.'.join(value.path)} needs `# @schema` with additionalProperties")
    return {key: part for key, part in node.items() if part is not None}


def table(values: list[Value]) -> str:
    """A Markdown table of all values but the groups."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    rows += [
        f"| `{'.'.join(value.path)}` | `{json.dumps(value.default)}` | {value.description} |"
        for value in values
        if not value.is_group
    ]
    return "\n".join(rows)
