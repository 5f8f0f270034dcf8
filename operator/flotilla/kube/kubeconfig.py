"""Kubeconfig files, found and merged as kubectl does.

The official client merges several files too, but the last current-context wins there, and an empty file is a TypeError.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flotilla.errors import InvalidSpec

_PATHS = {"clusters": ("certificate-authority",), "users": ("client-certificate", "client-key", "tokenFile")}
"""Keys with paths, which are relative to the file that has them."""


def find(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The files to read, joined by colons: what is given, else those of KUBECONFIG, else ~/.kube/config.

    None means the pod's ServiceAccount: in a pod where nothing is named. Raises InvalidSpec where no file exists.
    """
    named = str(given) if given is not None else environ.get("KUBECONFIG", "")
    paths = [Path(part).expanduser() for part in named.split(os.pathsep) if part]
    if not paths:
        home = Path(environ["HOME"] if environ.get("HOME") else "~").expanduser()
        paths = [home / ".kube" / "config"]
        if not paths[0].is_file() and "KUBERNETES_SERVICE_HOST" in environ:
            return None
    _refuse_missing(paths)
    return Path(os.pathsep.join(map(str, paths)))


def merged(files: Path) -> dict[str, Any]:
    """The content of the files that exist: the first file that sets a value, or an entry of a list, wins.

    Paths in it are absolute. Raises InvalidSpec where none exists, or with the name of one that is not a kubeconfig.
    """
    found: dict[str, Any] = {"clusters": [], "contexts": [], "users": []}
    paths = [Path(part).expanduser() for part in str(files).split(os.pathsep) if part]
    _refuse_missing(paths)
    for path in paths:
        try:
            content = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidSpec(f"{path} is not a kubeconfig: {error}", field="--kubeconfig") from error
        if content is None:
            continue
        if not isinstance(content, dict):
            raise InvalidSpec(f"{path} is not a kubeconfig: it must be a mapping.", field="--kubeconfig")
        for key in ("clusters", "contexts", "users"):
            _add(found[key], content.get(key) or [], key, path)
        if content.get("current-context"):
            found.setdefault("current-context", content["current-context"])
    return found


def _refuse_missing(paths: Sequence[Path]) -> None:
    """kubectl ignores files that do not exist too, but at least one must."""
    if not any(path.is_file() for path in paths):
        raise InvalidSpec(
            f"{' and '.join(map(str, paths))} {'does' if len(paths) == 1 else 'do'} not exist. Name a kubeconfig with "
            "--kubeconfig or KUBECONFIG; `flotilla devcluster up` creates a local cluster.",
            field="--kubeconfig",
        )


def _add(found: list[dict[str, Any]], entries: Any, key: str, path: Path) -> None:
    kind = key.removesuffix("s")
    known = {entry["name"] for entry in found}
    for entry in entries if isinstance(entries, list) else [None]:
        inner = entry.get(kind) if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or "name" not in entry or not isinstance(inner, dict | None):
            raise InvalidSpec(
                f"{path} is not a kubeconfig: {key} must be a list of entries with name and {kind}.",
                field="--kubeconfig",
            )
        if entry["name"] in known:
            continue
        known.add(entry["name"])
        absolute = {
            name: str(path.absolute().parent / inner[name]) for name in _PATHS.get(key, ()) if inner and inner.get(name)
        }
        found.append({"name": entry["name"], kind: {**(inner or {}), **absolute}})


def context_of(content: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The context of that name, or the current one, with its `name`; raises InvalidSpec with the names that exist."""
    wanted = name or content.get("current-context")
    known = [entry["name"] for entry in content["contexts"]]
    if not known:
        raise InvalidSpec("The kubeconfig has no contexts. Name another file.", field="--kubeconfig")
    if wanted is None:
        raise InvalidSpec(
            f"The kubeconfig has no current context. Choose one with --context: {', '.join(known)}.", field="--context"
        )
    if wanted not in known:
        raise InvalidSpec(
            f"The kubeconfig has no context {wanted!r}. Choose one of {', '.join(known)}.", field="--context"
        )
    entry = next(entry for entry in content["contexts"] if entry["name"] == wanted)
    return {**entry["context"], "name": wanted}
