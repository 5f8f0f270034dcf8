"""What a CRD of ours may hold, by the rules of kube-api-linter."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pytest
from pydantic import Field

from flotilla.api.crd import DEFINITIONS, MAX_BYTES, SchemaError, crd, files, structural
from flotilla.api.types import Model

SCHEMAS = {d.kind: crd(d)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for d in DEFINITIONS}


def nodes(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, sub in schema.get("properties", {}).items():
        yield from nodes(sub, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


FIELDS = [
    pytest.param(path, node, id=path)
    for kind, schema in SCHEMAS.items()
    for part in ("spec", "status")
    for path, node in nodes(schema["properties"][part], f"{kind}.{part}")
]


@pytest.mark.parametrize(("path", "node"), FIELDS)
def test_each_field_follows_the_conventions(path: str, node: Mapping[str, Any]) -> None:
    name = path.rpartition(".")[2]
    assert node["type"] not in ("number", "boolean")
    if not name.endswith("[]"):
        assert re.fullmatch(r"[a-z]+([A-Z][a-z]*|[0-9]+|URL)*", name)
        assert node.get("description")
    if node["type"] == "string":
        assert "enum" in node or "maxLength" in node
    if node["type"] == "integer":
        assert {"minimum", "maximum", "format"} <= set(node)
    if node["type"] == "array":
        assert {"maxItems", "x-kubernetes-list-type"} <= set(node)
    if node["type"] == "object" and not node.get("properties"):
        assert "maxProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")


@pytest.mark.parametrize("kind", SCHEMAS)
def test_conditions_come_first_in_the_status(kind: str) -> None:
    assert next(iter(SCHEMAS[kind]["properties"]["status"]["properties"])) == "conditions"


def test_each_crd_fits_into_an_annotation() -> None:
    assert all(len(text) < MAX_BYTES for text in files().values())


def refused(annotation: Any) -> str:
    model: Any = type("Thing", (Model,), {"__annotations__": {"field": annotation}, "field": ...})
    schema = model.model_json_schema(by_alias=True)
    with pytest.raises(SchemaError) as error:
        structural(schema, schema.get("$defs", {}), "spec")
    return str(error.value)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "spec.field: boolean fields are not allowed"),
        (float, "spec.field: number fields are not allowed"),
        (str, "spec.field: enum or maxLength is missing"),
        (int, "spec.field: minimum is missing"),
        (Annotated[int, Field(ge=0)], "spec.field: maximum is missing"),
        (list[Annotated[str, Field(max_length=3)]], "spec.field: maxItems is missing"),
        (Annotated[str, Field(max_length=3)] | Annotated[int, Field(ge=0, le=1)], "unions of types"),
    ],
)
def test_the_generator_refuses_what_a_crd_must_not_hold(annotation: Any, words: str) -> None:
    assert words in refused(annotation)
