"""What all engines share: the server, and the life of its process: bind, load, listen, SIGTERM, exit code."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher
from flotilla_devcluster.engine.loop import EngineLoop, Ticket, Writer, collect, json_response, relay
from flotilla_devcluster.engine.metrics import EngineMetrics
from flotilla_devcluster.engine.requests import ApiError
from flotilla_devcluster.engine.settings import EngineConfig, Refused

_BACKLOG = 2048
_FAILURE_SHARE = 0.2
"""Bad settings are found after so much of the load time: before the weights are read."""
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


C = TypeVar("C", bound=EngineConfig)


class DocumentWriter(Writer, Protocol):
    def document(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""


class RunningServer:
    """The listening side of an engine, for the end of its life."""

    def __init__(self, app: web.Application) -> None:
        app.middlewares.insert(0, self._count)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        self._site: web.SockSite | None = None
        self._active = 0
        self._changed = asyncio.Event()

    async def listen(self, listener: socket.socket) -> None:
        await self._runner.setup()
        self._site = web.SockSite(self._runner, listener, backlog=_BACKLOG)
        await self._site.start()

    async def stop_listening(self) -> None:
        """New connections are refused, idle ones closed, busy ones closed after their answer."""
        if self._site is not None:
            await self._site.stop()
        if self._runner.server is not None:
            self._runner.server.pre_shutdown()

    async def requests_done(self) -> None:
        """Wait until no handler runs: each has answered or its client has gone."""
        while self._active:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        await self._runner.cleanup()

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._active += 1
        try:
            return await handler(request)
        finally:
            self._active -= 1
            self._changed.set()


class SimulatedEngine(Generic[C]):
    """A server with its batcher, its loop and its metrics. Must be made inside the event loop that serves it.

    An engine gives `routes`, the headers of its streams, and how it refuses.
    """

    stream_headers: ClassVar[Mapping[str, str]]
    metrics_type: ClassVar[str]

    def __init__(self, config: C, metrics: Callable[[Batcher], EngineMetrics]) -> None:
        self.config = config
        self.batcher = Batcher(config.limits, config.speed)
        self.metrics = metrics(self.batcher)
        self.loop = EngineLoop(self.batcher, on_event=self.metrics.on_event, tick_s=config.settings.tick_seconds)

    def app(self) -> web.Application:
        raise NotImplementedError

    def loaded(self) -> None:
        """Called once, when the weights are read and connections are accepted."""

    async def terminate(self, server: RunningServer) -> None:
        """Called at SIGTERM; the process ends when it returns."""
        raise NotImplementedError

    async def answer_ok(self, _: web.Request) -> web.Response:
        return web.Response()

    async def answer_metrics(self, _: web.Request) -> web.Response:
        self.loop.refresh()
        return web.Response(body=self.metrics.text().encode(), headers={"Content-Type": self.metrics_type})

    async def answer(
        self,
        request: web.Request,
        ticket: Ticket,
        writer: DocumentWriter,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        """Stream the ticket's tokens, or wait for all of them; `headers` are those of a document."""
        if ticket.streaming:
            return await relay(request, loop=self.loop, ticket=ticket, writer=writer, headers=self.stream_headers)
        await collect(loop=self.loop, ticket=ticket)
        return json_response(writer.document(), headers=headers)

    def http_error(self, error: web.HTTPException) -> web.Response:
        """The answer to a path or method that does not exist."""
        raise NotImplementedError

    def is_allowed(self, request: web.Request) -> bool:
        """Whether the request needs no API key or has one."""
        return True

    @web.middleware
    async def authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "OPTIONS" and not self.is_allowed(request):
            return json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    @web.middleware
    async def errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refusals become answers."""
        try:
            return await handler(request)
        except ApiError as error:
            if isinstance(error.body, str):
                return web.Response(text=error.body, status=error.status)
            return json_response(error.body, status=error.status.value)
        except web.HTTPException as error:
            return self.http_error(error)


def bind(config: EngineConfig, address: str) -> socket.socket:
    """A bound socket that does not listen yet: a probe is refused, and a taken port is an error at once.

    `address` takes the place of the pod's own. An engine that is configured for loopback gets a random port: no other
    pod could reach it either. Raises Refused where the port cannot be had.
    """
    hidden = config.host in _LOOPBACK_NAMES
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", 0) if hidden else (address, config.port))
    except OSError as error:
        listener.close()
        raise Refused(1, f"OSError: {error.strerror} while binding {address}:{config.port}") from None
    return listener


async def serve(
    config: EngineConfig,
    make: Callable[[], SimulatedEngine[Any]],
    *,
    listener: socket.socket,
    started_s: float,
    listens_early: bool = False,
) -> int:
    """Load since `started_s` (monotonic), serve until SIGTERM or SIGINT, return the exit code.

    `listens_early`: connections are accepted before the load ends, and the engine answers that it is loading.
    """
    server: RunningServer | None = None
    if listens_early:
        engine = make()
        server = await _listening(engine, listener)
    load_s = config.settings.load_seconds
    if config.load_failure is not None:
        await asyncio.sleep(max(0.0, started_s + load_s * _FAILURE_SHARE - time.monotonic()))
        raise Refused(1, config.load_failure)
    await asyncio.sleep(max(0.0, started_s + load_s - time.monotonic()))
    if server is None:
        engine = make()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if server is None:
        server = await _listening(engine, listener)
    engine.loaded()
    print("Application startup complete.", flush=True)
    await stop.wait()
    print("Received SIGTERM, shutting down.", flush=True)
    await engine.terminate(server)
    await server.close()
    return 0


async def _listening(engine: SimulatedEngine[Any], listener: socket.socket) -> RunningServer:
    server = RunningServer(engine.app())
    await server.listen(listener)
    return server
