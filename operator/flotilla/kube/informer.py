"""Keep a cache equal to what the apiserver has of one kind: LIST, then WATCH from there, for as long as it runs.

`Informer.run` is that loop. A watch that ends, breaks off or falls silent is opened again at the last version that was
seen, so that nothing is missed; where the apiserver no longer knows that version (410), everything is listed again.
`Informer.replace` is the LIST alone: it also drops what the LIST lacks, which finds deletions that no watch reported.

Work is done in slices, between which the event loop serves others: a page of a LIST, a chunk of a watch.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeVar

from flotilla.errors import FlotillaError, Transient
from flotilla.kube.client import SILENCE_S, WATCH_S, KubeClient, WatchEvent
from flotilla.kube.kinds import Kind

log = logging.getLogger(__name__)

Object = dict[str, Any]
T = TypeVar("T")

_PAGE_SIZE = 100
_SLICE = 200
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.2, 5.0
_BRIEF_S = 1.0
"""A watch that ends sooner and brought nothing counts as a failure, so that it is not opened in a tight loop."""


class Cache(Protocol):
    """Where an informer puts what it reads. A `Store` is one."""

    def put(self, kind: Kind, obj: Object) -> object:
        """Remember an object; older versions than the known one must be ignored."""

    def drop(self, kind: Kind, obj: Object, *, resource_version: str = "") -> object:
        """Forget an object, unless it is known at a newer version than `resource_version` (default: the object's)."""

    def objects(self, kind: Kind, namespace: str | None = None) -> Sequence[Object]:
        """All that is known of a kind."""


class Informer:
    """One kind, in one namespace or in all, optionally only what selectors match."""

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        on_events: Callable[[Kind], None] = lambda _: None,
        lasts_s: int = WATCH_S,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_events` is called when events have arrived; `lasts_s` and `silence_s` are those of `KubeClient.watch`."""
        self._client = client
        self._cache = cache
        self.kind = kind
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._on_events = on_events
        self._lasts_s = lasts_s
        self._silence_s = silence_s
        self._clock = clock
        self._version = ""
        """To watch from; empty when a LIST is needed first."""
        self._heard_at = clock()
        self._came = False
        """Whether the present watch has brought anything."""
        self.synced = asyncio.Event()
        """Set once the cache has held everything."""
        self.restarts = 0
        """How often the loop began again after an error."""

    @property
    def silent_s(self) -> float:
        """Seconds since the apiserver last sent anything; `lasts_s` at most while all is well."""
        return self._clock() - self._heard_at

    async def run(self) -> None:
        """Until cancelled. Errors are logged and retried with backoff, and never end it."""
        failures = 0
        while True:
            began, error = self._clock(), None
            self._came = False
            try:
                if not self._version:
                    await self.replace()
                    began = self._clock()
                await self._follow()
            except Exception as failure:  # noqa: BLE001 - whatever it is, the cache must not stay as it is
                error = failure
            brief = not self._came and self._clock() - began < _BRIEF_S
            failures = failures + 1 if brief else int(error is not None)
            wait_s = backoff_s(failures) if failures else 0.0
            await asyncio.sleep(wait_s if error is None else self._after(error, wait_s))

    async def replace(self) -> None:
        """LIST: put everything into the cache and drop what the LIST lacks. Raises as a call does."""
        uids: set[str] = set()
        pages = self._client.pages(
            self.kind,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            page_size=_PAGE_SIZE,
        )
        version = "0"
        async for page in pages:
            self._heard_at = self._clock()
            for item in page.items:
                uids.add(item["metadata"]["uid"])
                self._take("ADDED", item)
            version = page.resource_version
            await asyncio.sleep(0)
        async for known in in_slices(self._cache.objects(self.kind, self._namespace)):
            for obj in known:
                if obj["metadata"]["uid"] not in uids:
                    self._cache.drop(self.kind, obj, resource_version=version)
        self._version = version
        self.synced.set()

    async def _follow(self) -> None:
        """Watch until the stream ends."""
        async for events in self._client.watch(
            self.kind,
            resource_version=self._version,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            lasts_s=self._lasts_s,
            silence_s=self._silence_s,
        ):
            self._heard_at = self._clock()
            self._came = True
            self._apply(events)

    def _apply(self, events: Sequence[WatchEvent]) -> None:
        changes = 0
        for type_, obj in events:
            if type_ != "BOOKMARK":
                self._take(type_, obj)
                changes += 1
            self._version = obj["metadata"]["resourceVersion"]
        if changes:
            self._on_events(self.kind)

    def _take(self, type_: str, obj: Object) -> None:
        """One object must not keep the others from the cache, whatever is wrong with it."""
        try:
            if type_ == "DELETED":
                self._cache.drop(self.kind, obj)
            else:
                self._cache.put(self.kind, obj)
        except Exception:
            log.exception("event handler failed", extra={"resource": self.kind.plural, "object": _name(obj)})

    def _after(self, error: Exception, wait_s: float) -> float:
        """What an error means for the next round; returns how long to wait before it."""
        self.restarts += 1
        fields = {"resource": self.kind.plural, "namespace": self._namespace or "", "cause": str(error)}
        lost = type(error) is not Transient
        if lost:
            # The apiserver no longer knows the version (410), or something else than the network is wrong.
            self._version = ""
        if isinstance(error, FlotillaError):
            log.warning("watch interrupted", extra={**fields, "lists_again": lost, "retry_s": round(wait_s, 2)})
            wish_s = error.retry_after_s if isinstance(error, Transient) else None
            return max(wait_s, wish_s or 0.0)
        log.error("watch failed", extra=fields, exc_info=error)
        return wait_s


def backoff_s(failures: int) -> float:
    """Seconds to wait after the `failures`-th failure in a row, with jitter."""
    longest_s: float = min(_BACKOFF_BASE_S * 2 ** (failures - 1), _BACKOFF_CAP_S)
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


async def in_slices(items: Sequence[T], size: int = _SLICE) -> AsyncIterator[Sequence[T]]:
    """The items in pieces of `size`, between which the event loop serves others."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
        await asyncio.sleep(0)


def _name(obj: Any) -> str:
    try:
        return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
    except (KeyError, TypeError, AttributeError):
        return "unnamed"
