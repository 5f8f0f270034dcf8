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
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, cast

import httptools

from flotilla.gateway.http import message
from flotilla.gateway.http.message import Request, Response

Handler = Callable[[Request], Coroutine[Any, Any, None]]
"""Answers one request."""
ErrorBody = Callable[[str, int, str, str], bytes]
"""The body of an error from path, status, code and message, in the format of the API at that path."""
_LOWER_NAMES: dict[bytes, str] = {}
"""Header names as clients spell them, in lower case. Clients use the same dozen in every request."""
_LOWER_NAMES_LIMIT: Final = 500
_WRITE_HIGH_BYTES: Final = 256 * 1024
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


class HttpError(Exception):
    """A request that is not served, because it is invalid, too large or too slow."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RequestReader:
    """Reads the requests of one connection. Its fields are those of the request that is being read."""

    def __init__(self, limits: ServerLimits, listener: "ServerConnection") -> None:
        self._limits, self._listener = limits, listener
        self._parser = httptools.HttpRequestParser(self)
        self._since_body = 0
        """Bytes since the request began or since the last piece of its body."""
        self._new_message()

    def _new_message(self) -> None:
        self._target = b""
        self.headers: dict[str, str] = {}
        self._header_count = self._header_bytes = 0
        self._head_done = False
        self._body: list[bytes] = []
        self._body_bytes = 0

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
    def method(self) -> str:
        """The method of the current request."""
        method: bytes = self._parser.get_method()
        return method.decode("latin-1")

    @property
    def version(self) -> str:
        """The HTTP version: 1.0 or 1.1."""
        version: str = self._parser.get_http_version()
        return version

    @property
    def keep_alive(self) -> bool:
        """Whether the client may send another request on this connection."""
        return bool(self._parser.should_keep_alive())

    @property
    def path(self) -> str:
        """The path without the query. Nothing is decoded."""
        return self._target.partition(b"?")[0].decode("latin-1")

    def take_body(self) -> bytes:
        """The body of the complete request, which the reader gives up."""
        body, self._body = self._body, []
        return body[0] if len(body) == 1 else b"".join(body)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Ignore the offer to upgrade to another protocol, which Java's client makes with its first request.

        llhttp stops before the body of such a request, so the head is parsed again without the offer.
        """
        method = self.method
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
        self._new_message()
        self._listener.on_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url
        if len(self._target) > self._limits.target_bytes:
            raise HttpError(414, "uri_too_long", f"The URL is longer than {self._limits.target_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which is ignored."""
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if self._header_count > self._limits.headers or self._header_bytes > self._limits.head_bytes:
            raise HttpError(431, "headers_too_large", "The request has too many or too large headers.")
        if self._head_done:
            return
        key = _LOWER_NAMES.get(name)
        if key is None:
            key = name.decode("latin-1").lower()
            if len(_LOWER_NAMES) < _LOWER_NAMES_LIMIT and len(name) < 64:
                _LOWER_NAMES[name] = key
        text = value.decode("latin-1")
        if key in self.headers:
            text = f"{self.headers[key]}, {text}"
        self.headers[key] = text

    def on_headers_complete(self) -> None:
        """Check what llhttp leaves to its users."""
        self._head_done = True
        headers = self.headers
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            raise HttpError(505, "http_version", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if "host" not in headers and self._parser.get_http_version() == "1.1":
            raise HttpError(400, "bad_http", "The header Host is missing.")
        if ", " in headers.get("host", ""):
            raise HttpError(400, "bad_http", "There is more than one header Host.")
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise HttpError(501, "transfer_encoding", "Transfer-Encoding must be chunked, and nothing else.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(415, "content_encoding", "Compressed requests are not read. Send the body as it is.")
        length = headers.get("content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            raise self._too_large()
        expected = headers.get("expect")
        if expected is not None and expected.lower() != "100-continue":
            raise HttpError(417, "expectation_failed", "Only Expect: 100-continue is understood.")
        self._listener.on_head(expects=expected is not None)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._since_body = 0
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            raise self._too_large()
        self._body.append(data)

    def on_message_complete(self) -> None:
        """A complete request, or the head of one that offers an upgrade and is parsed again."""
        self._since_body = 0
        if not self._parser.should_upgrade():
            self._listener.on_request()

    def _too_large(self) -> HttpError:
        return HttpError(413, "body_too_large", f"The body is larger than {self._limits.body_bytes} bytes.")


class ServerConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, server: "HttpServer", loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._limits, self._loop = server, server.limits, loop
        self._reader = RequestReader(server.limits, self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._response: Response | None = None
        self._lingering = False
        self._final = False
        """No request is read any more."""
        self._reading = False
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
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if peer else ""
        self._server.connections.add(self)
        self.deadline_s = self._loop.time() + self._limits.head_timeout_s

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._lingering or self._final:
            return
        try:
            self._reader.feed(data)
        except HttpError as error:
            self._send_error(error)

    def eof_received(self) -> bool:
        """The client closed its side: close ours too, because an answer for it should not be generated any more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: cancel the handler, which aborts the request to the target."""
        self._server.connections.discard(self)
        self.deadline_s = _NEVER
        # Break the reference cycle with the reader; the garbage collector that would find it runs seldom.
        self._reader.close()
        del self._reader
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client reads slower than the response comes."""
        self.deadline_s = self._loop.time() + self._limits.stall_timeout_s
        if self._response is not None and self._response.source is not None:
            self._response.source.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._response is not None:
            self.deadline_s = _NEVER
            if self._response.source is not None:
                self._response.source.resume()

    # the reader's side

    def on_begin(self) -> None:
        """The first byte of a request."""
        self._reading = True
        if self._response is None:
            self.deadline_s = self._loop.time() + self._limits.head_timeout_s

    def on_head(self, *, expects: bool) -> None:
        """The head is complete; with `expects` the client waits for 100 Continue before it sends the body."""
        if self._response is not None:
            return
        if expects and self._transport is not None:
            self._transport.write(message.CONTINUE)
        self.deadline_s = self._loop.time() + self._limits.body_timeout_s

    def on_request(self) -> None:
        """A complete request: serve it now, or after those before it."""
        self._reading = False
        assert self._transport is not None
        reader, method = self._reader, self._reader.method
        keep_alive = reader.keep_alive and not self._server.closing
        request = Request(
            method,
            reader.path,
            reader.headers,
            reader.take_body(),
            response=Response(
                self._transport, self._response_done, keep_alive=keep_alive, version=reader.version, method=method
            ),
            peer=self._peer,
            arrived_s=self._loop.time(),
        )
        if self._response is None:
            self._serve(request)
            return
        self._waiting.append(request)
        self._waiting_bytes += len(request.body)
        if len(self._waiting) > self._limits.pipelined or self._waiting_bytes > self._limits.body_bytes:
            raise HttpError(400, "pipelining", f"More than {self._limits.pipelined} requests were sent ahead.")

    # serving

    def _serve(self, request: Request) -> None:
        self._response = request.response
        self.deadline_s = _NEVER
        self._server.request_started()
        self._task = self._loop.create_task(self._server.handle(request))
        self._task.add_done_callback(self._handler_done)

    def _handler_done(self, task: asyncio.Task[None]) -> None:
        self._server.request_ended()
        if self._task is not task:
            return
        self._task = None
        if self._response is not None and self._transport is not None:
            # The handler ended without a complete response; only closing the connection can tell the client.
            self._transport.abort()

    def _response_done(self, keep_alive: bool) -> None:
        """The current response is written: serve the next request, wait for one, or close."""
        assert self._transport is not None
        self._response = None
        if self._task is not None:
            # The handler may still settle limits, which a client that leaves now must not cancel.
            self._task = None
        if not keep_alive or self._server.closing or (self._final and not self._waiting):
            self._transport.close()
            return
        if self._waiting:
            request = self._waiting.popleft()
            self._waiting_bytes -= len(request.body)
            self._response = request.response
            # Not directly: a chain of pipelined requests would be a recursion.
            self._loop.call_soon(self._next, request)
            return
        wait_s = self._limits.body_timeout_s if self._reading else self._limits.idle_timeout_s
        self.deadline_s = self._loop.time() + wait_s

    def _next(self, request: Request) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._serve(request)

    def _send_error(self, error: HttpError) -> None:
        """Send the error and read no more. Closing at once would reset the connection before the client has read it."""
        assert self._transport is not None
        if self._response is not None:
            # Responses before this one come first, and the connection is closed after them.
            self._waiting.clear()
            self._final = True
            return
        self._lingering = True
        self._waiting.clear()
        body = self._server.error_body(self._reader.path, error.status, error.code, str(error))
        self._transport.write(
            b"%bcontent-type: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (message.status_line(error.status), message.JSON, len(body), body)
        )
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.deadline_s = self._loop.time() + _LINGER_S

    def expire(self) -> None:
        """The deadline of a head, a body, the next request or a client that does not read has passed."""
        if self._reading and self._response is None and not self._lingering:
            self._send_error(HttpError(408, "request_timeout", "The request did not arrive in time."))
            return
        self.abort()

    def close_if_idle(self) -> None:
        """Close if no request is being read or served; otherwise the connection closes after its response."""
        if self._response is None and not self._reading and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()


class HttpServer:
    """Accepts connections and calls `handle` for each request, at most one at a time on each connection."""

    def __init__(self, handle: Handler, limits: ServerLimits, error_body: ErrorBody) -> None:
        self.handle = handle
        self.error_body = error_body
        self.limits = limits
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

    async def listen(self, host: str, port: int) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ServerConnection(self, loop), host, port, backlog=2048)
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
