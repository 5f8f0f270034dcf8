"""Documents and stream events of TGI's endpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final

from flotilla_devcluster.engine.generation import Answer
from flotilla_devcluster.engine.streaming import DONE, compact
from flotilla_devcluster.engine.tgi_config import VERSION, TgiConfig
from flotilla_devcluster.engine.tgi_requests import Generation

_FINGERPRINT: Final = f"{VERSION}-native"


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


def models(config: TgiConfig) -> dict[str, Any]:
    """The document of GET /v1/models."""
    card = {"id": config.model, "object": "model", "created": 0, "owned_by": config.model}
    return {"object": "list", "data": [card]}


class GenerateWriter:
    """/generate and /generate_stream: one event per token, the last with the whole text."""

    def __init__(self, generation: Generation, *, details: bool) -> None:
        self._generation = generation
        self._details = details

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        answer = self._generation.answer
        events = []
        for position in range(start, end):
            final = last and position == end - 1
            text = json.dumps(answer.words(0, answer.tokens)) if final else "null"
            details = compact(self._stream_details()) if final and self._details else "null"
            events.append(
                f'data: {{"index":{position + 1},"token":{compact(_token(answer, position))},'
                f'"generated_text":{text},"details":{details}}}\n\n'
            )
        return "".join(events).encode()

    def end(self) -> bytes:
        return b""

    def document(self) -> dict[str, Any]:
        answer = self._generation.answer
        document: dict[str, Any] = {"generated_text": answer.words(0, answer.tokens)}
        if self._details:
            tokens = [_token(answer, position) for position in range(answer.tokens)]
            document["details"] = {**self._counts(), "prefill": [], "tokens": tokens}
        return document

    def _counts(self) -> dict[str, Any]:
        answer = self._generation.answer
        reason = _native_reason(answer)
        return {"finish_reason": reason, "generated_tokens": answer.tokens, "seed": None}

    def _stream_details(self) -> dict[str, Any]:
        return {**self._counts(), "input_length": self._generation.prompt.tokens}


class OpenAiWriter:
    """/v1/chat/completions and /v1/completions."""

    def __init__(self, generations: Sequence[Generation], *, chat: bool, model: str, include_usage: bool) -> None:
        self._generations = generations
        self._chat = chat
        self._include_usage = chat and include_usage
        self._common = {
            "id": "",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": _FINGERPRINT,
        }
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._head = f'data: {compact({"object": kind, **self._common})[:-1]},"choices":['
        self._tail = '],"usage":null}\n\n' if chat else "]}\n\n"

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        answer = self._generations[index].answer
        words = answer.words(start, end)
        if self._chat:
            reason = f'"{answer.finish_reason}"' if last else "null"
            content = f'"delta":{{"role":"assistant","content":"{words}"}}'
        else:
            reason = f'"{_native_reason(answer)}"' if last else '""'
            content = f'"text":"{words}"'
        choice = f'{{"index":{index},{content},"logprobs":null,"finish_reason":{reason}}}'
        return f"{self._head}{choice}{self._tail}".encode()

    def end(self) -> bytes:
        if not self._include_usage:
            return DONE
        return f'{self._head}],"usage":{compact(self._usage())}}}\n\n'.encode() + DONE

    def document(self) -> dict[str, Any]:
        kind = "chat.completion" if self._chat else "text_completion"
        choices = [self._choice(index) for index in range(len(self._generations))]
        return {"object": kind, **self._common, "choices": choices, "usage": self._usage()}

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self._generations[index].answer
        words = answer.words(0, answer.tokens)
        body = {"message": {"role": "assistant", "content": words}} if self._chat else {"text": words}
        return {"index": index, **body, "logprobs": None, "finish_reason": answer.finish_reason}

    def _usage(self) -> dict[str, int]:
        prompt = sum(generation.prompt.tokens for generation in self._generations)
        completion = sum(generation.answer.tokens for generation in self._generations)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def _native_reason(answer: Answer) -> str:
    return "eos_token" if answer.finish_reason == "stop" else answer.finish_reason


def _token(answer: Answer, position: int) -> dict[str, Any]:
    word = answer.words(position, position + 1)
    return {"id": position, "text": word, "logprob": -0.1, "special": False}
