"""What an attempt brought, read and judged."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from flotilla.api.routing_policy import Failure, Signal
from flotilla.gateway import wire
from flotilla.gateway.dial import unix_s
from flotilla.gateway.dialect import Dialect
from flotilla.gateway.intake import Accepted
from flotilla.gateway.outcome import Failed, Outcome, Whole
from flotilla.gateway.relay import Relay, without_logprobs
from flotilla.routing import escalation as judgement
from flotilla.routing.budgets import Usage, usage_of
from flotilla.routing.check import choices_of
from flotilla.routing.decide import SERVER_ERROR, Refusal
from flotilla.routing.request import Operation

_SHORT = 4096
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
class Answered:
    """What can be given to the client."""

    target: str
    body: bytes = b""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of `body`."""
    status: int = 200
    relay: Relay | None = None
    """Of a stream; it may hold events back."""
    signals: tuple[Signal, ...] | None = None
    """None where nobody has judged."""

    def refuse(self, status: int, body: bytes) -> Outcome:
        """The target would not do what the client asked for."""
        self.status, self.body = status, body
        return Whole(status, body)

    def usage(self, prompt_tokens: int) -> Usage | None:
        """Tokens as the target counted them, or else by the pieces that came; None where nothing came."""
        if self.relay is not None and self.relay.events:
            return self.relay.usage or Usage(prompt_tokens, self.relay.events)
        return usage_of(self.fields.get("usage")) if self.status < 300 else None


def read(outcome: Whole, answered: Answered, accepted: Accepted, dialect: Dialect, *, logprobs: bool) -> Outcome:
    """Take a whole answer: it must be what it says, or it does not reach the client.

    `logprobs`: token probabilities were asked for by us, and are taken out when they have been judged.
    """
    try:
        status, content = dialect.answer(outcome.status, outcome.body, unix_s())
        fields = fields_of(content, accepted.operation)
    except ValueError:
        if outcome.status < 300:
            return Failed(Failure.SERVER_ERROR, "the answer is no JSON of its API")
        status, fields, content = outcome.status, {}, b""
    answered.fields = fields
    if status >= 300:
        if type(fields.get("error")) is dict:
            return answered.refuse(status, content)
        message = fields.get("message")
        said = message if isinstance(message, str) else "The target refused the request without saying why."
        return answered.refuse(status, wire.error_body(said))
    if logprobs:
        answered.signals = judge(choices_of(fields), accepted)
        without_logprobs(fields)
        content = orjson.dumps(fields)
    answered.status, answered.body = status, content
    return outcome


def fields_of(content: bytes, operation: Operation) -> dict[str, Any]:
    """The fields of an answer; of embeddings, which are long lists of numbers, only the usage. Raises ValueError."""
    if operation is Operation.EMBEDDINGS and len(content) > _SHORT:
        if not (content.lstrip()[:1] == b"{" and content.rstrip()[-1:] == b"}"):
            raise ValueError("no JSON object")
        found = _USAGE.search(content[-_SHORT:]) or _USAGE.search(content[:_SHORT])
        return {"usage": orjson.loads(found[1])} if found else {}
    fields = orjson.loads(content)
    if type(fields) is not dict:
        raise ValueError("no JSON object")
    return fields


def signals_of(answered: Answered, accepted: Accepted) -> tuple[Signal, ...]:
    """What is wrong with an answer; nothing where a stream was not held back for judging."""
    if answered.signals is not None:
        return answered.signals
    if answered.relay is None:
        return judge(choices_of(answered.fields), accepted)
    collected = answered.relay.collected
    return () if collected is None else judge(collected.choices(), accepted)


def judge(choices: tuple[judgement.Choice, ...], accepted: Accepted) -> tuple[Signal, ...]:
    """The signals that the rule asked for."""
    escalation = accepted.decision.route.escalation
    if escalation is None or not accepted.signals:
        return ()
    expected = judgement.expectations(accepted.asked.fields, accepted.signals, escalation.confidence)
    return judgement.signals(choices, expected)


def failure_refusal(target: str, outcome: Failed) -> Refusal:
    """What a client hears of the last attempt."""
    wait = outcome.retry_after
    return Refusal(
        outcome.status,
        _CODES[outcome.failure],
        f"Target {target!r} did not serve the request: {outcome.detail}.",
        type=SERVER_ERROR,
        retry_after_s=int(wait) if wait is not None and wait.isascii() and wait.isdigit() else None,
    )
