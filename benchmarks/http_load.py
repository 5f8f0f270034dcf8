"""A fake engine and a load generator for benchmarks/gateway.py. Both use as little CPU as possible, because the program
that is measured runs between them.

    python -m benchmarks.http_load PORT     runs the engine
"""

import asyncio
import socket
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import httptools
import orjson
import uvloop

TEXT = "The ticket is about an invoice that was charged twice, so the queue is billing. " * 3
ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "engine-model",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop", "logprobs": None}
        ],
        "usage": {"prompt_tokens": 180, "completion_tokens": 60, "total_tokens": 240},
    }
)
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
MODELS = orjson.dumps({"object": "list", "data": [{"id": "engine-model", "object": "model", "created": 1}]})


def request_body(model: str, *, stream: bool, chunks: int = 50, gap_ms: int = 20, order: int = 7781) -> bytes:
    """Return a request of about 900 bytes that classifies a ticket. The engine reads chunks and gap from `user`."""
    system = "You sort support tickets. Answer with the name of one queue: billing, shipping, returns, other. " * 5
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": f"My card was charged twice for order {order}. " * 4},
        ],
        "temperature": 0,
        "max_tokens": 64,
        "user": f"chunks={chunks},gap={gap_ms},",
    }
    if stream:
        body["stream"] = True
    return orjson.dumps(body)


def event(content: str | None, finish: str | None = None) -> bytes:
    """Return one event of a stream."""
    delta = {} if content is None else {"content": content}
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": "engine-model",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def framed(data: bytes) -> bytes:
    """Return the data as one chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class EngineConnection(asyncio.Protocol):
    """Answers at once, or as a stream at the pace that the request sets."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._body = b""
        self._url = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if not self._url.endswith(b"completions"):
            answer = MODELS if self._url.endswith(b"models") else b"{}"
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._transport.write(head % len(answer) + answer)
            return
        compact = self._body.replace(b" ", b"")
        if b'"stream":true' not in compact:
            self._transport.write(WHOLE)
            return
        left = int(compact.partition(b"chunks=")[2].partition(b",")[0] or b"50")
        gap_s = int(compact.partition(b"gap=")[2].partition(b",")[0] or b"20") / 1000
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._chunk(left, gap_s, b"include_usage" in compact, asyncio.get_running_loop().time())

    def _chunk(self, left: int, gap_s: float, usage: bool, due_s: float) -> None:
        if left:
            self._transport.write(framed(event(" token")))
            self._timer = asyncio.get_running_loop().call_at(
                due_s + gap_s, self._chunk, left - 1, gap_s, usage, due_s + gap_s
            )
            return
        last = framed(event(None, "stop"))
        if usage:
            counted = {"prompt_tokens": 180, "completion_tokens": 50, "total_tokens": 230}
            last += framed(b"data: " + orjson.dumps({"id": "1", "choices": [], "usage": counted}) + b"\n\n")
        self._transport.write(last + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


@dataclass
class Measured:
    """The results of the clients; times in seconds."""

    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failures: int = 0
    chunks: int = 0
    seconds: float = 0.0


class ClientConnection(asyncio.Protocol):
    """Sends one request after another."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._sent = self._last = 0.0
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self._sent)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def _send(self) -> None:
        self._tail, self._last = b"", 0.0
        if not self._load.take():
            self._sent = 0.0
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(next(self._load.messages))

    def on_body(self, data: bytes) -> None:
        if not self._load.stream:
            return
        now = time.perf_counter()
        measured = self._load.measured
        if self._last:
            measured.gaps.append(now - self._last)
        else:
            measured.first.append(now - self._sent)
        self._last = now
        measured.chunks += data.count(b'"content"')
        self._tail = data[-40:]

    def on_message_complete(self) -> None:
        measured = self._load.measured
        whole = not self._load.stream or b"[DONE]" in self._tail
        if self._parser.get_status_code() == 200 and whole:
            measured.latencies.append(time.perf_counter() - self._sent)
        else:
            measured.failures += 1
        self._load.answered()
        self._send()


class Load:
    """A number of requests over a number of connections, for a limited time."""

    def __init__(self, messages: bytes | list[bytes], *, stream: bool, requests: int, limit_s: float) -> None:
        self.messages = cycle([messages] if isinstance(messages, bytes) else messages)
        self.stream = stream
        self.measured = Measured()
        self._left = self._open = requests
        self._until = time.perf_counter() + limit_s
        self._done = asyncio.Event()

    def take(self) -> bool:
        """Return whether one more request must be sent."""
        if self._left <= 0 or time.perf_counter() > self._until:
            self._open -= self._left
            self._left = 0
            if self._open <= 0:
                self._done.set()
            return False
        self._left -= 1
        return True

    def answered(self) -> None:
        """Record that a request has ended."""
        self._open -= 1
        if self._open <= 0:
            self._done.set()

    def lost(self, sent: float) -> None:
        """Record that a connection was closed; this is a failure if it had an open request."""
        if sent:
            self.measured.failures += 1
            self.answered()

    async def run(self, port: int, connections: int) -> Measured:
        """Send all requests."""
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        for _ in range(connections):
            await loop.create_connection(lambda: ClientConnection(self), "127.0.0.1", port)
        await self._done.wait()
        self.measured.seconds = time.perf_counter() - started
        return self.measured


def message(body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """Return a whole request as the openai client sends it."""
    sent = {
        "host": "gateway.team.svc",
        "accept": "application/json",
        "content-type": "application/json",
        "user-agent": "OpenAI/Python 2.6.0",
        "x-stainless-lang": "python",
        "x-stainless-package-version": "2.6.0",
        "x-stainless-os": "Linux",
        "x-stainless-runtime": "CPython",
        "x-stainless-retry-count": "0",
        "authorization": "Bearer sk-benchmark",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body


async def _engine(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(EngineConnection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_engine(int(sys.argv[1])))
