"""Admit a request: read its body, identify the client, count its limits, classify it, decide, reserve its cost.

`admit_request` returns an `AdmittedRequest`, which `exchange` answers, or the `Refusal` that the client gets. The order
is that of the code, and the `Record` is filled on the way, so that a refused request is recorded with what is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import orjson

from flotilla.api.routing_policy import Signal
from flotilla.gateway.anthropic.outbound_requests import UntranslatableRequest
from flotilla.gateway.attempt import Complete, Interrupted, Outcome, ResponseSink
from flotilla.gateway.config import Setup
from flotilla.gateway.dialect import Dialect, Extras
from flotilla.gateway.dispatch import Dispatcher, unix_s
from flotilla.gateway.http import message
from flotilla.gateway.http.client import UpstreamConnection
from flotilla.gateway.http.message import Request
from flotilla.gateway.limits.accounts import limited
from flotilla.gateway.metrics import CLASSIFIER
from flotilla.gateway.openai.requests import Body, InvalidBody, image_problem, parse_body
from flotilla.gateway.record import Record
from flotilla.gateway.state import GatewayState
from flotilla.gateway.tracing import now_ns
from flotilla.routing import classify
from flotilla.routing.budgets import ZERO, reservation, spent, usage_of
from flotilla.routing.decide import Decision, Refusal, decide, invalid_api_key, model_not_found
from flotilla.routing.document import Policy
from flotilla.routing.request import Features, Operation, features_of

_PREFIX_CHARS = 1024
"""Length of the prompt's beginning by which requests are sent to the same replica."""
_NO_SIGNALS: frozenset[Signal] = frozenset()


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """A request that may be sent to targets, with the decision that says to which."""

    body: Body
    features: Features
    decision: Decision
    dispatcher: Dispatcher
    operation: Operation
    request_id: str
    signals: frozenset[Signal]
    """The rule's signals that may escalate the answer; empty if no escalation is possible."""

    @property
    def policy(self) -> Policy:
        """The policy that serves the request."""
        return self.decision.policy

    @property
    def client_wants_usage(self) -> bool:
        """Whether the client itself asked for the usage at the end of a stream."""
        options = self.body.fields.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def client_wants_logprobs(self) -> bool:
        """Whether the client itself asked for token probabilities."""
        return bool(self.body.fields.get("logprobs"))


async def admit_request(
    state: GatewayState,
    setup: Setup,
    request: Request,
    operation: Operation,
    record: Record,
    read: Callable[[bytes], Body] = parse_body,
) -> AdmittedRequest | Refusal:
    """Admit or refuse a request. `read` parses its body and raises InvalidBody."""
    try:
        body = read(request.body)
    except InvalidBody as error:
        return Refusal(400, error.code, str(error), param=error.param, retryable=False)
    model = body.fields["model"]
    policy = setup.document.by_model.get(model)
    if policy is None:
        return model_not_found(model)
    record.policy = policy
    client = None
    if policy.clients:
        client = setup.client_of(policy, request.headers.get("authorization", ""))
        if client is None:
            return invalid_api_key(policy.name)
    features = features_of(body.fields, request.headers, policy, operation=operation, client=client)
    record.features = features
    # Engines accept messages for embeddings too.
    private = setup.document.allow_private_hosted_addresses
    problem = image_problem(body.fields.get("messages"), allow_private=private)
    if problem is not None:
        return Refusal(400, "invalid_image_url", problem, param="messages", retryable=False)
    dispatcher = Dispatcher(
        state,
        setup,
        policy,
        body,
        operation,
        record,
        extra=_extra_lines(request, record),
        affinity=_affinity(body, features),
    )
    if state.accounts is not None and limited(policy):
        lease = await state.accounts.admit(policy, features)
        if isinstance(lease, Refusal):
            return lease
        record.lease = lease
    if policy.classifier is not None:
        record.features = features = await _classify_task(state, setup, policy, body, features, record)
    decision = decide(policy, features, record.id, state.unavailable(policy))
    if isinstance(decision, Refusal):
        return decision
    if record.lease is not None:
        decision = await record.lease.reserve(decision)
        if isinstance(decision, Refusal):
            return decision
    record.decision = decision
    state.retry_budget.earn()
    signals = setup.signals[policy.name, decision.rule] if decision.escalation is not None else _NO_SIGNALS
    return AdmittedRequest(body, features, decision, dispatcher, operation, record.id, signals)


async def _classify_task(
    state: GatewayState, setup: Setup, policy: Policy, body: Body, features: Features, record: Record
) -> Features:
    """Ask the classifier model for the task. If it fails, or no budget has room for it, there is no task."""
    question = classify.question(policy, features, body.fields)
    if question is None or question.permit.target.name in state.unavailable(policy):
        return features
    question_body, target = Body(orjson.dumps(question.body), question.body), question.permit.target
    dispatcher = Dispatcher(state, setup, policy, question_body, Operation.CHAT, record)
    destination = dispatcher.destination(question.permit)
    if destination is None:
        return features
    lease = record.lease
    if lease is not None and not await lease.reserve_call(
        reservation(question.features, (target,)), question.timeout_s
    ):
        return features
    since_s, since_ns = state.loop.time(), now_ns() if record.span is not None else 0
    sink = ResponseSink(state.loop, total_s=since_s + question.timeout_s)
    outcome: Outcome = Interrupted("the client left")
    answer: dict[str, Any] = {}
    try:
        outcome = await dispatcher.send(
            question.permit, destination, sink, Extras(), sent=_no_backpressure, read=_unchanged
        )
        answer = _classifier_answer(outcome, dispatcher.dialect(question.permit))
    except UntranslatableRequest:
        return features
    finally:
        usage = usage_of(answer.get("usage"))
        record.add_usage(target, usage, CLASSIFIER)
        if record.span is not None:
            record.span.record_attempt(
                target,
                destination.origin,
                question.features,
                since_ns=since_ns,
                first_byte_s=sink.first_byte_s - since_s,
                outcome=outcome,
                usage=usage,
                answer=answer,
                classifier=True,
            )
        if lease is not None:
            await lease.settle_call(ZERO if usage is None else spent(target, usage) or ZERO)
    return features.with_task(classify.task_of(answer, policy))


def _classifier_answer(outcome: Outcome, dialect: Dialect) -> dict[str, Any]:
    """The classifier's answer, decoded; empty if there is none."""
    if type(outcome) is not Complete or outcome.status >= 300:
        return {}
    try:
        fields = orjson.loads(dialect.to_openai(outcome.status, outcome.body, unix_s())[1])
    except ValueError:
        return {}
    return fields if type(fields) is dict else {}


def _extra_lines(request: Request, record: Record) -> bytes:
    """Header lines for engines in the cluster: request ID and trace. No other header of the client is passed on."""
    lines = b"x-request-id: %b\r\n" % record.id.encode()
    trace = request.headers.get("traceparent") if record.span is None else record.span.traceparent
    return lines + message.header("traceparent", trace) if trace is not None else lines


def _affinity(body: Body, features: Features) -> int | None:
    """A hash of the session, or else of the prompt's beginning, which the same replica may have in its cache."""
    if features.session is not None:
        return crc32(features.session.encode(errors="replace"))
    beginning = _prompt_beginning(body.fields)
    return crc32(beginning[:_PREFIX_CHARS].encode(errors="replace")) if beginning else None


def _prompt_beginning(fields: dict[str, Any]) -> str:
    """The first text of the prompt, be it a string, a list of strings or a list of parts; empty if there is none."""
    messages = fields.get("messages")
    value = messages[0].get("content") if messages and isinstance(messages[0], dict) else fields.get("prompt")
    for item in value if isinstance(value, list) else [value]:
        text = item.get("text") if isinstance(item, dict) else item
        if isinstance(text, str):
            return text
    return ""


def _no_backpressure(connection: UpstreamConnection) -> None:
    """The classifier's answer goes to no client, so that nothing slows it down."""


def _unchanged(outcome: Complete) -> Outcome:
    return outcome
