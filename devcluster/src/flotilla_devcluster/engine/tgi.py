"""A TGI server: its native and OpenAI endpoints with their checks and answers, its limits, its graceful end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher, SimulatedSequence
from flotilla_devcluster.engine.loop import DONE, OpenAiWriter, Ticket, compact, failed_stream, json_response
from flotilla_devcluster.engine.metrics import EngineMetrics, rust_text
from flotilla_devcluster.engine.requests import (
    Answer,
    ApiError,
    Asked,
    Prompt,
    answers,
    chat_prompt,
    messages_of,
    read_json,
    text_prompt,
)
from flotilla_devcluster.engine.serving import RunningServer, SimulatedEngine
from flotilla_devcluster.engine.tgi_config import VERSION, TgiConfig

DEFAULT_GENERATION_LENGTH: Final = 1024
"""TGI never reserves more output tokens than these at once."""
_DURATION_BUCKETS: Final = tuple(0.0001 * 1.5**power for power in range(1, 36))
_BATCH_SIZE_BUCKETS: Final = tuple(float(size) for size in range(1, 1025))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Generation:
    """One checked prompt. `reserve_tokens`: what TGI holds in the KV cache for its output."""

    prompt: Prompt
    answer: Answer
    reserve_tokens: int
    max_new_tokens: int


class TgiEngine(SimulatedEngine[TgiConfig]):
    stream_headers: ClassVar[Mapping[str, str]] = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }
    metrics_type = "text/plain; charset=utf-8"

    def __init__(self, config: TgiConfig) -> None:
        super().__init__(config, lambda batcher: tgi_metrics(config, batcher))

    def app(self) -> web.Application:
        # the launcher's own limit is applied in _document
        app = web.Application(middlewares=[self.errors, self._authenticate], client_max_size=2**30)
        app.add_routes(
            [
                web.get("/", self.answer_ok),
                web.get("/health", self.answer_ok),
                web.get("/ping", self.answer_ok),
                web.get("/info", self._info),
                web.get("/metrics", self.answer_metrics),
                web.get("/v1/models", self._models),
                web.post("/generate", self._generate),
                web.post("/generate_stream", self._generate_stream),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
            ]
        )
        return app

    async def terminate(self, server: RunningServer) -> None:
        """No new connections, running and waiting requests end, health is refused with the rest."""
        await server.stop_listening()
        try:
            async with asyncio.timeout(self.config.shutdown_timeout_s):
                await server.requests_done()
        except TimeoutError:
            self.loop.kill()
        await asyncio.sleep(self.config.settings.teardown_seconds)

    async def _info(self, _: web.Request) -> web.Response:
        return json_response(info(self.config))

    async def _models(self, _: web.Request) -> web.Response:
        card = {"id": self.config.model, "object": "model", "created": 0, "owned_by": self.config.model}
        return json_response({"object": "list", "data": [card]})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        document = await _document(request, self.config)
        self.metrics.record("requested")
        generation = self._checked(lambda: read_generate(document, self.config))
        return await self._answer(request, document, generation, self._submit([generation], streaming=False))

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        document = await _document(request, self.config)
        self.metrics.record("requested")
        try:
            generation = self._checked(lambda: read_generate(document, self.config))
            ticket = self._submit([generation], streaming=True)
        except ApiError as error:
            if isinstance(error.body, str):
                raise
            return await failed_stream(request, error.body, tail=b"", headers=self.stream_headers)
        return await self._answer(request, document, generation, ticket)

    async def _answer(
        self, request: web.Request, document: Mapping[str, Any], generation: Generation, ticket: Ticket
    ) -> web.StreamResponse:
        details = bool((document.get("parameters") or {}).get("details"))
        return await self.answer(
            request, ticket, GenerateWriter(generation, details=details), headers=_counts([generation])
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._openai(request, await _document(request, self.config), chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._openai(request, await _document(request, self.config), chat=False)

    async def _openai(self, request: web.Request, document: dict[str, Any], *, chat: bool) -> web.StreamResponse:
        # the OpenAI routes count a request and then the generation below them once more
        self.metrics.record("requested", times=2)
        stream = bool(document.get("stream"))
        read = read_chat if chat else read_completion
        try:
            generations = self._checked(lambda: read(document, self.config))
            ticket = self._submit(generations, streaming=stream)
        except ApiError as error:
            if isinstance(error.body, str) or not stream:
                raise
            return await failed_stream(request, error.event, tail=DONE, headers=self.stream_headers)
        given = document.get("model")
        name = self.config.model if given in (None, "tgi") else str(given)
        usage = chat and bool((document.get("stream_options") or {}).get("include_usage"))
        asked = Asked(
            chat=chat,
            prompts=tuple(generation.prompt for generation in generations),
            answers=tuple(generation.answer for generation in generations),
            choices_per_prompt=1,
            max_tokens=generations[0].max_new_tokens,
            stream=stream,
            include_usage=usage,
            continuous_usage=False,
        )
        return await self.answer(request, ticket, Writer(asked, model=name), headers=_counts(generations))

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except ApiError as error:
            if not isinstance(error.body, str):
                self.metrics.record("failed", labels={"err": "validation"})
            raise

    def _submit(self, generations: Row[Generation], *, streaming: bool) -> Ticket:
        self.loop.refresh()
        if self.batcher.refusal(len(generations)) is not None:
            self.metrics.record("failed", labels={"err": "overloaded"})
            raise _error(HTTPStatus.TOO_MANY_REQUESTS, "Model is overloaded", "overloaded")
        sequences = [
            SimulatedSequence(
                prompt_tokens=generation.prompt.tokens,
                output_tokens=generation.answer.tokens,
                reserve_tokens=generation.reserve_tokens,
                finish_reason=generation.answer.finish_reason,
            )
            for generation in generations
        ]
        for generation in generations:
            self.metrics.record("submitted.max_tokens", generation.max_new_tokens)
        self.metrics.submitted(sequences, streaming=streaming)
        return self.loop.submit(sequences, streaming=streaming)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self.config.api_key
        guarded = request.method == "POST"
        if key and guarded and request.headers.get("Authorization", "").lower() != f"bearer {key}".lower():
            return web.Response(status=HTTPStatus.UNAUTHORIZED)
        return await handler(request)

    def http_error(self, error: web.HTTPException) -> web.Response:
        return web.Response(status=error.status)


def make(config: TgiConfig) -> TgiEngine:
    return TgiEngine(config)


def tgi_metrics(config: TgiConfig, batcher: Batcher) -> EngineMetrics:
    """A fresh server shows neither a queue nor a batch size: a family appears when something touches it."""
    return EngineMetrics(
        "tgi-3.3.7.metrics",
        batcher,
        write=rust_text,
        facts={},
        constants={},
        lazy=True,
        buckets={
            "duration": _DURATION_BUCKETS,
            "batch_size": _BATCH_SIZE_BUCKETS,
            "input_tokens": _hundredths(config.max_input_tokens),
            "total_tokens": _hundredths(config.max_total_tokens),
        },
    )


def _hundredths(largest: int) -> tuple[float, ...]:
    return tuple(largest / 100 * part for part in range(1, 101))


async def _document(request: web.Request, config: TgiConfig) -> dict[str, Any]:
    """The body of a request. Raises ApiError as the HTTP framework does, in plain text."""
    body = await request.read()
    if not request.headers.get("Content-Type", "").partition(";")[0].strip().lower().endswith("json"):
        message = "Expected request with `Content-Type: application/json`"
        raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, message)
    if len(body) > config.payload_limit_bytes:
        message = "Failed to buffer the request body: length limit exceeded"
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, message)

    def broken(error: ValueError) -> ApiError:
        text = f"Failed to parse the request body as JSON: {error}"
        return ApiError(HTTPStatus.BAD_REQUEST, text, text)

    return read_json(body, broken=broken, no_object=lambda: _not_of_type("invalid type, expected a map"))


def read_generate(document: Mapping[str, Any], config: TgiConfig) -> Generation:
    """A body of /generate or /generate_stream."""
    inputs, parameters = document.get("inputs"), document.get("parameters") or {}
    if not isinstance(inputs, str):
        raise _not_of_type("missing field `inputs`")
    return checked(text_prompt(inputs), parameters.get("max_new_tokens"), config, empty=not inputs)


def read_chat(document: Mapping[str, Any], config: TgiConfig) -> list[Generation]:
    """A body of /v1/chat/completions; the model's name has no meaning."""
    messages = messages_of(document)
    if messages is None:
        raise _not_of_type("missing field `messages`")
    prompt = chat_prompt(messages, document.get("tools") or [])
    return [checked(prompt, document.get("max_tokens"), config, empty=False)]


def read_completion(document: Mapping[str, Any], config: TgiConfig) -> list[Generation]:
    """A body of /v1/completions: a text or a list of texts."""
    given = document.get("prompt")
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise _not_of_type("missing field `prompt`")
    if len(prompts) > config.max_client_batch:
        message = f"Number of prompts exceeds the maximum allowed batch size of {config.max_client_batch}"
        raise _error(HTTPStatus.UNPROCESSABLE_ENTITY, message, "batch size exceeded")
    limit = document.get("max_tokens")
    return [checked(text_prompt(prompt), limit, config, empty=not prompt) for prompt in prompts]


def checked(prompt: Prompt, max_new_tokens: Any, config: TgiConfig, *, empty: bool) -> Generation:
    """Raises ApiError 422 as TGI's validation does."""
    if empty:
        raise _invalid("`inputs` cannot be empty")
    if max_new_tokens is not None and (not isinstance(max_new_tokens, int) or max_new_tokens < 0):
        raise _not_of_type("invalid value, expected u32")
    if max_new_tokens == 0:
        raise _invalid("`max_new_tokens` must be strictly positive")
    room = config.max_total_tokens - prompt.tokens
    wanted = max(room, 0) if max_new_tokens is None else max_new_tokens
    at_once = min(wanted, DEFAULT_GENERATION_LENGTH)
    if at_once > room or room < 1:
        raise _invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {config.max_total_tokens}. "
            f"Given: {prompt.tokens} `inputs` tokens and {at_once} `max_new_tokens`"
        )
    if prompt.tokens > config.max_input_tokens:
        raise _invalid(f"`inputs` must have less than {config.max_input_tokens} tokens. Given: {prompt.tokens}")
    [answer] = answers(
        prompt,
        count=1,
        max_tokens=max_new_tokens,
        room=room,
        mean_tokens=config.settings.output_tokens,
        ignore_eos=False,
    )
    return Generation(prompt, answer, max(at_once, answer.tokens), at_once)


def _error(status: HTTPStatus, message: str, kind: str) -> ApiError:
    """In OpenAI streams every error is a 422, an overload too."""
    event = {"error": {"message": message, "http_status_code": 422}}
    return ApiError(status, message, {"error": message, "error_type": kind}, event=event)


def _invalid(message: str) -> ApiError:
    return _error(HTTPStatus.UNPROCESSABLE_ENTITY, f"Input validation error: {message}", "validation")


def _not_of_type(reason: str) -> ApiError:
    """From the HTTP layer below TGI, in plain text."""
    message = f"Failed to deserialize the JSON body into the target type: {reason}"
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, message, message)


def info(config: TgiConfig) -> dict[str, Any]:
    """The document of GET /info."""
    return {
        "model_id": config.model,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": config.max_concurrent,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": config.max_input_tokens,
        "max_total_tokens": config.max_total_tokens,
        "validation_workers": config.validation_workers,
        "max_client_batch_size": config.max_client_batch,
        "router": "text-generation-router",
        "version": VERSION,
        "sha": None,
        "docker_label": None,
    }


def _counts(generations: Row[Generation]) -> dict[str, str]:
    return {
        "x-compute-type": "gpu+optimized",
        "x-prompt-tokens": str(sum(generation.prompt.tokens for generation in generations)),
        "x-generated-tokens": str(sum(generation.answer.tokens for generation in generations)),
    }


class GenerateWriter:
    """/generate and /generate_stream: one event per token, the last with the whole text."""

    def __init__(self, generation: Generation, *, details: bool) -> None:
        self._answer = generation.answer
        self._input_length = generation.prompt.tokens
        self._details = details

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        answer, events = self._answer, []
        for position in range(start, end):
            final = last and position == end - 1
            text = json.dumps(answer.words(0, answer.tokens)) if final else "null"
            details = "null"
            if final and self._details:
                details = compact({**self._counts(), "input_length": self._input_length})
            events.append(
                f'data: {{"index":{position + 1},"token":{compact(_token(answer, position))},'
                f'"generated_text":{text},"details":{details}}}\n\n'
            )
        return "".join(events).encode()

    def end(self) -> bytes:
        return b""

    def document(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        answer = self._answer
        document: dict[str, Any] = {"generated_text": answer.words(0, answer.tokens)}
        if self._details:
            tokens = [_token(answer, position) for position in range(answer.tokens)]
            document["details"] = {**self._counts(), "prefill": [], "tokens": tokens}
        return document

    def _counts(self) -> dict[str, Any]:
        return {"finish_reason": _native(self._answer), "generated_tokens": self._answer.tokens, "seed": None}


class Writer(OpenAiWriter):
    """/v1/chat/completions and /v1/completions; the reasons in a completion stream are TGI's own."""

    def __init__(self, asked: Asked, *, model: str) -> None:
        super().__init__(asked, identity="", model=model)

    def envelope(self, *, streamed: bool) -> dict[str, Any]:
        return {**super().envelope(streamed=streamed), "system_fingerprint": f"{VERSION}-native"}

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        answer = self.asked.answers[index]
        words = answer.words(start, end)
        if self.asked.chat:
            reason = f'"{answer.finish_reason}"' if last else "null"
            content, tail = f'"delta":{{"role":"assistant","content":"{words}"}}', '],"usage":null}\n\n'
        else:
            reason = f'"{_native(answer)}"' if last else '""'
            content, tail = f'"text":"{words}"', "]}\n\n"
        choice = f'{{"index":{index},{content},"logprobs":null,"finish_reason":{reason}}}'
        return f"{self.head}{choice}{tail}".encode()

    def choice(self, index: int, words: str, reason: str) -> dict[str, Any]:
        body = {"message": {"role": "assistant", "content": words}} if self.asked.chat else {"text": words}
        return {"index": index, **body, "logprobs": None, "finish_reason": reason}


def _native(answer: Answer) -> str:
    """Why an answer ended, in TGI's own names."""
    return "eos_token" if answer.finish_reason == "stop" else answer.finish_reason


def _token(answer: Answer, position: int) -> dict[str, Any]:
    word = answer.words(position, position + 1)
    return {"id": position, "text": word, "logprob": -0.1, "special": False}
