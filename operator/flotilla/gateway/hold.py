"""Requests that wait for a model without a replica: bounded in time, number and bytes, first come first served.

When a replica comes up they are let go one after another and not all at once, which would fill its queue in one step.
"""

import asyncio
from collections import deque
from enum import StrEnum

from flotilla.api.routing_policy import Hold

RELEASED_PER_S = 50.0
"""Of one model: about what a small engine admits in a second."""
HEARTBEAT_S = 15.0
"""Between the comments that a held stream gets; balancers and proxies close silent connections after 30 to 60 s."""


class Held(StrEnum):
    """How a wait ended."""

    READY = "Ready"
    FULL = "Full"
    EXPIRED = "Expired"


class WaitingRoom:
    """All waits of one gateway."""

    def __init__(self, *, released_per_s: float = RELEASED_PER_S, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._loop = asyncio.get_running_loop()
        self.heartbeat_s = heartbeat_s
        self._gap_s = 1 / released_per_s
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._releasing: dict[str, asyncio.TimerHandle] = {}
        self._count: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def waiting(self, owner: str) -> int:
        """Requests that wait for a ModelDeployment."""
        return len(self._lines.get(owner, ()))

    async def wait(self, owner: str, policy: str, bounds: Hold, *, size: int, timeout_s: float) -> Held:
        """Wait for `owner` to be ready, within the policy's bounds and `timeout_s`."""
        count, held_bytes = self._count.get(policy, 0), self._bytes.get(policy, 0)
        patience_s = min(bounds.max_wait_seconds, timeout_s)
        if count >= bounds.max_requests or held_bytes + size > bounds.max_bytes or patience_s <= 0:
            return Held.FULL
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._lines.setdefault(owner, deque()).append(waiter)
        self._count[policy], self._bytes[policy] = count + 1, held_bytes + size
        try:
            async with asyncio.timeout(patience_s):
                await waiter
        except TimeoutError:
            return Held.EXPIRED
        finally:
            self._count[policy] -= 1
            self._bytes[policy] -= size
            self._leave(owner, waiter)
        return Held.READY

    def ready(self, owner: str) -> None:
        """A ModelDeployment has a new endpoint: let those that wait go, one by one."""
        if self._lines.get(owner) and owner not in self._releasing:
            self._release(owner)

    def close(self) -> None:
        """Stop releasing."""
        for timer in self._releasing.values():
            timer.cancel()
        self._releasing.clear()

    def _release(self, owner: str) -> None:
        line = self._lines.get(owner)
        while line:
            waiter = line.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if line:
            self._releasing[owner] = self._loop.call_later(self._gap_s, self._release, owner)
        else:
            self._releasing.pop(owner, None)
            self._lines.pop(owner, None)

    def _leave(self, owner: str, waiter: "asyncio.Future[None]") -> None:
        line = self._lines.get(owner)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                self._lines.pop(owner, None)
