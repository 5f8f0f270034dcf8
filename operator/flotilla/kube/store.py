"""The cluster as this process last saw it, and which resource an object belongs to.

Confined to one thread: the main loop's. `owner` is the only routing between events and work.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any

import orjson

from flotilla.constants import (
    API_VERSION,
    GATEWAY,
    GATEWAY_COMPONENT,
    GROUP,
    LABEL_COMPONENT,
    LABEL_EVALUATION,
    LABEL_MODEL,
)
from flotilla.kube.kinds import (
    DEPLOYMENT,
    EVALUATION,
    JOB,
    MODEL_DEPLOYMENT,
    POD,
    ROUTING_POLICY,
    USER_KINDS,
    Key,
    Kind,
    gateway_key,
)

Object = dict[str, Any]
Name = tuple[str, str]
"""Namespace and name."""
OnChange = Callable[[Kind, Object | None, Object | None, Hashable | None], None]
"""Kind, the object before (None: it is new), the object now (None: it is gone), and who wrote it, if it was us."""

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_REPLICAS_MANAGERS = "flotilla.dev/replicas-managers"
"""Key under which a stored Deployment keeps the managers of spec.replicas; never sent anywhere."""
_REMEMBERED_DELETIONS = 4096
_SHARED_PARTS = 50_000
_SHARED_STATUS = frozenset(USER_KINDS)


class Store:
    """Objects by kind and name, with an index by owner.

    Events, answers to our own writes and lists arrive in any order; for one uid the higher resourceVersion wins. They
    are integers that grow (documented so since Kubernetes 1.35).

    Whoever depends on an object learns of each change through `on_change`, wherever it came from: a watch, a LIST, or
    the answer to a write of our own. The event that follows such a write is no change any more. A reconciler that puts
    an answer names itself as `writer`, so that its own write does not wake it, but all others.
    """

    def __init__(
        self, owner: Callable[[Kind, Mapping[str, Any]], Hashable | None], on_change: OnChange | None = None
    ) -> None:
        self._owner = owner
        self._on_change = on_change
        self._objects: dict[Kind, dict[Name, Object]] = {}
        self._owned: dict[Kind, dict[Hashable, dict[Name, Object]]] = {}
        self._dropped: OrderedDict[str, int] = OrderedDict()
        """The version at which an object went, by uid."""
        self._share = _Shared()

    def put(self, kind: Kind, obj: Object, *, writer: Hashable | None = None) -> bool:
        """Remember `obj`; False when it says nothing new (stale, known, or older than its deletion)."""
        meta = obj["metadata"]
        name = _name(meta)
        version = _version(obj)
        if version <= self._dropped.get(meta["uid"], -1):
            return False
        known = self._objects.setdefault(kind, {}).get(name)
        if known is not None and known["metadata"]["uid"] == meta["uid"] and version <= _version(known):
            return False
        slim = _slim(kind, obj, known, self._share)
        if known is not None:
            self._unindex(kind, known)
        self._objects[kind][name] = slim
        owner = self._owner(kind, slim)
        if owner is not None:
            self._owned.setdefault(kind, {}).setdefault(owner, {})[name] = slim
        if self._on_change is not None:
            self._on_change(kind, known, slim, writer)
        return True

    def drop(
        self, kind: Kind, obj: Mapping[str, Any], *, resource_version: str = "", writer: Hashable | None = None
    ) -> bool:
        """Forget `obj` as of `resource_version` (default: its own); False when it was not known, or is known newer.

        Older versions of it are not taken up again. Newer ones are: an object also leaves a watch when its label goes.
        """
        meta = obj["metadata"]
        version = int(resource_version or meta["resourceVersion"])
        known = self._objects.get(kind, {}).get(_name(meta))
        if known is not None and known["metadata"]["uid"] != meta["uid"]:
            known = None
        if known is not None and _version(known) > version:
            return False
        self._dropped[meta["uid"]] = max(version, self._dropped.pop(meta["uid"], 0))
        if len(self._dropped) > _REMEMBERED_DELETIONS:
            self._dropped.popitem(last=False)
        if known is None:
            return False
        self._unindex(kind, known)
        del self._objects[kind][_name(meta)]
        if self._on_change is not None:
            self._on_change(kind, known, None, writer)
        return True

    def forget(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        """Remove what may be out of date. Any version of it is taken up again, unlike after `drop`; reports nothing."""
        known = self._objects.get(kind, {}).pop(_name(obj["metadata"]), None)
        if known is not None:
            self._unindex(kind, known)

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None when it is not known."""
        return self._objects.get(kind, {}).get((namespace, name))

    def all(self, kind: Kind) -> Iterator[Object]:
        """Every object of a kind."""
        return iter(self._objects.get(kind, {}).values())

    def objects(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """Every object of a kind in one namespace, or in all."""
        return list(self.all(kind)) if namespace is None else self.in_namespace(kind, namespace)

    def in_namespace(self, kind: Kind, namespace: str) -> list[Object]:
        """Every object of a kind in one namespace."""
        return [obj for (where, _), obj in self._objects.get(kind, {}).items() if where == namespace]

    def owned_by(self, kind: Kind, owner: Hashable) -> list[Object]:
        """The objects of a kind whose owner, by the function given at the start, is `owner`."""
        return list(self._owned.get(kind, {}).get(owner, {}).values())

    def owners(self, kind: Kind) -> Iterator[Hashable]:
        """Every owner that has at least one object of a kind."""
        return iter(self._owned.get(kind, {}))

    def count(self, kind: Kind) -> int:
        """Number of objects of a kind."""
        return len(self._objects.get(kind, {}))

    def counts(self) -> dict[str, int]:
        """Number of objects by plural name."""
        return {kind.plural: len(objects) for kind, objects in self._objects.items()}

    def _unindex(self, kind: Kind, known: Object) -> None:
        owner = self._owner(kind, known)
        owners = self._owned.get(kind, {})
        owned = owners.get(owner, {})
        owned.pop(_name(known["metadata"]), None)
        if not owned:
            owners.pop(owner, None)


_QUEUED = {kind.kind: kind for kind in USER_KINDS if kind != ROUTING_POLICY}
"""Kinds whose resources are each a unit of work, by name."""
_RUN_BY_JOBS = {LABEL_EVALUATION: EVALUATION}
"""Kinds that run Jobs, by the label of the Jobs' pods, which names the resource."""


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


def replicas_managers(deployment: Mapping[str, Any] | None) -> frozenset[str]:
    """Field managers that own `spec.replicas` of a stored Deployment."""
    managers: frozenset[str] = (deployment or {}).get(_REPLICAS_MANAGERS, frozenset())
    return managers


def _name(meta: Mapping[str, Any]) -> Name:
    return meta.get("namespace") or "", meta["name"]


def _version(obj: Mapping[str, Any]) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _slim(kind: Kind, obj: Object, known: Object | None, share: "_Shared") -> Object:
    """A copy without the parts that nothing here reads: half of an object's bytes are managedFields."""
    meta = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    if annotations := meta.get("annotations"):
        meta["annotations"] = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
    slim: Object = {sys.intern(key): value for key, value in obj.items()}
    slim["metadata"] = _interned(meta)
    if "spec" in slim:
        # Most versions of an object differ in nothing but their status.
        same = known is not None and known.get("spec") == slim["spec"]
        slim["spec"] = known["spec"] if known is not None and same else share(slim["spec"])
    if "status" in slim:
        # Conditions repeat themselves over a fleet; the statuses of pods and Deployments move too fast to be worth it.
        slim["status"] = share(slim["status"]) if kind in _SHARED_STATUS else _interned(slim["status"])
    if kind == DEPLOYMENT:
        slim[_REPLICAS_MANAGERS] = frozenset(
            entry.get("manager", "")
            for entry in obj["metadata"].get("managedFields") or ()
            if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        )
    return slim


def _interned(value: Any) -> Any:
    """Share equal strings: a fleet's objects repeat each other's keys and labels."""
    if type(value) is dict:
        return {sys.intern(key): _interned(item) for key, item in value.items()}
    if type(value) is list:
        return [_interned(item) for item in value]
    return sys.intern(value) if type(value) is str and len(value) < 64 else value


class _Shared:
    """Equal parts of specs, once in memory: those of a fleet differ in a few strings. What is stored is never changed.

    Parts are known by their JSON, which is made in C: a walk in Python took four times as long.
    """

    def __init__(self) -> None:
        self._parts: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if len(self._parts) > _SHARED_PARTS:
            self._parts.clear()
        return self._part(value)

    def _part(self, value: Any) -> Any:
        if type(value) is not dict and type(value) is not list:
            return sys.intern(value) if type(value) is str and len(value) < 64 else value
        key = hash(orjson.dumps(value))
        known = self._parts.get(key)
        if known is not None and known == value:
            return known
        made: Any = (
            {sys.intern(name): self._part(item) for name, item in value.items()}
            if type(value) is dict
            else [self._part(item) for item in value]
        )
        self._parts[key] = made
        return made
