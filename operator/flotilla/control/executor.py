"""Make the children in the cluster equal to the plan, with as few calls as that takes: none for a steady resource."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from flotilla.constants import MANAGER, SCALER_MANAGER
from flotilla.control.keys import Key, controlled_by
from flotilla.errors import NameTaken, NotReady
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import DEPLOYMENT, POD_DISRUPTION_BUDGET, SERVICE, Kind
from flotilla.kube.protocol import FieldConflict
from flotilla.kube.store import Store, replicas_managers
from flotilla.render.diff import needs_apply

log = logging.getLogger(__name__)

Object = dict[str, Any]

CHILD_KINDS: tuple[Kind, ...] = (DEPLOYMENT, SERVICE, POD_DISRUPTION_BUDGET)
_BY_NAME = {kind.kind: kind for kind in CHILD_KINDS}


class Executor:
    """Server-side apply of what differs, prune of what the plan no longer has."""

    def __init__(self, client: KubeClient, store: Store) -> None:
        self._client = client
        self._store = store

    async def converge(self, key: Key, uid: str, children: Sequence[Object], *, replicas: int) -> int:
        """Apply, scale and prune; returns how many writes that took.

        Raises NameTaken when an object of a child's name belongs to somebody else, InvalidSpec when the apiserver
        refuses a child, NotReady while the children of a deleted namesake are still being collected.
        """
        writes = 0
        for child in children:
            kind = _BY_NAME[child["kind"]]
            live = self._live(kind, child, uid)
            if live is None or needs_apply(child, live):
                await self._apply(kind, child, live, replicas=replicas)
                writes += 1
        writes += await self._scale(key, replicas)
        for kind, stale in self._stale(key, uid, children):
            await self._client.delete(
                kind, stale["metadata"]["name"], namespace=key.namespace, uid=stale["metadata"]["uid"]
            )
            self._store.drop(kind, stale)
            log.info("child pruned", extra={"key": str(key), "child": f"{kind.kind}/{stale['metadata']['name']}"})
            writes += 1
        return writes

    def _live(self, kind: Kind, child: Object, uid: str) -> Object | None:
        meta = child["metadata"]
        live = self._store.get(kind, meta["namespace"], meta["name"])
        if live is None:
            return None
        if "deletionTimestamp" in live["metadata"]:
            raise NotReady(f"{kind.kind} {meta['name']} is being deleted.")
        if not controlled_by(live, uid):
            owners = [reference.get("kind") for reference in live["metadata"].get("ownerReferences") or ()]
            if meta["ownerReferences"][0]["kind"] in owners:
                raise NotReady(f"{kind.kind} {meta['name']} of a deleted namesake is still being collected.")
            raise _taken(kind, meta["name"])
        return live

    async def _apply(self, kind: Kind, child: Object, live: Object | None, *, replicas: int) -> None:
        meta = child["metadata"]
        # Selectors of Services and budgets merge, so that an apply would take over a stranger's object without a
        # conflict. A Deployment's selector is immutable and atomic: there the apply itself says no.
        blind = live is None and kind != DEPLOYMENT
        if blind and await self._client.get(kind, meta["name"], namespace=meta["namespace"]) is not None:
            raise _taken(kind, meta["name"])
        if kind == DEPLOYMENT and SCALER_MANAGER not in replicas_managers(live):
            # Until the scaler has written once, nobody else owns spec.replicas: leaving it out would reset it to 1.
            child = {**child, "spec": {**child["spec"], "replicas": replicas}}
        try:
            applied = await self._client.apply(kind, child, manager=MANAGER, force=live is not None)
        except FieldConflict as conflict:
            if live is None:
                raise _taken(kind, meta["name"]) from conflict
            raise
        self._store.put(kind, applied)
        log.info("child applied", extra={"child": f"{kind.kind} {meta['namespace']}/{meta['name']}"})

    async def _scale(self, key: Key, replicas: int) -> int:
        live = self._store.get(DEPLOYMENT, key.namespace, key.name)
        if live is None or live["spec"].get("replicas", 1) == replicas:
            return 0
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.kind,
            # The uid makes the apply fail rather than create, should the Deployment be gone by now.
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": live["metadata"]["uid"]},
            "spec": {"replicas": replicas},
        }
        self._store.put(DEPLOYMENT, await self._client.apply(DEPLOYMENT, body, manager=SCALER_MANAGER))
        log.info("scaled", extra={"key": str(key), "from": live["spec"].get("replicas", 1), "to": replicas})
        return 1

    def _stale(self, key: Key, uid: str, children: Sequence[Object]) -> Iterable[tuple[Kind, Object]]:
        wanted = {(child["kind"], child["metadata"]["name"]) for child in children}
        for kind in CHILD_KINDS:
            for live in self._store.owned_by(kind, key):
                mine = controlled_by(live, uid) and "deletionTimestamp" not in live["metadata"]
                if mine and (kind.kind, live["metadata"]["name"]) not in wanted:
                    yield kind, live


def _taken(kind: Kind, name: str) -> NameTaken:
    return NameTaken(
        f"A {kind.kind} named {name!r} exists and does not belong to this resource. "
        f"Rename the ModelDeployment, or delete that {kind.kind}."
    )
