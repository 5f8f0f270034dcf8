"""Which resource an object belongs to: the only routing between events and work."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from flotilla.constants import (
    API_VERSION,
    GATEWAY,
    GATEWAY_COMPONENT,
    GROUP,
    LABEL_COMPONENT,
    LABEL_EVALUATION,
    LABEL_MODEL,
    VERSION,
)
from flotilla.kube.kinds import EVALUATION, JOB, MODEL_DEPLOYMENT, POD, ROUTING_POLICY, USER_KINDS, Kind


class Key(NamedTuple):
    """The unit of work of the queue: a resource, or the gateway of a namespace with all its policies."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.namespace}/{self.name}"


GATEWAY_KIND = Kind(GROUP, VERSION, "gateways", "Gateway")
"""Of keys only, there is no such resource: the policies of a namespace share one gateway and are one unit of work."""


_QUEUED = {kind.kind: kind for kind in USER_KINDS if kind != ROUTING_POLICY}
"""Kinds whose resources are each a unit of work, by name."""
_RUN_BY_JOBS = {LABEL_EVALUATION: EVALUATION}
"""Kinds that run Jobs, by the label of the Jobs' pods, which names the resource."""


def gateway_key(namespace: str) -> Key:
    """The key of a namespace's gateway."""
    return Key(GATEWAY_KIND, namespace, GATEWAY)


def owner(kind: Kind, obj: Mapping[str, Any]) -> Key | None:
    """The resource that must be looked at when `obj` changed; None for objects of other owners.

    Pods are owned by a ReplicaSet, which is not watched, or by a Job, so their owner is found by label. A pod that was
    not made by a ReplicaSet or Job of that name is not the operator's, whatever labels it has.
    """
    meta = obj["metadata"]
    if kind.kind in _QUEUED and kind.group == GROUP:
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
        if (of := _QUEUED.get(reference.get("kind", ""))) is not None and reference.get("controller"):
            return Key(of, meta["namespace"], reference["name"])
    return None


def _pods_owner(meta: Mapping[str, Any], references: Iterable[Mapping[str, Any]]) -> Key | None:
    controller = next((r for r in references if r.get("controller")), {})
    made_by, labels = controller.get("name", ""), meta.get("labels") or {}
    if controller.get("kind") == JOB.kind:
        found = ((of, labels.get(label, "")) for label, of in _RUN_BY_JOBS.items())
        return next(
            (Key(of, meta["namespace"], name) for of, name in found if name and made_by.startswith(f"{name}-")), None
        )
    if controller.get("kind") != "ReplicaSet":
        return None
    model = labels.get(LABEL_MODEL, "")
    if model and made_by.startswith(f"{model}-"):
        return Key(MODEL_DEPLOYMENT, meta["namespace"], model)
    if labels.get(LABEL_COMPONENT) == GATEWAY_COMPONENT and made_by.startswith(f"{GATEWAY}-"):
        return gateway_key(meta["namespace"])
    return None


def owned_by_any(obj: Mapping[str, Any], uids: Collection[str]) -> bool:
    """Whether one of the object's owners is one of these very incarnations."""
    return any(reference.get("uid") in uids for reference in obj["metadata"].get("ownerReferences") or ())
