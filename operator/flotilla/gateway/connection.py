"""One client's connection: HTTP/1.1 as RFC 9112 has it, bounded in every direction.

llhttp parses (strict: no obs-fold, no bare LF, no Content-Length beside Transfer-Encoding); what it leaves to its
users is refused here.
"""

import asyncio
import math
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, cast

from flotilla.gateway import wire
from flotilla.gateway.reader import Refused, RequestReader, ServerLimits
from flotilla.gateway.request import Answer, Request
from flotilla.gateway.translated import error_for

Handler = Callable[[Request], Coroutine[Any, Any, None]]
_LINGER_S = 2.0
_WRITE_HIGH: Final = 256 * 1024
_NEVER = math.inf


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
        self._reader = RequestReader(server.limits, self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._answer: Answer | None = None
        self._lingering = False
        self._last = False
        """No request is read after this one."""
        self._reading = False
        self.deadline_s = _NEVER

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
        try:
            self._reader.feed(data)
        except Refused as refused:
            self._refuse(refused)

    def eof_received(self) -> bool:
        """A client that closes its side has gone, as far as generating for it is concerned."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """What was being generated for the client is given up."""
        self._server.connections.discard(self)
        self.deadline_s = _NEVER
        # So are the reader, which holds us, and its parser: the collector that would find the circle runs seldom.
        self._reader.close()
        del self._reader
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

    # the reader's side

    def on_begin(self) -> None:
        """The first byte of a request."""
        self._reading = True
        if self._answer is None:
            self.deadline_s = self._loop.time() + self._limits.head_timeout_s

    def on_head(self, *, expects: bool) -> None:
        """The body follows."""
        if self._answer is not None:
            return
        if expects and self._transport is not None:
            self._transport.write(wire.CONTINUE)
        self.deadline_s = self._loop.time() + self._limits.body_timeout_s

    def on_request(self) -> None:
        """A whole request: it is answered now, or when those before it are."""
        self._reading = False
        assert self._transport is not None
        reader, method = self._reader, self._reader.method
        keep_alive = reader.keep_alive and not self._server.closing
        request = Request(
            method,
            reader.path,
            reader.headers,
            reader.take_body(),
            answer=Answer(self._transport, self._ended, keep_alive=keep_alive, version=reader.version, method=method),
            peer=self._peer,
            arrived_s=self._loop.time(),
        )
        if self._answer is None:
            self._serve(request)
            return
        self._waiting.append(request)
        self._waiting_bytes += len(request.body)
        if len(self._waiting) > self._limits.pipelined or self._waiting_bytes > self._limits.body_bytes:
            raise Refused(400, "pipelining", f"More than {self._limits.pipelined} requests were sent ahead.")

    # ours

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
        body = error_for(self._reader.path, refused.status, refused.body)
        self._transport.write(
            b"%bcontent-type: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (wire.status_line(refused.status), wire.JSON, len(body), body)
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
