"""One client's connection: HTTP/1.1 as RFC 9112 has it, bounded in every direction.

llhttp parses (strict: no obs-fold, no bare LF, no Content-Length beside Transfer-Encoding); what it leaves to its
users is refused here.
"""

import asyncio
import math
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import httptools

from flotilla.gateway import wire
from flotilla.gateway.request import Answer, Request

Handler = Callable[[Request], Coroutine[Any, Any, None]]
_LINGER_S = 2.0
_WRITE_HIGH: Final = 256 * 1024
_NEVER = math.inf
_NAMES: dict[bytes, str] = {}
"""Header names as they were spelled, to lower case: clients use the same dozen again and again."""
_NAMES_LIMIT = 500


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one connection, and of all."""

    head_bytes: int = 32 * 1024
    """Of request line and headers, of one chunk's size line, of trailers."""
    headers: int = 100
    target_bytes: int = 8192
    body_bytes: int = 32 * 2**20
    pipelined: int = 8
    """Requests of one connection that wait for the answers before them."""
    connections: int = 20_000
    head_timeout_s: float = 10
    """From the first byte of a head to its last, so that slow clients hold no memory for long."""
    body_timeout_s: float = 60
    idle_timeout_s: float = 75
    """Between requests; more than the 60 s of usual load balancers, so that they and not we close."""
    stall_timeout_s: float = 60
    """A client that reads nothing for so long is cut off."""


class Refused(Exception):
    """The connection's bytes are no request that we serve."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = wire.error_body(message, code=code)


class Host(Protocol):
    """The server that a connection belongs to."""

    handle: Handler
    limits: ServerLimits
    connections: "set[ServerConnection]"
    closing: bool

    def started(self) -> None:
        """A request is being answered."""

    def ended(self) -> None:
        """It has been answered, or its client has gone."""


class ServerConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._limits, self._loop = server, server.limits, loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._answer: Answer | None = None
        self._lingering = False
        self._last = False
        """No request is read after this one."""
        self._since_body = 0
        """Bytes since the message began or brought a piece of its body."""
        self._reading = False
        self.deadline_s = _NEVER
        self._new_message()

    def _new_message(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._header_count = self._header_bytes = 0
        self._head_done = False
        self._body: list[bytes] = []
        self._body_bytes = 0

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        # uvloop's are transports by what they do and not by their class.
        self._transport = transport = cast("asyncio.Transport", transport)
        if len(self._server.connections) >= self._limits.connections:
            transport.abort()
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=_WRITE_HIGH)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if peer else ""
        self._server.connections.add(self)
        self.deadline_s = self._loop.time() + self._limits.head_timeout_s

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._lingering or self._last:
            return
        self._since_body += len(data)
        try:
            self._parser.feed_data(data)
            if self._since_body > self._limits.head_bytes:
                raise Refused(431, "headers_too_large", f"More than {self._limits.head_bytes} bytes of headers.")
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, Refused):
                raise
            self._refuse(cause)
        except httptools.HttpParserInvalidMethodError:
            self._refuse(Refused(501, "method_unknown", "The method is not known."))
        except httptools.HttpParserError as error:
            self._refuse(Refused(400, "bad_http", f"The request is not valid HTTP/1.1: {error}."))
        except Refused as refused:
            self._refuse(refused)

    def eof_received(self) -> bool:
        """A client that closes its side has gone, as far as generating for it is concerned."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """What was being generated for the client is given up."""
        self._server.connections.discard(self)
        self.deadline_s = _NEVER
        # The parser holds us, and the collector that would find the circle runs seldom.
        del self._parser
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client reads slower than the answer comes."""
        self.deadline_s = self._loop.time() + self._limits.stall_timeout_s
        if self._answer is not None and self._answer.source is not None:
            self._answer.source.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._answer is not None:
            self.deadline_s = _NEVER
            if self._answer.source is not None:
                self._answer.source.resume()

    # the parser's side

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._new_message()
        self._reading = True
        if self._answer is None:
            self.deadline_s = self._loop.time() + self._limits.head_timeout_s

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url
        if len(self._target) > self._limits.target_bytes:
            raise Refused(414, "uri_too_long", f"The URL is longer than {self._limits.target_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which nobody asked for."""
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if self._header_count > self._limits.headers or self._header_bytes > self._limits.head_bytes:
            raise Refused(431, "headers_too_large", "The request has too many or too large headers.")
        if self._head_done:
            return
        key = _NAMES.get(name)
        if key is None:
            key = name.decode("latin-1").lower()
            if len(_NAMES) < _NAMES_LIMIT and len(name) < 64:
                _NAMES[name] = key
        text = value.decode("latin-1")
        if key in self._headers:
            text = f"{self._headers[key]}, {text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        """Judge what llhttp leaves to us."""
        self._head_done = True
        headers = self._headers
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            raise Refused(505, "http_version", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if "host" not in headers and self._parser.get_http_version() == "1.1":
            raise Refused(400, "bad_http", "The header Host is missing.")
        if ", " in headers.get("host", ""):
            raise Refused(400, "bad_http", "There is more than one header Host.")
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise Refused(501, "transfer_encoding", "Transfer-Encoding must be chunked, and nothing else.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "content_encoding", "Compressed requests are not read. Send the body as it is.")
        length = headers.get("content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            raise self._too_large()
        expected = headers.get("expect")
        if expected is not None:
            self._expect(expected)
        if self._answer is None:
            self.deadline_s = self._loop.time() + self._limits.body_timeout_s

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._since_body = 0
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            raise self._too_large()
        self._body.append(data)

    def on_message_complete(self) -> None:
        """A whole request: it is answered now, or when those before it are."""
        self._since_body = 0
        if self._parser.should_upgrade():
            return
        self._reading = False
        assert self._transport is not None
        method = self._parser.get_method().decode("latin-1")
        version = self._parser.get_http_version()
        keep_alive = self._parser.should_keep_alive() and not self._server.closing
        answer = Answer(self._transport, self._ended, keep_alive=keep_alive, version=version, method=method)
        request = Request(
            method,
            self._target.partition(b"?")[0].decode("latin-1"),
            self._headers,
            self._body[0] if len(self._body) == 1 else b"".join(self._body),
            answer=answer,
            peer=self._peer,
            arrived_s=self._loop.time(),
        )
        self._body = []
        if self._answer is None:
            self._serve(request)
            return
        self._waiting.append(request)
        self._waiting_bytes += len(request.body)
        if len(self._waiting) > self._limits.pipelined or self._waiting_bytes > self._limits.body_bytes:
            raise Refused(400, "pipelining", f"More than {self._limits.pipelined} requests were sent ahead.")

    # ours

    def _decline(self, rest: bytes) -> None:
        """An offer of another protocol need not be taken, but llhttp stops before the body of a request that makes one.

        Java's client offers HTTP/2 with its first request. The head is read again without the offer.
        """
        method = self._parser.get_method().decode("latin-1")
        if method == "CONNECT":
            self._refuse(Refused(405, "method_not_allowed", "Nothing is tunnelled here."))
            return
        kept = {n: v for n, v in self._headers.items() if n not in ("upgrade", "connection", "http2-settings")}
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
        head = f"{method} {self._target.decode('latin-1')} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _serve(self, request: Request) -> None:
        self._answer = request.answer
        self.deadline_s = _NEVER
        self._server.started()
        self._task = self._loop.create_task(self._server.handle(request))
        self._task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._server.ended()
        if self._task is not task:
            return
        self._task = None
        if self._answer is not None and self._transport is not None:
            # The handler ended without a whole answer: nothing true can be said any more.
            self._transport.abort()

    def _ended(self, keep_alive: bool) -> None:
        """The answer in hand is written."""
        assert self._transport is not None
        self._answer = None
        if self._task is not None:
            # The handler may go on with its accounts: the client's leaving must not stop it any more.
            self._task = None
        if not keep_alive or self._server.closing or (self._last and not self._waiting):
            self._transport.close()
            return
        if self._waiting:
            request = self._waiting.popleft()
            self._waiting_bytes -= len(request.body)
            self._answer = request.answer
            # Not from here: a chain of requests without bodies would be a recursion.
            self._loop.call_soon(self._next, request)
            return
        wait_s = self._limits.body_timeout_s if self._reading else self._limits.idle_timeout_s
        self.deadline_s = self._loop.time() + wait_s

    def _next(self, request: Request) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._serve(request)

    def _expect(self, expected: str) -> None:
        if expected.lower() != "100-continue":
            raise Refused(417, "expectation_failed", "Only Expect: 100-continue is understood.")
        if self._answer is None and self._transport is not None:
            self._transport.write(wire.CONTINUE)

    def _too_large(self) -> Refused:
        return Refused(413, "body_too_large", f"The body is larger than {self._limits.body_bytes} bytes.")

    def _refuse(self, refused: Refused) -> None:
        """Say why, and read no more. Closing at once would reset the connection before the client has read it."""
        assert self._transport is not None
        if self._answer is not None:
            # Answers before this one come first; without a place for it the connection ends after them.
            self._waiting.clear()
            self._last = True
            return
        self._lingering = True
        self._waiting.clear()
        self._transport.write(
            b"%bcontent-type: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (wire.status_line(refused.status), wire.JSON, len(refused.body), refused.body)
        )
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.deadline_s = self._loop.time() + _LINGER_S

    def expire(self) -> None:
        """A deadline has passed: of a head, a body, the next request, or a client that does not read."""
        if self._reading and self._answer is None and not self._lingering:
            self._refuse(Refused(408, "request_timeout", "The request did not arrive in time."))
            return
        self.abort()

    def close_if_idle(self) -> None:
        """Nothing is being read or answered: close; else after the answer."""
        if self._answer is None and not self._reading and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()
