"""One connection to a target, and what takes the answers that come by it."""

import asyncio
import math
import socket
from typing import Protocol, cast

import httptools

from flotilla.gateway.origin import Origin

_HEAD_LIMIT = 64 * 1024
_NEVER = math.inf


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


class Pool(Protocol):
    """What keeps connections for later."""

    def release(self, connection: "Connection") -> None:
        """The connection can be used again."""

    def forget(self, connection: "Connection") -> None:
        """The connection is closed."""


class Connection(asyncio.Protocol):
    """One connection to an origin, with one request at a time on it."""

    def __init__(self, pool: Pool, origin: Origin) -> None:
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

    def fail(self, reason: str) -> None:
        """What comes cannot be used: close at once, and tell the sink."""
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
            # Bytes that nobody asked for: an answer to come could be taken for that of the next request.
            self.abort()
            return
        self.answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(cause, _BadAnswer):
                self.fail("a defect of the gateway")
                raise
            self.fail(f"no valid HTTP ({cause or error})")

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


class _BadAnswer(Exception):
    """An answer that cannot be read."""
