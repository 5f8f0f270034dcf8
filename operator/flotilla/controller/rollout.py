"""How pods are replaced (surge or one at a time), and which pods a scale-in removes first."""

import asyncio
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from flotilla.api.model_deployment import RolloutStrategy
from flotilla.api.types import amount
from flotilla.catalog.accelerators import Accelerator
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.errors import Conflict, Forbidden, NotReady
from flotilla.kube import observed
from flotilla.kube.client import KubeClient
from flotilla.kube.keys import Key
from flotilla.kube.kinds import DEPLOYMENT, NODE, POD, Kind
from flotilla.kube.observed import Pod
from flotilla.kube.store import Store
from flotilla.planning.resolve import Resolved

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rollout:
    """`surge`: a new pod starts before an old one is deleted; otherwise an old one is deleted first."""

    surge: bool
    reason: str
    """A sentence for the log."""


def decide(strategy: RolloutStrategy, *, gpus: int, free: Iterable[int] | None) -> Rollout:
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


def free_units(accelerator: Accelerator, nodes: Iterable[Object], pods: Iterable[Object]) -> list[int]:
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


def _usable(node: Object, accelerator: Accelerator) -> bool:
    labels = node["metadata"].get("labels") or {}
    if (node.get("spec") or {}).get("unschedulable"):
        return False
    return not accelerator.node_labels or any(labels.get(key) in values for key, values in accelerator.node_labels)


def _units(quantities: Mapping[str, Any] | None, resource: str) -> int:
    value = amount(str((quantities or {}).get(resource, "0")))
    return int(value or Decimal(0))


DELETED_FIRST: Final = "-1"


def choose(pods: Sequence[Pod], load: Mapping[str, float], count: int) -> frozenset[str]:
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


log = logging.getLogger(__name__)


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
        decided = decide(strategy, gpus=resolved.gpus, free=free)
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
        marks = deletion_costs(pods, choose(pods, load, going))
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
