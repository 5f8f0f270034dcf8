"""Reads resources from files and checks them as the apiserver does, except for the CEL rules."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from flotilla import validation
from flotilla.api import crd
from flotilla.api.types import Model
from flotilla.constants import API_VERSION, GROUP
from flotilla.errors import InvalidSpec

Object = dict[str, Any]
Files = Annotated[list[Path], typer.Argument(help="Files, folders, or - for standard input.")]
_DEFINITIONS = {definition.kind: definition for definition in crd.DEFINITIONS}


def read(paths: Iterable[Path]) -> list[Object]:
    """Every document of files, of the YAML files in folders, and of standard input for `-`.

    Raises InvalidSpec with the path where one cannot be read.
    """
    return [document for path in paths for file in _files(path) for document in _documents(file)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for pattern in ("*.yaml", "*.yml") for file in path.rglob(pattern))


def _documents(file: Path) -> Iterator[Object]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        documents = list(yaml.safe_load_all(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidSpec(f"{file} cannot be read: {error}", field="FILE") from error
    for document in documents:
        if isinstance(document, dict) and isinstance(document.get("items"), list):
            yield from document["items"]
        elif isinstance(document, dict):
            yield document
        elif document is not None:
            raise InvalidSpec(f"{file} contains a {type(document).__name__}, which is not a resource.", field="FILE")


def is_flotilla(document: Mapping[str, Any]) -> bool:
    """Whether it is of Flotilla's API group, in any version."""
    return str(document.get("apiVersion", "")).startswith(f"{GROUP}/")


def parse(document: Mapping[str, Any], *, namespace: str) -> Model:
    """A resource of any of Flotilla's kinds; raises InvalidSpec with field, value and remedy.

    `namespace` is used where the document names none.
    """
    kind, version = document.get("kind"), document.get("apiVersion")
    definition = _DEFINITIONS.get(str(kind))
    if definition is None or version != API_VERSION:
        *others, last = _DEFINITIONS
        known = f"{', '.join(others)} and {last}"
        raise InvalidSpec(f"{kind} of {version} is unknown; this release knows {known} of {API_VERSION}.", field="kind")
    meta = document.get("metadata") or {}
    if not meta.get("name"):
        raise InvalidSpec("The resource has no name.", field="metadata.name")
    schema = crd.crd(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec = document.get("spec") or {}
    _refuse_unknown(spec, schema, "spec")
    _refuse_duplicates(spec, schema, "spec")
    placed = {"namespace": namespace, "uid": "", **meta}
    try:
        return definition.resource.model_validate({**document, "metadata": placed})
    except ValidationError as error:
        raise invalid(error) from error


def _refuse_unknown(value: Any, schema: Mapping[str, Any], path: str) -> None:
    """The operator ignores unknown fields, but here they are errors: they are usually typing mistakes."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_unknown(item, schema.get("items", {}), f"{path}[{index}]")
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    known = schema.get("properties", {})
    for name, part in value.items():
        if name in known:
            _refuse_unknown(part, known[name], f"{path}.{name}")
        elif known:
            raise InvalidSpec(f"There is no field {name!r}. {validation.nearest(name, known)}", field=f"{path}.{name}")


def _refuse_duplicates(value: Any, schema: Mapping[str, Any], path: str) -> None:
    """A list has each item once: by its keys where it is a map, by itself where it is a set."""
    if isinstance(value, dict):
        for name, part in value.items():
            _refuse_duplicates(part, (schema.get("properties") or {}).get(name, {}), f"{path}.{name}")
    if not isinstance(value, list):
        return
    items, keys = schema.get("items") or {}, schema.get("x-kubernetes-list-map-keys")
    seen: dict[str, int] = {}
    for index, item in enumerate(value):
        _refuse_duplicates(item, items, f"{path}[{index}]")
        if keys and isinstance(item, dict):
            known = items.get("properties") or {}
            # The apiserver fills in defaults before it compares.
            identity = ", ".join(f"{key} {item.get(key, known.get(key, {}).get('default'))!r}" for key in keys)
        elif schema.get("x-kubernetes-list-type") == "set":
            identity = repr(item)
        else:
            continue
        if identity in seen:
            raise InvalidSpec(
                f"{identity} is a duplicate of {path}[{seen[identity]}]. Keep one.", field=f"{path}[{index}]"
            )
        seen[identity] = index


def invalid(error: ValidationError) -> InvalidSpec:
    """The first error of a model, with field, value and remedy."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    given = "" if first["type"] in ("missing", "value_error") else f", not {validation.shown(first['input'])}"
    text = validation.reason(first).rstrip(".")
    return InvalidSpec(f"{text[:1].upper()}{text[1:]}{given}.", field=field)
