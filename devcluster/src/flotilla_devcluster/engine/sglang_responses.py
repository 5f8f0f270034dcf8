"""Documents and stream chunks of SGLang's OpenAI endpoints."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from flotilla_devcluster.engine.sglang_config import VERSION, SglangConfig
from flotilla_devcluster.engine.sglang_requests import Request
from flotilla_devcluster.engine.streaming import DONE, compact


def models(config: SglangConfig) -> dict[str, Any]:
    """The document of GET /v1/models: the base model, then its adapters."""
    served = config.served_name
    cards = [card(served, root=served, parent=None, context=config.context_tokens)]
    cards += [card(adapter.name, root=adapter.path, parent=served, context=None) for adapter in config.adapters]
    return {"object": "list", "data": cards}


def card(name: str, *, root: str, parent: str | None, context: int | None) -> dict[str, Any]:
    created = int(time.time())
    common = {"object": "model", "created": created, "owned_by": "sglang", "root": root}
    return {"id": name, **common, "parent": parent, "max_model_len": context}


def unknown_model(name: str) -> dict[str, Any]:
    error = {"message": f"The model '{name}' does not exist", "type": "invalid_request_error"}
    return {"error": {**error, "param": "model", "code": "model_not_found"}}


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


class Writer:
    """Renders the answer to one request, chunks as text: words need no escapes."""

    def __init__(self, request: Request) -> None:
        self._asked = request.asked
        self._model = request.model
        self._id = uuid.uuid4().hex
        self._created = int(time.time())
        kind = "chat.completion.chunk" if self._asked.chat else "text_completion"
        self._head = (
            f'data: {{"id":"{self._id}","object":"{kind}","created":{self._created},'
            f'"model":{json.dumps(self._model)},"choices":['
        )

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        """One chunk; of a chat answer also the one with the role before the first, and the reason after the last."""
        answer = self._asked.answers[index]
        words = answer.words(start, end)
        reason = f'"{answer.finish_reason}"' if last else "null"
        if not self._asked.chat:
            return self._chunk(index, f'"text":"{words}"', reason, end)
        opening = self._delta(index, '"role":"assistant","content":""', "null", 0) if start == 0 else b""
        closing = self._delta(index, "", reason, end) if last else b""
        return opening + self._delta(index, f'"content":"{words}"', "null", end) + closing

    def end(self) -> bytes:
        if not self._asked.include_usage:
            return DONE
        return f'{self._head}],"usage":{compact(self._usage())}}}\n\n'.encode() + DONE

    def document(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        return {
            "id": self._id,
            "object": "chat.completion" if self._asked.chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(index) for index in range(len(self._asked.answers))],
            "usage": self._usage(),
            "metadata": {"weight_version": "default"},
        }

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self._asked.answers[index]
        words = answer.words(0, answer.tokens)
        message = {"role": "assistant", "content": words, "reasoning_content": None}
        body = {"message": message} if self._asked.chat else {"text": words}
        return {"index": index, **body, "logprobs": None, "finish_reason": answer.finish_reason, "matched_stop": None}

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self._asked.prompt_tokens, self._asked.completion_tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": None,
            "reasoning_tokens": 0,
            "completion_tokens_details": None,
        }

    def _delta(self, index: int, content: str, reason: str, tokens: int) -> bytes:
        separator = "," if content else ""
        return self._chunk(index, f'"delta":{{"reasoning_content":null{separator}{content}}}', reason, tokens)

    def _chunk(self, index: int, body: str, reason: str, tokens: int) -> bytes:
        usage = ""
        if self._asked.continuous_usage:
            prompt = self._asked.prompt_of(index).tokens
            counts = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
            usage = f',"usage":{compact(counts)}'
        choice = f'{{"index":{index},{body},"logprobs":null,"finish_reason":{reason},"matched_stop":null}}'
        return f"{self._head}{choice}]{usage}}}\n\n".encode()
