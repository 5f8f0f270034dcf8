"""LISTs of Flotilla's own kinds, and a look at every resource now and then.

What the operator made (children and pods) is kept by informers, which list by themselves whenever that is needed. Its
own kinds are watched by kopf, which does not report what was deleted while it did not watch: so each LIST of kopf's is
followed by one of ours (`trigger`), which drops what is gone. A LIST each `interval_s` bounds the damage if a moment is
missed. Then every resource is reconciled again too, because some facts (a quota, another owner's object) send no event.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from flotilla.errors import FlotillaError, Transient
from flotilla.kube.informer import Informer, in_slices
from flotilla.kube.kinds import USER_KINDS, Key
from flotilla.kube.store import Store, owner

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_DEBOUNCE_S = 0.5
"""kopf lists its kinds at about the same time; one pass of ours follows them all."""


class Resync:
    """`first` fills the store before any work begins, `run` keeps its promise for as long as the operator leads."""

    def __init__(
        self,
        own: Sequence[Informer],
        others: Sequence[Informer],
        store: Store,
        *,
        interval_s: float,
        enqueue: Callable[[Key], None],
    ) -> None:
        """`own` are informers of Flotilla's own kinds, of which only the LIST is used; `others` run elsewhere."""
        self._own = tuple(own)
        self._others = tuple(others)
        self._store = store
        self._interval_s = interval_s
        self._enqueue = enqueue
        self._list_wanted = False
        self._look_wanted = False
        self._hurry = asyncio.Event()

    def trigger(self) -> None:
        """Ask for a LIST now: kopf made one."""
        self._list_wanted = True
        self._hurry.set()

    def trigger_all(self) -> None:
        """Ask for a look at every resource: something that all of them depend on has changed, such as prices."""
        self._look_wanted = True
        self._hurry.set()

    async def first(self) -> None:
        """Wait until the store holds everything; tries until that succeeds (404 without the CRDs, 429 just after)."""
        while True:
            try:
                await self.list_own()
                break
            except FlotillaError as failure:
                log.warning("initial list is retried", extra={"cause": str(failure)})
                await asyncio.sleep(_pause_s(failure))
        for informer in self._others:
            await informer.synced.wait()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval_s
        while True:
            try:
                async with asyncio.timeout_at(due):
                    await self._hurry.wait()
                    await asyncio.sleep(_DEBOUNCE_S)
            except TimeoutError:
                due = loop.time() + self._interval_s
                self._list_wanted = self._look_wanted = True
            self._hurry.clear()
            if self._look_wanted:
                self._look_wanted = False
                await self.enqueue_all()
            if self._list_wanted:
                self._list_wanted = not await self._listed()

    async def _listed(self) -> bool:
        try:
            await self.list_own()
        except FlotillaError as failure:
            log.warning("list is retried", extra={"cause": str(failure)})
            await asyncio.sleep(_pause_s(failure))
            self._hurry.set()
            return False
        return True

    async def list_own(self) -> None:
        """LIST Flotilla's own kinds into the store, which reports what changed."""
        for informer in self._own:
            await informer.replace()

    async def enqueue_all(self) -> None:
        """Queue every resource, in slices between which others run."""
        for kind in USER_KINDS:
            async for objects in in_slices(self._store.objects(kind)):
                for obj in objects:
                    key = owner(kind, obj)
                    if key is not None:
                        self._enqueue(key)


def _pause_s(failure: FlotillaError) -> float:
    """What the apiserver wishes, or a second."""
    wish_s = failure.retry_after_s if isinstance(failure, Transient) else None
    return wish_s or _RETRY_S
