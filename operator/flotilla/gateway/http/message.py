"""A request as it was read from a client's connection, and the response to it as HTTP/1.1 bytes."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus if status >= 200
}
_MEMORY_WAIT_S = 1
_NOT_IN_HEADERS = str.maketrans(dict.fromkeys(map(chr, [*range(32), 127]), "_"))


def status_line(status: int) -> bytes:
    """The status line, with the standard phrase if the status has one."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def header(name: str, value: str) -> bytes:
    """One header line. Control characters, and characters outside Latin-1, are replaced."""
    if value.isascii() and value.isprintable():
        return f"{name}: {value}\r\n".encode()
    return f"{name}: {value.translate(_NOT_IN_HEADERS)}\r\n".encode("latin-1", "replace")


class MemoryBudget:
    """Bounds the bytes that all requests together make the process hold, and those of one client among them.

    Counted are bodies from their announcement until their request has ended, what parsing makes of them, answers while
    they are collected, and what slow clients have not read yet. Whoever holds bytes takes them here before, and gives
    the same number back.
    """

    __slots__ = ("_clients", "limit_bytes", "share_bytes", "used_bytes")

    def __init__(self, limit_bytes: int, *, share_percent: int = 50) -> None:
        self.limit_bytes = limit_bytes
        self.share_bytes = limit_bytes * share_percent // 100
        self.used_bytes = 0
        self._clients: dict[str, int] = {}

    def take(self, client: str, size: int) -> bool:
        """Count bytes of a client. False, with nothing counted, if the budget or the client's share has no room."""
        mine = self._clients.get(client, 0) + size
        if self.used_bytes + size > self.limit_bytes or mine > self.share_bytes:
            return False
        self.used_bytes += size
        self._clients[client] = mine
        return True

    def shortage(self, client: str, size: int) -> "HttpError":
        """The error for a client after `take` was refused: 429 if its own requests hold too much, else 503."""
        if self._clients.get(client, 0) + size > self.share_bytes:
            why = "Your open requests hold as much memory as one client may use. Let some end, then try again."
            return HttpError(429, "memory_share_exceeded", why, retry_after_s=_MEMORY_WAIT_S)
        why = "The open requests hold all memory that the gateway may use for them. Try again in a moment."
        return HttpError(503, "memory_exhausted", why, retry_after_s=_MEMORY_WAIT_S)

    def give_back(self, client: str, size: int) -> None:
        """The bytes are held no more."""
        if not size:
            return
        self.used_bytes -= size
        left = self._clients[client] - size
        if left:
            self._clients[client] = left
        else:
            del self._clients[client]


class HttpError(Exception):
    """A request that is not served, because it is invalid, too large, too slow, or too much for now."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class ResponseSource(Protocol):
    """The connection that the response's data comes from, so that a slow client can slow it down."""

    def pause(self) -> None:
        """Stop reading until `resume`."""

    def resume(self) -> None:
        """Read again."""

    def fail(self, reason: str) -> None:
        """The data cannot be used: report this as a failure of the source."""


class Response:
    """The response to one request: either `send`, or `start`, `write` as often as needed, and `end`.

    Writing to a client that has left does nothing.
    """

    __slots__ = (
        "_chunked",
        "_keep_alive",
        "_on_end",
        "_transport",
        "_without_body",
        "extra",
        "source",
        "started",
        "status",
    )

    def __init__(
        self, transport: asyncio.Transport, on_end: "OnEnd", keep_alive: bool, version: str, method: str
    ) -> None:
        self._transport = transport
        self._on_end = on_end
        self._keep_alive = keep_alive
        self._chunked = version == "1.1"
        self._without_body = method == "HEAD"
        self.source: ResponseSource | None = None
        self.extra = b""
        """Header lines of every response to this request, whatever answers it."""
        self.started = False
        self.status = 0

    def send(self, status: int, body: bytes, headers: bytes = b"", *, content_type: bytes = JSON) -> None:
        """Send a complete response. `headers` are lines with their line ends."""
        self.started = True
        self.status = status
        self._transport.write(
            b"%bcontent-type: %b\r\n%b%b%bcontent-length: %d\r\n\r\n%b"
            % (
                status_line(status),
                content_type,
                headers,
                self.extra,
                b"" if self._keep_alive else b"connection: close\r\n",
                len(body),
                b"" if self._without_body else body,
            )
        )
        self._on_end(self._keep_alive)

    def start(self, status: int, headers: bytes = b"", *, content_type: bytes = EVENT_STREAM) -> None:
        """Begin a stream. Its headers ask proxies on the way not to buffer it."""
        self.started = True
        self.status = status
        self._keep_alive = self._keep_alive and self._chunked
        self._transport.write(
            b"%bcontent-type: %b\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n%b%b%b%b\r\n"
            % (
                status_line(status),
                content_type,
                headers,
                self.extra,
                b"" if self._keep_alive else b"connection: close\r\n",
                b"transfer-encoding: chunked\r\n" if self._chunked else b"",
            )
        )

    def write(self, data: bytes) -> None:
        """Send a piece of the stream at once. `data` must not be empty."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self, *, close: bool = False) -> None:
        """End the stream; `close` also ends the connection."""
        if self._chunked:
            self._transport.write(LAST_CHUNK)
        self._on_end(self._keep_alive and not close)


class OnEnd(Protocol):
    """What the connection does after a response."""

    def __call__(self, keep_alive: bool) -> None:
        """Read the next request, or close the connection."""


class Request:
    """One complete request.

    Whoever answers it calls `ended` when nothing is left to do for it, and may set `on_left`, which is called if the
    client leaves before the response is complete.
    """

    __slots__ = (
        "arrived_s",
        "body",
        "ended",
        "headers",
        "held_by",
        "held_bytes",
        "method",
        "on_left",
        "path",
        "peer",
        "response",
    )

    def __init__(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        response: Response,
        peer: str,
        arrived_s: float,
        ended: Callable[["Request"], None],
    ) -> None:
        self.method = method
        self.path = path
        """The path as sent, without the query. Nothing is decoded, and the Host header is ignored."""
        self.headers = headers
        """Names are in lower case; values of a repeated header are joined with ", "."""
        self.body = body
        self.response = response
        self.peer = peer
        self.arrived_s = arrived_s
        """When the last byte was read, on the loop's clock."""
        self.ended = ended
        self.on_left: Callable[[], object] | None = None
        self.held_by = peer
        self.held_bytes = 0
        """What the open request holds of the budget of memory, and in whose share."""
