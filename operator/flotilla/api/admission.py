"""Judges a resource as the apiserver does before it stores it, without a cluster.

`flotilla render` and `convert` use it, so that a manifest that they accept is accepted by the cluster, and the reverse.
The steps and their order are the apiserver's: unknown fields (kubectl's strict validation), nulls and defaults, the
structural schema of the CRD, lists that are maps or sets, the CEL rules of the CRD, and the rules for metadata. Pure.

What it does not check, because only a cluster can: quotas, other webhooks and policies, names that are taken, and the
contents that the CRD leaves open (tolerations and affinity, which the apiserver judges with the pods).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import cel
import jsonschema_rs

from flotilla import validation
from flotilla.api import crd
from flotilla.api.types import DNS_LABEL, DNS_SUBDOMAIN
from flotilla.constants import API_VERSION
from flotilla.errors import InvalidSpec

DEFINITIONS: Mapping[str, crd.Definition] = {definition.kind: definition for definition in crd.DEFINITIONS}
_ROOT_FIELDS = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
_METADATA_FIELDS = frozenset(
    {
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
_LABEL_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")
_NAMESPACE = re.compile(DNS_LABEL[:-1] + r"\Z")
_DNS_NAME = re.compile(DNS_SUBDOMAIN[:-1] + r"\Z")
_FIELD = re.compile(r"[a-zA-Z]+[.\[]")
"""A message that begins with the name of a field keeps its case."""
_ANNOTATIONS_BYTES = 256 * 1024
_SHOWN_ENUM = 12

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Review:
    """A resource as the apiserver would store it, or why it would refuse it."""

    resource: Mapping[str, Any]
    """With the defaults of the schema filled in, and without fields that are null."""
    refusals: tuple[InvalidSpec, ...] = ()
    """In the order of the document; each names the field, the value and the remedy."""


def review(document: Mapping[str, Any]) -> Review:
    """Review one resource of a kind of `DEFINITIONS`; raises InvalidSpec for another kind or version."""
    definition = DEFINITIONS.get(str(document.get("kind")))
    version = document.get("apiVersion")
    if definition is None or version != API_VERSION:
        known = ", ".join(DEFINITIONS)
        raise InvalidSpec(
            f"{document.get('kind')} of {version} is unknown. This release knows {known} of {API_VERSION}.",
            field="kind",
        )
    schema = _schema(definition)
    resource = {**document, "spec": document.get("spec")}
    unknown = [*_unknown_metadata(document), *_unknown(document.get("spec"), schema["properties"]["spec"], ("spec",))]
    resource = _defaulted(resource, schema)
    refusals = [*unknown, *_metadata(document), *_structural(resource, definition)]
    refusals += _duplicates(resource.get("spec"), schema["properties"]["spec"], ("spec",))
    refusals += _rules(resource, schema, (), sound=len(refusals) == len(unknown))
    return Review(resource, tuple(refusals))


@cache
def _schema(definition: crd.Definition) -> dict[str, Any]:
    found: dict[str, Any] = crd.crd(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def _unknown_metadata(document: Mapping[str, Any]) -> Iterator[InvalidSpec]:
    meta = document.get("metadata")
    places: tuple[tuple[str, frozenset[str], Mapping[str, Any]], ...] = (
        ("", _ROOT_FIELDS, document),
        ("metadata.", _METADATA_FIELDS, meta if isinstance(meta, Mapping) else {}),
    )
    for place, known, found in places:
        for name in found:
            if name not in known:
                yield _no_such_field(name, known, f"{place}{name}")


def _unknown(value: Any, schema: Mapping[str, Any], path: Path) -> Iterator[InvalidSpec]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(item, schema.get("items", {}), (*path, index))
    if not isinstance(value, Mapping) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    known, values = schema.get("properties", {}), schema.get("additionalProperties")
    for name, part in value.items():
        if name in known or values:
            yield from _unknown(part, known.get(name) or values or {}, (*path, name))
        elif known:
            yield _no_such_field(name, known, _text((*path, name)))


def _no_such_field(name: Any, known: Any, field: str) -> InvalidSpec:
    return InvalidSpec(f"There is no field {name!r}. {validation.nearest(str(name), known)}", field=field)


def _defaulted(value: Any, schema: Mapping[str, Any]) -> Any:
    """Without nulls, which no field of ours allows, with the schema's defaults, and 2.0 as the 2 that kubectl sends."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_defaulted(item, schema.get("items", {})) for item in value]
    if not isinstance(value, Mapping):
        return value
    known, values = schema.get("properties", {}), schema.get("additionalProperties") or {}
    if schema.get("x-kubernetes-preserve-unknown-fields") and not known:
        return value
    result = {}
    for name, part in value.items():
        if part is not None or (name not in known and not values):
            result[name] = _defaulted(part, known.get(name, values))
    for name, part in known.items():
        if name not in result and "default" in part:
            result[name] = _defaulted(part["default"], part)
    return result


@cache
def _validator(definition: crd.Definition) -> jsonschema_rs.Draft202012Validator:
    """Kubernetes has the keywords of JSON Schema that are used here, and 2.0 is a whole number in both."""
    return jsonschema_rs.Draft202012Validator(_schema(definition))


def _structural(resource: Mapping[str, Any], definition: crd.Definition) -> Iterator[InvalidSpec]:
    judged = {name: part for name, part in resource.items() if name != "status"}
    try:
        errors = list(_validator(definition).iter_errors(judged))
    except ValueError as refused:
        # Such as a mapping whose key is a number, which JSON does not have.
        yield InvalidSpec(f"The resource cannot be written as JSON: {refused}.", field="spec")
        return
    for error in errors:
        path = tuple(error.instance_path)
        keyword = str(error.schema_path[-1]) if error.schema_path else ""
        schema = _at(_schema(definition), path)
        if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Required):
            name = str(error.kind.property)
            about = _description(schema.get("properties", {}).get(name, {}))
            yield InvalidSpec(f"It is required.{about}", field=_text((*path, name)))
        else:
            yield InvalidSpec(_sentence(keyword, error.instance, schema), field=_text(path))


def _at(schema: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    for part in path:
        if isinstance(part, int):
            schema = schema.get("items", {})
        else:
            schema = schema.get("properties", {}).get(part) or schema.get("additionalProperties") or {}
    return schema


def _sentence(keyword: str, value: Any, schema: Mapping[str, Any]) -> str:
    """What is wrong and what is allowed; the field's description says what it is for."""
    given, bound = validation.shown(value), schema.get(keyword)
    match keyword:
        case "type":
            return _wrong_type(str(bound), value) + (_description(schema) if bound in ("object", "array") else "")
        case "enum":
            known = [str(item) for item in schema["enum"]]
            near = f" {validation.nearest(str(value), known)}" if len(known) > _SHOWN_ENUM else ""
            return f"It must be {'one of ' if len(known) > 1 else ''}{', '.join(known)}, not {given}.{near}"
        case "minimum" | "maximum":
            return f"It must be at {'least' if keyword == 'minimum' else 'most'} {bound}, not {given}."
        case "minLength" | "maxLength":
            return (
                f"It must have at {'least' if keyword == 'minLength' else 'most'} {bound} characters, not {len(value)}."
            )
        case "minItems" | "maxItems":
            return f"It must have at {'least' if keyword == 'minItems' else 'most'} {bound} items, not {len(value)}."
        case "maxProperties":
            return f"It must have at most {bound} entries, not {len(value)}."
        case "pattern":
            return f"It must match {bound}, not {given}.{_description(schema)}"
    return f"It breaks the rule {keyword}: {bound}, with {given}."


_TYPES: Mapping[str, str] = {
    "integer": "a whole number",
    "string": "text",
    "object": "a mapping",
    "array": "a list",
}


def _wrong_type(wanted: str, value: Any) -> str:
    remedy = ""
    if wanted == "integer" and isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        remedy = f" Write {value.strip()} without quotes."
    if wanted == "string" and isinstance(value, int | float):
        remedy = f' Write it in quotes: "{str(value).lower() if isinstance(value, bool) else value}".'
    return f"It must be {_TYPES.get(wanted, wanted)}, not {validation.shown(value)}.{remedy}"


def _description(schema: Mapping[str, Any]) -> str:
    text = str(schema.get("description") or "")
    return f" {text}" if text else ""


def _duplicates(value: Any, schema: Mapping[str, Any], path: Path) -> Iterator[InvalidSpec]:
    """A list has each item once: by its keys where it is a map, by itself where it is a set."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties") or {}
            yield from _duplicates(part, inner, (*path, name))
    if not isinstance(value, list):
        return
    items, keys = schema.get("items") or {}, schema.get("x-kubernetes-list-map-keys")
    seen: dict[str, int] = {}
    for index, item in enumerate(value):
        yield from _duplicates(item, items, (*path, index))
        if keys and isinstance(item, Mapping):
            identity = ", ".join(f"{key} {item.get(key)!r}" for key in keys)
        elif schema.get("x-kubernetes-list-type") == "set":
            identity = repr(item)
        else:
            continue
        if identity in seen:
            first = _text((*path, seen[identity]))
            yield InvalidSpec(f"{identity} is a duplicate of {first}. Keep one.", field=_text((*path, index)))
        seen.setdefault(identity, index)


@cache
def _program(rule: str) -> cel.Program:
    return cel.compile(rule)


def _rules(value: Any, schema: Mapping[str, Any], path: Path, *, sound: bool) -> Iterator[InvalidSpec]:
    """The CEL rules of this value, and then those of its parts.

    The apiserver evaluates them only on objects that the schema accepts. Here those that can be evaluated are reported
    with the other faults (`sound` is False), so that one run shows them all.
    """
    for rule in schema.get("x-kubernetes-validations", ()):
        try:
            holds = _program(rule["rule"]).execute({"self": value})
        except (KeyError, TypeError, ValueError, RuntimeError):
            # As in the apiserver, a rule that cannot be evaluated does not hold.
            holds = not sound
        if not holds:
            text = str(rule["message"])
            field = _text(path) + str(rule.get("fieldPath", "")) or "metadata.name"
            yield InvalidSpec(f"{text}." if _FIELD.match(text) else f"{text[:1].upper()}{text[1:]}.", field=field)
    if isinstance(value, Mapping):
        for name, part in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties") or {}
            yield from _rules(part, inner, (*path, name), sound=sound)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(item, schema.get("items", {}), (*path, index), sound=sound)


def _metadata(document: Mapping[str, Any]) -> Iterator[InvalidSpec]:
    """The rules for every object: namespace, labels and annotations. A CEL rule of each kind judges the name."""
    meta = document.get("metadata") or {}
    if not isinstance(meta, Mapping):
        yield InvalidSpec(_wrong_type("object", meta), field="metadata")
        return
    name, namespace = meta.get("name"), meta.get("namespace")
    if not name:
        yield InvalidSpec("The resource has no name.", field="metadata.name")
    elif not isinstance(name, str):
        yield InvalidSpec(_wrong_type("string", name), field="metadata.name")
    if namespace and not (isinstance(namespace, str) and len(namespace) <= 63 and _NAMESPACE.match(namespace)):
        yield InvalidSpec(
            "It must have at most 63 lower case letters, digits and dashes, and start and end with a letter or digit, "
            f"not {validation.shown(namespace)}.",
            field="metadata.namespace",
        )
    yield from _texts(meta, "labels")
    yield from _texts(meta, "annotations")


def _texts(meta: Mapping[str, Any], field: str) -> Iterator[InvalidSpec]:
    found = meta.get(field) or {}
    if not isinstance(found, Mapping):
        yield InvalidSpec(_wrong_type("object", found), field=f"metadata.{field}")
        return
    for key, value in found.items():
        place = f"metadata.{field}[{key}]"
        # Keys of annotations are judged without regard to case.
        prefix, slash, name = (str(key).lower() if field == "annotations" else str(key)).rpartition("/")
        allowed = len(name) <= 63 and _LABEL_PART.match(name)
        if slash and not (len(prefix) <= 253 and _DNS_NAME.match(prefix)):
            allowed = None
        if not allowed:
            yield InvalidSpec(
                f"{key!r} is not a key of {field}: a key is [DNS-NAME/]NAME, and NAME has at most 63 letters, digits, "
                "'-', '_' and '.'.",
                field=place,
            )
        if not isinstance(value, str | None):
            yield InvalidSpec(_wrong_type("string", value), field=place)
        elif field == "labels" and value and not (len(value) <= 63 and _LABEL_PART.match(value)):
            yield InvalidSpec(
                f"A label's value has at most 63 letters, digits, '-', '_' and '.', and starts and ends with a letter "
                f"or digit, not {validation.shown(value)}.",
                field=place,
            )
    if field == "annotations":
        size = sum(len(str(key).encode()) + len(str(value).encode()) for key, value in found.items())
        if size > _ANNOTATIONS_BYTES:
            yield InvalidSpec(
                f"The annotations have {size} bytes, more than {_ANNOTATIONS_BYTES}.", field="metadata.annotations"
            )


def _text(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
