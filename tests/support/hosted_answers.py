"""What a hosted API answers: bodies and events in the shapes that OpenAI and Anthropic document."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flotilla_devcluster.pki import Authority
from tests.support.hosted import HostedApi, Received, Reply, Stream, Whole

DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def hosted_api(answer: Callable[[Received], Reply] | None = None) -> AsyncIterator[HostedApi]:
    """An API over plain HTTP that speaks OpenAI's and Anthropic's paths."""
    async with _running(HostedApi(answer or answered)) as api:
        yield api


@asynccontextmanager
async def hosted_api_over_tls(
    directory: Path, answer: Callable[[Received], Reply] | None = None
) -> AsyncIterator[tuple[HostedApi, Path]]:
    """An API over TLS for 127.0.0.1, and the PEM file of the authority to trust."""
    authority = Authority("hosted-api")
    certificate, key = authority.server("hosted", ["localhost", "127.0.0.1"]).write(directory, "hosted")
    trust, _ = authority.pair.write(directory, "hosted-ca")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    async with _running(HostedApi(answer or answered, tls)) as api:
        yield api, trust


@asynccontextmanager
async def _running(api: HostedApi) -> AsyncIterator[HostedApi]:
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


def answered(request: Received) -> Reply:
    """The plain answer of either API, streamed or not as asked."""
    path = request.path.partition("?")[0]
    if path.endswith("/models"):
        return Whole({"object": "list", "data": [{"id": "hosted", "object": "model", "created": 0, "owned_by": "x"}]})
    asked = request.json
    stream, model = bool(asked.get("stream")), asked["model"]
    if path.endswith("/messages"):
        return Stream(anthropic_events("Hello there", model=model)) if stream else Whole(message(model=model))
    if path.endswith("/embeddings"):
        return Whole(embeddings(asked["input"], model=model))
    if path.endswith("/chat/completions"):
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        return Stream(openai_chunks("Hello there", model=model, usage=usage)) if stream else Whole(chat(model=model))
    if path.endswith("/completions"):
        return Stream(text_chunks("Hello there", model=model)) if stream else Whole(completion(model=model))
    return Whole({"error": {"message": f"no {path}", "type": "invalid_request_error"}}, 404)


def chat(
    text: str | None = "Hello there",
    *,
    model: str = "hosted",
    finish_reason: str = "stop",
    tool_calls: Sequence[Mapping[str, Any]] = (),
    usage: tuple[int, int] = (7, 2),
    logprobs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A whole answer of /v1/chat/completions. `usage` is prompt and completion tokens."""
    body: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if tool_calls:
        body["tool_calls"] = list(tool_calls)
    choice = {"index": 0, "message": body, "finish_reason": finish_reason, "logprobs": logprobs}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [choice],
        "usage": _usage(usage),
    }


def tool_call(name: str, arguments: str, *, call_id: str = "call_1") -> dict[str, Any]:
    """One call of a whole answer; `arguments` is JSON text as the model wrote it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def completion(text: str = "Hello there", *, model: str = "hosted") -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1_700_000_000, "model": model}
    return {**head, "choices": [choice], "usage": _usage((7, 2))}


def embeddings(asked: str | Sequence[Any], *, model: str = "hosted") -> dict[str, Any]:
    """A vector of three numbers for each input."""
    count = 1 if isinstance(asked, str) or (asked and isinstance(asked[0], int)) else len(asked)
    data = [{"object": "embedding", "index": i, "embedding": [0.25, -0.5, float(i)]} for i in range(count)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 3, "total_tokens": 3}}


def openai_chunks(
    text: str, *, model: str = "hosted", usage: bool = False, finish_reason: str = "stop", done: bool = True
) -> list[bytes]:
    """A streamed chat: the role, a chunk for each word, the finish reason, the usage if asked, [DONE]."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in _words(text)]
    chunks = [openai_chunk(delta, model=model) for delta in deltas]
    chunks.append(openai_chunk({}, model=model, finish_reason=finish_reason))
    if usage:
        chunks.append(event({**_chunk_head(model), "choices": [], "usage": _usage((7, 2))}))
    return [*chunks, DONE] if done else chunks


def openai_chunk(delta: Mapping[str, Any], *, model: str = "hosted", finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
    return event({**_chunk_head(model), "choices": [choice]})


def text_chunks(text: str, *, model: str = "hosted") -> list[bytes]:
    """A streamed /v1/completions."""
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1_700_000_000, "model": model}
    choices = [{"index": 0, "text": word, "finish_reason": None, "logprobs": None} for word in _words(text)]
    choices.append({"index": 0, "text": "", "finish_reason": "stop", "logprobs": None})
    return [*(event({**head, "choices": [choice]}) for choice in choices), DONE]


def message(
    content: str | Sequence[Mapping[str, Any]] = "Hello there",
    *,
    model: str = "hosted",
    stop_reason: str = "end_turn",
    usage: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """A whole answer of Anthropic's /v1/messages; `content` is text or blocks."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else [dict(block) for block in content]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": dict(usage or {"input_tokens": 7, "output_tokens": 2}),
    }


def anthropic_events(
    content: str | Sequence[Mapping[str, Any]],
    *,
    model: str = "hosted",
    stop_reason: str = "end_turn",
    usage: Mapping[str, int] | None = None,
) -> list[bytes]:
    """The streamed form of `message`, with a ping after the start as the API sends it."""
    whole = message(content, model=model, stop_reason=stop_reason, usage=usage)
    counted = whole["usage"]
    start = {**whole, "content": [], "stop_reason": None, "usage": {**counted, "output_tokens": 1}}
    events = [named("message_start", message=start), named("ping")]
    for index, block in enumerate(whole["content"]):
        events += _block_events(index, block)
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    events.append(named("message_delta", delta=delta, usage={"output_tokens": counted["output_tokens"]}))
    return [*events, named("message_stop")]


def _block_events(index: int, block: Mapping[str, Any]) -> list[bytes]:
    if block["type"] == "text":
        opened: Mapping[str, Any] = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": word} for word in _words(block["text"])]
    elif block["type"] == "tool_use":
        opened = {**block, "input": {}}
        text = json.dumps(block["input"])
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", text[:5], text[5:])]
    else:
        opened, deltas = block, []
    return [
        named("content_block_start", index=index, content_block=opened),
        *(named("content_block_delta", index=index, delta=delta) for delta in deltas),
        named("content_block_stop", index=index),
    ]


def fault_body(kind: str, said: str) -> dict[str, Any]:
    """An error in Anthropic's shape."""
    return {"type": "error", "error": {"type": kind, "message": said}, "request_id": "req_1"}


def named(kind: str, **fields: Any) -> bytes:
    """One event in Anthropic's form, which names its type twice."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def event(data: Any) -> bytes:
    """One event in OpenAI's form."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _chunk_head(model: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model}


def _usage(tokens: tuple[int, int]) -> dict[str, int]:
    return {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}


def _words(text: str) -> list[str]:
    """Pieces that give the text again when put together."""
    head, *rest = text.split(" ")
    return [head, *(f" {word}" for word in rest)]
