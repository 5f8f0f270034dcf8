"""The first look at a request: read, identify, decide, set money aside.

It ends in what an exchange carries out, or in a refusal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import orjson

from flotilla.api.routing_policy import Signal
from flotilla.gateway import wire
from flotilla.gateway.accounts import limited
from flotilla.gateway.anthropic import Untranslatable
from flotilla.gateway.attempt import Attempt
from flotilla.gateway.body import BadBody, Body, image_problem, parse
from flotilla.gateway.config import Setup
from flotilla.gateway.dial import Dialer, unix_s
from flotilla.gateway.dialect import Dialect, Wanted
from flotilla.gateway.outcome import Broken, Outcome, Whole
from flotilla.gateway.record import CLASSIFIER, Record
from flotilla.gateway.request import Request
from flotilla.gateway.shared import Shared
from flotilla.gateway.tracing import now_ns
from flotilla.gateway.upstream_connection import Connection
from flotilla.routing import classify
from flotilla.routing.budgets import ZERO, reservation, spent, usage_of
from flotilla.routing.decide import Decision, Refusal, decide, invalid_api_key, model_not_found
from flotilla.routing.document import Policy
from flotilla.routing.request import Features, Operation, features_of

_PREFIX_CHARS = 1024
_NO_SIGNALS: frozenset[Signal] = frozenset()


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that may be sent."""

    asked: Body
    features: Features
    decision: Decision
    dialer: Dialer
    operation: Operation
    request_id: str
    signals: frozenset[Signal]
    """Those that may escalate the answer; none where no escalation is possible."""

    @property
    def policy(self) -> Policy:
        """Whose decision it is."""
        return self.decision.policy

    @property
    def asked_usage(self) -> bool:
        """Whether the client itself wants the usage at the end of a stream."""
        options = self.asked.fields.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def asked_logprobs(self) -> bool:
        """Whether the client itself wants token probabilities."""
        return bool(self.asked.fields.get("logprobs"))


async def take(
    shared: Shared,
    setup: Setup,
    request: Request,
    operation: Operation,
    record: Record,
    read: Callable[[bytes], Body] = parse,
) -> Accepted | Refusal:
    """Decide about a request; `record` is told what is known. `read` raises BadBody."""
    try:
        asked = read(request.body)
    except BadBody as error:
        return Refusal(400, error.code, str(error), param=error.param, retryable=False)
    model = asked.fields["model"]
    policy = setup.document.by_model.get(model)
    if policy is None:
        return model_not_found(model)
    record.policy = policy
    client = None
    if policy.clients:
        client = setup.client_of(policy, request.headers.get("authorization", ""))
        if client is None:
            return invalid_api_key(policy.name)
    features = features_of(asked.fields, request.headers, policy, operation=operation, client=client)
    record.features = features
    if operation is Operation.CHAT:
        private = setup.document.allow_private_hosted_addresses
        problem = image_problem(asked.fields.get("messages"), allow_private=private)
        if problem is not None:
            return Refusal(400, "invalid_image_url", problem, param="messages", retryable=False)
    dialer = Dialer(shared, setup, policy, asked, operation, _extra_lines(request, record))
    dialer.affinity = _affinity(asked, features)
    if shared.accounts is not None and limited(policy):
        admitted = await shared.accounts.admit(policy, features)
        if isinstance(admitted, Refusal):
            return admitted
        record.lease = admitted
    if policy.classifier is not None:
        record.features = features = await _classified(shared, setup, policy, asked, features, dialer, record)
    record.dialer = dialer
    decided = decide(policy, features, record.id, shared.unavailable(policy))
    if isinstance(decided, Refusal):
        return decided
    if record.lease is not None:
        decided = await record.lease.reserve(decided)
        if isinstance(decided, Refusal):
            return decided
    record.decision = decided
    shared.retries.earn()
    signals = setup.signals[policy.name, decided.rule] if decided.escalation is not None else _NO_SIGNALS
    return Accepted(asked, features, decided, dialer, operation, record.id, signals)


async def _classified(
    shared: Shared, setup: Setup, policy: Policy, asked: Body, features: Features, dialer: Dialer, record: Record
) -> Features:
    """Ask the classifier for the task. It may fail, or be too dear: the request goes on without a task then."""
    question = classify.question(policy, features, asked.fields)
    if question is None or question.permit.target.name in shared.unavailable(policy):
        return features
    body, target = Body(orjson.dumps(question.body), question.body), question.permit.target
    asking = Dialer(shared, setup, policy, body, Operation.CHAT, b"")
    place = asking.place(question.permit)
    if place is None:
        return features
    lease = record.lease
    if lease is not None and not await lease.set_aside(reservation(question.features, (target,)), question.timeout_s):
        return features
    since_s, since_ns = shared.loop.time(), now_ns() if record.span is not None else 0
    incoming = Attempt(shared.loop, total_s=since_s + question.timeout_s)
    outcome: Outcome = Broken("the client left")
    answer: dict[str, Any] = {}
    try:
        outcome = await asking.run(question.permit, place, incoming, Wanted(), sent=_ignored, read=_as_it_is)
        answer = _fields(outcome, asking.dialect(question.permit))
    except Untranslatable:
        return features
    finally:
        dialer.upstream_s += asking.upstream_s
        usage = usage_of(answer.get("usage"))
        record.count(target, usage, CLASSIFIER)
        if record.span is not None:
            record.span.attempt(
                target,
                place.origin,
                question.features,
                since_ns=since_ns,
                first_byte_s=incoming.first_byte_s - since_s,
                outcome=outcome,
                usage=usage,
                answer=answer,
                classifier=True,
            )
        if lease is not None:
            await lease.pay(ZERO if usage is None else spent(target, usage) or ZERO)
    return features.with_task(classify.task_of(answer, policy))


def _fields(outcome: Outcome, dialect: Dialect) -> dict[str, Any]:
    """Of a classifier's answer; empty where it is none."""
    if type(outcome) is not Whole or outcome.status >= 300:
        return {}
    try:
        fields = orjson.loads(dialect.answer(outcome.status, outcome.body, unix_s())[1])
    except ValueError:
        return {}
    return fields if type(fields) is dict else {}


def _extra_lines(request: Request, record: Record) -> bytes:
    """Headers that engines in the cluster get of the client's: to find a request again, and nothing else."""
    lines = b"x-request-id: %b\r\n" % record.id.encode()
    trace = request.headers.get("traceparent") if record.span is None else record.span.traceparent
    return lines + wire.header("traceparent", trace) if trace is not None else lines


def _affinity(asked: Body, features: Features) -> int | None:
    """A hash of the session, or of the prompt's beginning: the replica that has it in its cache is preferred."""
    if features.session is not None:
        return crc32(features.session.encode(errors="replace"))
    messages = asked.fields.get("messages")
    if not messages or not isinstance(messages[0], dict):
        return None
    content = messages[0].get("content")
    return crc32(content[:_PREFIX_CHARS].encode(errors="replace")) if isinstance(content, str) else None


def _ignored(connection: Connection) -> None:
    """A classifier's answer is slowed down by nobody."""


def _as_it_is(outcome: Whole) -> Outcome:
    return outcome
