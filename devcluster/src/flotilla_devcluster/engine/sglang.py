"""An SGLang server: its endpoints with their checks and answers, warm-up, the limit of its queue, and a drain without
end.

What it does was read in the wheel of sglang 0.5.23: entrypoints/http_server.py (routes, health),
managers/scheduler.py (the queue's limit), managers/tokenizer_manager.py (`sigterm_watchdog`), utils/auth.py (what a
key guards).
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, ClassVar, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher, SimulatedSequence
from flotilla_devcluster.engine.loop import DONE, OpenAiWriter, collect, compact, failed_stream, json_response
from flotilla_devcluster.engine.metrics import EngineMetrics, multiprocess_text
from flotilla_devcluster.engine.requests import (
    ApiError,
    Asked,
    Prompt,
    chat_prompt,
    has_bearer,
    is_json,
    messages_of,
    plan,
    prompts_of,
    read_json,
    text_prompt,
    whole,
)
from flotilla_devcluster.engine.serving import RunningServer, SimulatedEngine
from flotilla_devcluster.engine.sglang_config import VERSION, Adapter, SglangConfig

_OPEN: Final = ("/health", "/ready", "/metrics")
"""Paths that begin so need no key."""
_HEALTH_CHECK_S: Final = 1.0
"""A health check generates a token and looks for it after so long, never sooner."""
_WARM_UP_PROMPT: Final = "The capital city of France is"
_WARM_UP_TOKENS: Final = 8
_CLOSE_S: Final = 1.0
"""Time for answers that are complete to reach their clients."""
_DEFAULT_MODEL: Final = "default"
_RESERVED_INPUT_TOKENS: Final = 5
"""A prompt must be so much shorter than the longest request."""


class SglangEngine(SimulatedEngine[SglangConfig]):
    stream_headers: ClassVar[Mapping[str, str]] = {"Content-Type": "text/event-stream; charset=utf-8"}
    metrics_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, config: SglangConfig) -> None:
        super().__init__(config, lambda batcher: sglang_metrics(config, batcher))
        self.up = False
        self.draining = False
        self._watched_since_s = 0.0
        self._warm_up_task: asyncio.Task[None] | None = None

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._account, self.errors, self.authenticate])
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
                web.post("/load_lora_adapter", self._load_adapter),
                web.post("/unload_lora_adapter", self._unload_adapter),
            ]
        )
        if self.config.metrics:
            app.add_routes([web.get("/metrics", self.answer_metrics)])
        return app

    def loaded(self) -> None:
        """The server listens, but is not healthy before its own first request has been answered."""
        self._watched_since_s = asyncio.get_running_loop().time()
        self._warm_up_task = asyncio.create_task(self._warm_up())

    async def terminate(self, server: RunningServer) -> None:
        """Every request is answered, however long it takes, also new ones; only the health checks fail.

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
        """Answer a request like any other, which is in the metrics too."""
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

    async def _model_info(self, _: web.Request) -> web.Response:
        return json_response(model_info(self.config))

    async def _server_info(self, _: web.Request) -> web.Response:
        return json_response(server_info(self.config))

    async def _load_adapter(self, request: web.Request) -> web.Response:
        document = await request.json()
        adapter = Adapter(str(document.get("lora_name")), str(document.get("lora_path")))
        wrong = "" if self.config.lora else "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."
        if adapter.name in (known.name for known in self.config.adapters):
            wrong = f"LoRA adapter with name {adapter.name} already exists."
        return self._adapters_are(wrong, (*self.config.adapters, adapter))

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        name = str((await request.json()).get("lora_name"))
        kept = tuple(known for known in self.config.adapters if known.name != name)
        missing = len(kept) == len(self.config.adapters)
        return self._adapters_are(f"LoRA adapter with name {name} does not exist." if missing else "", kept)

    def _adapters_are(self, wrong: str, adapters: tuple[Adapter, ...]) -> web.Response:
        if not wrong:
            self.config = replace(self.config, adapters=adapters)
        loaded = {adapter.name: adapter.path for adapter in self.config.adapters}
        document = {"success": not wrong, "error_message": wrong, "loaded_adapters": loaded}
        return json_response(document, status=HTTPStatus.BAD_REQUEST if wrong else HTTPStatus.OK)

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(models(self.config))

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name != self.config.served_name:
            error = {"message": f"The model '{name}' does not exist", "type": "invalid_request_error"}
            return json_response({"error": {**error, "param": "model", "code": "model_not_found"}}, status=404)
        return json_response(card(name, root=name, parent=None, context=self.config.context_tokens))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        document = await _document(request)
        return await self._generate(request, read_chat(document, self.config), document)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        document = await _document(request)
        return await self._generate(request, read_completion(document, self.config), document)

    async def _generate(self, request: web.Request, asked: Asked, document: Mapping[str, Any]) -> web.StreamResponse:
        if self._queue_is_full(len(asked.answers)):
            if not asked.stream:
                raise queue_full()
            # the scheduler refuses what the server has accepted: a stream has begun by then
            return await failed_stream(request, queue_full().event, tail=DONE, headers=self.stream_headers)
        sequences = asked.sequences()
        self.metrics.submitted(sequences, streaming=asked.stream)
        ticket = self.loop.submit(sequences, streaming=asked.stream)
        return await self.answer(request, ticket, Writer(asked, model=model_of(document)))

    def _queue_is_full(self, sequences: int) -> bool:
        """Running sequences do not count."""
        self.loop.refresh()
        most = self.config.max_queued
        return most is not None and len(self.batcher.waiting) + sequences > most

    def is_allowed(self, request: web.Request) -> bool:
        key = self.config.api_key
        return not key or request.path.startswith(_OPEN) or has_bearer(request.headers, [key])

    def http_error(self, error: web.HTTPException) -> web.Response:
        document = {"object": "error", "message": error.reason, "type": str(error.status), "param": None}
        return json_response({**document, "code": error.status}, status=error.status)

    @web.middleware
    async def _account(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the exchange; one whose client leaves before its answer has no response."""
        resource = request.match_info.route.resource
        labels = {"endpoint": request.path if resource is None else resource.canonical, "method": request.method}
        self.metrics.record("http.asked", labels=labels)
        self.metrics.record("http.active", labels=labels)
        try:
            response = await handler(request)
            self.metrics.record("http.answered", labels={**labels, "status_code": str(response.status)})
            return response
        finally:
            self.metrics.record("http.active", -1, labels=labels)


def make(config: SglangConfig) -> SglangEngine:
    return SglangEngine(config)


def sglang_metrics(config: SglangConfig, batcher: Batcher) -> EngineMetrics:
    """The families of an SGLang with this configuration; those of the adapters' pool only where it has adapters."""
    return EngineMetrics(
        "sglang-0.5.23.metrics",
        batcher,
        write=multiprocess_text,
        facts={"context_tokens": config.context_tokens, "lora_slots": config.max_loras},
        hidden=None if config.lora else "sglang:lora_pool",
        constants={
            "model_name": config.served_name,
            "engine_type": "unified",
            "tp_rank": "0",
            "pp_rank": "0",
            "moe_ep_rank": "0",
            "pid": str(os.getpid()),
        },
    )


async def _document(request: web.Request) -> dict[str, Any]:
    """The body of a request. Raises ApiError 400 where FastAPI's validation fails."""
    if not is_json(request.headers.get("Content-Type", "")):
        raise _invalid("Unsupported Media Type: Only 'application/json' is allowed")
    return read_json(
        await request.read(),
        broken=lambda error: _invalid(f"JSON decode error: {error}"),
        no_object=lambda: _invalid("Input should be a valid dictionary or object to extract fields from"),
    )


def model_of(document: Mapping[str, Any]) -> str:
    """The model as the client called it, which the answer repeats."""
    return str(document.get("model") or _DEFAULT_MODEL)


def read_chat(document: Mapping[str, Any], config: SglangConfig) -> Asked:
    """A body of /v1/chat/completions. Raises ApiError."""
    messages = messages_of(document)
    if messages is None:
        raise _invalid("body.messages: Input should be a valid list")
    if not messages:
        raise _bad_request("Messages cannot be empty.")
    prompt = chat_prompt(messages, document.get("tools") or [])
    limit = whole(document, "max_completion_tokens", _no_integer) or whole(document, "max_tokens", _no_integer)
    return _asked(document, config, [prompt], chat=True, limit=limit)


def read_completion(document: Mapping[str, Any], config: SglangConfig) -> Asked:
    """A body of /v1/completions. Raises ApiError."""
    if "prompt" not in document:
        raise _invalid("body.prompt: Field required")
    prompts = prompts_of(document["prompt"] or None)
    if prompts is None:
        raise _bad_request("Prompt cannot be empty")
    limit = whole(document, "max_tokens", _no_integer)
    return _asked(document, config, prompts, chat=False, limit=16 if limit is None else limit)


def _asked(
    document: Mapping[str, Any], config: SglangConfig, prompts: list[Prompt], *, chat: bool, limit: int | None
) -> Asked:
    count = whole(document, "n", _no_integer) or 1
    _check_adapter(_adapter(document, model_of(document), config), config)
    for prompt in prompts:
        _check_length(prompt, limit, config)
    return plan(
        document,
        prompts,
        chat=chat,
        count=count,
        limit=limit,
        context=config.longest_request - 1,
        mean_tokens=config.settings.output_tokens,
    )


def _adapter(document: Mapping[str, Any], model: str, config: SglangConfig) -> str | None:
    """`base:adapter` as the model, or `lora_path`. A model that is not served is no error: it gets the base."""
    if model.startswith(f"{config.served_name}:"):
        return model.removeprefix(f"{config.served_name}:").strip() or None
    if ":" in model and model != config.served_name:
        return model.partition(":")[2].strip() or None
    path = document.get("lora_path")
    return path if isinstance(path, str) else None


def _check_adapter(name: str | None, config: SglangConfig) -> None:
    known = [adapter.name for adapter in config.adapters]
    if name is None or (config.lora and name in known):
        return
    if not config.lora:
        raise _bad_request(
            f"LoRA adapter '{name}' was requested, but LoRA is not enabled. Please launch the server with "
            "--enable-lora flag and preload adapters using --lora-paths or /load_lora_adapter endpoint."
        )
    raise _bad_request(f"Got LoRA adapter that has never been loaded: {name}\nAll loaded adapters: dict_keys({known}).")


def _check_length(prompt: Prompt, limit: int | None, config: SglangConfig) -> None:
    context, most = config.context_tokens, config.longest_request - _RESERVED_INPUT_TOKENS
    if prompt.tokens >= context:
        raise _bad_request(
            f"The input ({prompt.tokens} tokens) is longer than the model's context length ({context} tokens)."
        )
    if limit is not None and limit < 1:
        raise _invalid("max_tokens must be positive")
    if limit is not None and limit + prompt.tokens > context:
        raise _bad_request(
            f"Requested token count exceeds the model's maximum context length of {context} tokens. You requested a "
            f"total of {limit + prompt.tokens} tokens: {prompt.tokens} tokens from the input messages and {limit} "
            "tokens for the completion. Please reduce the number of tokens in the input messages or the completion "
            "to fit within the limit."
        )
    if prompt.tokens >= most:
        raise _bad_request(
            f"Input length ({prompt.tokens} tokens) exceeds the maximum allowed length ({most} tokens). "
            "Use a shorter input or enable --allow-auto-truncate."
        )


def _error(status: HTTPStatus, message: str, kind: str) -> ApiError:
    """The type of an event differs from the one of a document: it is the status's name."""
    common = {"object": "error", "message": message, "param": None, "code": status.value}
    return ApiError(status, message, {**common, "type": kind}, event={"error": {**common, "type": status.name}})


def _bad_request(message: str) -> ApiError:
    return _error(HTTPStatus.BAD_REQUEST, message, "BadRequestError")


def _no_integer(name: str) -> ApiError:
    return _invalid(f"body.{name}: Input should be a valid integer")


def _invalid(message: str) -> ApiError:
    return _error(HTTPStatus.BAD_REQUEST, f"1 validation error: {message}", HTTPStatus.BAD_REQUEST.phrase)


def queue_full() -> ApiError:
    """503; in a document its type is the number."""
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "The request queue is full.", "503")


def models(config: SglangConfig) -> dict[str, Any]:
    """The document of GET /v1/models: the base model, then its adapters."""
    served = config.served_name
    cards = [card(served, root=served, parent=None, context=config.context_tokens)]
    cards += [card(adapter.name, root=adapter.path, parent=served, context=None) for adapter in config.adapters]
    return {"object": "list", "data": cards}


def card(name: str, *, root: str, parent: str | None, context: int | None) -> dict[str, Any]:
    """One model of that list."""
    common = {"object": "model", "created": int(time.time()), "owned_by": "sglang", "root": root}
    return {"id": name, **common, "parent": parent, "max_model_len": context}


def model_info(config: SglangConfig) -> dict[str, Any]:
    """The document of GET /model_info, without what only a checkpoint knows."""
    return {
        "model_path": config.model,
        "served_model_name": config.served_name,
        "tokenizer_path": config.model,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "load_format": "auto",
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
    }


def server_info(config: SglangConfig) -> dict[str, Any]:
    """The few fields of GET /server_info that the simulation knows."""
    return {
        "model_path": config.model,
        "served_model_name": config.served_name,
        "context_length": config.context_tokens,
        "max_running_requests": config.limits.max_running,
        "max_queued_requests": config.max_queued,
        "max_total_num_tokens": config.limits.kv_blocks * config.limits.block_size,
        "enable_metrics": config.metrics,
        "version": VERSION,
    }


class Writer(OpenAiWriter):
    """A chat stream begins and ends each choice with a chunk of its own."""

    def __init__(self, asked: Asked, *, model: str) -> None:
        super().__init__(asked, identity=uuid.uuid4().hex, model=model)

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        answer = self.asked.answers[index]
        words = answer.words(start, end)
        reason = f'"{answer.finish_reason}"' if last else "null"
        if not self.asked.chat:
            return self._chunk(index, f'"text":"{words}"', reason, end)
        opening = self._delta(index, '"role":"assistant","content":""', "null", 0) if start == 0 else b""
        closing = self._delta(index, "", reason, end) if last else b""
        return opening + self._delta(index, f'"content":"{words}"', "null", end) + closing

    def _delta(self, index: int, content: str, reason: str, tokens: int) -> bytes:
        separator = "," if content else ""
        return self._chunk(index, f'"delta":{{"reasoning_content":null{separator}{content}}}', reason, tokens)

    def _chunk(self, index: int, body: str, reason: str, tokens: int) -> bytes:
        usage = ""
        if self.asked.continuous_usage:
            prompt = self.asked.prompt_of(index).tokens
            counts = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
            usage = f',"usage":{compact(counts)}'
        choice = f'{{"index":{index},{body},"logprobs":null,"finish_reason":{reason},"matched_stop":null}}'
        return f"{self.head}{choice}]{usage}}}\n\n".encode()

    def choice(self, index: int, words: str, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": words, "reasoning_content": None}
        body = {"message": message} if self.asked.chat else {"text": words}
        return {"index": index, **body, "logprobs": None, "finish_reason": reason, "matched_stop": None}

    def usage(self) -> dict[str, Any]:
        more = {"prompt_tokens_details": None, "reasoning_tokens": 0, "completion_tokens_details": None}
        return {**super().usage(), **more}

    def tail(self) -> dict[str, Any]:
        return {"metadata": {"weight_version": "default"}}
