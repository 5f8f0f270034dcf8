"""A full LIST replaces the store: at start, after a watch was restarted, and every few minutes.

Watches alone are not enough: after a 410 kopf lists again and says nothing of the objects that went meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flotilla.constants import GATEWAY, MANAGED_BY_SELECTOR
from flotilla.controller.apply import LISTED_KINDS
from flotilla.errors import Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.keys import USER_KINDS, Key, owner
from flotilla.kube.kinds import Kind
from flotilla.kube.store import Store

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_SECOND_LOOK_S = 15.0
"""Between our first LIST and the watch's own one an object may vanish unseen; one early second look closes that gap."""


class Resync:
    """Keeps the store honest."""

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        kinds: Sequence[Kind],
        *,
        namespaces: Sequence[str],
        interval_s: float,
        enqueue: Callable[[Key], None],
    ) -> None:
        self._client = client
        self._store = store
        self._kinds = kinds
        self._namespaces: Sequence[str | None] = tuple(namespaces) or (None,)
        self._interval_s = interval_s
        self._enqueue = enqueue
        self._hurry = asyncio.Event()

    def soon(self) -> None:
        """Ask for a pass now, for instance after a watch was restarted."""
        self._hurry.set()

    async def first(self) -> None:
        """Fill the store; tries until the apiserver answers (429 follows a CRD that was just made)."""
        while True:
            try:
                await self.once()
            except Transient as failure:
                log.warning("initial list is retried", extra={"cause": str(failure)})
                await asyncio.sleep(failure.retry_after_s or _RETRY_S)
            else:
                return

    async def run(self) -> None:
        """Until cancelled."""
        wait_s, first = min(_SECOND_LOOK_S, self._interval_s), True
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            try:
                await self.once(everyone=not first)
                wait_s, first = self._interval_s, False
            except Transient as failure:
                log.warning("resync is retried", extra={"cause": str(failure)})
                wait_s = failure.retry_after_s or _SECOND_LOOK_S

    async def once(self, *, everyone: bool = True) -> None:
        """One pass over every kind; wakes whoever owns something that changed, or `everyone`."""
        for kind in self._kinds:
            await self._one(kind)
        for kind in USER_KINDS if everyone else ():
            for obj in self._store.all(kind):
                self._wake(kind, (obj,))

    async def _one(self, kind: Kind) -> None:
        selector = None if kind in USER_KINDS else MANAGED_BY_SELECTOR
        # The operator may read these by their name only.
        name = f"metadata.name={GATEWAY}" if kind in LISTED_KINDS else None
        uids: set[str] = set()
        versions: list[int] = []
        for namespace in self._namespaces:
            async for page in self._client.pages(
                kind, namespace=namespace, label_selector=selector, field_selector=name
            ):
                uids.update(item["metadata"]["uid"] for item in page.items)
                self._wake(kind, [item for item in page.items if self._store.put(kind, item)])
                versions.append(int(page.resource_version))
        self._wake(kind, self._store.retain(kind, uids, resource_version=min(versions)))

    def _wake(self, kind: Kind, objects: Iterable[dict[str, Any]]) -> None:
        for obj in objects:
            key = owner(kind, obj)
            if key is not None:
                self._enqueue(key)
