"""The work queue, keyed and with backoff per key, and the workers that take from it."""

import asyncio
import heapq
import logging
import random
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Protocol, TypeVar

from flotilla.console.metrics import Metrics
from flotilla.errors import Conflict, Ending, FlotillaError, NotReady, Transient
from flotilla.kube.keys import Key
from flotilla.kube.kinds import Kind

K = TypeVar("K", bound=Hashable)


class Queue(Generic[K]):
    """The work queue of client-go in asyncio: dedup, in-flight exclusion, delayed adds, backoff per key.

    Confined to one event loop. `clock` gives seconds that only grow.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        base_s: float = 0.2,
        cap_s: float = 60.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._base_s = base_s
        self._cap_s = cap_s
        self._jitter = jitter
        self._line: deque[K] = deque()
        self._since: dict[K, float] = {}
        """When each key of the line joined it."""
        self._working: set[K] = set()
        self._again: set[K] = set()
        """Keys that were added while they were at work."""
        self._due: dict[K, float] = {}
        self._timers: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Put the key in line, unless it is there already."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self._clock()
            self._line.append(key)
            self._wake.set()

    def add_after(self, key: K, delay_s: float) -> None:
        """Put the key in line later; of several such wishes the earliest holds."""
        due = self._clock() + max(delay_s, 0.0)
        if key not in self._since and due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._sequence += 1
            heapq.heappush(self._timers, (due, self._sequence, key))
            self._wake.set()

    def retry(self, key: K, *, after_s: float | None = None) -> None:
        """The key failed: come back after its backoff, or after the server's own wish if that is longer."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        backoff_s = min(self._base_s * 2 ** min(failures, 30), self._cap_s)
        backoff_s *= 0.5 + 0.5 * self._jitter()
        self.add_after(key, max(backoff_s, after_s or 0.0))

    def succeeded(self, key: K) -> None:
        """The key worked: its next failure waits `base_s` again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key; the caller must say `done` in the end."""
        while True:
            wait_s = self._promote()
            if self._line:
                key = self._line.popleft()
                del self._since[key]
                self._working.add(key)
                return key
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The key is no longer at work; if it was added meanwhile, it goes in line again."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    @property
    def depth(self) -> int:
        """Keys in line."""
        return len(self._line)

    @property
    def working(self) -> int:
        """Keys at work."""
        return len(self._working)

    @property
    def oldest_age_s(self) -> float:
        """How long the first in line waits; 0 when nobody does."""
        return self._clock() - self._since[self._line[0]] if self._line else 0.0

    def _promote(self) -> float | None:
        """Move what is due into the line; returns the seconds to the next timer."""
        now = self._clock()
        while self._timers:
            due, _, key = self._timers[0]
            if self._due.get(key) != due:
                heapq.heappop(self._timers)
            elif due <= now:
                heapq.heappop(self._timers)
                self.add(key)
            else:
                return due - now
        return None


log = logging.getLogger(__name__)


class Reconciler(Protocol):
    """Level-triggered: looks at the store, not at what happened."""

    async def reconcile(self, key: Key) -> float | None:
        """Bring the cluster in line; returns the seconds after which to look again, or None for the next event."""


class Workers:
    """Runs `count` tasks; a failing key backs off by itself and holds up nobody else."""

    def __init__(
        self,
        queue: Queue[Key],
        reconcilers: Mapping[Kind, Reconciler],
        metrics: Metrics,
        *,
        count: int,
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._reconcilers = reconcilers
        self._metrics = metrics
        self._count = count
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._work(), name=f"worker-{number}")

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._one(key)
            finally:
                self._queue.done(key)

    async def _one(self, key: Key) -> None:
        started = self._clock()
        outcome = "success"
        try:
            again_s = await self._reconcilers[key.kind].reconcile(key)
            self._queue.succeeded(key)
            if again_s is not None:
                self._queue.add_after(key, again_s)
        except Ending as ending:
            outcome = "ending"
            self._queue.succeeded(key)
            log.debug("reconcile ends with its namespace", extra={"key": str(key), "cause": str(ending)})
        except NotReady as waiting:
            outcome = "waiting"
            self._queue.retry(key)
            log.info("reconcile waits", extra={"key": str(key), "cause": str(waiting)})
        except (Transient, Conflict) as failure:
            outcome = "retry"
            self._queue.retry(key, after_s=getattr(failure, "retry_after_s", None))
            log.warning("reconcile is retried", extra={"key": str(key), "cause": str(failure)})
        except FlotillaError as failure:
            outcome = "error"
            self._queue.retry(key)
            log.error("reconcile failed", extra={"key": str(key), "cause": str(failure)})
        except Exception:
            outcome = "panic"
            self._queue.retry(key)
            log.exception("reconcile crashed; please report this", extra={"key": str(key)})
        finally:
            self._metrics.reconciled(key.kind.kind, outcome, self._clock() - started)
