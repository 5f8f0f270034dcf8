"""Every way to break a schema: wrong values derived from the rules themselves, so that no rule goes untested."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
_STRANGE = ("!", "-", " ", "%%", "Ä")
REMOVED = object()


@dataclass(frozen=True)
class Violation:
    """One wrong value, and a part of what the apiserver says of it."""

    path: Path
    value: Any
    says: str

    @property
    def field(self) -> str:
        """The path as the apiserver writes it."""
        return dotted(self.path)

    @property
    def id(self) -> str:
        return f"{self.field}: {self.says}"

    def break_(self, obj: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the object with the wrong value."""
        return put(obj, self.path, self.value)


def dotted(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def put(obj: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with `value` at `path`; REMOVED takes the key away."""
    result: dict[str, Any] = copy.deepcopy(dict(obj))
    at: Any = result
    for part in path[:-1]:
        at = at.setdefault(part, {}) if isinstance(at, dict) else at[part]
    if value is REMOVED:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return result


def violations(schema: Mapping[str, Any], valid: Any, path: Path = ()) -> Iterator[Violation]:
    """All violations of the rules of `schema`; `valid` is a value that has every field."""
    kind = schema.get("type")
    if "enum" in schema:
        yield Violation(path, "Nonsense", "Unsupported value")
    elif kind == "string":
        yield from _of_string(schema, path)
    elif kind == "integer":
        yield Violation(path, schema["minimum"] - 1, "should be greater than or equal to")
        yield Violation(path, schema["maximum"] + 1, "should be less than or equal to")
    elif kind == "array":
        yield from _of_array(schema, valid, path)
    elif kind == "object":
        yield from _of_object(schema, valid, path)


def _of_string(schema: Mapping[str, Any], path: Path) -> Iterator[Violation]:
    length = max(schema.get("minLength", 1), 1)
    yield Violation(path, "a" * (schema["maxLength"] + 1), "may not be more than")
    if schema.get("minLength", 0) > 0:
        yield Violation(path, "", "should be at least")
    if "pattern" in schema:
        wrong = next(s * length for s in _STRANGE if not re.search(schema["pattern"], s * length))
        yield Violation(path, wrong, "should match")


def _of_array(schema: Mapping[str, Any], valid: list[Any], path: Path) -> Iterator[Violation]:
    assert valid, f"{dotted(path)} needs an item"
    yield Violation(path, [valid[0]] * (schema["maxItems"] + 1), "must have at most")
    if schema["x-kubernetes-list-type"] in ("map", "set"):
        yield Violation(path, [valid[0], valid[0]], "Duplicate value")
    if schema.get("minItems"):
        yield Violation(path, [], "should have at least")
    yield from violations(schema["items"], valid[0], (*path, 0))


def _of_object(schema: Mapping[str, Any], valid: Mapping[str, Any], path: Path) -> Iterator[Violation]:
    for name in schema.get("required", ()):
        yield Violation((*path, name), REMOVED, "Required value")
    for name, sub in schema.get("properties", {}).items():
        if name in valid:
            yield from violations(sub, valid[name], (*path, name))
    if "maxProperties" in schema:
        many = {f"k{number}": "v" for number in range(schema["maxProperties"] + 1)}
        yield Violation(path, many, "must have at most")


def missing(schema: Mapping[str, Any], valid: Any, path: Path = ()) -> Iterator[str]:
    """Fields of the schema that the object does not set."""
    if schema.get("type") == "array" and valid:
        yield from missing(schema["items"], valid[0], (*path, 0))
    for name, sub in schema.get("properties", {}).items():
        if name in valid:
            yield from missing(sub, valid[name], (*path, name))
        else:
            yield dotted((*path, name))


def cel_messages(schema: Any) -> Iterator[str]:
    """The messages of all CEL rules below a schema."""
    if isinstance(schema, Mapping):
        for rule in schema.get("x-kubernetes-validations", ()):
            yield rule["message"]
        for value in schema.values():
            yield from cel_messages(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from cel_messages(value)
