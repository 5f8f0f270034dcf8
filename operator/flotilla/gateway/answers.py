"""What an attempt brought: read, checked and judged by the signals of the rule. Pure.

A `TargetAnswer` collects it. `read_answer` fills it from a complete answer; for a stream it holds the relay.
`answer_signals` says what is wrong with it, and `failure_refusal` makes the error that a client gets when the last
attempt failed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from flotilla.api.routing_policy import Failure, Signal
from flotilla.gateway.admission import AdmittedRequest
from flotilla.gateway.attempt import Complete, Failed, Outcome
from flotilla.gateway.dialect import Dialect
from flotilla.gateway.openai import responses
from flotilla.gateway.openai.responses import StreamRelay, without_logprobs
from flotilla.routing import escalation as judgement
from flotilla.routing.budgets import Usage, usage_of
from flotilla.routing.check import choices_of
from flotilla.routing.decide import SERVER_ERROR, Refusal
from flotilla.routing.request import Operation

_USAGE_SEARCH_BYTES = 4096
"""The usage of an embeddings answer is looked for in so many bytes of its end, and then of its beginning."""
_ERROR_CHARS = 500
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*\})')
_CODES = {
    Failure.CONNECT: "upstream_unreachable",
    Failure.TIMEOUT: "upstream_timeout",
    Failure.SERVER_ERROR: "upstream_error",
    Failure.RATE_LIMITED: "upstream_rate_limited",
    Failure.UNAUTHORIZED: "upstream_unauthorized",
    Failure.NO_ENDPOINTS: "no_capacity",
}


@dataclass(slots=True)
class TargetAnswer:
    """What one attempt brought for the client."""

    target: str
    body: bytes = b""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """`body`, decoded."""
    status: int = 200
    relay: StreamRelay | None = None
    """Set for a stream. The relay may hold events back until the answer has been judged."""
    signals: tuple[Signal, ...] | None = None
    """What is wrong with the answer; None if it has not been judged yet."""

    def set_error(self, status: int, body: bytes) -> Outcome:
        """Take an error that is about the request itself, and that the client gets as it is."""
        self.status, self.body = status, body
        return Complete(status, body)

    def usage(self, prompt_tokens: int) -> Usage | None:
        """Tokens as the target counted them; of a stream without a count, its events. None if nothing came."""
        if self.relay is not None and self.relay.events:
            return self.relay.usage or Usage(prompt_tokens, self.relay.events)
        return usage_of(self.fields.get("usage")) if self.status < 300 else None


def read_answer(
    outcome: Complete,
    answer: TargetAnswer,
    admitted: AdmittedRequest,
    dialect: Dialect,
    *,
    created: int,
    logprobs: bool,
) -> Outcome:
    """Read a complete answer into `answer`; one that is not valid JSON of its API becomes a failure.

    With `logprobs` the gateway asked for token probabilities: the answer is judged by them here, and they are removed.
    """
    try:
        status, content = dialect.to_openai(outcome.status, outcome.body, created)
        fields = answer_fields(content, admitted.operation)
    except ValueError:
        if outcome.status < 300:
            return Failed(Failure.SERVER_ERROR, "the answer is not valid JSON of its API")
        status, fields, content = outcome.status, {}, b""
    answer.fields = fields
    if status >= 300:
        if type(fields.get("error")) is dict:
            return answer.set_error(status, content)
        text = _error_text(fields, outcome.body) or "The target refused the request without saying why."
        return answer.set_error(status, responses.error_body(text))
    if logprobs:
        answer.signals = judge_choices(choices_of(fields), admitted)
        without_logprobs(fields)
        content = orjson.dumps(fields)
    answer.status, answer.body = status, content
    return outcome


def _error_text(fields: Mapping[str, Any], body: bytes) -> str:
    """What an error says that is not in OpenAI's format: its message or detail, of any type, or a plain text."""
    for value in (fields.get("message"), fields.get("detail"), fields.get("error")):
        if value:
            return value if isinstance(value, str) else orjson.dumps(value).decode()[:_ERROR_CHARS]
    text = body[:_ERROR_CHARS].decode(errors="replace").strip()
    return "" if fields or text.startswith(("<", "{", "[")) else text


def answer_fields(content: bytes, operation: Operation) -> dict[str, Any]:
    """The decoded answer. Of embeddings, which are long lists of numbers, only the usage. Raises ValueError."""
    if operation is Operation.EMBEDDINGS and len(content) > _USAGE_SEARCH_BYTES:
        if not (content.lstrip()[:1] == b"{" and content.rstrip()[-1:] == b"}"):
            raise ValueError("not a JSON object")
        found = _USAGE.search(content[-_USAGE_SEARCH_BYTES:]) or _USAGE.search(content[:_USAGE_SEARCH_BYTES])
        return {"usage": orjson.loads(found[1])} if found else {}
    fields = orjson.loads(content)
    if type(fields) is not dict:
        raise ValueError("not a JSON object")
    return fields


def answer_signals(answer: TargetAnswer, admitted: AdmittedRequest) -> tuple[Signal, ...]:
    """What is wrong with an answer. Empty for a stream that was not held back to be judged."""
    if answer.signals is not None:
        return answer.signals
    if answer.relay is None:
        return judge_choices(choices_of(answer.fields), admitted)
    collected = answer.relay.collected
    return () if collected is None else judge_choices(collected.choices(), admitted)


def judge_choices(choices: tuple[judgement.Choice, ...], admitted: AdmittedRequest) -> tuple[Signal, ...]:
    """Those of the rule's signals that apply to the choices."""
    escalation = admitted.decision.route.escalation
    if escalation is None or not admitted.signals:
        return ()
    expected = judgement.expectations(admitted.body.fields, admitted.signals, escalation.confidence)
    return judgement.signals(choices, expected)


def failure_refusal(target: str, outcome: Failed) -> Refusal:
    """The error for the client after the last attempt failed."""
    wait = outcome.retry_after
    return Refusal(
        outcome.status,
        _CODES[outcome.failure],
        f"Target {target!r} did not serve the request: {outcome.detail}.",
        type=SERVER_ERROR,
        retry_after_s=int(wait) if wait is not None and wait.isascii() and wait.isdigit() else None,
    )
