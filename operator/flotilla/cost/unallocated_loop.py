"""GPUs that exist and that no pod holds, by class, and what they cost per hour."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from flotilla.api.types import amount
from flotilla.catalog.accelerators import WHOLE_GPUS, Accelerator
from flotilla.constants import LABEL_MANAGED_BY, MANAGER
from flotilla.cost.gpu_prices import NodeFacts, PriceSources, node_facts, pod_units, rate
from flotilla.errors import Forbidden, Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import NODE, POD
from flotilla.kube.store import Store

Object = Mapping[str, Any]
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class GpuNode:
    """A node with GPUs of known classes."""

    facts: NodeFacts
    units: Mapping[str, int]
    """Of each extended resource, whether healthy or not: all are paid for."""
    classes: Mapping[str, Accelerator]
    """By extended resource."""
    others: Mapping[str, int]
    """Units that pods of others hold."""

    def with_others(self, pods: Iterable[Object]) -> "GpuNode":
        """The node when these are the pods on it that are not the operator's."""
        return replace(self, others=held(pods).get(self.facts.name, {}))


def gpu_node(obj: Object, accelerators: Iterable[Accelerator], whole: frozenset[str]) -> GpuNode | None:
    """Reduce a v1 Node; None for one without GPUs of a class. `whole` are the resources that are whole GPUs."""
    labels = obj["metadata"].get("labels") or {}
    capacity = (obj.get("status") or {}).get("capacity") or {}
    classes: dict[str, Accelerator] = {}
    for accelerator in accelerators:
        known = any(labels.get(key) in values for key, values in accelerator.node_labels)
        if known and accelerator.resource in capacity:
            classes.setdefault(accelerator.resource, accelerator)
    units = {resource: _count(capacity[resource]) for resource in classes}
    return GpuNode(node_facts(obj, whole), units, classes, {}) if any(units.values()) else None


def held(pods: Iterable[Object]) -> dict[str, dict[str, int]]:
    """Units that pods hold, by node and extended resource; init containers run before the others."""
    found: dict[str, dict[str, int]] = {}
    for pod in pods:
        spec, phase = pod["spec"], (pod.get("status") or {}).get("phase")
        node = spec.get("nodeName")
        if not node or phase in ("Succeeded", "Failed"):
            continue
        asked: dict[str, int] = {}
        for container in spec.get("containers") or ():
            for resource, count in _requests(container):
                asked[resource] = asked.get(resource, 0) + count
        for container in spec.get("initContainers") or ():
            for resource, count in _requests(container):
                asked[resource] = max(asked.get(resource, 0), count)
        on_node = found.setdefault(node, {})
        for resource, count in asked.items():
            on_node[resource] = on_node.get(resource, 0) + count
    return found


def usd_per_hour(
    nodes: Iterable[GpuNode], own: Mapping[str, Mapping[str, int]], sources: PriceSources
) -> dict[str, Decimal]:
    """US dollars per hour by class; `own` are the units of the operator's pods, as `held` gives them.

    A class of which a free GPU has no price is unknown, and not in it.
    """
    found: dict[str, Decimal] = {}
    unknown: set[str] = set()
    for node in nodes:
        ours = own.get(node.facts.name, {})
        for resource, accelerator in node.classes.items():
            free = max(0, node.units[resource] - node.others.get(resource, 0) - ours.get(resource, 0))
            price = rate(accelerator, node=node.facts, sources=sources)
            if price is None:
                unknown.add(accelerator.class_name)
                continue
            usd = price.gpu_usd_per_hour * pod_units(accelerator, free, node.facts)
            found[accelerator.class_name] = found.get(accelerator.class_name, _ZERO) + usd
    return {name: usd for name, usd in found.items() if name not in unknown}


def _requests(container: Object) -> Iterable[tuple[str, int]]:
    """Extended resources only: their names have a domain."""
    requests = (container.get("resources") or {}).get("requests") or {}
    return [(name, _count(value)) for name, value in requests.items() if "/" in name]


def _count(value: Any) -> int:
    return int(amount(str(value)) or 0)


log = logging.getLogger(__name__)

_RETRY_S = 30.0
_OF_OTHERS = f"{LABEL_MANAGED_BY}!={MANAGER}"


class Unallocated:
    """`run` refreshes it; `usd_per_hour` is the newest result."""

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        accelerators: Collection[Accelerator],
        sources: Callable[[], PriceSources],
        *,
        interval_s: float,
    ) -> None:
        """`store` holds the pods that the operator manages."""
        self._client = client
        self._store = store
        self._accelerators = accelerators
        self._sources = sources
        self._interval_s = interval_s
        self._nodes: tuple[GpuNode, ...] = ()

    async def run(self) -> None:
        """Until cancelled, or for good where the operator may not see nodes."""
        while True:
            wait_s = self._interval_s
            try:
                await self.refresh()
            except Forbidden as refused:
                log.warning("GPUs that no pod holds are not known", extra={"cause": str(refused)})
                self._nodes = ()
                return
            except Transient as failure:
                log.info("free GPUs are counted again later", extra={"cause": str(failure)})
                wait_s = min(_RETRY_S, wait_s)
            await asyncio.sleep(wait_s)

    async def refresh(self) -> None:
        """Raises as a call does; what was seen before then stays."""
        nodes = [
            node
            async for page in self._client.pages(NODE)
            for obj in page.items
            if (node := gpu_node(obj, self._accelerators, WHOLE_GPUS)) is not None
        ]
        self._nodes = tuple([await self._with_others(node) for node in nodes])

    async def _with_others(self, node: GpuNode) -> GpuNode:
        running = f"spec.nodeName={node.facts.name},status.phase!=Succeeded,status.phase!=Failed"
        pages = self._client.pages(POD, label_selector=_OF_OTHERS, field_selector=running)
        return node.with_others([obj async for page in pages for obj in page.items])

    def usd_per_hour(self) -> dict[str, Decimal]:
        """By class; empty before the first look."""
        if not self._nodes:
            return {}
        return usd_per_hour(self._nodes, held(self._store.all(POD)), self._sources())
