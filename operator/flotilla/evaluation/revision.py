"""What a target serves, as a digest. A verdict is about one revision, and does not count for any other.

The operator and routing by preference both read revisions here, so that they agree about which verdicts hold.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from flotilla.api.routing_policy import ExternalTarget, ModelDeploymentRef
from flotilla.constants import ANNOTATION_TEMPLATE_HASH

_LENGTH = 16


def hosted_revision(external: ExternalTarget) -> str:
    """Of a hosted model: the provider, the model's name and the URL, without the key and the price."""
    return _digest(["hosted", str(external.provider), external.model, external.base_url])


def self_hosted_revision(
    reference: ModelDeploymentRef, model: Mapping[str, Any] | None, deployment: Mapping[str, Any] | None
) -> str | None:
    """Of a ModelDeployment, and of one of its adapters: the hash of the pod template, and the adapter's digest.

    `model` is the ModelDeployment and `deployment` its apps/v1 Deployment, as the cluster has them; None while one of
    the two does not exist. Pods of another revision cannot start before the Deployment's template has changed.
    """
    if model is None or deployment is None:
        return None
    template = (deployment["metadata"].get("annotations") or {}).get(ANNOTATION_TEMPLATE_HASH)
    if not template:
        return None
    if reference.adapter is None:
        return _digest(["model", template])
    return _digest(["adapter", template, reference.adapter, _adapter_digest(model, reference.adapter)])


def _adapter_digest(model: Mapping[str, Any], adapter: str) -> str:
    """Of an adapter that is loaded at run time. One that is in the engine's arguments is in the template's hash."""
    adapters = (model.get("status") or {}).get("adapters") or ()
    return next((str(known.get("digest") or "") for known in adapters if known.get("name") == adapter), "")


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:_LENGTH]
