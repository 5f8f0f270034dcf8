"""Documents and stream chunks of llama.cpp's endpoints, without the `timings` that the real ones add."""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Mapping
from collections.abc import Sequence as Row
from typing import Any

from flotilla.simulation.engine import Batcher, SimulatedSequence
from flotilla_devcluster.engine.asked import Asked
from flotilla_devcluster.engine.llamacpp_config import BUILD, LlamacppConfig
from flotilla_devcluster.engine.streaming import DONE, compact


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


def slots(config: LlamacppConfig, batcher: Batcher, held: Row[SimulatedSequence | None]) -> list[dict[str, Any]]:
    """The document of GET /slots."""
    return [{"id": index, **_slot(config, batcher, sequence)} for index, sequence in enumerate(held)]


def _slot(config: LlamacppConfig, batcher: Batcher, sequence: SimulatedSequence | None) -> dict[str, Any]:
    common = {"n_ctx": config.slot_context, "speculative": False, "is_processing": sequence is not None}
    if sequence is None:
        return common
    decoded = batcher.tokens(sequence)
    left = sequence.output_tokens - decoded
    following = {"has_next_token": left > 0, "has_new_line": False, "n_remain": left, "n_decoded": decoded}
    prompt = sequence.prompt_tokens if decoded else sequence.prompt_tokens - sequence.prefill_left
    return {**common, "n_prompt_tokens": prompt + decoded, "n_prompt_tokens_cache": 0, "next_token": [following]}


def adapters(config: LlamacppConfig) -> list[dict[str, Any]]:
    """The document of GET /lora-adapters."""
    return [
        {"id": index, "path": path, "scale": 1.0, "task_name": "", "prompt_prefix": ""}
        for index, path in enumerate(config.loras)
    ]


class Writer:
    """Renders the answer to one request; each choice of a stream ends with its own reason and counts."""

    def __init__(self, asked: Asked, config: LlamacppConfig) -> None:
        self._asked = asked
        letters = string.ascii_letters + string.digits
        self._id = "chatcmpl-" + "".join(secrets.choice(letters) for _ in range(32))
        self._created = int(time.time())
        self._model = config.alias
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        self._tail = (
            f'"created":{self._created},"id":"{self._id}","model":{json.dumps(self._model)},'
            f'"system_fingerprint":"{BUILD}","object":"{kind}"'
        )

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        answer = self._asked.answers[index]
        words = answer.words(start, end)
        if self._asked.chat:
            opening = self._delta(index, '"role":"assistant","content":null') if start == 0 else ""
            text = opening + self._delta(index, f'"content":"{words}"')
            return (text + (self._chat_end(index) if last else "")).encode()
        text = self._chunk(f'{{"text":"{words}","index":{index},"logprobs":null,"finish_reason":null}}')
        if last:
            reason = f'{{"text":"","index":{index},"logprobs":null,"finish_reason":"{answer.finish_reason}"}}'
            text += self._chunk(reason, usage=self._usage(index))
        return text.encode()

    def end(self) -> bytes:
        return DONE

    def document(self) -> dict[str, Any]:
        """The answer of a request that does not stream; of several choices the counts are the first's."""
        return {
            "choices": [self._choice(index) for index in range(len(self._asked.answers))],
            "created": self._created,
            "model": self._model,
            "system_fingerprint": BUILD,
            "object": "chat.completion" if self._asked.chat else "text_completion",
            "usage": self._usage(0),
            "id": self._id,
        }

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self._asked.answers[index]
        words = answer.words(0, answer.tokens)
        if not self._asked.chat:
            return {"text": words, "index": index, "logprobs": None, "finish_reason": answer.finish_reason}
        message = {"role": "assistant", "content": words}
        return {"finish_reason": answer.finish_reason, "index": index, "message": message}

    def _chat_end(self, index: int) -> str:
        text = self._delta(index, "", reason=f'"{self._asked.answers[index].finish_reason}"')
        return text + (self._chunk("", usage=self._usage(index)) if self._asked.include_usage else "")

    def _usage(self, index: int) -> dict[str, Any]:
        prompt, completion = self._asked.prompt_of(index).tokens, self._asked.answers[index].tokens
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
        return f'data: {{"choices":[{choice}],{self._tail}{counts}}}\n\n'
