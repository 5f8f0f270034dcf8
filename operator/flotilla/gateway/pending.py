"""Requests that wait for a model without a replica: their queue, and the counter that tells the operator of them.

`PendingQueue` is bounded in time, number and bytes. When a replica becomes ready, requests are released one after
another in their order, and not all at once: that would fill the queue of the new engine in one step. `HeldCounter` is
behind `GET /held` of the admin server, with which the operator learns at once of requests that wait.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from flotilla.api.routing_policy import Hold

RELEASED_PER_S = 50.0
"""Requests of one model that are released in a second: about what a small engine admits."""
HEARTBEAT_S = 15.0
"""Interval of comments in a waiting stream. Load balancers close silent connections after 30 to 60 s."""

MAX_POLLS = 8
"""Polls that may wait at the same time, each on a thread. One operator leads, so one is usual."""
MAX_WAIT_S = 25.0
"""Load balancers and proxies close connections that are silent for 30 to 60 s."""


class WaitResult(StrEnum):
    """How a wait ended."""

    READY = "Ready"
    FULL = "Full"
    EXPIRED = "Expired"


class PendingQueue:
    """The waiting requests of one gateway, in one queue for each ModelDeployment (`owner`)."""

    def __init__(self, *, released_per_s: float = RELEASED_PER_S, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._loop = asyncio.get_running_loop()
        self.heartbeat_s = heartbeat_s
        self._release_interval_s = 1 / released_per_s
        self._waiters: dict[str, deque[asyncio.Future[None]]] = {}
        self._releasing: dict[str, asyncio.TimerHandle] = {}
        self._requests: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self.on_wait: Callable[[], None] = lambda: None
        """Called when the number of requests that wait for one model becomes 1, 2, 4, 8 and so on."""

    def count(self, owner: str) -> int:
        """How many requests wait for a ModelDeployment."""
        return len(self._waiters.get(owner, ()))

    async def wait(self, owner: str, policy: str, bounds: Hold, *, size: int, timeout_s: float) -> WaitResult:
        """Wait until `owner` has an endpoint, within the bounds of the policy (by uid) and `timeout_s`."""
        count, held_bytes = self._requests.get(policy, 0), self._bytes.get(policy, 0)
        wait_s = min(bounds.max_wait_seconds, timeout_s)
        if count >= bounds.max_requests or held_bytes + size > bounds.max_bytes or wait_s <= 0:
            return WaitResult.FULL
        waiter: asyncio.Future[None] = self._loop.create_future()
        queue = self._waiters.setdefault(owner, deque())
        queue.append(waiter)
        if len(queue).bit_count() == 1:
            self.on_wait()
        self._requests[policy], self._bytes[policy] = count + 1, held_bytes + size
        try:
            async with asyncio.timeout(wait_s):
                await waiter
        except TimeoutError:
            return WaitResult.EXPIRED
        finally:
            self._requests[policy] -= 1
            self._bytes[policy] -= size
            self._leave(owner, waiter)
        return WaitResult.READY

    def notify_ready(self, owner: str) -> None:
        """A ModelDeployment has a new endpoint: release its waiting requests, one by one."""
        if self._waiters.get(owner) and owner not in self._releasing:
            self._release(owner)

    def notify_gone(self, owner: str) -> None:
        """A request that was released found no endpoint: keep the others until `notify_ready`."""
        if (timer := self._releasing.pop(owner, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """Stop the timers."""
        for timer in self._releasing.values():
            timer.cancel()
        self._releasing.clear()

    def _release(self, owner: str) -> None:
        queue = self._waiters.get(owner)
        while queue:
            waiter = queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if queue:
            self._releasing[owner] = self._loop.call_later(self._release_interval_s, self._release, owner)
        else:
            self._releasing.pop(owner, None)
            self._waiters.pop(owner, None)

    def _leave(self, owner: str, waiter: "asyncio.Future[None]") -> None:
        queue = self._waiters.get(owner)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                self._waiters.pop(owner, None)


class HeldCounter:
    """Counts from 0 at the start of the process; safe to use from several threads.

    The event loop increments it when requests begin to wait. Each long poll waits on a thread of the admin server until
    the counter differs from the value that the caller knows.
    """

    def __init__(self, *, max_polls: int = MAX_POLLS) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._polls = 0
        self._max_polls = max_polls
        self._closed = False

    @property
    def polls(self) -> int:
        """Polls that wait now."""
        return self._polls

    def increment(self) -> None:
        """Answer all polls."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def poll(self, after: int, timeout_s: float) -> int | None:
        """Block until the counter differs from `after`, at most `timeout_s`, and return it. None: too many polls wait.

        Different and not only greater: the counter of a restarted gateway is smaller than the one the caller knows.
        """
        with self._changed:
            if self._count == after and not self._closed:
                if self._polls >= self._max_polls:
                    return None
                self._polls += 1
                try:
                    self._changed.wait_for(lambda: self._closed or self._count != after, min(timeout_s, MAX_WAIT_S))
                finally:
                    self._polls -= 1
            return self._count

    def close(self) -> None:
        """Answer all polls; later ones do not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
