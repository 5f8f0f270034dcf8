"""Requests of SGLang's OpenAI endpoints: read, checked, refused in SGLang's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from flotilla_devcluster.engine.asked import Asked, ask, prompts_of
from flotilla_devcluster.engine.generation import Prompt, chat_prompt
from flotilla_devcluster.engine.sglang_config import SglangConfig

QUEUE_FULL: Final = "The request queue is full."
_DEFAULT_MODEL: Final = "default"
_RESERVED_INPUT_TOKENS: Final = 5
"""A prompt must be so much shorter than the longest request."""


class SglangError(Exception):
    """An answer that is SGLang's error document; in a stream that began it is an event."""

    def __init__(self, status: HTTPStatus, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status = status
        self.document = _document(message, kind, status)
        self.event = {"error": _document(message, status.name, status)}


@dataclass(frozen=True, slots=True)
class Request:
    """`model`: as the client called it, for the answer repeats it."""

    asked: Asked
    model: str


def read_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Raises SglangError 400 where FastAPI's validation fails."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise _invalid("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        document = json.loads(body)
    except ValueError as error:
        raise _invalid(f"JSON decode error: {error}") from None
    if not isinstance(document, dict):
        raise _invalid("Input should be a valid dictionary or object to extract fields from")
    return document


def read_chat(document: Mapping[str, Any], config: SglangConfig) -> Request:
    """A body of /v1/chat/completions. Raises SglangError."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _invalid("body.messages: Input should be a valid list")
    if not messages:
        raise SglangError(HTTPStatus.BAD_REQUEST, "Messages cannot be empty.")
    prompt = chat_prompt(messages, document.get("tools") or [])
    limit = _whole(document, "max_completion_tokens") or _whole(document, "max_tokens")
    return _request(document, config, [prompt], chat=True, limit=limit)


def read_completion(document: Mapping[str, Any], config: SglangConfig) -> Request:
    """A body of /v1/completions. Raises SglangError."""
    if "prompt" not in document:
        raise _invalid("body.prompt: Field required")
    prompts = prompts_of(document["prompt"] or None)
    if prompts is None:
        raise SglangError(HTTPStatus.BAD_REQUEST, "Prompt cannot be empty")
    limit = _whole(document, "max_tokens")
    return _request(document, config, prompts, chat=False, limit=16 if limit is None else limit)


def _request(
    document: Mapping[str, Any], config: SglangConfig, prompts: list[Prompt], *, chat: bool, limit: int | None
) -> Request:
    count = _whole(document, "n") or 1
    model = str(document.get("model") or _DEFAULT_MODEL)
    _check_adapter(_adapter(document, model, config), config)
    for prompt in prompts:
        _check_length(prompt, limit, config)
    asked = ask(
        document,
        prompts,
        chat=chat,
        count=count,
        limit=limit,
        context=config.longest_request - 1,
        mean_tokens=config.settings.output_tokens,
    )
    return Request(asked, model)


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
        raise SglangError(
            HTTPStatus.BAD_REQUEST,
            f"LoRA adapter '{name}' was requested, but LoRA is not enabled. Please launch the server with "
            "--enable-lora flag and preload adapters using --lora-paths or /load_lora_adapter endpoint.",
        )
    message = f"Got LoRA adapter that has never been loaded: {name}\nAll loaded adapters: dict_keys({known})."
    raise SglangError(HTTPStatus.BAD_REQUEST, message)


def _check_length(prompt: Prompt, limit: int | None, config: SglangConfig) -> None:
    context, most = config.context_tokens, config.longest_request - _RESERVED_INPUT_TOKENS
    if prompt.tokens >= context:
        message = f"The input ({prompt.tokens} tokens) is longer than the model's context length ({context} tokens)."
        raise SglangError(HTTPStatus.BAD_REQUEST, message)
    if limit is not None and limit < 1:
        raise _invalid("max_tokens must be positive")
    if limit is not None and limit + prompt.tokens > context:
        raise SglangError(
            HTTPStatus.BAD_REQUEST,
            f"Requested token count exceeds the model's maximum context length of {context} tokens. You requested a "
            f"total of {limit + prompt.tokens} tokens: {prompt.tokens} tokens from the input messages and {limit} "
            "tokens for the completion. Please reduce the number of tokens in the input messages or the completion "
            "to fit within the limit.",
        )
    if prompt.tokens >= most:
        raise SglangError(
            HTTPStatus.BAD_REQUEST,
            f"Input length ({prompt.tokens} tokens) exceeds the maximum allowed length ({most} tokens). "
            "Use a shorter input or enable --allow-auto-truncate.",
        )


def queue_full() -> SglangError:
    """503; its type is the number where no stream was asked for."""
    return SglangError(HTTPStatus.SERVICE_UNAVAILABLE, QUEUE_FULL, "503")


def _whole(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _invalid(f"body.{name}: Input should be a valid integer")
    return value


def _invalid(message: str) -> SglangError:
    return SglangError(HTTPStatus.BAD_REQUEST, f"1 validation error: {message}", HTTPStatus.BAD_REQUEST.phrase)


def _document(message: str, kind: str, status: HTTPStatus) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": status.value}
