"""Reads resources from files, as kubectl does."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from flotilla import validation
from flotilla.api import admission
from flotilla.api.admission import Review
from flotilla.api.types import Model
from flotilla.constants import GROUP
from flotilla.errors import InvalidSpec

Object = dict[str, Any]
Files = Annotated[list[Path], typer.Argument(help="Files, folders, or - for standard input.")]


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: a key that comes twice is an error, and a date is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} comes twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        found = super().construct_mapping(node, deep)
        # JSON has only keys that are text, and Go writes true and false.
        return {key if isinstance(key, str) else json.dumps(key, default=str): part for key, part in found.items()}


_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)


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
        documents = list(yaml.load_all(text, _Loader))
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
    """A resource of Flotilla; raises InvalidSpec with field, value and remedy of the first fault.

    `namespace` is used where the document names none.
    """
    return parsed(admission.review(document), namespace=namespace)


def parsed(reviewed: Review, *, namespace: str) -> Model:
    """The model of a resource that the apiserver would store; raises the first refusal where it would not."""
    if reviewed.refusals:
        raise reviewed.refusals[0]
    document = reviewed.resource
    placed = {"namespace": namespace, "uid": "", **document["metadata"]}
    try:
        return admission.DEFINITIONS[document["kind"]].resource.model_validate({**document, "metadata": placed})
    except ValidationError as error:
        raise validation.refused(error) from error
