"""The side of the targets: connections kept alive by origin, and one request at a time on each.

Nothing is dialled without a Permit, and never a place that is not the permitted target's own.
"""

import asyncio
import math
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from flotilla.domain.routing.decide import Permit, SovereigntyBreach
from flotilla.gateway.addresses import Resolver

_SWEEP_S = 1.0
_HEAD_LIMIT = 64 * 1024
_NEVER = math.inf


@dataclass(frozen=True, eq=False, slots=True)
class Origin:
    """Where a target's requests are sent: an endpoint of a ModelDeployment, or a hosted API's host.

    Compared by identity: each endpoint and each hosted API has one, and it is looked up for every request.
    """

    owner: str
    """Name of the ModelDeployment, or the base URL: what a Permit's target must be."""
    host: str
    """An address of a pod, or the host name of a hosted API."""
    port: int
    tls: bool = False
    hosted: bool = False
    keep_s: float = 4.0
    """A connection is not used again after so long: uvicorn, in vLLM and SGLang, closes idle ones after 5 s."""

    @property
    def authority(self) -> str:
        """For the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Sink(Protocol):
    """What takes the answer of one request; exactly one of `on_end` and `on_lost` comes last."""

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Status and headers, names in lower case."""

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""

    def on_end(self) -> None:
        """The answer is whole."""

    def on_lost(self, reason: str) -> None:
        """It will not become whole."""


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

    async def send(self, permit: Permit, origin: Origin, data: bytes, sink: Sink) -> "Connection":
        """Send a whole request; the answer goes to `sink`. Raises CannotConnect when nothing was sent."""
        check(permit, origin)
        connection = self._reused(origin) or await self._connect(origin)
        connection.send(data, sink)
        return connection

    async def resend(self, permit: Permit, origin: Origin, data: bytes, sink: Sink) -> "Connection":
        """The same on a fresh connection, after a kept one turned out to be closed."""
        check(permit, origin)
        connection = await self._connect(origin)
        connection.send(data, sink)
        return connection

    def release(self, connection: "Connection") -> None:
        """The connection can be used again."""
        connection.expires_s = self._loop.time() + connection.origin.keep_s
        self._idle.setdefault(connection.origin, []).append(connection)

    def forget(self, connection: "Connection") -> None:
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

    def _reused(self, origin: Origin) -> "Connection | None":
        kept = self._idle.get(origin)
        now = self._loop.time()
        while kept:
            connection = kept.pop()
            if connection.usable and connection.expires_s > now:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> "Connection":
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

    async def _dial(self, origin: Origin, address: str) -> "Connection":
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


def check(permit: Permit, origin: Origin) -> None:
    """The last gate before a socket; raises SovereigntyBreach."""
    target = permit.target
    place = target.hosted.base_url if target.hosted else target.cluster.model_deployment if target.cluster else None
    if target.name not in permit.allowed or place != origin.owner or origin.hosted != (target.hosted is not None):
        raise SovereigntyBreach(f"{origin.owner!r} is not the place of the permitted target {target.name!r}.")


class Connection(asyncio.Protocol):
    """One connection to an origin."""

    def __init__(self, pool: Upstream, origin: Origin) -> None:
        self.origin = origin
        self.expires_s = _NEVER
        self.fresh = True
        """Whether it carries its first request."""
        self.answered = False
        """Whether any byte of the present answer has come."""
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._head_bytes = 0
        self._until_close = False
        self._lost = False
        self.paused = False
        """The client reads slower than the answer comes."""

    @property
    def usable(self) -> bool:
        """Whether a request can be sent."""
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    def send(self, data: bytes, sink: Sink) -> None:
        """Send a whole request."""
        assert self._transport is not None
        assert self._sink is None
        self._sink = sink
        self.answered = False
        self._transport.write(data)

    def pause(self) -> None:
        """Let the answer wait in the other side's buffers."""
        self.paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        self.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def closed_unread(self) -> bool:
        """A connection that had served before was lost without a byte of this answer."""
        return self._lost and not self.fresh and not self.answered

    def leave(self, sink: Sink) -> None:
        """`sink` waits no more: an answer that is still coming is of no use to anybody."""
        if self._sink is sink:
            self.abort()

    def abort(self) -> None:
        """Close at once; the sink hears nothing more. An engine stops generating by this."""
        self._sink = None
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = transport = cast("asyncio.Transport", transport)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._sink is None:
            # Bytes that nobody asked for: an answer to come could be taken for that of the next request.
            self.abort()
            return
        self.answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(cause, _BadAnswer):
                self._fail("a defect of the gateway")
                raise
            self._fail(f"no valid HTTP ({cause or error})")

    def eof_received(self) -> bool:
        """The other side has said all that it will."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._lost = True
        del self._parser  # which holds us: no work for the collector
        self._pool.forget(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._until_close and exc is None:
            sink.on_end()
        else:
            sink.on_lost(str(exc) if exc else "the connection was closed")

    # the parser's side

    def on_message_begin(self) -> None:
        """The first byte of an answer."""
        if self._sink is None:
            raise _BadAnswer("an answer that nobody asked for")
        self._headers = {}
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_LIMIT:
            raise _BadAnswer("too large headers")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Hand on the head, unless it is one of those that come before the real one."""
        self._status = self._parser.get_status_code()
        if self._status < 200:
            if self._status == 101:
                raise _BadAnswer("an answer in another protocol")
            return
        self._until_close = (
            b"content-length" not in self._headers
            and b"transfer-encoding" not in self._headers
            and self._status not in (204, 304)
        )
        if self._sink is not None:
            self._sink.on_head(self._status, self._headers)

    def on_body(self, data: bytes) -> None:
        """Hand on a piece."""
        if self._sink is not None:
            self._sink.on_body(data)

    def on_message_complete(self) -> None:
        """The answer is whole, and the connection free."""
        if self._status < 200:
            return
        sink, self._sink = self._sink, None
        if sink is None:
            return
        self.fresh = False
        if self._parser.should_keep_alive() and not self._until_close and self.usable:
            self._pool.release(self)
        else:
            self.abort()
        sink.on_end()

    def _fail(self, reason: str) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.on_lost(reason)


class _BadAnswer(Exception):
    """An answer that cannot be read."""
