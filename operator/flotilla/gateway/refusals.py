"""Why a target refused a request: too long for its context, stopped by its content filter, or anything else. Pure.

Providers and engines say it in different words. `refusal_failure` recognises the two kinds after which another target
may serve the same request, so that a rule can list them in `fallback.on`.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from flotilla.api.routing_policy import Failure

_STATUSES: Final = frozenset({400, 403, 413, 422})
_LENGTH_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"})
_FILTER_CODES: Final = frozenset(
    {"content_filter", "content_policy_violation", "moderation_blocked", "content_moderation_failed"}
)
_LENGTH: Final = re.compile(
    r"maximum context length"  # OpenAI, vLLM, Mistral, Together
    r"|longer than the (?:model's|maximum) (?:context|model) length"  # SGLang, vLLM
    r"|exceeds? the (?:available context size|maximum number of tokens|maximum allowed|context (?:window|limit))"
    r"|(?:prompt|input) is too long"  # Anthropic; Bedrock
    r"|`inputs` (?:tokens|must have less than)"  # TGI
    r"|reduce the length of the messages",  # Groq
    re.IGNORECASE,
)
_FILTER: Final = re.compile(
    r"content (?:management policy|filter(?:ing)?|policy)|safety (?:system|checks)|flagged", re.IGNORECASE
)


def refusal_failure(status: int, fields: Mapping[str, Any]) -> Failure | None:
    """The failure that a refusal is, or an answer of a content filter; None for anything else."""
    if status < 300:
        return Failure.CONTENT_FILTER if _filtered(fields) else None
    if status not in _STATUSES:
        return None
    error = fields.get("error")
    error = error if isinstance(error, Mapping) else fields
    codes = {value for value in (error.get("code"), error.get("type")) if isinstance(value, str)}
    inner = error.get("innererror")
    if isinstance(inner, Mapping) and inner.get("code") == "ResponsibleAIPolicyViolation":
        return Failure.CONTENT_FILTER
    if codes & _LENGTH_CODES:
        return Failure.CONTEXT_LENGTH
    if codes & _FILTER_CODES:
        return Failure.CONTENT_FILTER
    words = next((said for said in (error.get("message"), error.get("detail"), fields.get("message")) if said), "")
    words = words if isinstance(words, str) else repr(words)
    if _LENGTH.search(words[:2000]):
        return Failure.CONTEXT_LENGTH
    return Failure.CONTENT_FILTER if _FILTER.search(words[:2000]) else None


def _filtered(fields: Mapping[str, Any]) -> bool:
    """Whether an answer has nothing but the mark of a content filter."""
    choices = fields.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    said = choice.get("message")
    empty = isinstance(said, Mapping) and not said.get("content") and not said.get("tool_calls")
    return choice.get("finish_reason") == "content_filter" and empty
