"""A request as it came over a socket, and the one way to answer it."""

import asyncio
from typing import Protocol

from flotilla.gateway import wire


class Source(Protocol):
    """What fills an answer, and can be slowed down."""

    def pause(self) -> None:
        """Send no more until `resume`."""

    def resume(self) -> None:
        """Go on."""

    def fail(self, reason: str) -> None:
        """What it sends cannot be read: it has failed."""


class Answer:
    """The answer to one request: `whole`, or `start`, `write`... and `end`. Nothing reaches a client that has gone."""

    __slots__ = ("_chunked", "_keep_alive", "_on_end", "_transport", "_without_body", "source", "started", "status")

    def __init__(
        self, transport: asyncio.Transport, on_end: "OnEnd", *, keep_alive: bool, version: str, method: str
    ) -> None:
        self._transport = transport
        self._on_end = on_end
        self._keep_alive = keep_alive
        self._chunked = version == "1.1"
        self._without_body = method == "HEAD"
        self.source: Source | None = None
        self.started = False
        self.status = 0

    def whole(self, status: int, body: bytes, headers: bytes = b"", *, content_type: bytes = wire.JSON) -> None:
        """Answer at once. `headers` are whole lines."""
        self.started = True
        self.status = status
        self._transport.write(
            b"%bcontent-type: %b\r\n%b%bcontent-length: %d\r\n\r\n%b"
            % (
                wire.status_line(status),
                content_type,
                headers,
                b"" if self._keep_alive else b"connection: close\r\n",
                len(body),
                b"" if self._without_body else body,
            )
        )
        self._on_end(self._keep_alive)

    def start(self, status: int, headers: bytes = b"", *, content_type: bytes = wire.EVENT_STREAM) -> None:
        """Begin a stream; proxies on the way are asked not to gather it."""
        self.started = True
        self.status = status
        self._keep_alive = self._keep_alive and self._chunked
        self._transport.write(
            b"%bcontent-type: %b\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n%b%b%b\r\n"
            % (
                wire.status_line(status),
                content_type,
                headers,
                b"" if self._keep_alive else b"connection: close\r\n",
                b"transfer-encoding: chunked\r\n" if self._chunked else b"",
            )
        )

    def write(self, data: bytes) -> None:
        """A piece of the stream, sent without waiting for more; `data` is not empty."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self, *, close: bool = False) -> None:
        """The stream is whole, or is said to have failed."""
        if self._chunked:
            self._transport.write(wire.LAST_CHUNK)
        self._on_end(self._keep_alive and not close)


class OnEnd(Protocol):
    """What the connection does after an answer."""

    def __call__(self, keep_alive: bool) -> None:
        """Take the next request, or close."""


class Request:
    """One request, wholly read."""

    __slots__ = ("answer", "arrived_s", "body", "headers", "method", "path", "peer")

    def __init__(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        *,
        answer: Answer,
        peer: str,
        arrived_s: float,
    ) -> None:
        self.method = method
        self.path = path
        """As it came, without the query: nothing is decoded, and the Host header has no say."""
        self.headers = headers
        """Names in lower case; values that came twice joined with ", "."""
        self.body = body
        self.answer = answer
        self.peer = peer
        self.arrived_s = arrived_s
        """The loop's clock when the last byte was read."""
