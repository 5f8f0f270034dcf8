"""Keeps an eye on the GPUs of the cluster that no pod holds.

One LIST of nodes and one of the others' pods on each node with GPUs, in each interval: a LIST of all pods would be tens
of megabytes in a large cluster, of which a node's are a few. The operator's own pods are in the store, to the second.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from decimal import Decimal

from flotilla.constants import LABEL_MANAGED_BY, MANAGER
from flotilla.domain import unallocated
from flotilla.domain.accelerators import WHOLE_GPUS, Accelerator
from flotilla.domain.pricing import PriceSources
from flotilla.errors import Forbidden, Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import NODE, POD
from flotilla.kube.store import Store

log = logging.getLogger(__name__)

_RETRY_S = 30.0
_OF_OTHERS = f"{LABEL_MANAGED_BY}!={MANAGER}"


class Unallocated:
    """`run` looks; `usd_per_hour` tells."""

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
        self._nodes: tuple[unallocated.GpuNode, ...] = ()

    async def run(self) -> None:
        """Until cancelled, or for good where the operator may not see nodes."""
        while True:
            wait_s = self._interval_s
            try:
                await self.look()
            except Forbidden as refused:
                log.warning("GPUs that no pod holds are not known", extra={"cause": str(refused)})
                self._nodes = ()
                return
            except Transient as failure:
                log.info("free GPUs are counted again later", extra={"cause": str(failure)})
                wait_s = min(_RETRY_S, wait_s)
            await asyncio.sleep(wait_s)

    async def look(self) -> None:
        """Raises as a call does; what was seen before then stays."""
        nodes = [
            node
            async for page in self._client.pages(NODE)
            for obj in page.items
            if (node := unallocated.gpu_node(obj, self._accelerators, WHOLE_GPUS)) is not None
        ]
        self._nodes = tuple([await self._with_others(node) for node in nodes])

    async def _with_others(self, node: unallocated.GpuNode) -> unallocated.GpuNode:
        running = f"spec.nodeName={node.facts.name},status.phase!=Succeeded,status.phase!=Failed"
        pages = self._client.pages(POD, label_selector=_OF_OTHERS, field_selector=running)
        return node.with_others([obj async for page in pages for obj in page.items])

    def usd_per_hour(self) -> dict[str, Decimal]:
        """By class; empty before the first look."""
        if not self._nodes:
            return {}
        return unallocated.usd_per_hour(self._nodes, unallocated.held(self._store.all(POD)), self._sources())
