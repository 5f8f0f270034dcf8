"""Kustomize and Helm install the same objects."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import manifests
from tests.support.helm import Helm, Object

from flotilla_devcluster import programs

DESCRIPTIVE = (
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
)
"""Labels that say who installed what, and select nothing."""


def comparable(objects: list[Object]) -> dict[tuple[str, str, str], Object]:
    found = {}
    for obj in map(manifests.without_helm, objects):
        labels = obj["metadata"].get("labels", {})
        obj["metadata"]["labels"] = {name: value for name, value in labels.items() if name not in DESCRIPTIVE}
        found[manifests.identity(obj)] = obj
    return found


def kustomized(folder: Path) -> list[Object]:
    done = subprocess.run(
        [programs.find_kubectl(), "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize(
    ("folder", "values"),
    [("base", {}), *((f"overlays/{name}", values) for name, values in manifests.OVERLAYS.items())],
    ids=["base", *manifests.OVERLAYS],
)
def test_kustomize_installs_what_helm_does(helm: Helm, folder: str, values: dict[str, Any]) -> None:
    mine = comparable(kustomized(manifests.ROOT / "manifests" / folder))
    namespace = mine.pop(("Namespace", "", "flotilla-system"))
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    theirs = comparable(helm.render(values))
    assert set(mine) == set(theirs)
    for key, obj in mine.items():
        assert obj == theirs[key]


def test_the_rendered_files_are_current(helm: Helm) -> None:
    for path, text in manifests.files(helm.program).items():
        assert path.read_text() == text, f"{path} is out of date: run `make manifests`"
