"""Which resource an object belongs to: the only routing between events and work."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from flotilla.constants import API_VERSION, GATEWAY, GATEWAY_COMPONENT, GROUP, LABEL_COMPONENT, LABEL_MODEL, VERSION
from flotilla.kube.kinds import MODEL_DEPLOYMENT, POD, ROUTING_POLICY, Kind


class Key(NamedTuple):
    """The unit of work of the queue: a ModelDeployment, or the gateway of a namespace with all its policies."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.namespace}/{self.name}"


USER_KINDS = (MODEL_DEPLOYMENT, ROUTING_POLICY)
GATEWAY_KIND = Kind(GROUP, VERSION, "gateways", "Gateway")
"""Of keys only, there is no such resource: the policies of a namespace share one gateway and are one unit of work."""


def gateway_key(namespace: str) -> Key:
    """The key of a namespace's gateway."""
    return Key(GATEWAY_KIND, namespace, GATEWAY)


def owner(kind: Kind, obj: Mapping[str, Any]) -> Key | None:
    """The resource that must be looked at when `obj` changed; None for objects of other owners.

    Pods are owned by a ReplicaSet, which is not watched, so their owner is found by label. A pod that was not made by a
    ReplicaSet of that name is not the operator's, whatever labels it has.
    """
    meta = obj["metadata"]
    if kind == MODEL_DEPLOYMENT:
        return Key(kind, meta["namespace"], meta["name"])
    if kind == ROUTING_POLICY:
        return gateway_key(meta["namespace"])
    references = meta.get("ownerReferences") or ()
    if kind == POD:
        return _pods_owner(meta, references)
    for reference in references:
        if reference.get("apiVersion") != API_VERSION:
            continue
        if reference.get("kind") == ROUTING_POLICY.kind:
            return gateway_key(meta["namespace"])
        if reference.get("kind") == MODEL_DEPLOYMENT.kind and reference.get("controller"):
            return Key(MODEL_DEPLOYMENT, meta["namespace"], reference["name"])
    return None


def _pods_owner(meta: Mapping[str, Any], references: Iterable[Mapping[str, Any]]) -> Key | None:
    made_by = next((r["name"] for r in references if r.get("controller") and r.get("kind") == "ReplicaSet"), "")
    labels = meta.get("labels") or {}
    model = labels.get(LABEL_MODEL, "")
    if model and made_by.startswith(f"{model}-"):
        return Key(MODEL_DEPLOYMENT, meta["namespace"], model)
    if labels.get(LABEL_COMPONENT) == GATEWAY_COMPONENT and made_by.startswith(f"{GATEWAY}-"):
        return gateway_key(meta["namespace"])
    return None


def owned_by_any(obj: Mapping[str, Any], uids: Collection[str]) -> bool:
    """Whether one of the object's owners is one of these very incarnations."""
    return any(reference.get("uid") in uids for reference in obj["metadata"].get("ownerReferences") or ())
