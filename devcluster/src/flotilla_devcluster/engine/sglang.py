"""An SGLang server: routes, warm-up, the limit of its queue, streams and a drain without end.

What it does was read in the wheel of sglang 0.5.23: entrypoints/http_server.py (routes, health), managers/scheduler.py
(the queue's limit), managers/tokenizer_manager.py (`sigterm_watchdog`), utils/auth.py (what a key guards).
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher, SimulatedSequence
from flotilla_devcluster.engine.engine_loop import EngineLoop
from flotilla_devcluster.engine.generation import text_prompt
from flotilla_devcluster.engine.keys import opens
from flotilla_devcluster.engine.serving import RunningServer
from flotilla_devcluster.engine.sglang_config import SglangConfig
from flotilla_devcluster.engine.sglang_metrics import SglangMetrics
from flotilla_devcluster.engine.sglang_requests import (
    Request,
    SglangError,
    queue_full,
    read_chat,
    read_completion,
    read_json,
)
from flotilla_devcluster.engine.sglang_responses import Writer, card, model_info, models, server_info, unknown_model
from flotilla_devcluster.engine.streaming import DONE, collect, failed_stream, json_response, relay

_OPEN: Final = ("/health", "/ready", "/metrics")
"""Paths that begin so need no key."""
_STREAM_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8"}
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_HEALTH_CHECK_S: Final = 1.0
"""A health check generates a token and looks for it after so long, never sooner."""
_WARM_UP_PROMPT: Final = "The capital city of France is"
_WARM_UP_TOKENS: Final = 8
_CLOSE_S: Final = 1.0
"""What answers that were made still have to reach their clients."""


class SglangEngine:
    """Must be made inside the event loop that serves it."""

    def __init__(self, config: SglangConfig) -> None:
        self.config = config
        self.batcher = Batcher(config.limits, config.speed)
        self.metrics = SglangMetrics(config, self.batcher)
        self.loop = EngineLoop(self.batcher, on_event=self.metrics.on_event, tick_s=config.settings.tick_seconds)
        self.up = False
        self.draining = False
        self._watched_since_s = 0.0
        self._warm_up_task: asyncio.Task[None] | None = None

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._account, self._errors, self._authenticate])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/health_generate", self._health),
                web.get("/ready", self._ready),
                web.get("/ping", self._ready),
                web.get("/model_info", self._model_info),
                web.get("/get_model_info", self._model_info),
                web.get("/server_info", self._server_info),
                web.get("/get_server_info", self._server_info),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model:.+}", self._model),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
            ]
        )
        if self.config.metrics:
            app.add_routes([web.get("/metrics", self._metrics)])
        return app

    def loaded(self) -> None:
        """The server listens, but is not healthy before its own first request has been answered."""
        self._watched_since_s = asyncio.get_running_loop().time()
        self._warm_up_task = asyncio.create_task(self._warm_up())

    async def terminate(self, server: RunningServer) -> None:
        """SIGTERM: every request ends, however long it takes, also those that still come; only health says no.

        The signal and the number of requests that are left are looked at every few seconds.
        """
        self.draining = True
        poll_s = self.config.settings.drain_poll_seconds
        watched_s = asyncio.get_running_loop().time() - self._watched_since_s
        await asyncio.sleep(poll_s - watched_s % poll_s)
        while self._unfinished() and not self.config.forced_shutdown:
            await asyncio.sleep(poll_s)
        await asyncio.sleep(self.config.settings.teardown_seconds)
        await server.stop_listening()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await server.requests_done()
        except TimeoutError:
            self.loop.kill()

    def _unfinished(self) -> int:
        self.loop.refresh()
        return self.batcher.unfinished

    async def _warm_up(self) -> None:
        """A request like any other: it is in the metrics too."""
        if self.config.warms_up:
            tokens = text_prompt(_WARM_UP_PROMPT).tokens
            sequence = SimulatedSequence(prompt_tokens=tokens, output_tokens=_WARM_UP_TOKENS, finish_reason="length")
            await collect(loop=self.loop, ticket=self.loop.submit([sequence], streaming=False))
        self.up = True

    async def _health(self, request: web.Request) -> web.Response:
        if self.draining or not self.up:
            return web.Response(status=503)
        if self.config.health_generates or request.path != "/health":
            await asyncio.sleep(_HEALTH_CHECK_S)
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.up and not self.draining else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        self.loop.refresh()
        return web.Response(body=self.metrics.text().encode(), headers={"Content-Type": _METRICS_TYPE})

    async def _model_info(self, _: web.Request) -> web.Response:
        return json_response(model_info(self.config))

    async def _server_info(self, _: web.Request) -> web.Response:
        return json_response(server_info(self.config))

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(models(self.config))

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name != self.config.served_name:
            return json_response(unknown_model(name), status=404)
        return json_response(card(name, root=name, parent=None, context=self.config.context_tokens))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        document = read_json(await request.read(), request.headers.get("Content-Type", ""))
        return await self._generate(request, read_chat(document, self.config))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        document = read_json(await request.read(), request.headers.get("Content-Type", ""))
        return await self._generate(request, read_completion(document, self.config))

    async def _generate(self, request: web.Request, read: Request) -> web.StreamResponse:
        asked = read.asked
        if self._queue_is_full(len(asked.answers)):
            if not asked.stream:
                raise queue_full()
            # the scheduler refuses what the server has accepted: a stream has begun by then
            return await failed_stream(request, queue_full().event, tail=DONE, headers=_STREAM_HEADERS)
        sequences = asked.sequences()
        self.metrics.submitted(sequences, streaming=asked.stream)
        ticket = self.loop.submit(sequences, streaming=asked.stream)
        writer = Writer(read)
        if asked.stream:
            return await relay(request, loop=self.loop, ticket=ticket, writer=writer, headers=_STREAM_HEADERS)
        await collect(loop=self.loop, ticket=ticket)
        return json_response(writer.document())

    def _queue_is_full(self, sequences: int) -> bool:
        """Those that run do not count."""
        self.loop.refresh()
        most = self.config.max_queued
        return most is not None and len(self.batcher.waiting) + sequences > most

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        expected = self.config.api_key
        guarded = request.method != "OPTIONS" and not request.path.startswith(_OPEN)
        if expected and guarded and not opens(request.headers.get("Authorization", ""), [expected]):
            return json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except SglangError as error:
            return json_response(error.document, status=error.status.value)
        except web.HTTPException as error:
            document = {"object": "error", "message": error.reason, "type": str(error.status), "param": None}
            return json_response({**document, "code": error.status}, status=error.status)

    @web.middleware
    async def _account(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        path = request.path if resource is None else resource.canonical
        status: int | None = None
        self.metrics.asked(path, request.method)
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            self.metrics.answered(path, request.method, status)


def make(config: SglangConfig) -> SglangEngine:
    return SglangEngine(config)
