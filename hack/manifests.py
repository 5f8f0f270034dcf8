"""Render the chart into manifests/base and the overlays: `python -m hack.manifests`. Needs helm, which it builds once.

Kustomize and Helm install the same objects; tests/chart checks this for each of these sets of values.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flotilla.api.crd import PlainDumper
from flotilla_devcluster import programs

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts/flotilla"
RELEASE, NAMESPACE = "flotilla", "flotilla-system"
HEADER = "# Rendered from charts/flotilla by `make manifests`; do not edit.\n"
OVERLAYS: Mapping[str, dict[str, Any]] = {
    "namespaced": {
        "config": {"namespaces": ["default"]},
        "crds": {"enabled": False},
        "rbac": {"aggregate": False},
    },
    "dev": {
        "replicas": 1,
        "image": {"tag": "dev"},
        "config": {"log_level": "DEBUG", "log_format": "text"},
    },
}
"""For each overlay, the values of the chart that give the same objects."""
_HELMS_LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by")
_ROLES = frozenset({"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})
Object = dict[str, Any]


def rendered_text(helm: Path, values: Mapping[str, Any], chart: Path = CHART) -> str:
    """Run `helm template` with these values; raises ValueError with helm's message if it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(dict(values), file)
        file.flush()
        argv = [str(helm), "template", RELEASE, str(chart), "--namespace", NAMESPACE, "--values", file.name]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return done.stdout


def rendered(helm: Path, values: Mapping[str, Any], chart: Path = CHART) -> list[Object]:
    """Return the rendered manifests as objects."""
    return [obj for obj in yaml.load_all(rendered_text(helm, values, chart), Loader=yaml.CSafeLoader) if obj]


def without_helm(obj: Object) -> Object:
    """Return the object without the labels and annotations that mark it as installed by Helm."""
    meta = obj["metadata"]
    labels = {name: value for name, value in meta.get("labels", {}).items() if name not in _HELMS_LABELS}
    annotations = {
        name: value for name, value in meta.get("annotations", {}).items() if name != "helm.sh/resource-policy"
    }
    kept = {key: value for key, value in meta.items() if key not in ("labels", "annotations")}
    if labels:
        kept["labels"] = labels
    if annotations:
        kept["annotations"] = annotations
    return {**obj, "metadata": kept}


def identity(obj: Object) -> tuple[str, str, str]:
    """Return kind, namespace and name of the object."""
    meta = obj["metadata"]
    return obj["kind"], meta.get("namespace", ""), meta["name"]


def files(helm: Path) -> dict[Path, str]:
    """Return the content by path: the base, and what each overlay adds to it or changes in it."""
    base = {identity(obj): obj for obj in map(without_helm, rendered(helm, {}))}
    own = [obj for obj in base.values() if obj["kind"] not in _ROLES | {"CustomResourceDefinition"}]
    found = {ROOT / "manifests/base/operator.yaml": _dump(own)}
    for name, values in OVERLAYS.items():
        folder = ROOT / "manifests/overlays" / name
        objects = [without_helm(obj) for obj in rendered(helm, values)]
        if added := [obj for obj in objects if identity(obj) not in base]:
            found[folder / "added.yaml"] = _dump(added)
        changed = [(base[identity(obj)], obj) for obj in objects if obj != base.get(identity(obj), obj)]
        found[folder / "changed.yaml"] = _dump([_patch(before, after) for before, after in changed])
    return found


def _patch(before: Object, after: Object) -> Object:
    """Return a strategic merge patch. Lists are replaced as a whole, which suffices for the overlays."""
    meta = {key: after["metadata"][key] for key in ("name", "namespace") if key in after["metadata"]}
    return {"apiVersion": after["apiVersion"], "kind": after["kind"], "metadata": meta, **_difference(before, after)}


def _difference(before: Object, after: Object) -> Object:
    found: Object = {}
    for key, value in after.items():
        if key in ("apiVersion", "kind", "metadata") and "kind" in after:
            continue
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := _difference(old, value):
                found[key] = inner
        elif value != old and key != "containers":  # an overlay changes the image by kustomize's own means
            found[key] = value
    return found


class _Dumper(PlainDumper):
    """Files in ConfigMaps as blocks, as people write them."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _dump(objects: list[Object]) -> str:
    return HEADER + yaml.dump_all(objects, sort_keys=False, width=110, Dumper=_Dumper)


def main() -> int:
    """Write all of them."""
    for path, text in files(programs.find_helm()).items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
