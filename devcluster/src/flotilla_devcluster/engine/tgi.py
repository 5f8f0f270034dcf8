"""A TGI server: routes, the limit of concurrent requests, streams and its graceful end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Row
from http import HTTPStatus
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher, SimulatedSequence
from flotilla_devcluster.engine.engine_loop import EngineLoop, Ticket
from flotilla_devcluster.engine.serving import RunningServer
from flotilla_devcluster.engine.streaming import DONE, collect, failed_stream, json_response, relay
from flotilla_devcluster.engine.tgi_config import TgiConfig
from flotilla_devcluster.engine.tgi_metrics import TgiMetrics
from flotilla_devcluster.engine.tgi_requests import (
    Generation,
    TgiError,
    overloaded,
    read_chat,
    read_completion,
    read_generate,
    read_json,
)
from flotilla_devcluster.engine.tgi_responses import GenerateWriter, OpenAiWriter, info, models

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


T = TypeVar("T")


class TgiEngine:
    """Must be made inside the event loop that serves it."""

    def __init__(self, config: TgiConfig) -> None:
        self.config = config
        self.batcher = Batcher(config.limits, config.speed)
        self.metrics = TgiMetrics(config, self.batcher)
        self.loop = EngineLoop(self.batcher, on_event=self.metrics.on_event, tick_s=config.settings.tick_seconds)

    def app(self) -> web.Application:
        # the launcher's own limit is applied in read_json
        app = web.Application(middlewares=[self._errors, self._authenticate], client_max_size=2**30)
        app.add_routes(
            [
                web.get("/", self._ok),
                web.get("/health", self._ok),
                web.get("/ping", self._ok),
                web.get("/info", self._info),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.post("/generate", self._generate),
                web.post("/generate_stream", self._generate_stream),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
            ]
        )
        return app

    def loaded(self) -> None:
        """Nothing more to do."""

    async def terminate(self, server: RunningServer) -> None:
        """SIGTERM: no new connections, running and waiting requests end, health is refused with the rest."""
        await server.stop_listening()
        try:
            async with asyncio.timeout(self.config.shutdown_timeout_s):
                await server.requests_done()
        except TimeoutError:
            self.loop.kill()
        await asyncio.sleep(self.config.settings.teardown_seconds)

    async def _ok(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _info(self, _: web.Request) -> web.Response:
        return json_response(info(self.config))

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(models(self.config))

    async def _metrics(self, _: web.Request) -> web.Response:
        self.loop.refresh()
        return web.Response(text=self.metrics.text(), content_type="text/plain", charset="utf-8")

    async def _body(self, request: web.Request) -> dict[str, Any]:
        return read_json(await request.read(), request.headers.get("Content-Type", ""), self.config)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        document = await self._body(request)
        self.metrics.requested()
        generation = self._checked(lambda: read_generate(document, self.config))
        ticket = self._submit([generation], streaming=False)
        await collect(loop=self.loop, ticket=ticket)
        writer = GenerateWriter(generation, details=_wants_details(document))
        return json_response(writer.document(), headers=_counts([generation]))

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        document = await self._body(request)
        self.metrics.requested()
        try:
            generation = self._checked(lambda: read_generate(document, self.config))
            ticket = self._submit([generation], streaming=True)
        except TgiError as error:
            if error.text:
                raise
            return await failed_stream(request, error.document, tail=b"", headers=_STREAM_HEADERS)
        writer = GenerateWriter(generation, details=_wants_details(document))
        return await relay(request, loop=self.loop, ticket=ticket, writer=writer, headers=_STREAM_HEADERS)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        document = await self._body(request)
        return await self._openai(request, document, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        document = await self._body(request)
        return await self._openai(request, document, chat=False)

    async def _openai(self, request: web.Request, document: dict[str, Any], *, chat: bool) -> web.StreamResponse:
        # the OpenAI routes count a request and then the generation below them once more
        self.metrics.requested()
        self.metrics.requested()
        stream = bool(document.get("stream"))
        try:
            generations = self._checked(lambda: self._read(document, chat=chat))
            ticket = self._submit(generations, streaming=stream)
        except TgiError as error:
            if error.text or not stream:
                raise
            return await failed_stream(request, error.openai_event, tail=DONE, headers=_STREAM_HEADERS)
        writer = OpenAiWriter(
            generations,
            chat=chat,
            model=self._model_name(document),
            include_usage=bool((document.get("stream_options") or {}).get("include_usage")),
        )
        if stream:
            return await relay(request, loop=self.loop, ticket=ticket, writer=writer, headers=_STREAM_HEADERS)
        await collect(loop=self.loop, ticket=ticket)
        return json_response(writer.document(), headers=_counts(generations))

    def _read(self, document: dict[str, Any], *, chat: bool) -> list[Generation]:
        if chat:
            return [read_chat(document, self.config)]
        return read_completion(document, self.config)

    def _model_name(self, document: dict[str, Any]) -> str:
        name = document.get("model")
        return self.config.model if name in (None, "tgi") else str(name)

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except TgiError as error:
            if not error.text:
                self.metrics.failed("validation")
            raise

    def _submit(self, generations: Row[Generation], *, streaming: bool) -> Ticket:
        self.loop.refresh()
        if self.batcher.refusal(len(generations)) is not None:
            self.metrics.failed("overloaded")
            raise overloaded()
        sequences = []
        for generation in generations:
            self.metrics.validated(input_tokens=generation.prompt.tokens, max_new_tokens=generation.max_new_tokens)
            sequences.append(
                SimulatedSequence(
                    prompt_tokens=generation.prompt.tokens,
                    output_tokens=generation.answer.tokens,
                    reserve_tokens=generation.reserve_tokens,
                    finish_reason=generation.answer.finish_reason,
                )
            )
        return self.loop.submit(sequences, streaming=streaming)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self.config.api_key
        guarded = request.method == "POST"
        if key and guarded and request.headers.get("Authorization", "").lower() != f"bearer {key}".lower():
            return web.Response(status=HTTPStatus.UNAUTHORIZED)
        return await handler(request)

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except TgiError as error:
            if error.text:
                return web.Response(text=error.message, status=error.status)
            return json_response(error.document, status=error.status)
        except web.HTTPException as error:
            return web.Response(status=error.status)


def make(config: TgiConfig) -> TgiEngine:
    return TgiEngine(config)


def _wants_details(document: dict[str, Any]) -> bool:
    return bool((document.get("parameters") or {}).get("details"))


def _counts(generations: Row[Generation]) -> dict[str, str]:
    return {
        "x-compute-type": "gpu+optimized",
        "x-prompt-tokens": str(sum(generation.prompt.tokens for generation in generations)),
        "x-generated-tokens": str(sum(generation.answer.tokens for generation in generations)),
    }
