"""Applying CustomResourceDefinitions until the server really serves them."""

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from flotilla.errors import NotReady
from flotilla_devcluster.api import Api
from flotilla_devcluster.wait import until

_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def read(directory: Path) -> list[dict[str, Any]]:
    """Every CustomResourceDefinition in the folder's YAML files; raises NotReady when there is none."""
    documents = [
        document
        for path in sorted(directory.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document and document.get("kind") == "CustomResourceDefinition"
    ]
    if not documents:
        raise NotReady(
            f"The folder {directory} holds no CustomResourceDefinition. Run `python -m flotilla.api.crd` to"
            " write Flotilla's, or name another folder."
        )
    return documents


def apply(api: Api, documents: list[dict[str, Any]], *, timeout_s: float = 20.0) -> None:
    """Apply all, then wait until each is Established and a list of it succeeds.

    A new kind answers 429 for about a second while its storage starts, so only a list proves that it is
    served.
    """
    for document in documents:
        name = document["metadata"]["name"]
        call = partial(api.apply, f"{_PATH}/{name}", document)
        until(call, what=f"the server to take the CRD {name}", timeout_s=timeout_s)
    for document in documents:
        _wait_served(api, document, timeout_s)


def _wait_served(api: Api, document: dict[str, Any], timeout_s: float) -> None:
    name, spec = document["metadata"]["name"], document["spec"]
    until(lambda: _established(api, name), what=f"the CRD {name} to be Established", timeout_s=timeout_s)
    for version in spec["versions"]:
        if version["served"]:
            path = f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}"
            until(partial(api.get, path, limit="1"), what=f"a first list of {path}", timeout_s=timeout_s)


def _established(api: Api, name: str) -> bool:
    crd = api.get(f"{_PATH}/{name}") or {}
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
