"""Requests of vLLM's OpenAI endpoints: read, checked, refused in vLLM's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flotilla_devcluster.engine.asked import Asked, ask, prompts_of
from flotilla_devcluster.engine.generation import Prompt, chat_prompt
from flotilla_devcluster.engine.vllm_config import VllmConfig

_ELSEWHERE = "Please try again later or on a different instance."
BUSY = f"The engine is currently busy and cannot accept new requests. {_ELSEWHERE}"
BACKLOG = f"The engine has reached its prefill token backlog limit. {_ELSEWHERE}"
SHUT_DOWN = "cannot schedule new futures after shutdown"


class ApiError(Exception):
    """An answer that is vLLM's error document."""

    def __init__(self, status: HTTPStatus, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.document = {
            "error": {"message": message, "type": kind, "param": param, "code": status.value},
        }


def read_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Raises ApiError 400 as FastAPI's validation does."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise _invalid("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        document = json.loads(body)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "Invalid encoding"
        message = _field("json_invalid", "body", "JSON decode error")
        raise _invalid(f"{message[:-1]}, 'ctx': {{'error': '{reason}'}}}}") from None
    if not isinstance(document, dict):
        raise _invalid(_field("model_attributes_type", "body", "Input should be a valid dictionary"))
    return document


def read_chat(document: Mapping[str, Any], config: VllmConfig) -> Asked:
    """A body of /v1/chat/completions. Raises ApiError."""
    messages = document.get("messages")
    if "messages" not in document:
        raise _invalid(_field("missing", "messages", "Field required"), param="messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _invalid(_field("list_type", "messages", "Input should be a valid list"), param="messages")
    _check_model(document, config)
    tools = document.get("tools") or []
    limit_name = "max_completion_tokens" if document.get("max_completion_tokens") else "max_tokens"
    return _asked(document, config, [chat_prompt(messages, tools)], chat=True, limit_name=limit_name, default=None)


def read_completion(document: Mapping[str, Any], config: VllmConfig) -> Asked:
    """A body of /v1/completions: a text, a list of texts, token ids or a list of those. Raises ApiError."""
    _check_model(document, config)
    prompts = prompts_of(document.get("prompt"))
    if prompts is None:
        message = "Either prompt or prompt_embeds must be provided and non-empty."
        raise ApiError(HTTPStatus.BAD_REQUEST, "BadRequestError", message)
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
    limit = _whole(document, limit_name)
    limit = default if limit is None else limit
    count = _whole(document, "n") or 1
    _check_stream_options(document)
    _check_lengths(prompts, limit, limit_name, config)
    return ask(
        document,
        prompts,
        chat=chat,
        count=count,
        limit=limit,
        context=config.context_tokens,
        mean_tokens=config.settings.output_tokens,
        force_usage=config.force_usage,
    )


def _check_stream_options(document: Mapping[str, Any]) -> None:
    options = document.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _invalid(_field("model_attributes_type", "stream_options", "Input should be a valid dictionary"))
    if options and not document.get("stream"):
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise ApiError(HTTPStatus.BAD_REQUEST, "Bad Request", message, "stream_options")


def _check_lengths(prompts: list[Prompt], limit: int | None, name: str, config: VllmConfig) -> None:
    context = config.context_tokens
    if limit is not None and limit < 1:
        raise _bad(f"{name} must be at least 1, got {limit}.", name, limit)
    if limit is not None and limit > context:
        message = f"{name}={limit} cannot be greater than max_model_len={context}."
        raise _bad(f"{message} Please request fewer output tokens.", name, limit)
    for prompt in prompts:
        if prompt.tokens >= context:
            message = (
                f"This model's maximum context length is {context} tokens. However, your prompt contains "
                f"{prompt.tokens} input tokens, which exceeds this limit even without any output tokens. "
                "Please reduce the length of the input prompt."
            )
            raise _bad(message, "input_tokens", prompt.tokens)


def _check_model(document: Mapping[str, Any], config: VllmConfig) -> None:
    model = document.get("model")
    if model and model not in config.served_names and model not in config.adapters:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(config.served_names)}."
        raise ApiError(HTTPStatus.NOT_FOUND, "NotFoundError", message, "model")


def _whole(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _invalid(_field("int_type", name, "Input should be a valid integer"), param=name)
    return value


def _bad(message: str, param: str, value: int) -> ApiError:
    text = f"{message} (parameter={param}, value={value})"
    return ApiError(HTTPStatus.BAD_REQUEST, "BadRequestError", text, param)


def _field(kind: str, location: str, message: str) -> str:
    return f"{{'type': '{kind}', 'loc': '{location}', 'msg': '{message}'}}"


def _invalid(error: str, param: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, "Bad Request", f"1 validation error:\n  {error}", param)


def refusal(reason: str) -> ApiError:
    """503 for a queue limit, by the name that the batcher gives it."""
    message = BACKLOG if reason == "max_num_queued_tokens" else BUSY
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "Service Unavailable", message)


def shut_down() -> ApiError:
    """500 for a request that comes while the engine drains."""
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError", SHUT_DOWN)
