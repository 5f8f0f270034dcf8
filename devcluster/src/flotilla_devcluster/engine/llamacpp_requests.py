"""Requests of llama.cpp's OpenAI endpoints: read, checked, refused in its words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from flotilla_devcluster.engine.asked import Asked, ask, prompts_of
from flotilla_devcluster.engine.generation import Prompt, chat_prompt
from flotilla_devcluster.engine.llamacpp_config import LlamacppConfig

_LIMITS: Final = ("n_predict", "max_completion_tokens", "max_tokens")
"""Three names of one setting."""


class LlamacppError(Exception):
    """An answer that is llama.cpp's error document."""

    def __init__(self, status: HTTPStatus, kind: str, message: str, **more: int) -> None:
        super().__init__(message)
        self.status = status
        self.document = {"error": {"code": status.value, "message": message, "type": kind, **more}}


def unavailable(message: str) -> LlamacppError:
    return LlamacppError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable_error", message)


def not_supported(message: str) -> LlamacppError:
    return LlamacppError(HTTPStatus.NOT_IMPLEMENTED, "not_supported_error", message)


def read_json(body: bytes) -> dict[str, Any]:
    """Raises LlamacppError 500: to the real server a body that is no JSON is an exception like any other."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise _failed(f"[json.exception.parse_error.101] parse error: {error}") from None
    if not isinstance(document, dict):
        raise _failed("[json.exception.type_error.302] type must be object")
    return document


def read_chat(document: Mapping[str, Any], config: LlamacppConfig) -> Asked:
    """A body of /v1/chat/completions; the model's name has no meaning. Raises LlamacppError."""
    messages, tools = document.get("messages"), document.get("tools") or []
    if tools and not config.jinja:
        raise _failed("tools param requires --jinja flag")
    if "messages" not in document:
        raise _invalid("'messages' is required")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _invalid("Expected 'messages' to be an array")
    return _asked(document, config, [chat_prompt(messages, tools)], chat=True)


def read_completion(document: Mapping[str, Any], config: LlamacppConfig) -> Asked:
    """A body of /v1/completions, which has no limit of its own. Raises LlamacppError."""
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
        message = f"Value must be between 1 <= value <= {config.slots}, but got {count}"
        raise _invalid(f"Field 'n': {message}")
    limit = None if given < 0 else max(given, 1)
    for prompt in prompts:
        _check_length(prompt, config)
    return ask(
        document,
        prompts,
        chat=chat,
        count=count,
        limit=limit,
        context=config.slot_context,
        mean_tokens=config.settings.output_tokens,
    )


def _check_length(prompt: Prompt, config: LlamacppConfig) -> None:
    if prompt.tokens >= config.slot_context:
        message = (
            f"request ({prompt.tokens} tokens) exceeds the available context size ({config.slot_context} tokens), "
            "try increasing it"
        )
        kind, size = "exceed_context_size_error", config.slot_context
        raise LlamacppError(HTTPStatus.BAD_REQUEST, kind, message, n_prompt_tokens=prompt.tokens, n_ctx=size)


def _invalid(message: str) -> LlamacppError:
    return LlamacppError(HTTPStatus.BAD_REQUEST, "invalid_request_error", message)


def _failed(message: str) -> LlamacppError:
    return LlamacppError(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", message)
