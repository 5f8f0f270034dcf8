"""Documents and stream chunks of vLLM's OpenAI endpoints."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from flotilla_devcluster.engine.asked import Asked
from flotilla_devcluster.engine.streaming import DONE, compact
from flotilla_devcluster.engine.vllm_config import VllmConfig


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
    cards = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": config.model,
            "parent": None,
            "max_model_len": config.context_tokens,
            "permission": [permission],
        }
        for name in config.served_names
    ]
    cards += [
        {**cards[0], "id": name, "root": path, "parent": config.served_names[0], "max_model_len": None}
        for name, path in config.adapters.items()
    ]
    return {"object": "list", "data": cards}


class Writer:
    """Renders the answer to one request.

    Words are lower-case letters only, so chunks are put together as text: no JSON encoder in the hot path.
    """

    def __init__(self, asked: Asked, config: VllmConfig) -> None:
        self._asked = asked
        kind = "chatcmpl" if asked.chat else "cmpl"
        self._id = f"{kind}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = config.served_names[0]
        object_name = "chat.completion.chunk" if asked.chat else "text_completion"
        model = json.dumps(self._model)
        self._head = (
            f'data: {{"id":"{self._id}","object":"{object_name}","created":{self._created},"model":{model},"choices":['
        )

    def tokens(self, index: int, start: int, end: int, *, last: bool) -> bytes:
        """One chunk; before the first of a chat answer the chunk with the role, after the last its reason."""
        answer = self._asked.answers[index]
        words = answer.words(start, end)
        content = f'"delta":{{"content":"{words}"}}' if self._asked.chat else f'"text":"{words}"'
        reason = f'"{answer.finish_reason}","stop_reason":null' if last else "null"
        choice = f'{{"index":{index},{content},"logprobs":null,"finish_reason":{reason}}}'
        opening = self._role(index) if self._asked.chat and start == 0 else b""
        return opening + self._chunk(choice, end)

    def end(self) -> bytes:
        if not self._asked.include_usage:
            return DONE
        return f'{self._head}],"usage":{compact(self._usage())}}}\n\n'.encode() + DONE

    def _role(self, index: int) -> bytes:
        delta = '{"role":"assistant","content":""}'
        return self._chunk(f'{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":null}}', 0)

    def document(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        choices = [self._choice(index) for index in range(len(self._asked.answers))]
        return {
            "id": self._id,
            "object": "chat.completion" if self._asked.chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": None,
            "usage": self._usage(),
            "prompt_logprobs": None,
            "kv_transfer_params": None,
        }

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self._asked.answers[index]
        words = answer.words(0, answer.tokens)
        common = {"logprobs": None, "finish_reason": answer.finish_reason, "stop_reason": None}
        if not self._asked.chat:
            return {"index": index, "text": words, **common}
        message = {"role": "assistant", "content": words, "refusal": None, "annotations": None, "audio": None}
        return {"index": index, "message": {**message, "function_call": None, "reasoning": None}, **common}

    def _usage(self) -> dict[str, Any]:
        asked = self._asked
        return {
            "prompt_tokens": asked.prompt_tokens,
            "total_tokens": asked.prompt_tokens + asked.completion_tokens,
            "completion_tokens": asked.completion_tokens,
            "prompt_tokens_details": None,
        }

    def _chunk(self, choice: str, tokens: int) -> bytes:
        usage = ""
        if self._asked.include_usage and self._asked.continuous_usage:
            prompt = self._asked.prompt_tokens
            usage = (
                f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + tokens},"completion_tokens":{tokens}}}'
            )
        return f"{self._head}{choice}]{usage}}}\n\n".encode()
