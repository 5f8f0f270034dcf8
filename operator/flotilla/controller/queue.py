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
from flotilla.kube.kinds import Key, Kind

K = TypeVar("K", bound=Hashable)


class Queue(Generic[K]):
    """A work queue as in client-go: dedup, a key never at work twice, delayed adds, backoff per key. And it is fair.

    A key is finished before many others are begun: one whose last pass asked to come back (its status is still to be
    written) waits in a lane of its own, which gets three of four turns. The other turns go alternately to the oldest
    and to the newest of the other keys: a change is served soon although thousands wait, and none waits forever.

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
        self._begun: deque[K] = deque()
        """Keys in line whose last pass asked to come back."""
        self._others: deque[K] = deque()
        self._turn = 0
        self._since: dict[K, float] = {}
        """When each key in line joined it."""
        self._working: set[K] = set()
        self._again: set[K] = set()
        """Keys that were added while they were at work."""
        self._unfinished: set[K] = set()
        """Keys whose last pass asked to come back, in line or not."""
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
            (self._begun if key in self._unfinished else self._others).append(key)
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
        self._unfinished.discard(key)
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        backoff_s = min(self._base_s * 2 ** min(failures, 30), self._cap_s)
        backoff_s *= 0.5 + 0.5 * self._jitter()
        self.add_after(key, max(backoff_s, after_s or 0.0))

    def succeeded(self, key: K, *, again_s: float | None = None) -> None:
        """The key worked: its next failure waits `base_s` again. With `again_s` it comes back then, to be finished."""
        self._failures.pop(key, None)
        if again_s is None:
            self._unfinished.discard(key)
        else:
            self._unfinished.add(key)
            self.add_after(key, again_s)

    async def get(self) -> K:
        """The next key; the caller must say `done` when the work is finished."""
        while True:
            wait_s = self._promote()
            if self._since:
                key = self._take()
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
        """The key is no longer at work; if it was added meanwhile, it is queued again."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    @property
    def depth(self) -> int:
        """Keys in line."""
        return len(self._since)

    @property
    def working(self) -> int:
        """Keys at work."""
        return len(self._working)

    @property
    def oldest_age_s(self) -> float:
        """How long the key that waits longest has waited; 0 when none does."""
        now = self._clock()
        return max((now - self._since[lane[0]] for lane in (self._begun, self._others) if lane), default=0.0)

    def _take(self) -> K:
        self._turn += 1
        if self._begun and (self._turn % 4 or not self._others):
            return self._begun.popleft()
        return self._others.popleft() if self._turn % 8 < 4 else self._others.pop()

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
    """Level-triggered: reads the store, not the event."""

    async def reconcile(self, key: Key) -> float | None:
        """Bring the cluster in line; returns the seconds after which to look again, or None for the next event."""


class Workers:
    """Runs `count` tasks. A key that fails backs off by itself and does not hold up others."""

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
            self._queue.succeeded(key, again_s=again_s)
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
