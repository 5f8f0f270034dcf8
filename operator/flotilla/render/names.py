"""Labels, owner and hash that every child carries."""

import hashlib
from typing import Any

import orjson

from flotilla.api.model_deployment import ModelDeployment
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
