"""The side of the targets: connections kept alive by origin.

Nothing is dialled without a Permit, and never a place that is not the permitted target's own.
"""

import asyncio
import ssl
from contextlib import suppress

from flotilla.gateway.addresses import Resolver
from flotilla.gateway.origin import Origin, check
from flotilla.gateway.upstream_connection import Connection, Sink
from flotilla.routing.decide import Permit

_SWEEP_S = 1.0


class CannotConnect(Exception):
    """Nothing was sent: refused, unreachable, no TLS, no such host, or an address that must not be dialled."""


class Upstream:
    """Connections to all origins."""

    def __init__(self, *, resolver: Resolver, tls: ssl.SSLContext, connect_timeout_s: float = 5.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolver = resolver
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Origin, list[Connection]] = {}
        self._sweep = self._loop.call_later(_SWEEP_S, self._expire)

    async def send(self, permit: Permit, origin: Origin, data: bytes, sink: Sink) -> Connection:
        """Send a whole request; the answer goes to `sink`. Raises CannotConnect when nothing was sent."""
        check(permit, origin)
        connection = self._reused(origin) or await self._connect(origin)
        connection.send(data, sink)
        return connection

    async def resend(self, permit: Permit, origin: Origin, data: bytes, sink: Sink) -> Connection:
        """The same on a fresh connection, after a kept one turned out to be closed."""
        check(permit, origin)
        connection = await self._connect(origin)
        connection.send(data, sink)
        return connection

    def release(self, connection: Connection) -> None:
        """The connection can be used again."""
        connection.expires_s = self._loop.time() + connection.origin.keep_s
        self._idle.setdefault(connection.origin, []).append(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""
        kept = self._idle.get(connection.origin)
        if kept is not None:
            with suppress(ValueError):
                kept.remove(connection)
            if not kept:
                del self._idle[connection.origin]

    def close(self) -> None:
        """Close what is idle."""
        self._sweep.cancel()
        for kept in list(self._idle.values()):
            for connection in list(kept):
                connection.abort()
        self._idle.clear()

    def _reused(self, origin: Origin) -> Connection | None:
        kept = self._idle.get(origin)
        now = self._loop.time()
        while kept:
            connection = kept.pop()
            if connection.usable and connection.expires_s > now:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> Connection:
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                addresses = await self._resolver.resolve(origin.host, check=origin.hosted)
                for address in addresses:
                    try:
                        return await self._dial(origin, address)
                    except OSError as error:  # ssl.SSLError is one
                        last = error
        except TimeoutError as error:
            raise CannotConnect(f"no connection within {self._connect_timeout_s:g} s") from error
        except OSError as error:
            raise CannotConnect(str(error) or type(error).__name__) from error
        raise CannotConnect(str(last) or type(last).__name__) from last

    async def _dial(self, origin: Origin, address: str) -> Connection:
        _, protocol = await self._loop.create_connection(
            lambda: Connection(self, origin),
            address,
            origin.port,
            ssl=self._tls if origin.tls else None,
            # The certificate and SNI are about the name, whatever address it led to.
            server_hostname=origin.host if origin.tls else None,
        )
        return protocol

    def _expire(self) -> None:
        now = self._loop.time()
        for origin, kept in list(self._idle.items()):
            fresh = [connection for connection in kept if connection.expires_s > now]
            old = [connection for connection in kept if connection.expires_s <= now]
            if fresh:
                self._idle[origin] = fresh
            else:
                del self._idle[origin]
            for connection in old:
                connection.abort()
        self._sweep = self._loop.call_later(_SWEEP_S, self._expire)
