"""A vLLM server: routes, admission, streams and the two ways in which it ends."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher
from flotilla_devcluster.engine.asked import Asked
from flotilla_devcluster.engine.engine_loop import EngineLoop
from flotilla_devcluster.engine.keys import opens
from flotilla_devcluster.engine.serving import RunningServer
from flotilla_devcluster.engine.streaming import DONE, collect, failed_stream, json_response, relay
from flotilla_devcluster.engine.vllm_config import VERSION, VllmConfig
from flotilla_devcluster.engine.vllm_metrics import VllmMetrics
from flotilla_devcluster.engine.vllm_requests import (
    ApiError,
    read_chat,
    read_completion,
    read_json,
    refusal,
    shut_down,
)
from flotilla_devcluster.engine.vllm_responses import Writer, models

_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
_STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8"}
_METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


class VllmEngine:
    """Must be made inside the event loop that serves it."""

    def __init__(self, config: VllmConfig) -> None:
        self.config = config
        self.batcher = Batcher(config.limits, config.speed)
        self.metrics = VllmMetrics(config, self.batcher)
        self.loop = EngineLoop(self.batcher, on_event=self.metrics.on_event, tick_s=config.settings.tick_seconds)
        self.draining = False

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._account, self._errors, self._authenticate])
        app.add_routes(
            [
                web.get("/health", self._ok),
                web.get("/ping", self._ok),
                web.post("/ping", self._ok),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
            ]
        )
        return app

    def loaded(self) -> None:
        """Nothing more to do."""

    async def terminate(self, server: RunningServer) -> None:
        """SIGTERM: with a time-out the engine drains, and its health stays good meanwhile.

        Without one it is dead at once, while the server waits for its clients, who hear nothing more.
        """
        if self.config.shutdown_timeout_s <= 0:
            self.loop.kill()
            await server.stop_listening()
            await server.requests_done()
            return
        self.draining = True
        try:
            async with asyncio.timeout(self.config.shutdown_timeout_s):
                await self.loop.idle()
                await server.requests_done()
        except TimeoutError:
            self.loop.kill()
        await asyncio.sleep(self.config.settings.teardown_seconds)

    async def _ok(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return json_response({"version": VERSION})

    async def _metrics(self, _: web.Request) -> web.Response:
        self.loop.refresh()
        return web.Response(body=self.metrics.text().encode(), headers={"Content-Type": _METRICS_TYPE})

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(models(self.config))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        document = read_json(await request.read(), request.headers.get("Content-Type", ""))
        asked = read_chat(document, self.config)
        self._admit(asked)
        return await self._generate(request, asked)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        document = read_json(await request.read(), request.headers.get("Content-Type", ""))
        asked = read_completion(document, self.config)
        try:
            self._admit(asked)
        except ApiError as error:
            if not asked.stream or error.status is not HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            # this endpoint alone finds out after the head of a stream has gone
            return await failed_stream(request, error.document, tail=DONE, headers=_STREAM_HEADERS)
        return await self._generate(request, asked)

    def _admit(self, asked: Asked) -> None:
        if self.draining or self.loop.dead:
            raise shut_down()
        self.loop.refresh()
        reason = self.batcher.refusal(len(asked.answers))
        if reason is not None:
            self.metrics.rejected(reason)
            raise refusal(reason)

    async def _generate(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        self.metrics.asked(max_tokens=asked.max_tokens, sequences=asked.choices_per_prompt)
        ticket = self.loop.submit(asked.sequences(), streaming=asked.stream)
        writer = Writer(asked, self.config)
        if asked.stream:
            return await relay(request, loop=self.loop, ticket=ticket, writer=writer, headers=_STREAM_HEADERS)
        await collect(loop=self.loop, ticket=ticket)
        return json_response(writer.document())

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        keys = self.config.api_keys
        guarded = request.method != "OPTIONS" and request.path.startswith(_GUARDED)
        if keys and guarded and not opens(request.headers.get("Authorization", ""), keys):
            return json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return json_response(error.document, status=error.status.value)
        except web.HTTPException as error:
            phrase = HTTPStatus(error.status).phrase
            document = {"message": phrase, "type": phrase, "param": None, "code": error.status}
            return json_response({"error": document}, status=error.status)

    @web.middleware
    async def _account(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started_s = time.monotonic()
        response = await handler(request)
        resource = request.match_info.route.resource
        self.metrics.answered(
            "none" if resource is None else resource.canonical,
            request.method,
            response.status,
            seconds=time.monotonic() - started_s,
            request_bytes=request.content_length or 0,
            response_bytes=0 if response.content_length is None else response.content_length,
        )
        return response


def make(config: VllmConfig) -> VllmEngine:
    return VllmEngine(config)
