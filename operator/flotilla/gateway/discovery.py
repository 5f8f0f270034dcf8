"""EndpointSlices of the gateway's namespace, by list and watch. Without the apiserver what was known last is served."""

import asyncio
import logging
import random

from flotilla.errors import FlotillaError
from flotilla.gateway.endpoints import EndpointBook
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import ENDPOINT_SLICE

log = logging.getLogger(__name__)

_BACKOFF_S, _BACKOFF_LIMIT_S = 0.5, 15.0


class Discovery:
    """Keeps an EndpointBook as the cluster is."""

    def __init__(self, client: KubeClient, namespace: str, book: EndpointBook, synced: asyncio.Event) -> None:
        self._client, self._namespace, self._book = client, namespace, book
        self._synced = synced
        """Set by the first whole list."""

    async def run(self) -> None:
        """List and watch until cancelled."""
        wait_s = _BACKOFF_S
        while True:
            try:
                listed = await self._client.list(ENDPOINT_SLICE, namespace=self._namespace)
                self._book.replace(listed.items)
                self._synced.set()
                wait_s = _BACKOFF_S
                await self._follow(listed.resource_version)
            except FlotillaError as error:
                log.warning("endpoints are as last known", extra={"cause": str(error), "retry_s": round(wait_s, 1)})
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, _BACKOFF_LIMIT_S)

    async def _follow(self, version: str) -> None:
        """Until the watch ends. A silent end is usual: the apiserver closes each after some minutes."""
        async for kind, item in self._client.watch(ENDPOINT_SLICE, namespace=self._namespace, resource_version=version):
            if kind in ("ADDED", "MODIFIED"):
                self._book.put(item)
            elif kind == "DELETED":
                self._book.remove(item["metadata"]["name"])
