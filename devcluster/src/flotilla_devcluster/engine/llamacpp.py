"""A llama.cpp server: endpoints with their checks and answers, slots, and an end at which running answers go silent.

What it does was read in ggml-org/llama.cpp@0c1e57098: tools/server/server.cpp (life and routes), server-http.cpp (what
is answered while the model loads), server-context.cpp and server-queue.cpp (slots, deferred requests, streams, what is
counted when), and in the cpp-httplib that it carries. Answers lack the `timings` that the real ones have.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import string
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from flotilla.simulation.engine import Batcher, Event, EventKind, SimulatedSequence, Steps
from flotilla_devcluster.engine.llamacpp_config import BUILD, LlamacppConfig
from flotilla_devcluster.engine.loop import DONE, OpenAiWriter, Ticket, compact, json_response
from flotilla_devcluster.engine.metrics import EngineMetrics, stream_text
from flotilla_devcluster.engine.requests import (
    ApiError,
    Asked,
    Prompt,
    chat_prompt,
    messages_of,
    plan,
    prompts_of,
    read_json,
)
from flotilla_devcluster.engine.serving import RunningServer, SimulatedEngine

_PUBLIC: Final = ("/health", "/v1/health", "/")
_LIMITS: Final = ("n_predict", "max_completion_tokens", "max_tokens")
"""Three names of one setting."""


class LlamacppEngine(SimulatedEngine[LlamacppConfig]):
    stream_headers: ClassVar[Mapping[str, str]] = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
    metrics_type = "text/plain; version=0.0.4"

    def __init__(self, config: LlamacppConfig) -> None:
        super().__init__(config, lambda batcher: LlamacppMetrics(batcher, slots=config.slots))
        self.ready = False
        self._streams: dict[Ticket, web.Request] = {}

    @property
    def slots(self) -> list[SimulatedSequence | None]:
        """Which sequence is in which slot."""
        assert isinstance(self.metrics, LlamacppMetrics)
        return self.metrics.slots

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self.errors, self._loading, self._authenticate], client_max_size=2**30)
        gets = {
            "/health": self._health,
            "/v1/health": self._health,
            "/metrics": self.answer_metrics,
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
        """Nothing more is generated, and the process ends when its last client is gone.

        A stream that had begun is cut where the next ping would be due, because its thread looks up only there;
        any other request gets nothing for as long as its client waits.
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

    async def answer_metrics(self, request: web.Request) -> web.Response:
        if not self.config.metrics:
            raise not_supported("This server does not support metrics endpoint. Start it with `--metrics`")
        return await super().answer_metrics(request)

    async def _props(self, _: web.Request) -> web.Response:
        return json_response(props(self.config))

    async def _slots(self, request: web.Request) -> web.Response:
        if not self.config.shows_slots:
            raise not_supported("This server does not support slots endpoint. Start it with `--slots`")
        self.loop.refresh()
        if request.query.get("fail_on_no_slot") and None not in self.slots:
            raise unavailable("no slot available")
        shown = [{"id": index, **slot(self.config, self.batcher, held)} for index, held in enumerate(self.slots)]
        return json_response(shown)

    async def _adapters(self, _: web.Request) -> web.Response:
        common = {"scale": 1.0, "task_name": "", "prompt_prefix": ""}
        return json_response([{"id": index, "path": path, **common} for index, path in enumerate(self.config.loras)])

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(models(self.config))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, read_chat(await _document(request), self.config))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, read_completion(await _document(request), self.config))

    async def _generate(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        """A request without a free slot is deferred, however many there are."""
        ticket = self.loop.submit(asked.sequences(), streaming=asked.stream)
        if asked.stream:
            self._streams[ticket] = request
        try:
            return await self.answer(request, ticket, Writer(asked, self.config))
        finally:
            self._streams.pop(ticket, None)

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
                raise _error(HTTPStatus.UNAUTHORIZED, "authentication_error", "Invalid API Key")
        return await handler(request)

    def http_error(self, error: web.HTTPException) -> web.Response:
        if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            raise error
        document = {"message": "File Not Found", "type": "not_found_error", "code": 404}
        return json_response({"error": document}, status=404)


def make(config: LlamacppConfig) -> LlamacppEngine:
    return LlamacppEngine(config)


class LlamacppMetrics(EngineMetrics):
    """Also knows which request is in which slot.

    The two rates are those since the last scrape; generated tokens count when their request leaves its slot.
    """

    def __init__(self, batcher: Batcher, *, slots: int) -> None:
        super().__init__("llamacpp-0.5.0.metrics", batcher, write=stream_text, constants={}, facts={})
        self.slots: list[SimulatedSequence | None] = [None] * slots
        self._decodes = self._busy_slots = self._longest = 0
        self._prompt_window = _Window()
        self._output_window = _Window()

    def on_event(self, event: Event | Steps) -> None:
        super().on_event(event)
        if isinstance(event, Steps):
            self._decodes += event.count
            self._busy_slots += event.count * event.sequences
            if event.prefill_tokens:
                self._prompt_window.add(event.prefill_tokens, event.duration_s * event.count)
        elif event.kind is EventKind.ADMITTED:
            self.slots[self.slots.index(None)] = event.sequence
        elif event.kind in (EventKind.FINISHED, EventKind.ABORTED) and event.sequence in self.slots:
            self.slots[self.slots.index(event.sequence)] = None
            self._released(event.sequence, event.at_s)

    def text(self) -> str:
        """The answer to a scrape, which begins the next window."""
        self.set("slots.prompt_tokens_per_s", self._prompt_window.rate)
        self.set("slots.output_tokens_per_s", self._output_window.rate)
        self.set("slots.busy_per_decode", self._busy_slots / max(self._decodes, 1))
        self.set("slots.longest_tokens", self._longest)
        self._prompt_window, self._output_window = _Window(), _Window()
        return super().text()

    def _released(self, sequence: SimulatedSequence, now_s: float) -> None:
        self._longest = max(self._longest, sequence.prompt_tokens + sequence.emitted)
        if not sequence.emitted or sequence.first_token_s is None:
            return
        seconds = now_s - sequence.first_token_s
        self.record("slots.output_tokens", sequence.emitted)
        self.record("slots.output_s", seconds)
        # the first token came with the prompt
        self._output_window.add(sequence.emitted - 1, seconds)


class _Window:
    """Tokens and the time that they took, between two scrapes."""

    __slots__ = ("_seconds", "_tokens")

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0

    @property
    def rate(self) -> float:
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens += tokens
        self._seconds += seconds


async def _document(request: web.Request) -> dict[str, Any]:
    """The body of a request. Raises ApiError 500: a body without JSON is an exception like any other."""
    return read_json(
        await request.read(),
        broken=lambda error: _failed(f"[json.exception.parse_error.101] parse error: {error}"),
        no_object=lambda: _failed("[json.exception.type_error.302] type must be object"),
    )


def read_chat(document: Mapping[str, Any], config: LlamacppConfig) -> Asked:
    """A body of /v1/chat/completions; the model's name has no meaning. Raises ApiError."""
    messages, tools = messages_of(document), document.get("tools") or []
    if tools and not config.jinja:
        raise _failed("tools param requires --jinja flag")
    if "messages" not in document:
        raise _invalid("'messages' is required")
    if messages is None:
        raise _invalid("Expected 'messages' to be an array")
    return _asked(document, config, [chat_prompt(messages, tools)], chat=True)


def read_completion(document: Mapping[str, Any], config: LlamacppConfig) -> Asked:
    """A body of /v1/completions, which has no limit of its own. Raises ApiError."""
    if "prompt" not in document:
        raise _invalid("[json.exception.out_of_range.403] key 'prompt' not found")
    prompts = prompts_of(document["prompt"])
    if prompts is None:
        raise _invalid(
            '"prompt" must be a string, a list of tokens, a list of mixed strings & tokens, or a list of prompts'
        )
    return _asked(document, config, prompts, chat=False)


def _asked(document: Mapping[str, Any], config: LlamacppConfig, prompts: list[Prompt], *, chat: bool) -> Asked:
    given = next((document[name] for name in _LIMITS if document.get(name) is not None), config.predict)
    count = document.get("n") or 1
    if not isinstance(given, int) or not isinstance(count, int):
        raise _invalid("[json.exception.type_error.302] type must be number")
    if not 1 <= count <= config.slots:
        raise _invalid(f"Field 'n': Value must be between 1 <= value <= {config.slots}, but got {count}")
    for prompt in prompts:
        _check_length(prompt, config)
    return plan(
        document,
        prompts,
        chat=chat,
        count=count,
        limit=None if given < 0 else max(given, 1),
        context=config.slot_context,
        mean_tokens=config.settings.output_tokens,
    )


def _check_length(prompt: Prompt, config: LlamacppConfig) -> None:
    size = config.slot_context
    if prompt.tokens >= size:
        message = (
            f"request ({prompt.tokens} tokens) exceeds the available context size ({size} tokens), try increasing it"
        )
        counts = {"n_prompt_tokens": prompt.tokens, "n_ctx": size}
        raise _error(HTTPStatus.BAD_REQUEST, "exceed_context_size_error", message, **counts)


def _error(status: HTTPStatus, kind: str, message: str, **more: int) -> ApiError:
    return ApiError(status, message, {"error": {"code": status.value, "message": message, "type": kind, **more}})


def unavailable(message: str) -> ApiError:
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable_error", message)


def not_supported(message: str) -> ApiError:
    return _error(HTTPStatus.NOT_IMPLEMENTED, "not_supported_error", message)


def _invalid(message: str) -> ApiError:
    return _error(HTTPStatus.BAD_REQUEST, "invalid_request_error", message)


def _failed(message: str) -> ApiError:
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", message)


def models(config: LlamacppConfig) -> dict[str, Any]:
    """The document of GET /v1/models: Ollama's form and OpenAI's."""
    ollama = {"name": config.alias, "model": config.alias, "type": "model", "capabilities": ["completion"]}
    card = {
        "id": config.alias,
        "aliases": list(config.aliases),
        "tags": [],
        "object": "model",
        "created": int(time.time()),
        "owned_by": "llamacpp",
        "meta": {"n_ctx": config.slot_context, "n_ctx_train": config.settings.context_length},
    }
    return {"models": [ollama], "object": "list", "data": [card]}


def props(config: LlamacppConfig) -> dict[str, Any]:
    """The document of GET /props, without what only a model file knows."""
    return {
        "default_generation_settings": {"params": {"n_predict": config.predict}, "n_ctx": config.slot_context},
        "total_slots": config.slots,
        "model_alias": config.alias,
        "model_path": config.model,
        "modalities": {"vision": False, "video": False, "audio": False},
        "endpoint_slots": config.shows_slots,
        "endpoint_props": False,
        "endpoint_metrics": config.metrics,
        "ui": config.web_ui,
        "chat_template": "",
        "build_info": BUILD,
        "is_sleeping": False,
    }


def slot(config: LlamacppConfig, batcher: Batcher, sequence: SimulatedSequence | None) -> dict[str, Any]:
    """One entry of GET /slots."""
    common = {"n_ctx": config.slot_context, "speculative": False, "is_processing": sequence is not None}
    if sequence is None:
        return common
    decoded = batcher.tokens(sequence)
    left = sequence.output_tokens - decoded
    following = {"has_next_token": left > 0, "has_new_line": False, "n_remain": left, "n_decoded": decoded}
    prompt = sequence.prompt_tokens if decoded else sequence.prompt_tokens - sequence.prefill_left
    return {**common, "n_prompt_tokens": prompt + decoded, "n_prompt_tokens_cache": 0, "next_token": [following]}


class Writer(OpenAiWriter):
    """Chunks have their choices first, and each choice of a stream ends with its own reason and counts."""

    def __init__(self, asked: Asked, config: LlamacppConfig) -> None:
        letters = string.ascii_letters + string.digits
        identity = "chatcmpl-" + "".join(secrets.choice(letters) for _ in range(32))
        super().__init__(asked, identity=identity, model=config.alias)
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        self._after = (
            f'"created":{self.created},"id":"{identity}","model":{json.dumps(self.model)},'
            f'"system_fingerprint":"{BUILD}","object":"{kind}"'
        )

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        answer = self.asked.answers[index]
        words = answer.words(start, end)
        if self.asked.chat:
            opening = self._delta(index, '"role":"assistant","content":null') if start == 0 else ""
            text = opening + self._delta(index, f'"content":"{words}"')
            return (text + (self._chat_end(index) if last else "")).encode()
        text = self._chunk(f'{{"text":"{words}","index":{index},"logprobs":null,"finish_reason":null}}')
        if last:
            reason = f'{{"text":"","index":{index},"logprobs":null,"finish_reason":"{answer.finish_reason}"}}'
            text += self._chunk(reason, usage=self._usage_of(index))
        return text.encode()

    def end(self) -> bytes:
        return DONE

    def usage(self) -> dict[str, Any]:
        """Of several choices the counts are the first's."""
        return self._usage_of(0)

    def choice(self, index: int, words: str, reason: str) -> dict[str, Any]:
        if not self.asked.chat:
            return {"text": words, "index": index, "logprobs": None, "finish_reason": reason}
        return {"finish_reason": reason, "index": index, "message": {"role": "assistant", "content": words}}

    def tail(self) -> dict[str, Any]:
        return {"system_fingerprint": BUILD}

    def _chat_end(self, index: int) -> str:
        text = self._delta(index, "", reason=f'"{self.asked.answers[index].finish_reason}"')
        return text + (self._chunk("", usage=self._usage_of(index)) if self.asked.include_usage else "")

    def _usage_of(self, index: int) -> dict[str, Any]:
        prompt, completion = self.asked.prompt_of(index).tokens, self.asked.answers[index].tokens
        return {
            "completion_tokens": completion,
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def _delta(self, index: int, content: str, *, reason: str = "null") -> str:
        return self._chunk(f'{{"finish_reason":{reason},"index":{index},"delta":{{{content}}}}}')

    def _chunk(self, choice: str, *, usage: Mapping[str, Any] | None = None) -> str:
        counts = "" if usage is None else f',"usage":{compact(usage)}'
        return f'data: {{"choices":[{choice}],{self._after}{counts}}}\n\n'
