"""A llama.cpp server: routes, slots, and an end at which running answers fall silent.

What it does was read in ggml-org/llama.cpp@0c1e57098: tools/server/server.cpp (life and routes), server-http.cpp (what
is answered while the model loads), server-context.cpp and server-queue.cpp (slots, deferred requests, streams), and in
the cpp-httplib that it carries.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher
from flotilla_devcluster.engine.asked import Asked
from flotilla_devcluster.engine.engine_loop import EngineLoop, Ticket
from flotilla_devcluster.engine.llamacpp_config import LlamacppConfig
from flotilla_devcluster.engine.llamacpp_metrics import LlamacppMetrics
from flotilla_devcluster.engine.llamacpp_requests import (
    LlamacppError,
    not_supported,
    read_chat,
    read_completion,
    read_json,
    unavailable,
)
from flotilla_devcluster.engine.llamacpp_responses import Writer, adapters, models, props, slots
from flotilla_devcluster.engine.serving import RunningServer
from flotilla_devcluster.engine.streaming import collect, json_response, relay

_PUBLIC: Final = ("/health", "/v1/health", "/")
_STREAM_HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
_METRICS_TYPE: Final = "text/plain; version=0.0.4"


class LlamacppEngine:
    """Must be made inside the event loop that serves it."""

    def __init__(self, config: LlamacppConfig) -> None:
        self.config = config
        self.batcher = Batcher(config.limits, config.speed)
        self.metrics = LlamacppMetrics(self.batcher, slots=config.slots)
        self.loop = EngineLoop(self.batcher, on_event=self.metrics.on_event, tick_s=config.settings.tick_seconds)
        self.ready = False
        self._streams: dict[Ticket, web.Request] = {}

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._errors, self._loading, self._authenticate], client_max_size=2**30)
        gets = {
            "/health": self._health,
            "/v1/health": self._health,
            "/metrics": self._metrics,
            "/props": self._props,
            "/slots": self._slots,
            "/lora-adapters": self._adapters,
            "/models": self._models,
            "/v1/models": self._models,
        }
        if self.config.web_ui:
            gets["/"] = self._web_ui
        posts = {
            "/chat/completions": self._chat,
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
        }
        prefix = self.config.prefix
        app.add_routes([web.get(prefix + path, handler) for path, handler in gets.items()])
        app.add_routes([web.post(prefix + path, handler) for path, handler in posts.items()])
        return app

    def loaded(self) -> None:
        self.ready = True

    async def terminate(self, server: RunningServer) -> None:
        """SIGTERM: nothing more is generated, and the process ends when its last client is gone.

        A stream that had begun is cut where the next ping would be due, for only there its thread looks up; any other
        request hears nothing for as long as its client waits.
        """
        self.loop.kill()
        await server.stop_listening()
        cutting = asyncio.create_task(self._cut_streams())
        try:
            await server.requests_done()
        finally:
            cutting.cancel()
        await asyncio.sleep(self.config.settings.teardown_seconds)

    async def _cut_streams(self) -> None:
        if self.config.ping_interval_s <= 0:
            return
        await asyncio.sleep(self.config.ping_interval_s)
        for ticket, request in list(self._streams.items()):
            begun = any(sequence.admitted_s is not None for sequence in ticket.sequences)
            if begun and request.transport is not None:
                request.transport.close()

    async def _health(self, _: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def _web_ui(self, _: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>simulated llama.cpp</title>", content_type="text/html")

    async def _metrics(self, _: web.Request) -> web.Response:
        if not self.config.metrics:
            raise not_supported("This server does not support metrics endpoint. Start it with `--metrics`")
        self.loop.refresh()
        return web.Response(body=self.metrics.text().encode(), headers={"Content-Type": _METRICS_TYPE})

    async def _props(self, _: web.Request) -> web.Response:
        return json_response(props(self.config))

    async def _slots(self, request: web.Request) -> web.Response:
        if not self.config.shows_slots:
            raise not_supported("This server does not support slots endpoint. Start it with `--slots`")
        self.loop.refresh()
        if request.query.get("fail_on_no_slot") and None not in self.metrics.slots:
            raise unavailable("no slot available")
        return json_response(slots(self.config, self.batcher, self.metrics.slots))

    async def _adapters(self, _: web.Request) -> web.Response:
        return json_response(adapters(self.config))

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(models(self.config))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, read_chat(read_json(await request.read()), self.config))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, read_completion(read_json(await request.read()), self.config))

    async def _generate(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        """A request without a free slot is deferred, however many there are."""
        ticket = self.loop.submit(asked.sequences(), streaming=asked.stream)
        writer = Writer(asked, self.config)
        if not asked.stream:
            await collect(loop=self.loop, ticket=ticket)
            return json_response(writer.document())
        self._streams[ticket] = request
        try:
            return await relay(request, loop=self.loop, ticket=ticket, writer=writer, headers=_STREAM_HEADERS)
        finally:
            del self._streams[ticket]

    @web.middleware
    async def _loading(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self.ready and request.path != "/":
            raise unavailable("Loading model")
        return await handler(request)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        keys = self.config.api_keys
        if keys and request.method != "OPTIONS" and request.path not in _PUBLIC:
            given = request.headers.get("Authorization", "") or request.headers.get("X-Api-Key", "")
            if given.removeprefix("Bearer ") not in keys:
                error = {"message": "Invalid API Key", "type": "authentication_error", "code": 401}
                return json_response({"error": error}, status=401)
        return await handler(request)

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except LlamacppError as error:
            return json_response(error.document, status=error.status.value)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
            error_document = {"message": "File Not Found", "type": "not_found_error", "code": 404}
            return json_response({"error": error_document}, status=404)


def make(config: LlamacppConfig) -> LlamacppEngine:
    return LlamacppEngine(config)
