"""EndpointSlices of the gateway's namespace, by list and watch. Without the apiserver the last known ones serve."""

import asyncio
from collections.abc import Sequence

from flotilla.gateway.endpoints import EndpointBook
from flotilla.kube.client import KubeClient
from flotilla.kube.informer import Informer, Object
from flotilla.kube.kinds import ENDPOINT_SLICE, Kind


class Discovery:
    """Keeps an EndpointBook equal to the cluster: the cache of an informer."""

    def __init__(self, client: KubeClient, namespace: str, book: EndpointBook, synced: asyncio.Event) -> None:
        """`synced` is set by the first whole list."""
        self._book = book
        self._synced = synced
        self._slices: dict[str, Object] = {}
        self._informer = Informer(client, self, ENDPOINT_SLICE, namespace=namespace)

    async def run(self) -> None:
        """List and watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run())
            await self._informer.synced.wait()
            self._synced.set()

    def put(self, kind: Kind, obj: Object) -> None:
        """See `Cache`."""
        self._slices[obj["metadata"]["name"]] = obj
        self._book.put(obj)

    def drop(self, kind: Kind, obj: Object, *, resource_version: str = "") -> None:
        """See `Cache`."""
        self._slices.pop(obj["metadata"]["name"], None)
        self._book.remove(obj["metadata"]["name"])

    def objects(self, kind: Kind, namespace: str | None = None) -> Sequence[Object]:
        """See `Cache`."""
        return list(self._slices.values())
