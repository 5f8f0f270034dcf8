"""The HTTP/1.1 server for clients: listening socket, connections, and the reading of requests, all bounded.

Bytes go from a `ServerConnection` to its `RequestReader`, which calls back with complete requests;
`HttpServer.handle` answers them, at most one at a time on each connection. llhttp parses strictly (no obs-fold, no
bare LF, no Content-Length beside Transfer-Encoding); `RequestReader` checks what llhttp leaves to its users. The
layer knows no API: the body of an error comes from the function `error_body`.
"""

import asyncio
import contextlib
import math
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

import httptools

from flotilla.gateway.http import message
from flotilla.gateway.http.message import HttpError, MemoryBudget, Request, Response

Handler = Callable[[Request], None]
"""Answers one request, now or later; see Request."""
ClientOfHead = Callable[[str, Mapping[str, str], str], str]
"""The name of the client from path, headers and address, for its share of the memory. May raise HttpError."""
ErrorBody = Callable[[str, int, str, str], bytes]
"""The body of an error from path, status, code and message, in the format of the API at that path."""
_LOWER_NAMES: dict[bytes, str] = {}
"""Header names as clients spell them, in lower case. Clients use the same dozen in every request."""
_PATHS: dict[bytes, str] = {}
"""Paths by request target; a handful as well."""
_KNOWN_LIMIT: Final = 500
_SMALL_BYTES: Final = 16 * 1024
"""Smaller bodies are judged when they are complete. Memory for them is bounded by the number of connections."""
_IDLE, _HEAD, _BODY = range(3)
"""Stages of a reader: between requests, in a head, in a body."""
_BACKLOG: Final = 2048
_NEVER = math.inf
_SWEEP_S = 0.25
_LINGER_S = 2.0
_SETTLE_S = 2.0
"""Requests that were aborted still have to settle their limits before the store of limits is closed."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one connection, and of the number of connections."""

    head_bytes: int = 32 * 1024
    """Bound of the request line with the headers, of a chunk's size line, and of trailers."""
    headers: int = 100
    target_bytes: int = 8192
    body_bytes: int = 32 * 2**20
    pipelined: int = 8
    """Requests of one connection that may wait for the responses before them."""
    connections: int = 20_000
    head_timeout_s: float = 10
    """Time from the first byte of a head to its last, so that slow clients hold no memory for long."""
    body_timeout_s: float = 60
    idle_timeout_s: float = 75
    """Time between requests. More than the 60 s of usual load balancers, so that they close first and not we."""
    stall_timeout_s: float = 60
    """A client that reads nothing for so long is disconnected."""
    memory_bytes: int | None = None
    """What all requests together may hold (see MemoryBudget); by the container's limit if it is not given."""
    write_buffer_bytes: int = 64 * 1024
    """What a client has not read; beyond it the target is slowed down."""


def _lower(name: bytes) -> str:
    """The name of a header in lower case."""
    key = name.decode("latin-1").lower()
    if len(_LOWER_NAMES) < _KNOWN_LIMIT and len(name) < 64:
        _LOWER_NAMES[name] = key
    return key


def _headers_too_large() -> HttpError:
    return HttpError(431, "headers_too_large", "The request has too many or too large headers.")


class RequestReader:
    """Reads the requests of one connection. Its fields are those of the request that is being read.

    `on_request` is called for each complete one. llhttp calls the other methods, so that the names are its own.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._body_limit = limits.body_bytes
        self._since_body = 0
        """Bytes since the request began or since the last piece of its body."""
        self._stage = _IDLE
        self._target = b""
        self.headers: dict[str, str] = {}
        self._repeats = 0
        self._parts: list[bytes] | None = None
        self._body_bytes = 0

    def on_request(self) -> None:
        """The request is complete."""

    def on_head(self) -> None:
        """The head is complete; may raise HttpError."""

    def feed(self, data: bytes) -> None:
        """Parse bytes. Raises HttpError if they are not a request that is served."""
        self._since_body += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._ignore_upgrade(data[offer.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, HttpError):
                raise error.__context__ from None
            raise
        except httptools.HttpParserInvalidMethodError as error:
            raise HttpError(501, "method_unknown", "The method is not known.") from error
        except httptools.HttpParserError as error:
            raise HttpError(400, "bad_http", f"The request is not valid HTTP/1.1: {error}.") from error
        if self._since_body > self._limits.head_bytes:
            raise HttpError(431, "headers_too_large", f"More than {self._limits.head_bytes} bytes of headers.")

    def close(self) -> None:
        """Stop. The parser refers to this object, and the garbage collector that would find the cycle runs seldom."""
        del self._parser

    @property
    def path(self) -> str:
        """The path without the query. Nothing is decoded."""
        target = self._target
        path = _PATHS.get(target)
        if path is None:
            path = target.partition(b"?")[0].decode("latin-1")
            if len(_PATHS) < _KNOWN_LIMIT and len(target) < 64:
                _PATHS[target] = path
        return path

    def take_body(self) -> bytes:
        """The body of the complete request, which the reader gives up."""
        parts, self._parts = self._parts, None
        return b"" if parts is None else parts[0] if len(parts) == 1 else b"".join(parts)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Ignore the offer to upgrade to another protocol, which Java's client makes with its first request.

        llhttp stops before the body of such a request, so the head is parsed again without the offer.
        """
        method = self._parser.get_method().decode("latin-1")
        if method == "CONNECT":
            raise HttpError(405, "method_not_allowed", "CONNECT is not supported.")
        kept = {n: v for n, v in self.headers.items() if n not in ("upgrade", "connection", "http2-settings")}
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
        head = f"{method} {self._target.decode('latin-1')} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
        self._parser = httptools.HttpRequestParser(self)
        self.feed(head + rest)

    # the parser's side

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._stage = _HEAD
        self._target = b""
        self.headers = {}
        self._repeats = 0
        self._parts = None
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target = target = self._target + url if self._target else url
        if len(target) > self._limits.target_bytes:
            raise HttpError(414, "uri_too_long", f"The URL is longer than {self._limits.target_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which is ignored."""
        key = _LOWER_NAMES.get(name) or _lower(name)
        if key in self.headers or self._stage != _HEAD:
            self._repeated(key, value)
        else:
            self.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Check what llhttp leaves to its users."""
        self._stage = _BODY
        headers, limits = self.headers, self._limits
        if len(headers) > limits.headers or self._since_body > limits.head_bytes:
            # The size is only looked at if more has come than a head may have.
            size = sum(map(len, headers)) + sum(map(len, headers.values()))
            if len(headers) > limits.headers or size > limits.head_bytes:
                raise _headers_too_large()
        version = self._parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise HttpError(505, "http_version", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        host = headers.get("host")
        if host is None:
            if version == "1.1":
                raise HttpError(400, "bad_http", "The header Host is missing.")
        elif "," in host and ", " in host:
            raise HttpError(400, "bad_http", "There is more than one header Host.")
        if "transfer-encoding" in headers and headers["transfer-encoding"].lower() != "chunked":
            raise HttpError(501, "transfer_encoding", "Transfer-Encoding must be chunked, and nothing else.")
        if "content-encoding" in headers and headers["content-encoding"].lower() != "identity":
            raise HttpError(415, "content_encoding", "Compressed requests are not read. Send the body as it is.")
        length = headers.get("content-length")
        if length is not None and int(length) > limits.body_bytes:
            raise self._too_large()
        if "expect" in headers and headers["expect"].lower() != "100-continue":
            raise HttpError(417, "expectation_failed", "Only Expect: 100-continue is understood.")
        self.on_head()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._since_body = 0
        self._body_bytes += len(data)
        if self._body_bytes > self._body_limit:
            raise self._too_large()
        if self._parts is None:
            self._parts = [data]
        else:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """A complete request, or the head of one that offers an upgrade and is parsed again."""
        self._since_body = 0
        if not self._parser.should_upgrade():
            self.on_request()

    def _repeated(self, key: str, value: bytes) -> None:
        """A header that was there before, or a trailer."""
        self._repeats += 1
        if self._repeats > self._limits.headers:
            raise _headers_too_large()
        if self._stage == _HEAD:
            self.headers[key] = f"{self.headers[key]}, {value.decode('latin-1')}"

    def _too_large(self) -> HttpError:
        return HttpError(413, "body_too_large", f"The body is larger than {self._limits.body_bytes} bytes.")


class ServerConnection(RequestReader, asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, server: "HttpServer", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server.limits)
        self._server, self._loop = server, loop
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._current: Request | None = None
        """The request whose response is not complete."""
        self._lingering = False
        self._final = False
        """No request is read any more."""
        self._client = ""
        """Whose share of the memory the request uses that is being read: the client's by its key, or the address's."""
        self._taken = 0
        """Bytes of the budget that the incomplete request holds."""
        self._unread = 0
        """Bytes of the budget for what the client has not read yet."""
        self.deadline_s = _NEVER

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        # uvloop's transports are not subclasses of asyncio.Transport.
        self._transport = transport = cast("asyncio.Transport", transport)
        if len(self._server.connections) >= self._limits.connections:
            transport.abort()
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        # On a socket for both families, IPv4 addresses come in their IPv6 form.
        self._peer = self._client = str(peer[0]).removeprefix("::ffff:") if peer else ""
        self._server.connections.add(self)
        self.deadline_s = self._loop.time() + self._limits.head_timeout_s

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._lingering or self._final:
            return
        before = self._stage
        try:
            self.feed(data)
            if self._stage != _IDLE:
                self._take(self._taken + len(data) if self._stage == _HEAD else self._body_bytes)
        except HttpError as error:
            self._send_error(error)
            return
        if self._stage != before and self._stage != _IDLE and self._current is None:
            wait_s = self._limits.head_timeout_s if self._stage == _HEAD else self._limits.body_timeout_s
            self.deadline_s = self._loop.time() + wait_s

    def eof_received(self) -> bool:
        """The client closed its side: close ours too, because an answer for it should not be generated any more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: whoever answers it stops, which aborts the request to the target."""
        self._server.connections.discard(self)
        self.deadline_s = _NEVER
        self.close()
        self._drop_waiting()
        self._give_back()
        self._give_back_unread()
        request, self._current = self._current, None
        if request is not None and request.on_left is not None:
            request.on_left()

    def pause_writing(self) -> None:
        """The client reads slower than the response comes."""
        assert self._transport is not None
        self.deadline_s = self._loop.time() + self._limits.stall_timeout_s
        unread = self._transport.get_write_buffer_size()
        if not self._server.memory.take(self._peer, unread):
            # There is no room for what it does not read. Others need the memory.
            self._transport.abort()
            return
        self._unread += unread
        if self._current is not None and self._current.response.source is not None:
            self._current.response.source.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._give_back_unread()
        if self._current is not None:
            self.deadline_s = _NEVER
            if self._current.response.source is not None:
                self._current.response.source.resume()

    # the reader's side

    def on_head(self) -> None:
        """Before a large body is read, the key is judged and the memory taken."""
        headers = self.headers
        length = int(headers.get("content-length", 0))
        if length > _SMALL_BYTES or "transfer-encoding" in headers or "expect" in headers:
            self._give_back()
            self._client = self._server.client_of_head(self.path, headers, self._peer)
            self._take(length)
            if "expect" in headers and self._current is None and self._transport is not None:
                self._transport.write(message.CONTINUE)

    def on_request(self) -> None:
        """A complete request: serve it now, or after those before it."""
        self._stage = _IDLE
        transport, parser = self._transport, self._parser
        assert transport is not None
        if self._body_bytes > _SMALL_BYTES:
            self._take(self._body_bytes)
        method = "POST" if (raw := parser.get_method()) == b"POST" else raw.decode("latin-1")
        keep_alive = parser.should_keep_alive() and not self._server.closing
        response = Response(transport, self._response_done, keep_alive, parser.get_http_version(), method)
        request = Request(
            method,
            self.path,
            self.headers,
            self.take_body(),
            response,
            self._peer,
            self._loop.time(),
            self._request_ended,
        )
        if self._taken:
            request.held_by, request.held_bytes, self._taken = self._client, self._taken, 0
        if self._current is None:
            self._serve(request)
            return
        self._waiting.append(request)
        self._waiting_bytes += len(request.body)
        if len(self._waiting) > self._limits.pipelined or self._waiting_bytes > self._limits.body_bytes:
            raise HttpError(400, "pipelining", f"More than {self._limits.pipelined} requests were sent ahead.")

    # memory

    def _take(self, size: int) -> None:
        """Have the budget count so many bytes for the incomplete request; raises HttpError if there is no room."""
        more = size - self._taken
        if more > 0:
            memory = self._server.memory
            if not memory.take(self._client, more):
                raise memory.shortage(self._client, more)
            self._taken = size

    def _give_back(self) -> None:
        if self._taken:
            self._server.memory.give_back(self._client, self._taken)
            self._taken = 0

    def _give_back_unread(self) -> None:
        if self._unread:
            self._server.memory.give_back(self._peer, self._unread)
            self._unread = 0

    def _drop_waiting(self) -> None:
        """Forget the requests that were sent ahead."""
        for request in self._waiting:
            self._server.memory.give_back(request.held_by, request.held_bytes)
        self._waiting.clear()

    # serving

    def _serve(self, request: Request) -> None:
        self._current = request
        self.deadline_s = _NEVER
        self._server.request_started()
        self._server.handle(request)

    def _request_ended(self, request: Request) -> None:
        """Nothing is left to do for the request."""
        self._server.request_ended()
        if request.held_bytes:
            self._server.memory.give_back(request.held_by, request.held_bytes)
        if self._current is request and self._transport is not None:
            # It ended without a complete response; only closing the connection can tell the client.
            self._transport.abort()

    def _response_done(self, keep_alive: bool) -> None:
        """The current response is written: serve the next request, wait for one, or close."""
        assert self._transport is not None
        # Limits may still be settled for it, which a client that leaves now must not stop.
        self._current = None
        if not keep_alive or self._server.closing or (self._final and not self._waiting):
            self._transport.close()
            return
        if self._waiting:
            request = self._waiting.popleft()
            self._waiting_bytes -= len(request.body)
            self._current = request
            # Not directly: a chain of pipelined requests would be a recursion.
            self._loop.call_soon(self._next, request)
            return
        wait_s = self._limits.idle_timeout_s if self._stage == _IDLE else self._limits.body_timeout_s
        self.deadline_s = self._loop.time() + wait_s

    def _next(self, request: Request) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._serve(request)
        else:
            self._server.memory.give_back(request.held_by, request.held_bytes)

    def _send_error(self, error: HttpError) -> None:
        """Send the error and read no more. Closing at once would reset the connection before the client has read it."""
        assert self._transport is not None
        self._drop_waiting()
        self._parts = None
        self._give_back()
        if self._current is not None:
            # Responses before this one come first, and the connection is closed after them.
            self._final = True
            return
        self._lingering = True
        body = self._server.error_body(self.path, error.status, error.code, str(error))
        wait = b"" if error.retry_after_s is None else b"retry-after: %d\r\n" % error.retry_after_s
        self._transport.write(
            b"%bcontent-type: %b\r\n%bconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (message.status_line(error.status), message.JSON, wait, len(body), body)
        )
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.deadline_s = self._loop.time() + _LINGER_S

    def expire(self) -> None:
        """The deadline of a head, a body, the next request or a client that does not read has passed."""
        if self._stage != _IDLE and self._current is None and not self._lingering:
            self._send_error(HttpError(408, "request_timeout", "The request did not arrive in time."))
            return
        self.abort()

    def close_if_idle(self) -> None:
        """Close if no request is being read or served; otherwise the connection closes after its response."""
        if self._current is None and self._stage == _IDLE and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket. An empty host, and ::, mean all addresses, of IPv4 and of IPv6 where the machine has both."""
    if host in ("", "::") and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be compiled in and switched off
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


class HttpServer:
    """Accepts connections and calls `handle` for each request, at most one at a time on each connection."""

    def __init__(
        self,
        handle: Handler,
        limits: ServerLimits,
        error_body: ErrorBody,
        *,
        memory: MemoryBudget,
        client_of_head: ClientOfHead,
    ) -> None:
        self.handle = handle
        self.error_body = error_body
        self.limits = limits
        self.memory = memory
        self.client_of_head = client_of_head
        self.connections: set[ServerConnection] = set()
        self.closing = False
        self.in_flight = 0
        """Requests that are being served."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port in use, also if port 0 asked for a free one."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Accept connections; an empty host means all addresses, of IPv4 and of IPv6."""
        loop = asyncio.get_running_loop()
        listening = open_socket(host, port)
        self._server = await loop.create_server(
            lambda: ServerConnection(self, loop), sock=listening, backlog=_BACKLOG, ssl=tls
        )
        self._sweep = loop.call_later(_SWEEP_S, self._close_expired, loop)

    def announce_close(self) -> None:
        """Still serve, but ask clients to use a new connection, which leads to another replica."""
        self.closing = True

    async def drain(self, grace_s: float) -> int:
        """Accept no more, close idle connections, wait for requests. Returns how many were aborted after `grace_s`."""
        self.announce_close()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        cut = self.in_flight
        for connection in list(self.connections):
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                await self._idle.wait()
        if self._sweep is not None:
            self._sweep.cancel()
        return cut

    def request_started(self) -> None:
        """A request is being served."""
        self.in_flight += 1
        self._idle.clear()

    def request_ended(self) -> None:
        """A request has been served, or its client has left."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    def _close_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [c for c in self.connections if c.deadline_s <= now]:
            connection.expire()
        self._sweep = loop.call_later(_SWEEP_S, self._close_expired, loop)
