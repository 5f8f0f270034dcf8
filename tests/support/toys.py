"""A kind of its own for tests of the control plane, so that they do not depend on Flotilla's."""

from pathlib import Path

import yaml

PATH = "/apis/tests.flotilla.dev/v1/namespaces/{namespace}/toys"

_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "toys.tests.flotilla.dev"},
    "spec": {
        "group": "tests.flotilla.dev",
        "scope": "Namespaced",
        "names": {"plural": "toys", "singular": "toy", "kind": "Toy", "listKind": "ToyList"},
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    },
}


def write_crd(directory: Path) -> Path:
    """Write the CRD into the folder and return the folder."""
    (directory / "toys.yaml").write_text(yaml.safe_dump(_CRD))
    return directory
