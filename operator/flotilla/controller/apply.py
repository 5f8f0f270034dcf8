"""Server-side apply of what a reconciler rendered, and of the status.

`Executor` applies, scales and deletes children. `Rollouts` chooses whether a changed Deployment replaces its pods by
surge or one at a time, and `PodDeletionCosts` which pods a scale-in removes first. `StatusWriter` writes the status.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from flotilla.api.model_deployment import RolloutStrategy
from flotilla.api.types import amount
from flotilla.catalog.accelerators import Accelerator
from flotilla.constants import (
    ANNOTATION_HASH,
    ANNOTATION_TEMPLATE_HASH,
    API_VERSION,
    MANAGER,
    SCALER_MANAGER,
    STATUS_MANAGER,
)
from flotilla.errors import Conflict, Forbidden, NameTaken, NotReady
from flotilla.kube import observed
from flotilla.kube.client import FieldConflict, KubeClient, NotFound
from flotilla.kube.events import EventRecorder
from flotilla.kube.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    GATEWAY_KIND,
    JOB,
    MODEL_DEPLOYMENT,
    NETWORK_POLICY,
    NODE,
    POD,
    POD_DISRUPTION_BUDGET,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    Key,
    Kind,
)
from flotilla.kube.observed import Pod
from flotilla.kube.store import Store, owned_by_any, replicas_managers
from flotilla.planning.resolve import Resolved
from flotilla.render.workload import needs_apply

log = logging.getLogger(__name__)

Object = dict[str, Any]
Part = tuple[Any, ...]
"""What of a child a plan can be compared with: neither its status nor its versions, which move all the time."""

_SERVING = (DEPLOYMENT, SERVICE, POD_DISRUPTION_BUDGET)
CHILD_KINDS: tuple[Kind, ...] = (*_SERVING, JOB)
"""Watched: a change is seen at once."""
LISTED_KINDS: tuple[Kind, ...] = (CONFIG_MAP, SERVICE_ACCOUNT, ROLE, ROLE_BINDING, NETWORK_POLICY)
"""Of gateways, watched by their name: a watch by label would need the right to read every ConfigMap there is."""
_KINDS_OF = {MODEL_DEPLOYMENT: _SERVING, GATEWAY_KIND: (*_SERVING, *LISTED_KINDS)}
"""By kind of key, what its reconciler makes."""
_BY_NAME = {kind.kind: kind for kind in (*CHILD_KINDS, *LISTED_KINDS)}


RIVAL_S = 600.0
"""How long a change of spec.replicas by another field manager counts."""
_RIVAL_TIMES = 4


class Executor:
    """Server-side apply of what differs, prune of what the plan no longer has."""

    def __init__(self, client: KubeClient, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._store = store
        self._clock = clock
        self._rivals: dict[Key, deque[tuple[float, str]]] = {}
        """When other field managers set replicas otherwise, the last few times."""
        self._settled: dict[Key, tuple[Hashable, dict[tuple[Kind, str], Part | None]]] = {}
        """The plan that was last made true, and the children as they were then."""

    async def converge(
        self,
        key: Key,
        uids: Collection[str],
        plan: Callable[[], Sequence[Object]],
        *,
        revision: Hashable,
        replicas: int | None = None,
    ) -> int:
        """Apply, scale and prune; returns how many writes that took.

        `plan` renders the children, and is asked only where `revision`, `replicas` or a child changed. What one of
        `uids` owns is ours. `replicas` None leaves the count to the manifest.

        Raises NameTaken when an object of a child's name belongs to somebody else, InvalidSpec when the apiserver
        refuses a child, NotReady while the children of a deleted resource of that name are still being collected.
        """
        goal = (revision, replicas)
        if self._settled.get(key) == (goal, self._parts(key)):
            return 0
        self._settled.pop(key, None)
        children = plan()
        try:
            writes, seen = await self._write(key, uids, children, replicas)
        except NotFound:
            # Such as a binding whose Role was deleted a moment ago, which the store does not know yet: look again.
            if not self._forget_named(key):
                raise
            writes, seen = await self._write(key, uids, children, replicas)
        self._settled[key] = (goal, seen)
        return writes

    async def _write(
        self, key: Key, uids: Collection[str], children: Sequence[Object], replicas: int | None
    ) -> tuple[int, dict[tuple[Kind, str], Part | None]]:
        writes = 0
        seen: dict[tuple[Kind, str], Part | None] = {}
        # Every name is looked at before the first write: a plan that cannot be carried out must not start pods.
        found = [(child, _BY_NAME[child["kind"]]) for child in children]
        lives = [await self._live(key, kind, child, uids) for child, kind in found]
        for (child, kind), live in zip(found, lives, strict=True):
            name = child["metadata"]["name"]
            if live is None or needs_apply(child, live):
                seen[kind, name] = await self._apply(key, kind, child, live, replicas=replicas)
                writes += 1
            else:
                seen[kind, name] = _part(live)
        if replicas is not None and self._scaled_otherwise(key, replicas):
            self._note_rival(key)
            seen[DEPLOYMENT, key.name] = await self._scale(key, replicas)
            writes += 1
        for kind, stale in self._stale(key, uids, children):
            await self._client.delete(
                kind, stale["metadata"]["name"], namespace=key.namespace, uid=stale["metadata"]["uid"]
            )
            self._store.drop(kind, stale, writer=key)
            log.info("child pruned", extra={"key": str(key), "child": f"{kind.kind}/{stale['metadata']['name']}"})
            writes += 1
        return writes, seen

    def rival(self, key: Key) -> str:
        """The field manager that has set spec.replicas otherwise twice within `RIVAL_S`; empty where there is none."""
        times = self._rivals.get(key)
        if times is None:
            return ""
        while times and self._clock() - times[0][0] > RIVAL_S:
            times.popleft()
        return times[-1][1] if len(times) > 1 else ""

    def _note_rival(self, key: Key) -> None:
        others = replicas_managers(self._store.get(DEPLOYMENT, key.namespace, key.name)) - {MANAGER, SCALER_MANAGER}
        if others:
            self._rivals.setdefault(key, deque(maxlen=_RIVAL_TIMES)).append((self._clock(), min(others)))

    def forget(self, key: Key) -> None:
        """Drop a deleted resource and its children, some of which the watches may not have reported yet."""
        self._settled.pop(key, None)
        self._rivals.pop(key, None)
        self._forget_named(key)

    def _forget_named(self, key: Key) -> bool:
        """Have each object of a gateway read again before it is used; returns whether there were any."""
        known = [(kind, live) for kind in LISTED_KINDS for live in self._store.owned_by(kind, key)]
        for kind, live in known:
            self._store.forget(kind, live)
        return bool(known)

    def _parts(self, key: Key) -> dict[tuple[Kind, str], Part | None]:
        return {
            (kind, live["metadata"]["name"]): _part(live)
            for kind in _KINDS_OF[key.kind]
            for live in self._store.owned_by(kind, key)
        }

    def _remember(self, key: Key, kind: Kind, answer: Object) -> Part | None:
        """Put the answer to a write into the store; None where an event overtook it, so that the next pass looks."""
        meta = answer["metadata"]
        if not self._store.put(kind, answer, writer=key):
            return None
        stored = self._store.get(kind, meta["namespace"], meta["name"])
        return _part(stored) if stored is not None else None

    async def _live(self, key: Key, kind: Kind, child: Object, uids: Collection[str]) -> Object | None:
        meta = child["metadata"]
        live = self._store.get(kind, meta["namespace"], meta["name"])
        # Selectors of Services and budgets merge, so that an apply would take over another owner's object without a
        # conflict, and objects of other owners are not in the store. A Deployment's selector is immutable and atomic:
        # there the apply itself is refused.
        fetched = live is None and kind != DEPLOYMENT
        if fetched or (live is not None and kind in LISTED_KINDS and not owned_by_any(live, uids)):
            known, live = live, await self._client.get(kind, meta["name"], namespace=meta["namespace"])
            if live is None and known is not None:
                self._store.drop(kind, known, writer=key)
        if live is None:
            return None
        if "deletionTimestamp" in live["metadata"]:
            raise NotReady(f"{kind.kind} {meta['name']} is being deleted.")
        if not owned_by_any(live, uids) and not _lost_its_owner(child, live):
            owners = [reference.get("kind") for reference in live["metadata"].get("ownerReferences") or ()]
            if meta["ownerReferences"][0]["kind"] in owners:
                raise NotReady(
                    f"{kind.kind} {meta['name']} of a deleted resource of that name is still being collected."
                )
            raise _taken(kind, meta["name"])
        if fetched and self._store.put(kind, live, writer=key):
            return self._store.get(kind, meta["namespace"], meta["name"])
        return live

    async def _apply(
        self, key: Key, kind: Kind, child: Object, live: Object | None, *, replicas: int | None
    ) -> Part | None:
        meta = child["metadata"]
        if replicas is not None and kind == DEPLOYMENT and SCALER_MANAGER not in replicas_managers(live):
            # Until the scaler has written once, no other manager owns spec.replicas, and without it it would become 1.
            child = {**child, "spec": {**child["spec"], "replicas": replicas}}
        try:
            applied = await self._client.apply(kind, child, manager=MANAGER, force=live is not None)
        except FieldConflict as conflict:
            if live is None:
                raise _taken(kind, meta["name"]) from conflict
            raise
        log.info("child applied", extra={"child": f"{kind.kind} {meta['namespace']}/{meta['name']}"})
        return self._remember(key, kind, applied)

    def _scaled_otherwise(self, key: Key, replicas: int) -> bool:
        live = self._store.get(DEPLOYMENT, key.namespace, key.name)
        return live is not None and live["spec"].get("replicas", 1) != replicas

    async def _scale(self, key: Key, replicas: int) -> Part | None:
        live = self._store.get(DEPLOYMENT, key.namespace, key.name)
        assert live is not None
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.kind,
            # The uid makes the apply fail rather than create, if the Deployment was deleted meanwhile.
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": live["metadata"]["uid"]},
            "spec": {"replicas": replicas},
        }
        scaled = await self._client.apply(DEPLOYMENT, body, manager=SCALER_MANAGER)
        log.info("scaled", extra={"key": str(key), "from": live["spec"].get("replicas", 1), "to": replicas})
        return self._remember(key, DEPLOYMENT, scaled)

    def _stale(self, key: Key, uids: Collection[str], children: Sequence[Object]) -> Iterable[tuple[Kind, Object]]:
        wanted = {(child["kind"], child["metadata"]["name"]) for child in children}
        for kind in _KINDS_OF[key.kind]:
            for live in self._store.owned_by(kind, key):
                mine = owned_by_any(live, uids) and "deletionTimestamp" not in live["metadata"]
                if mine and (kind.kind, live["metadata"]["name"]) not in wanted:
                    yield kind, live


def _part(live: Mapping[str, Any]) -> Part:
    # Specs are stored once, so that comparing equal ones costs nothing.
    meta = live["metadata"]
    return (
        meta["uid"],
        "deletionTimestamp" in meta,
        meta.get("labels"),
        meta.get("annotations"),
        meta.get("ownerReferences"),
        *(live.get(part) for part in ("spec", "data", "rules", "roleRef", "subjects")),
        replicas_managers(live),
    )


def _lost_its_owner(child: Object, live: Mapping[str, Any]) -> bool:
    """Whether an object without owners is ours: only an object that was made for this very owner has this hash."""
    meta = live["metadata"]
    hashes = [(one.get("annotations") or {}).get(ANNOTATION_HASH) for one in (meta, child["metadata"])]
    return not meta.get("ownerReferences") and hashes[0] is not None and hashes[0] == hashes[1]


def _taken(kind: Kind, name: str) -> NameTaken:
    return NameTaken(
        f"A {kind.kind} named {name!r} exists and does not belong to this resource. "
        f"Choose another name, or delete that {kind.kind}."
    )


@dataclass(frozen=True, slots=True)
class Rollout:
    """`surge`: a new pod starts before an old one is deleted; otherwise an old one is deleted first."""

    surge: bool
    reason: str
    """A sentence for the log."""


def choose_rollout(strategy: RolloutStrategy, *, gpus: int, free: Iterable[int] | None) -> Rollout:
    """`free` are the unused accelerators of each node that has the class; None where that is unknown.

    A surge that finds no room would wait without end, and the old model would stay; a replacement without need takes
    capacity away for as long as a model loads.
    """
    if strategy is RolloutStrategy.SURGE:
        return Rollout(True, "spec.rollout.strategy is Surge.")
    if strategy is RolloutStrategy.REPLACE:
        return Rollout(False, "spec.rollout.strategy is Replace.")
    if free is None:
        return Rollout(False, "It is not known what is free, so one replica is replaced at a time.")
    roomy = sum(units >= gpus for units in free)
    if roomy:
        return Rollout(True, f"{roomy} nodes have {gpus} accelerators free, so a new replica starts first.")
    return Rollout(False, f"No node has {gpus} accelerators free, so one replica is replaced at a time.")


def free_units(
    accelerator: Accelerator, nodes: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]
) -> list[int]:
    """Unused units of the class on each node that a pod could be placed on: allocatable less what pods ask for."""
    resource = accelerator.resource
    free = {
        node["metadata"]["name"]: _units((node.get("status") or {}).get("allocatable"), resource)
        for node in nodes
        if _usable(node, accelerator)
    }
    for pod in pods:
        name, phase = pod["spec"].get("nodeName"), (pod.get("status") or {}).get("phase")
        if name in free and phase not in ("Succeeded", "Failed"):
            free[name] -= sum(
                _units((container.get("resources") or {}).get("requests"), resource)
                for container in pod["spec"].get("containers") or ()
            )
    return list(free.values())


def _usable(node: Mapping[str, Any], accelerator: Accelerator) -> bool:
    labels = node["metadata"].get("labels") or {}
    if (node.get("spec") or {}).get("unschedulable"):
        return False
    return not accelerator.node_labels or any(labels.get(key) in values for key, values in accelerator.node_labels)


def _units(quantities: Mapping[str, Any] | None, resource: str) -> int:
    value = amount(str((quantities or {}).get(resource, "0")))
    return int(value or Decimal(0))


DELETED_FIRST: Final = "-1"


def pods_to_delete(pods: Sequence[Pod], load: Mapping[str, float], count: int) -> frozenset[str]:
    """Uids of the ready pods that go when `count` pods do. `load` are requests by uid; one that is unknown is full."""
    alive = [pod for pod in pods if not pod.terminating]
    ready = sorted((pod for pod in alive if pod.ready), key=lambda pod: (load.get(pod.uid, math.inf), pod.name))
    return frozenset(pod.uid for pod in ready[: max(0, count - (len(alive) - len(ready)))])


def deletion_costs(pods: Sequence[Pod], chosen: Collection[str]) -> dict[str, str | None]:
    """The annotation by pod name, None to take it away; only for pods whose own differs."""
    return {
        pod.name: DELETED_FIRST if pod.uid in chosen else None
        for pod in pods
        if not pod.terminating and (pod.deletion_cost == DELETED_FIRST) != (pod.uid in chosen)
    }


class Rollouts:
    """Asks the apiserver once per changed template, and only where the answer matters."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def surges(
        self,
        key: Key,
        live: Mapping[str, Any] | None,
        *,
        strategy: RolloutStrategy,
        resolved: Resolved,
        template_hash: str,
    ) -> bool:
        """Whether the Deployment `live` shall surge; what was decided for a template stays until the next one."""
        if live is None:
            return strategy is RolloutStrategy.SURGE
        meta, update = live["metadata"], (live["spec"].get("strategy") or {}).get("rollingUpdate") or {}
        unchanged = (meta.get("annotations") or {}).get(ANNOTATION_TEMPLATE_HASH) == template_hash
        if unchanged and strategy is RolloutStrategy.AUTO:
            return update.get("maxSurge") == 1
        free = None
        if strategy is RolloutStrategy.AUTO and resolved.accelerator.resource:
            free = await self._free(resolved)
        decided = choose_rollout(strategy, gpus=resolved.gpus, free=free)
        if not unchanged:
            log.info("rollout", extra={"key": str(key), "surge": decided.surge, "why": decided.reason})
        return decided.surge

    async def _free(self, resolved: Resolved) -> list[int] | None:
        try:
            nodes = await self._all(NODE)
            pods = await self._all(POD)
        except Forbidden as refused:
            # An operator of a few namespaces sees no nodes.
            log.info("free accelerators are not known", extra={"cause": str(refused)})
            return None
        return free_units(resolved.accelerator, nodes, pods)

    async def _all(self, kind: Kind) -> list[dict[str, Any]]:
        return (await self._client.list(kind)).items


class PodDeletionCosts:
    """Writes annotations of pods, and only where the number of replicas is about to fall."""

    def __init__(self, client: KubeClient, store: Store) -> None:
        self._client = client
        self._store = store

    async def annotate(self, key: Key, replicas: int, load: Mapping[str, float]) -> None:
        """Before the Deployment gets fewer `replicas`; `load` are requests by pod uid."""
        live = self._store.get(DEPLOYMENT, key.namespace, key.name)
        going = 0 if live is None else live["spec"].get("replicas", 1) - replicas
        if going <= 0 or replicas == 0:
            return
        pods = [observed.pod(obj) for obj in self._store.owned_by(POD, key)]
        marks = deletion_costs(pods, pods_to_delete(pods, load, going))
        uids = {pod.name: pod.uid for pod in pods}
        await asyncio.gather(*(self._patch(key, name, uids[name], value) for name, value in marks.items()))

    async def _patch(self, key: Key, name: str, uid: str, value: str | None) -> None:
        # The uid makes the patch fail where another pod of that name has taken the pod's place.
        body = {"metadata": {"uid": uid, "annotations": {observed.DELETION_COST: value}}}
        try:
            patched = await self._client.patch(POD, name, body, namespace=key.namespace)
            self._store.put(POD, patched, writer=key)
        except (Conflict, NotReady) as gone:
            log.info("a pod was deleted before it was annotated", extra={"pod": name, "cause": str(gone)})


class StatusWriter:
    """Server-side apply to /status, at most once per `interval_s` for one resource and generation.

    A rollout moves several counters within milliseconds; each write would wake every watcher, Argo CD among them.
    """

    def __init__(self, client: KubeClient, store: Store, *, interval_s: float, clock: Callable[[], float]) -> None:
        self._client = client
        self._store = store
        self._interval_s = interval_s
        self._clock = clock
        self._earliest: dict[Key, float] = {}

    async def write(
        self,
        key: Key,
        live: Mapping[str, Any],
        status: dict[str, Any],
        *,
        urgent: bool = False,
        writer: Key | None = None,
    ) -> float | None:
        """Write if different. Returns None when the cluster has `status`, else the seconds to come back in.

        `urgent` skips the wait: for errors, which a user waits for, and for a spec that was not answered before. Raises
        Conflict when the resource is another by now: the answer would hold a spec that was not reconciled, and its
        event, being older, would tell the store nothing new. This write does not wake `writer`, by default `key`.
        """
        old: Mapping[str, Any] = live.get("status") or {}
        if old == status:
            return None
        now = self._clock()
        wait_s = self._earliest.get(key, 0.0) - now
        if wait_s > 0 and not urgent:
            return wait_s
        body = {
            "apiVersion": API_VERSION,
            "kind": key.kind.kind,
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                **{name: live["metadata"][name] for name in ("uid", "resourceVersion")},
            },
            "status": status,
        }
        applied = await self._client.apply_status(key.kind, body, manager=STATUS_MANAGER)
        self._earliest[key] = now + self._interval_s
        self._store.put(key.kind, applied, writer=writer or key)
        return None

    def defer(self, key: Key) -> None:
        """Children were just written: let them settle for one interval before the next status."""
        self._earliest[key] = self._clock() + self._interval_s

    def forget(self, key: Key) -> None:
        """Drop a resource that was deleted."""
        self._earliest.pop(key, None)


def record_transition_events(
    events: EventRecorder, kind: Kind, live: Mapping[str, Any], conditions: Iterable[Mapping[str, Any]]
) -> None:
    """Record an event for each summary condition that changed; a restart changes none."""
    before = {c["type"]: (c["status"], c["reason"]) for c in (live.get("status") or {}).get("conditions") or ()}
    for now in conditions:
        bad = now["type"] == "Stalled" and now["status"] == "True"
        good = now["type"] == "Ready" and now["status"] == "True"
        if (bad or good) and before.get(now["type"]) != (now["status"], now["reason"]):
            events.record(
                kind,
                live,
                topic=now["type"],
                reason=now["reason"],
                note=now["message"],
                type_="Warning" if bad else "Normal",
            )
