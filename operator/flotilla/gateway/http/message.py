"""A request as it was read from a client's connection, and the response to it as HTTP/1.1 bytes."""

import asyncio
from http import HTTPStatus
from typing import Protocol

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus if status >= 200
}
_NOT_IN_HEADERS = str.maketrans(dict.fromkeys(map(chr, [*range(32), 127]), "_"))


def status_line(status: int) -> bytes:
    """The status line, with the standard phrase if the status has one."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def header(name: str, value: str) -> bytes:
    """One header line. Control characters, and characters outside Latin-1, are replaced."""
    if value.isascii() and value.isprintable():
        return f"{name}: {value}\r\n".encode()
    return f"{name}: {value.translate(_NOT_IN_HEADERS)}\r\n".encode("latin-1", "replace")


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

    __slots__ = ("_chunked", "_keep_alive", "_on_end", "_transport", "_without_body", "source", "started", "status")

    def __init__(
        self, transport: asyncio.Transport, on_end: "OnEnd", *, keep_alive: bool, version: str, method: str
    ) -> None:
        self._transport = transport
        self._on_end = on_end
        self._keep_alive = keep_alive
        self._chunked = version == "1.1"
        self._without_body = method == "HEAD"
        self.source: ResponseSource | None = None
        self.started = False
        self.status = 0

    def send(self, status: int, body: bytes, headers: bytes = b"", *, content_type: bytes = JSON) -> None:
        """Send a complete response. `headers` are lines with their line ends."""
        self.started = True
        self.status = status
        self._transport.write(
            b"%bcontent-type: %b\r\n%b%bcontent-length: %d\r\n\r\n%b"
            % (
                status_line(status),
                content_type,
                headers,
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
            b"%bcontent-type: %b\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n%b%b%b\r\n"
            % (
                status_line(status),
                content_type,
                headers,
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
    """One complete request."""

    __slots__ = ("arrived_s", "body", "headers", "method", "path", "peer", "response")

    def __init__(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        *,
        response: Response,
        peer: str,
        arrived_s: float,
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
