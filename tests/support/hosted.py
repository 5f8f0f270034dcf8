"""A hosted API with real sockets that follows a script: what it was asked is kept, what it answers is data.

Every request takes the next reply of the script; without one it is answered as the API would (hosted_answers). A reply
is a sequence of steps, so that a test can put a fault between any two bytes::

    async with hosted_api() as api:
        api.script(Stream(openai_chunks("Hello"), reset_after=1))
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

_MAX_LINE = 1 << 16
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came over the socket."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole answer with a Content-Length."""

    body: Any
    """bytes as they are, everything else as JSON."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0
    """Wait before the first byte."""
    gate: asyncio.Event | None = None
    """Wait before the first byte until the test sets it."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Server-sent events in chunked encoding, one HTTP chunk each."""

    chunks: Sequence[bytes]
    gap_s: float = 0
    """Wait before each chunk but the first."""
    first_s: float = 0
    """Wait before the first chunk; the head is sent at once."""
    gate: asyncio.Event | None = None
    gate_after: int = 0
    """After so many chunks wait until the test sets `gate`."""
    reset_after: int | None = None
    """After so many chunks the connection is reset."""
    close_after: int | None = None
    """After so many chunks the connection is closed in the middle of the body."""
    hang_after: int | None = None
    """After so many chunks nothing more comes, and the connection stays open."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset when the request has been read, before any byte of an answer."""


@dataclass(frozen=True, slots=True)
class Hang:
    """No byte ever comes; the connection stays open until the other side gives up."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes that are no HTTP, then the end of the connection."""

    data: bytes = b"\x00\x16\x03garbage\r\n\r\n"


Reply = Whole | Stream | Reset | Hang | Garbage


def fault(
    status: int, *, retry_after_s: int | None = None, message: str = "scripted", anthropic: bool = False
) -> Whole:
    """An error in the API's own shape, such as 429 and 503."""
    kind = {429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error"}.get(status, "api_error")
    error: dict[str, Any] = {"type": kind, "message": message}
    body = {"type": "error", "error": error} if anthropic else {"error": {**error, "param": None, "code": None}}
    return Whole(body, status, {} if retry_after_s is None else {"retry-after": str(retry_after_s)})


class HostedApi:
    """The running API. `received` are the requests so far, in the order in which they were read."""

    def __init__(self, answer: Callable[[Received], Reply], tls: ssl.SSLContext | None = None) -> None:
        self._answer, self._tls = answer, tls
        self._script: deque[Reply] = deque()
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._changed = asyncio.Condition()
        self.received: list[Received] = []
        self.port = 0
        self.connections = 0
        """Connections that were ever accepted."""
        self.abandoned = 0
        """Answers whose client went away before their end."""

    @property
    def url(self) -> str:
        """Without a path: the OpenAI base URL is this and /v1."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def script(self, *replies: Reply) -> None:
        """Answer the next requests by these, in order."""
        self._script.extend(replies)

    def forget_script(self) -> None:
        """Answer the next requests as the API would."""
        self._script.clear()

    async def start(self) -> None:
        """Listen, on the same port as before where there was one."""
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", self.port, ssl=self._tls, limit=_MAX_LINE, start_serving=False
        )
        self.port = self._server.sockets[0].getsockname()[1]
        await self._server.start_serving()

    async def stop(self) -> None:
        """Refuse new connections and cut the open ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Nobody listens meanwhile: connections are refused."""
        await self.stop()
        try:
            yield
        finally:
            await self.start()

    async def until(self, condition: Callable[[HostedApi], bool], *, timeout_s: float = 20) -> None:
        """Wait for what arrives: `await api.until(lambda api: len(api.received) == 2)`."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._open[task] = writer
        task.add_done_callback(lambda done: self._open.pop(done, None))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._notify()
        try:
            while (request := await _read(reader)) is not None:
                reply = self._script.popleft() if self._script else self._answer(request)
                self.received.append(request)
                await self._notify()
                if not await _Answering(reader, writer).send(reply):
                    return
                if request.headers.get("connection", "").lower() == "close":
                    return
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            self.abandoned += 1
            await self._notify()
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, TimeoutError):
                await writer.wait_closed()


@dataclass(frozen=True, slots=True)
class _Answering:
    """One answer. `send` tells whether the connection can take another request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, reply: Reply) -> bool:
        match reply:
            case Whole():
                await asyncio.sleep(reply.delay_s)
                await self._wait(reply.gate)
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                head = {"content-type": "application/json", "content-length": str(len(body)), **reply.headers}
                await self._write(_head(reply.status, head) + body)
                return True
            case Stream():
                return await self._stream(reply)
            case Reset():
                self._reset()
            case Hang():
                await self._gone()
            case Garbage():
                await self._write(reply.data)
        return False

    async def _stream(self, reply: Stream) -> bool:
        head = {"content-type": "text/event-stream", "transfer-encoding": "chunked", **reply.headers}
        await self._write(_head(200, head))
        for number in range(len(reply.chunks) + 1):
            if number == reply.gate_after:
                await self._wait(reply.gate)
            if number == reply.reset_after:
                self._reset()
                return False
            if number == reply.close_after:
                return False
            if number == reply.hang_after:
                await self._gone()
                return False
            if number < len(reply.chunks):
                await asyncio.sleep(reply.gap_s if number else reply.first_s)
                chunk = reply.chunks[number]
                await self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await self._write(b"0\r\n\r\n")
        return True

    async def _write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def _wait(self, gate: asyncio.Event | None) -> None:
        if gate is None:
            return
        gone, opened = asyncio.ensure_future(self._gone()), asyncio.ensure_future(gate.wait())
        try:
            await asyncio.wait({gone, opened}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
        finally:
            gone.cancel()
            opened.cancel()
            # Only one may read at a time, and the next request is read at once.
            await asyncio.gather(gone, opened, return_exceptions=True)

    async def _gone(self) -> None:
        """Raises ConnectionResetError when the other side has closed; what it sends meanwhile is lost."""
        while await self.reader.read(_MAX_LINE):
            pass
        raise ConnectionResetError("the client went away")

    def _reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.writer.transport.abort()


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Scripted"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def _read(reader: asyncio.StreamReader) -> Received | None:
    """The next request; None when the client has closed the connection in order."""
    line = await reader.readline()
    if not line:
        return None
    method, path, _version = line.decode("latin-1").split()
    headers: dict[str, str] = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)
