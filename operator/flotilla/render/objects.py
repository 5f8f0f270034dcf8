"""What every rendered object has: labels, owner, hash; and whether a live object still holds what was rendered."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from flotilla.api.model_deployment import ModelDeployment
from flotilla.api.types import amount
from flotilla.constants import (
    ANNOTATION_HASH,
    API_VERSION,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_MODEL,
    LABEL_NAME,
    LABEL_PART_OF,
    MANAGER,
)

Object = dict[str, Any]


def selector(md: ModelDeployment) -> dict[str, str]:
    """The labels that find the pods; a Deployment can never change them."""
    return {LABEL_MANAGED_BY: MANAGER, LABEL_MODEL: md.metadata.name}


def labels(md: ModelDeployment) -> dict[str, str]:
    """The labels of children and pods. The user's own are not copied: Argo CD would claim the children by them."""
    return {
        **selector(md),
        LABEL_NAME: str(md.spec.engine.name),
        LABEL_COMPONENT: "engine",
        LABEL_PART_OF: MANAGER,
    }


def child(
    md: ModelDeployment, *, api_version: str, kind: str, spec: Object, annotations: dict[str, str] | None = None
) -> Object:
    """A whole manifest, owned by the ModelDeployment, of its name, with its hash."""
    manifest: Object = {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": md.metadata.name,
            "namespace": md.metadata.namespace,
            "labels": labels(md),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": "ModelDeployment",
                    "name": md.metadata.name,
                    "uid": md.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": spec,
    }
    if annotations:
        manifest["metadata"]["annotations"] = annotations
    manifest["metadata"]["annotations"] = {**(annotations or {}), ANNOTATION_HASH: digest(manifest)}
    return manifest


def digest(manifest: Object) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)).hexdigest()


_KEYS = ("name", "key", "topologyKey", "containerPort", "port", "mountPath", "uid")
"""The keys by which items of Kubernetes' lists of objects are matched, in the order in which they are tried."""
_QUANTITY_FIELDS = frozenset({"requests", "limits", "sizeLimit"})


def needs_apply(desired: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether the live object lacks something of ours, or has something that we set once and no longer want.

    The second is what the hash is for: a field that left the manifest is still ours in the cluster.
    """
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get(ANNOTATION_HASH) != desired["metadata"]["annotations"][ANNOTATION_HASH]:
        return True
    # Items of a LIST carry neither apiVersion nor kind.
    return not all(within(desired[part], live.get(part)) for part in desired if part not in ("apiVersion", "kind"))


def within(desired: Any, live: Any, *, quantity: bool = False) -> bool:
    """Whether every leaf of `desired` is in `live`; what is only in `live` does not matter."""
    if isinstance(desired, Mapping):
        return isinstance(live, Mapping) and all(
            (key in live or _empty(value))
            and within(value, live.get(key), quantity=quantity or key in _QUANTITY_FIELDS)
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        return _list_within(desired, live)
    if desired == live and type(desired) is type(live):
        return True
    if _empty(desired) and live is None:
        return True
    return quantity and isinstance(live, str | int) and amount(str(desired)) == amount(str(live))


def _empty(value: Any) -> bool:
    """The apiserver drops empty strings, lists and maps of optional fields."""
    return value in ("", [], {}) and not isinstance(value, bool)


def _list_within(desired: Sequence[Any], live: Any) -> bool:
    if not isinstance(live, list):
        return live is None and not desired
    key = _merge_key(desired)
    if key is None:
        return len(desired) == len(live) and all(within(d, item) for d, item in zip(desired, live, strict=True))
    found = {item.get(key): item for item in live if isinstance(item, Mapping)}
    return all(item[key] in found and within(item, found[item[key]]) for item in desired)


def _merge_key(items: Sequence[Any]) -> str | None:
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    for key in _KEYS:
        values = [item.get(key) for item in items]
        if None not in values and len(set(map(str, values))) == len(values):
            return key
    return None
