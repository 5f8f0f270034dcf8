"""The side of the clients: listens, sweeps, drains."""

import asyncio
import contextlib

from flotilla.gateway.connection import Handler, ServerConnection
from flotilla.gateway.reader import ServerLimits

_SWEEP_S = 0.25
_SETTLE_S = 2.0
"""Requests that were cut off have accounts to settle before the store of limits is closed."""


class Server:
    """Listens, and hands each request to `handle`, at most one at a time of each connection."""

    def __init__(self, handle: Handler, limits: ServerLimits) -> None:
        self.handle = handle
        self.limits = limits
        self.connections: set[ServerConnection] = set()
        self.closing = False
        self.busy = 0
        """Requests that are being answered."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port in use, also where 0 asked for a free one."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def listen(self, host: str, port: int) -> None:
        """Accept connections from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ServerConnection(self, loop), host, port, backlog=2048)
        self._sweep = loop.call_later(_SWEEP_S, self._expire, loop)

    def leave(self) -> None:
        """Go on serving, but ask clients to come back by another connection, which finds another replica."""
        self.closing = True

    async def drain(self, grace_s: float) -> int:
        """Accept nothing more, close what is idle, let requests end; returns how many were cut off after `grace_s`."""
        self.leave()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        cut = self.busy
        for connection in list(self.connections):
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                await self._idle.wait()
        if self._sweep is not None:
            self._sweep.cancel()
        return cut

    def started(self) -> None:
        """A request is being answered."""
        self.busy += 1
        self._idle.clear()

    def ended(self) -> None:
        """A request has been answered, or its client has gone."""
        self.busy -= 1
        if not self.busy:
            self._idle.set()

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [c for c in self.connections if c.deadline_s <= now]:
            connection.expire()
        self._sweep = loop.call_later(_SWEEP_S, self._expire, loop)
