"""Decide how a changed pod template rolls out, from what the cluster has free at that moment."""

import logging
from collections.abc import Mapping
from typing import Any

from flotilla.api.pods import RolloutStrategy
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.control.keys import Key
from flotilla.domain import rollout
from flotilla.domain.resolve import Resolved
from flotilla.errors import Forbidden
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import NODE, POD, Kind

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
        decided = rollout.decide(strategy, gpus=resolved.gpus, free=free)
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
        return rollout.free_units(resolved.accelerator, nodes, pods)

    async def _all(self, kind: Kind) -> list[dict[str, Any]]:
        return (await self._client.list(kind)).items
