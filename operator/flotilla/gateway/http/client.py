"""The HTTP/1.1 client for targets: origins, address resolution, connections kept alive by origin.

`UpstreamPool.send` is the only way to a target. It needs a Permit, and it checks that the origin belongs to the
permitted target before anything is connected (`check_permit`). The addresses that were checked are those that are
connected to, so that a name which leads elsewhere a moment later (DNS rebinding) gains nothing. The answer goes to a
`ResponseHandler`.
"""

import asyncio
import math
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol, cast

import httptools

from flotilla.routing.check import address_problem
from flotilla.routing.decide import Permit, SovereigntyBreach

_HEAD_LIMIT_BYTES = 64 * 1024
_RESOLVED_FOR_S = 30.0
_RESOLVED_NAMES = 1024
_SWEEP_S = 1.0
_NEVER = math.inf


@dataclass(frozen=True, eq=False, slots=True)
class Origin:
    """Where a target's requests are sent: an endpoint of a ModelDeployment, or the host of a hosted API.

    Compared by identity, because it is looked up for every request; each endpoint and each hosted API has exactly one.
    """

    owner: str
    """Name of the ModelDeployment, or base URL of the hosted API, which the Permit's target must have too."""
    host: str
    """Address of a pod, or host name of a hosted API."""
    port: int
    tls: bool = False
    hosted: bool = False
    keep_s: float = 4.0
    """How long an idle connection is kept. uvicorn, in vLLM and SGLang, closes idle connections after 5 s."""

    @property
    def authority(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def check_permit(permit: Permit, origin: Origin) -> None:
    """The last check before a connection: raises SovereigntyBreach if the origin is not the permitted target's."""
    target = permit.target
    place = target.hosted.base_url if target.hosted else target.cluster.model_deployment if target.cluster else None
    if target.name not in permit.allowed or place != origin.owner or origin.hosted != (target.hosted is not None):
        raise SovereigntyBreach(f"{origin.owner!r} is not the place of the permitted target {target.name!r}.")


class Resolver(Protocol):
    """Resolves host names."""

    async def resolve(self, host: str, *, check: bool) -> tuple[str, ...]:
        """Addresses to try, in order. With `check` only public ones. Raises OSError if there is none."""


class SystemResolver:
    """The system's resolver, with a cache of 30 s."""

    def __init__(self, *, allow_private: bool) -> None:
        self.allow_private = allow_private
        self._resolved: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def resolve(self, host: str, *, check: bool) -> tuple[str, ...]:
        """Addresses to try, in order. With `check` only public ones, unless private ones are allowed."""
        addresses = (host,) if _is_address(host) else await self._look_up(host)
        if not check or self.allow_private:
            return addresses
        problems = [address_problem(address) for address in addresses]
        public = tuple(a for a, problem in zip(addresses, problems, strict=True) if problem is None)
        if not public:
            raise OSError(f"{host!r} has no address that may be connected to: {problems[0]}")
        return public

    async def _look_up(self, host: str) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        found = self._resolved.get(host)
        if found is not None and found[0] > loop.time():
            return found[1]
        answers = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
        if len(self._resolved) >= _RESOLVED_NAMES:
            self._resolved.clear()
        self._resolved[host] = (loop.time() + _RESOLVED_FOR_S, addresses)
        return addresses


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class ConnectFailed(Exception):
    """No connection could be made, so that nothing was sent."""


class ResponseHandler(Protocol):
    """Receives the answer to one request. Exactly one of `on_end` and `on_lost` is called last."""

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Status and headers, names in lower case."""

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_lost(self, reason: str) -> None:
        """The answer will not be completed."""


class _InvalidResponse(Exception):
    """An answer that breaks the protocol or its bounds."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to an origin, with one request at a time."""

    def __init__(self, pool: "UpstreamPool", origin: Origin) -> None:
        self.origin = origin
        self.expires_s = _NEVER
        self.fresh = True
        """Whether it has not served a request yet."""
        self.answered = False
        """Whether a byte of the current answer has come."""
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._sink: ResponseHandler | None = None
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._head_bytes = 0
        self._ends_at_close = False
        self._lost = False
        self.paused = False
        """Whether reading is paused because the client reads slower than the answer comes."""

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it."""
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    def send(self, data: bytes, sink: ResponseHandler) -> None:
        """Send a complete request; its answer goes to `sink`."""
        assert self._transport is not None
        assert self._sink is None
        self._sink = sink
        self.answered = False
        self._transport.write(data)

    def pause(self) -> None:
        """Stop reading, so that the answer waits in the buffers of the target."""
        self.paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def closed_before_response(self) -> bool:
        """Whether a reused connection was lost before the first byte of this answer."""
        return self._lost and not self.fresh and not self.answered

    def detach(self, sink: ResponseHandler) -> None:
        """`sink` needs no more of its answer: close the connection if the answer is still coming."""
        if self._sink is sink:
            self.abort()

    def abort(self) -> None:
        """Close at once without telling the sink. An engine stops generating when its connection closes."""
        self._sink = None
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    def fail(self, reason: str) -> None:
        """The answer cannot be used: close at once and tell the sink."""
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.on_lost(reason)

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
            # Bytes without a request: they could be taken for the answer to the next request.
            self.abort()
            return
        self.answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(cause, _InvalidResponse):
                self.fail("unexpected error of the gateway")
                raise
            self.fail(f"invalid HTTP ({cause or error})")

    def eof_received(self) -> bool:
        """The target closed its side: close ours."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._lost = True
        del self._parser  # which refers to this object: break the reference cycle
        self._pool.discard(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._ends_at_close and exc is None:
            sink.on_end()
        else:
            sink.on_lost(str(exc) if exc else "the connection was closed")

    # the parser's side

    def on_message_begin(self) -> None:
        """The first byte of an answer."""
        if self._sink is None:
            raise _InvalidResponse("an answer without a request")
        self._headers = {}
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_LIMIT_BYTES:
            raise _InvalidResponse("too large headers")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Pass on the head, unless it is an interim one (1xx)."""
        self._status = status = self._parser.get_status_code()
        headers = self._headers
        if status < 200:
            if status == 101:
                raise _InvalidResponse("an answer in another protocol")
            return
        self._ends_at_close = (
            b"content-length" not in headers and b"transfer-encoding" not in headers and status not in (204, 304)
        )
        if self._sink is not None:
            self._sink.on_head(status, headers)

    def on_body(self, data: bytes) -> None:
        """Pass on a piece of the body."""
        if self._sink is not None:
            self._sink.on_body(data)

    def on_message_complete(self) -> None:
        """The answer is complete, and the connection can be used again."""
        if self._status < 200:
            return
        sink, self._sink = self._sink, None
        if sink is None:
            return
        self.fresh = False
        if self.paused:
            # The client has not read all of it yet, which must not hold up the next answer on this connection.
            self.resume()
        if self._parser.should_keep_alive() and not self._ends_at_close and self.usable:
            self._pool.release(self)
        else:
            self.abort()
        sink.on_end()


class UpstreamPool:
    """The connections to all origins."""

    def __init__(self, *, resolver: Resolver, tls: ssl.SSLContext, connect_timeout_s: float = 5.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolver = resolver
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._sweep = self._loop.call_later(_SWEEP_S, self._expire)

    def send_on_idle(
        self, permit: Permit, origin: Origin, data: bytes, sink: ResponseHandler
    ) -> UpstreamConnection | None:
        """Send a complete request on a connection that is kept; the answer goes to `sink`. None if there is none."""
        check_permit(permit, origin)
        connection = self._take_idle(origin)
        if connection is not None:
            connection.send(data, sink)
        return connection

    async def send(self, permit: Permit, origin: Origin, data: bytes, sink: ResponseHandler) -> UpstreamConnection:
        """Send a complete request on a new connection; the answer goes to `sink`. Raises ConnectFailed if nothing was
        sent."""
        check_permit(permit, origin)
        connection = await self._connect(origin)
        connection.send(data, sink)
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Keep a connection that can be used again."""
        origin = connection.origin
        connection.expires_s = self._loop.time() + origin.keep_s
        kept = self._idle.get(origin)
        if kept is None:
            self._idle[origin] = [connection]
        else:
            kept.append(connection)

    def discard(self, connection: UpstreamConnection) -> None:
        """Forget a connection that is closed."""
        kept = self._idle.get(connection.origin)
        if kept is not None:
            with suppress(ValueError):
                kept.remove(connection)
            if not kept:
                del self._idle[connection.origin]

    def close(self) -> None:
        """Close all idle connections."""
        self._sweep.cancel()
        for kept in list(self._idle.values()):
            for connection in list(kept):
                connection.abort()
        self._idle.clear()

    def _take_idle(self, origin: Origin) -> UpstreamConnection | None:
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if connection.usable and connection.expires_s > self._loop.time():
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                addresses = await self._resolver.resolve(origin.host, check=origin.hosted)
                for address in addresses:
                    try:
                        return await self._open(origin, address)
                    except OSError as error:  # ssl.SSLError is one
                        last = error
        except TimeoutError as error:
            raise ConnectFailed(f"no connection within {self._connect_timeout_s:g} s") from error
        except OSError as error:
            raise ConnectFailed(str(error) or type(error).__name__) from error
        raise ConnectFailed(str(last) or type(last).__name__) from last

    async def _open(self, origin: Origin, address: str) -> UpstreamConnection:
        _, protocol = await self._loop.create_connection(
            lambda: UpstreamConnection(self, origin),
            address,
            origin.port,
            ssl=self._tls if origin.tls else None,
            # The certificate is checked for the name, whatever its address is.
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
