"""Requests of TGI's endpoints: read, checked, refused in TGI's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from flotilla_devcluster.engine.generation import Answer, Prompt, answers, chat_prompt, text_prompt
from flotilla_devcluster.engine.tgi_config import TgiConfig

DEFAULT_GENERATION_LENGTH: Final = 1024
"""TGI never reserves more output tokens than these at once."""


class TgiError(Exception):
    """`text`: an error of the HTTP layer below TGI, in plain text."""

    def __init__(self, status: HTTPStatus, message: str, kind: str, *, text: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.text = text

    @property
    def document(self) -> dict[str, str]:
        return {"error": self.message, "error_type": self.kind}

    @property
    def openai_event(self) -> dict[str, Any]:
        """In OpenAI streams every error is a 422, an overload too."""
        return {"error": {"message": self.message, "http_status_code": 422}}


@dataclass(frozen=True, slots=True)
class Generation:
    """One checked prompt. `reserve_tokens`: what TGI holds in the KV cache for its output."""

    prompt: Prompt
    answer: Answer
    reserve_tokens: int
    max_new_tokens: int


def read_json(body: bytes, content_type: str, config: TgiConfig) -> dict[str, Any]:
    """Raises TgiError as the HTTP framework does."""
    if not content_type.partition(";")[0].strip().lower().endswith("json"):
        message = "Expected request with `Content-Type: application/json`"
        raise TgiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, "", text=True)
    if len(body) > config.payload_limit_bytes:
        message = "Failed to buffer the request body: length limit exceeded"
        raise TgiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, "", text=True)
    try:
        document = json.loads(body)
    except ValueError as error:
        message = f"Failed to parse the request body as JSON: {error}"
        raise TgiError(HTTPStatus.BAD_REQUEST, message, "", text=True) from None
    if not isinstance(document, dict):
        raise _not_of_type("invalid type, expected a map")
    return document


def read_generate(document: Mapping[str, Any], config: TgiConfig) -> Generation:
    """A body of /generate or /generate_stream."""
    inputs, parameters = document.get("inputs"), document.get("parameters") or {}
    if not isinstance(inputs, str):
        raise _not_of_type("missing field `inputs`")
    return checked(text_prompt(inputs), parameters.get("max_new_tokens"), config, empty=not inputs)


def read_chat(document: Mapping[str, Any], config: TgiConfig) -> Generation:
    """A body of /v1/chat/completions; the model's name has no meaning."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _not_of_type("missing field `messages`")
    prompt = chat_prompt(messages, document.get("tools") or [])
    return checked(prompt, document.get("max_tokens"), config, empty=False)


def read_completion(document: Mapping[str, Any], config: TgiConfig) -> list[Generation]:
    """A body of /v1/completions: one text or some."""
    given = document.get("prompt")
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise _not_of_type("missing field `prompt`")
    if len(prompts) > config.max_client_batch:
        message = f"Number of prompts exceeds the maximum allowed batch size of {config.max_client_batch}"
        raise TgiError(HTTPStatus.UNPROCESSABLE_ENTITY, message, "batch size exceeded")
    limit = document.get("max_tokens")
    return [checked(text_prompt(prompt), limit, config, empty=not prompt) for prompt in prompts]


def checked(prompt: Prompt, max_new_tokens: Any, config: TgiConfig, *, empty: bool) -> Generation:
    """Raises TgiError 422 as TGI's validation does."""
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


def overloaded() -> TgiError:
    return TgiError(HTTPStatus.TOO_MANY_REQUESTS, "Model is overloaded", "overloaded")


def _invalid(message: str) -> TgiError:
    return TgiError(HTTPStatus.UNPROCESSABLE_ENTITY, f"Input validation error: {message}", "validation")


def _not_of_type(reason: str) -> TgiError:
    message = f"Failed to deserialize the JSON body into the target type: {reason}"
    return TgiError(HTTPStatus.UNPROCESSABLE_ENTITY, message, "", text=True)
