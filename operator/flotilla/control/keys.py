"""Which resource an object belongs to: the only routing between events and work."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flotilla.constants import API_VERSION, LABEL_MODEL
from flotilla.kube.kinds import MODEL_DEPLOYMENT, POD, ROUTING_POLICY, Kind


class Key(NamedTuple):
    """A resource that users write; the unit of work of the queue."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.namespace}/{self.name}"


USER_KINDS = (MODEL_DEPLOYMENT, ROUTING_POLICY)


def owner(kind: Kind, obj: Mapping[str, Any]) -> Key | None:
    """The resource that must be looked at when `obj` changed; None for strangers.

    Pods hang below a ReplicaSet that nobody watches, so theirs is found by label; a pod that no ReplicaSet of that
    name made is a stranger, whatever labels somebody gave it.
    """
    meta = obj["metadata"]
    if kind in USER_KINDS:
        return Key(kind, meta["namespace"], meta["name"])
    controller = next((r for r in meta.get("ownerReferences") or () if r.get("controller")), None)
    if controller is None:
        return None
    if kind == POD:
        model = (meta.get("labels") or {}).get(LABEL_MODEL, "")
        ours = controller.get("kind") == "ReplicaSet" and model and controller["name"].startswith(f"{model}-")
        return Key(MODEL_DEPLOYMENT, meta["namespace"], model) if ours else None
    if controller.get("apiVersion") == API_VERSION:
        for candidate in USER_KINDS:
            if candidate.kind == controller.get("kind"):
                return Key(candidate, meta["namespace"], controller["name"])
    return None


def controlled_by(obj: Mapping[str, Any], uid: str) -> bool:
    """Whether the object's controller reference names this very incarnation."""
    references = obj["metadata"].get("ownerReferences") or ()
    return any(r.get("controller") and r.get("uid") == uid for r in references)
