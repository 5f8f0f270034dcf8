"""A proxy between the operator and the apiserver that misbehaves on demand."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import ClientConnectionResetError, ClientSession, ClientTimeout, TCPConnector, web

Fault = Callable[[web.BaseRequest], web.StreamResponse | None]
"""Returns an answer of its own, or None to let the request through."""

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length", "content-encoding"})


class FlakyProxy:
    """Plain HTTP towards the operator (its bearer token passes through), TLS towards the apiserver."""

    def __init__(self, server: str, authority: bytes) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cadata=authority.decode())
        self._loop = asyncio.new_event_loop()
        self._fault: Fault | None = None
        self._down = False
        self._streams: set[asyncio.Task[Any]] = set()
        self._mute: set[asyncio.Task[Any]] = set()
        self.faults = 0
        """Requests that were answered with a fault."""
        self.url = ""
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="flaky-proxy")

    def start(self) -> None:
        self._thread.start()
        if not self._started.wait(10):
            raise RuntimeError("the proxy did not start")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Answer requests by `fault` meanwhile."""
        self._fault = fault
        try:
            yield
        finally:
            self._fault = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Drop every connection, old and new, meanwhile."""
        self._down = True
        self.close_watches()
        try:
            yield
        finally:
            self._down = False

    def close_watches(self) -> None:
        """Cut every running stream."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._streams])

    def mute_watches(self) -> None:
        """From now on nothing comes through the streams that run, not even their end. New ones are not affected."""
        self._loop.call_soon_threadsafe(lambda: self._mute.update(self._streams))

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _start(self) -> None:
        self._session = ClientSession(
            connector=TCPConnector(ssl=self._tls, limit=0),
            auto_decompress=False,
            timeout=ClientTimeout(total=None),
        )
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _end(self) -> None:
        await self._runner.cleanup()
        # Watches outlive the cleanup; left to the garbage collector they would fail another test of the process.
        leftovers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in leftovers:
            task.cancel()
        await asyncio.gather(*leftovers, return_exceptions=True)
        await self._session.close()
        # Aborted TLS connections close in the next turns of the loop.
        await asyncio.sleep(0.1)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._down:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=502)
        if self._fault is not None and (answer := self._fault(request)) is not None:
            self.faults += 1
            return answer
        headers = {k: v for k, v in request.headers.items() if k.lower() not in {"host", "content-length"}}
        async with self._session.request(
            request.method, self._server + request.path_qs, headers=headers, data=await request.read() or None
        ) as upstream:
            answer = web.StreamResponse(
                status=upstream.status,
                headers={k: v for k, v in upstream.headers.items() if k.lower() not in _HOP_BY_HOP},
            )
            if "content-encoding" in upstream.headers:
                answer.headers["Content-Encoding"] = upstream.headers["Content-Encoding"]
            with suppress(ClientConnectionResetError):
                await answer.prepare(request)
                await self._relay(upstream, answer, request)
            return answer

    async def _relay(self, upstream: Any, answer: web.StreamResponse, request: web.BaseRequest) -> None:
        async def copy() -> None:
            async for chunk in upstream.content.iter_any():
                if asyncio.current_task() not in self._mute:
                    await answer.write(chunk)
            if asyncio.current_task() in self._mute:
                await asyncio.Event().wait()
            await answer.write_eof()

        task = asyncio.ensure_future(copy())
        self._streams.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._streams.discard(task)
            self._mute.discard(task)


def answer_status(code: int, *, reason: str = "", retry_after_s: int | None = None) -> web.Response:
    """A Kubernetes Status object."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": reason,
    }
    return web.json_response(body, status=code, headers=headers)
