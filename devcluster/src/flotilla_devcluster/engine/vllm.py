"""A vLLM server: its OpenAI endpoints with their checks and answers, admission, metrics, and the two ways in which it
ends.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, ClassVar, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher
from flotilla_devcluster.engine.loop import DONE, OpenAiWriter, failed_stream, json_response
from flotilla_devcluster.engine.metrics import EngineMetrics, python_text
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
    whole,
)
from flotilla_devcluster.engine.serving import RunningServer, SimulatedEngine
from flotilla_devcluster.engine.vllm_config import VERSION, VllmConfig

_GUARDED: Final = ("/v1", "/v2", "/inference", "/cohere")
"""Paths that begin so need a key."""
_UNMEASURED_PATHS: Final = frozenset(("/metrics", "/health", "/load", "/ping", "/version", "/server_info"))


class VllmEngine(SimulatedEngine[VllmConfig]):
    stream_headers: ClassVar[Mapping[str, str]] = {"Content-Type": "text/event-stream; charset=utf-8"}
    metrics_type = "text/plain; version=1.0.0; charset=utf-8"

    def __init__(self, config: VllmConfig) -> None:
        super().__init__(config, lambda batcher: vllm_metrics(config, batcher))
        self.draining = False

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._account, self.errors, self.authenticate])
        app.add_routes(
            [
                web.get("/health", self.answer_ok),
                web.get("/ping", self.answer_ok),
                web.post("/ping", self.answer_ok),
                web.get("/version", self._version),
                web.get("/metrics", self.answer_metrics),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
            ]
        )
        if self.config.loads_adapters:
            app.add_routes(
                [
                    web.post("/v1/load_lora_adapter", self._load_adapter),
                    web.post("/v1/unload_lora_adapter", self._unload_adapter),
                ]
            )
        return app

    async def terminate(self, server: RunningServer) -> None:
        """With a time-out the engine drains, and its health stays good meanwhile.

        Without one it stops at once, while the server waits for its clients, which get nothing more.
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

    async def _version(self, _: web.Request) -> web.Response:
        return json_response({"version": VERSION})

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(models(self.config))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = read_chat(await _document(request), self.config)
        self._admit(asked)
        return await self._generate(request, asked)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        asked = read_completion(await _document(request), self.config)
        try:
            self._admit(asked)
        except ApiError as error:
            if not asked.stream or error.status is not HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            # this endpoint alone finds out after the head of a stream has gone
            return await failed_stream(request, error.event, tail=DONE, headers=self.stream_headers)
        return await self._generate(request, asked)

    async def _load_adapter(self, request: web.Request) -> web.Response:
        name, path = await _adapter_of(request, "lora_name", "lora_path")
        if name in self.config.adapters:
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            )
            raise _error(HTTPStatus.BAD_REQUEST, "InvalidUserInput", f"{message}'load_inplace' to True.")
        self.config = replace(self.config, adapters={**self.config.adapters, name: path})
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        (name,) = await _adapter_of(request, "lora_name")
        if name not in self.config.adapters:
            raise _error(HTTPStatus.NOT_FOUND, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        kept = {other: path for other, path in self.config.adapters.items() if other != name}
        self.config = replace(self.config, adapters=kept)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    def _admit(self, asked: Asked) -> None:
        if self.draining or self.loop.dead:
            raise _error(
                HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError", "cannot schedule new futures after shutdown"
            )
        self.loop.refresh()
        reason = self.batcher.refusal(len(asked.answers))
        if reason is not None:
            self.metrics.record("rejected", labels={"reason": reason})
            raise busy(reason)

    async def _generate(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        self.metrics.record("submitted.choices", asked.choices_per_prompt)
        self.metrics.record("submitted.max_tokens", asked.max_tokens)
        sequences = asked.sequences()
        self.metrics.submitted(sequences, streaming=asked.stream)
        ticket = self.loop.submit(sequences, streaming=asked.stream)
        return await self.answer(request, ticket, Writer(asked, self.config))

    def is_allowed(self, request: web.Request) -> bool:
        keys = self.config.api_keys
        return not keys or not request.path.startswith(_GUARDED) or has_bearer(request.headers, keys)

    def http_error(self, error: web.HTTPException) -> web.Response:
        phrase = HTTPStatus(error.status).phrase
        document = {"message": phrase, "type": phrase, "param": None, "code": error.status}
        return json_response({"error": document}, status=error.status)

    @web.middleware
    async def _account(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the exchange as prometheus-fastapi-instrumentator does."""
        started_s = time.monotonic()
        response = await handler(request)
        resource = request.match_info.route.resource
        path = "none" if resource is None else resource.canonical
        if path not in _UNMEASURED_PATHS:
            count_exchange(self.metrics, request, response, path, seconds=time.monotonic() - started_s)
        return response


def make(config: VllmConfig) -> VllmEngine:
    return VllmEngine(config)


def count_exchange(
    metrics: EngineMetrics, request: web.BaseRequest, response: web.StreamResponse, path: str, *, seconds: float
) -> None:
    """Record one answered HTTP request; `path` is its route's pattern."""
    labels = {"handler": path, "method": request.method, "status": f"{response.status // 100}xx"}
    metrics.record("http.answered", labels=labels)
    metrics.record("http.request_bytes", request.content_length or 0, labels=labels)
    metrics.record("http.response_bytes", response.content_length or 0, labels=labels)
    metrics.record("http.seconds", seconds, labels=labels)


def vllm_metrics(config: VllmConfig, batcher: Batcher) -> EngineMetrics:
    """The families of a vLLM with this configuration."""
    limits = config.limits
    kv_tokens = limits.kv_blocks * limits.block_size
    return EngineMetrics(
        "vllm-0.33.metrics",
        batcher,
        write=python_text,
        facts={},
        buckets={"context": one_two_five(config.context_tokens)},
        hidden=None if config.log_stats else "vllm:",
        constants={
            "engine": "0",
            "model_name": config.served_names[0],
            "block_size": str(limits.block_size),
            "effective_attention_block_size": str(limits.block_size),
            "num_gpu_blocks": str(limits.kv_blocks),
            "kv_cache_size_tokens": str(kv_tokens),
            "kv_cache_max_concurrency": str(kv_tokens / config.context_tokens),
            "kv_cache_memory_bytes": "None",
            "cache_dtype": config.dtype_of_cache,
            "gpu_memory_utilization": str(config.gpu_memory_utilization),
        },
    )


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to `largest`."""
    bounds: list[float] = []
    magnitude = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * magnitude > largest:
                return tuple(bounds)
            bounds.append(float(mantissa * magnitude))
        magnitude *= 10


async def _document(request: web.Request) -> dict[str, Any]:
    """The body of a request. Raises ApiError 400 where FastAPI's validation fails."""

    def broken(error: ValueError) -> ApiError:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "Invalid encoding"
        message = _field("json_invalid", "body", "JSON decode error")
        return _invalid(f"{message[:-1]}, 'ctx': {{'error': '{reason}'}}}}")

    if not is_json(request.headers.get("Content-Type", "")):
        raise _invalid("Unsupported Media Type: Only 'application/json' is allowed")
    no_object = _field("model_attributes_type", "body", "Input should be a valid dictionary")
    return read_json(await request.read(), broken=broken, no_object=lambda: _invalid(no_object))


async def _adapter_of(request: web.Request, *fields: str) -> list[str]:
    """The texts of these fields. Raises ApiError where one is missing or empty."""
    document = await _document(request)
    found = [document.get(field) for field in fields]
    if not all(isinstance(text, str) and text for text in found):
        message = f"{'Both ' if len(fields) > 1 else ''}{' and '.join(map(repr, fields))} must be provided."
        raise _error(HTTPStatus.BAD_REQUEST, "InvalidUserInput", message)
    return [str(text) for text in found]


def read_chat(document: Mapping[str, Any], config: VllmConfig) -> Asked:
    """A body of /v1/chat/completions. Raises ApiError."""
    messages = messages_of(document)
    if messages is None:
        kind, text = ("list_type", "Input should be a valid list")
        if "messages" not in document:
            kind, text = ("missing", "Field required")
        raise _invalid(_field(kind, "messages", text), param="messages")
    _check_model(document, config)
    tools = document.get("tools") or []
    limit_name = "max_completion_tokens" if document.get("max_completion_tokens") else "max_tokens"
    return _asked(document, config, [chat_prompt(messages, tools)], chat=True, limit_name=limit_name, default=None)


def read_completion(document: Mapping[str, Any], config: VllmConfig) -> Asked:
    """A body of /v1/completions: a text, a list of texts, token ids or a list of those. Raises ApiError."""
    _check_model(document, config)
    prompts = prompts_of(document.get("prompt"))
    if prompts is None:
        raise _bad_request("Either prompt or prompt_embeds must be provided and non-empty.")
    # the completions endpoint alone has OpenAI's old default
    return _asked(document, config, prompts, chat=False, limit_name="max_tokens", default=16)


def _asked(
    document: Mapping[str, Any],
    config: VllmConfig,
    prompts: list[Prompt],
    *,
    chat: bool,
    limit_name: str,
    default: int | None,
) -> Asked:
    limit = whole(document, limit_name, _no_integer)
    limit = default if limit is None else limit
    count = whole(document, "n", _no_integer) or 1
    _check_stream_options(document)
    _check_lengths(prompts, limit, limit_name, config)
    return plan(
        document,
        prompts,
        chat=chat,
        count=count,
        limit=limit,
        context=config.context_tokens,
        mean_tokens=config.settings.output_tokens,
        force_usage=config.force_usage,
    )


def _check_model(document: Mapping[str, Any], config: VllmConfig) -> None:
    model = document.get("model")
    if model and model not in config.served_names and model not in config.adapters:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(config.served_names)}."
        raise _error(HTTPStatus.NOT_FOUND, "NotFoundError", message, "model")


def _check_stream_options(document: Mapping[str, Any]) -> None:
    options = document.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _invalid(_field("model_attributes_type", "stream_options", "Input should be a valid dictionary"))
    if options and not document.get("stream"):
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise _error(HTTPStatus.BAD_REQUEST, "Bad Request", message, "stream_options")


def _check_lengths(prompts: list[Prompt], limit: int | None, name: str, config: VllmConfig) -> None:
    context = config.context_tokens
    if limit is not None and limit < 1:
        raise _bad_request(f"{name} must be at least 1, got {limit}.", name, limit)
    if limit is not None and limit > context:
        message = f"{name}={limit} cannot be greater than max_model_len={context}."
        raise _bad_request(f"{message} Please request fewer output tokens.", name, limit)
    for prompt in prompts:
        if prompt.tokens >= context:
            message = (
                f"This model's maximum context length is {context} tokens. However, your prompt contains "
                f"{prompt.tokens} input tokens, which exceeds this limit even without any output tokens. "
                "Please reduce the length of the input prompt."
            )
            raise _bad_request(message, "input_tokens", prompt.tokens)


def _error(status: HTTPStatus, kind: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(
        status, message, {"error": {"message": message, "type": kind, "param": param, "code": status.value}}
    )


def _bad_request(message: str, param: str | None = None, value: int | None = None) -> ApiError:
    text = message if param is None else f"{message} (parameter={param}, value={value})"
    return _error(HTTPStatus.BAD_REQUEST, "BadRequestError", text, param)


def _field(kind: str, location: str, message: str) -> str:
    return f"{{'type': '{kind}', 'loc': '{location}', 'msg': '{message}'}}"


def _no_integer(name: str) -> ApiError:
    return _invalid(_field("int_type", name, "Input should be a valid integer"), param=name)


def _invalid(error: str, param: str | None = None) -> ApiError:
    return _error(HTTPStatus.BAD_REQUEST, "Bad Request", f"1 validation error:\n  {error}", param)


def busy(reason: str) -> ApiError:
    """503 for a limit of the queue, by the name that the batcher gives it."""
    what = "is currently busy and cannot accept new requests."
    if reason == "max_num_queued_tokens":
        what = "has reached its prefill token backlog limit."
    message = f"The engine {what} Please try again later or on a different instance."
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "Service Unavailable", message)


def models(config: VllmConfig) -> dict[str, Any]:
    """The document of GET /v1/models."""
    created = int(time.time())
    permission = {
        "id": f"modelperm-{uuid.uuid4().hex}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    common = {"object": "model", "created": created, "owned_by": "vllm"}

    def card(name: str, *, root: str, parent: str | None, context: int | None) -> dict[str, Any]:
        own = {"root": root, "parent": parent, "max_model_len": context}
        return {"id": name, **common, **own, "permission": [permission]}

    first = config.served_names[0]
    served = [card(name, root=config.model, parent=None, context=config.context_tokens) for name in config.served_names]
    adapters = [card(name, root=path, parent=first, context=None) for name, path in config.adapters.items()]
    return {"object": "list", "data": served + adapters}


class Writer(OpenAiWriter):
    """A chat stream begins each choice with a chunk that has its role only."""

    def __init__(self, asked: Asked, config: VllmConfig) -> None:
        identity = f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}"
        super().__init__(asked, identity=identity, model=config.served_names[0])

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        answer = self.asked.answers[index]
        words = answer.words(start, end)
        content = f'"delta":{{"content":"{words}"}}' if self.asked.chat else f'"text":"{words}"'
        reason = f'"{answer.finish_reason}","stop_reason":null' if last else "null"
        opening = b""
        if self.asked.chat and start == 0:
            opening = self._chunk(index, '"delta":{"role":"assistant","content":""}', "null", 0)
        return opening + self._chunk(index, content, reason, end)

    def _chunk(self, index: int, content: str, reason: str, tokens: int) -> bytes:
        usage = ""
        if self.asked.include_usage and self.asked.continuous_usage:
            prompt = self.asked.prompt_tokens
            usage = (
                f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + tokens},"completion_tokens":{tokens}}}'
            )
        choice = f'{{"index":{index},{content},"logprobs":null,"finish_reason":{reason}}}'
        return f"{self.head}{choice}]{usage}}}\n\n".encode()

    def choice(self, index: int, words: str, reason: str) -> dict[str, Any]:
        common = {"logprobs": None, "finish_reason": reason, "stop_reason": None}
        if not self.asked.chat:
            return {"index": index, "text": words, **common}
        message = {"role": "assistant", "content": words, "refusal": None, "annotations": None, "audio": None}
        return {"index": index, "message": {**message, "function_call": None, "reasoning": None}, **common}

    def usage(self) -> dict[str, Any]:
        return {**super().usage(), "prompt_tokens_details": None}

    def tail(self) -> dict[str, Any]:
        return {
            "service_tier": None,
            "system_fingerprint": None,
            "prompt_logprobs": None,
            "kv_transfer_params": None,
        }
