"""Admit a request: read its body, identify the client, count its limits, classify it, decide, reserve its cost.

`read_body`, `identify` and `admit_request` fill the `Record`, in the order of the code, so that a refused request is
recorded with what is known. All may return the `Refusal` that the client gets. `admit_request` waits only for the
classifier and for limits that are counted elsewhere; `waits` says so, and `now` runs it at once otherwise.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import orjson

from flotilla.errors import UntranslatableRequest
from flotilla.gateway.attempt import Complete, Interrupted, Outcome, ResponseSink
from flotilla.gateway.config import RoutePlan, ServedPolicy, Setup
from flotilla.gateway.dialect import Dialect, Extras
from flotilla.gateway.dispatch import Dispatcher, resolve, unix_s
from flotilla.gateway.http import message
from flotilla.gateway.http.message import MemoryBudget, Request
from flotilla.gateway.limits.accounts import limited
from flotilla.gateway.metrics import CLASSIFIER
from flotilla.gateway.openai.requests import MAX_VALUES, Body, InvalidBody, count_up_to, image_problem
from flotilla.gateway.record import Record
from flotilla.gateway.state import GatewayState
from flotilla.gateway.tracing import now_ns
from flotilla.routing import classify
from flotilla.routing.budgets import ZERO, reservation, spent, usage_of
from flotilla.routing.decide import SERVER_ERROR, Refusal, invalid_api_key, model_not_found
from flotilla.routing.document import Policy
from flotilla.routing.request import Features, Operation, features_of

LARGE_BYTES = 128 * 1024
"""Larger bodies take memory for their parsed form, and are parsed on a thread."""
_COPIES = 2
"""Beside the body itself: its texts, and the request to the target."""
_VALUE_BYTES = 48
_T = TypeVar("_T")


def hold_memory(memory: MemoryBudget, request: Request) -> Refusal | None:
    """Take room in the budget for what a large body becomes: parsed, rewritten for a target, and on its way to it."""
    body = request.body
    more = _COPIES * len(body) + _VALUE_BYTES * count_up_to(MAX_VALUES, body, b",", b"[")
    if memory.take(request.held_by, more):
        request.held_bytes += more
        return None
    error = memory.shortage(request.held_by, more)
    return Refusal(error.status, error.code, str(error), type=SERVER_ERROR, retry_after_s=error.retry_after_s)


def read_body(record: Record, read: Callable[[bytes], Body]) -> Refusal | None:
    """Read the body with `read`, which raises InvalidBody."""
    try:
        record.body = read(record.request.body)
    except InvalidBody as error:
        return Refusal(400, error.code, str(error), param=error.param, retryable=False)
    return None


def identify(setup: Setup, record: Record) -> ServedPolicy | Refusal:
    """Find the policy and the client of a request whose body was read, and its features."""
    request, body = record.request, record.body
    assert body is not None
    fields, headers = body.fields, request.headers
    served = setup.served.get(fields["model"])
    if served is None:
        return model_not_found(fields["model"])
    record.policy = policy = served.policy
    grant = None
    if policy.guarded:
        grant = served.grant_of(headers.get("authorization", ""))
        if grant is None:
            return invalid_api_key(policy.name)
        if grant.models and fields["model"] not in grant.models:
            return model_not_found(fields["model"])
    client = None if grant is None else grant.name
    record.features = features = features_of(fields, headers, policy, operation=record.operation, client=client)
    if grant is not None:
        features.client_class, features.client_limits = grant.data_class, grant.limits
        if grant.team is not None or policy.client_files:
            # The file or the token says who belongs to a team, so that the header cannot.
            features.team = grant.team
    messages = fields.get("messages")
    if messages:
        # Engines accept messages for embeddings too.
        problem = image_problem(messages, allow_private=setup.document.allow_private_hosted_addresses)
        if problem is not None:
            return Refusal(400, "invalid_image_url", problem, param="messages", retryable=False)
    return served


def waits(state: GatewayState, record: Record) -> bool:
    """Whether `admit_request` may wait for something."""
    assert record.policy is not None
    assert record.features is not None
    if record.policy.classifier is not None:
        return True
    return state.accounts is not None and not state.accounts.immediate and limited(record.policy, record.features)


def now(course: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine that waits for nothing: it needs no task."""
    try:
        course.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    course.close()
    raise AssertionError("a coroutine that must not wait has waited")


async def admit_request(
    state: GatewayState, setup: Setup, record: Record, served: ServedPolicy
) -> tuple[RoutePlan, Dispatcher] | Refusal:
    """Decide where a request that was read may go, and count its limits."""
    policy, features, body = served.policy, record.features, record.body
    assert features is not None
    assert body is not None
    dispatcher = Dispatcher(
        state,
        setup,
        policy,
        body,
        record.operation,
        record,
        _extra_lines(record.request, record),
        features.session,
    )
    lease = None
    if state.accounts is not None and limited(policy, features):
        found = await state.accounts.admit(policy, features)
        if isinstance(found, Refusal):
            return found
        record.lease = lease = found
    unavailable = state.unavailable(policy)
    if policy.classifier is not None:
        record.features = features = await _classify_task(state, setup, served, body, features, record)
    plan = served.plan(features, record.id, unavailable)
    if type(plan) is Refusal and plan.code == "no_capacity":
        # The last target is asked although its breaker is open: there is nothing to protect by a refusal of ours.
        plan = served.plan(features, record.id, state.breakers.resting(policy.uid, state.loop.time()))
    if type(plan) is Refusal:
        return plan
    assert isinstance(plan, RoutePlan)
    if lease is not None:
        decision = await lease.reserve(plan.decision)
        if isinstance(decision, Refusal):
            return decision
        if decision is not plan.decision:
            plan = RoutePlan(decision)
    record.plan, record.decision = plan, plan.decision
    state.retry_budget.earn()
    return plan, dispatcher


async def _classify_task(
    state: GatewayState, setup: Setup, served: ServedPolicy, body: Body, features: Features, record: Record
) -> Features:
    """Ask the classifier model for the task. If it fails, or no budget has room for it, there is no task."""
    policy = served.policy
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
    ended: asyncio.Future[Outcome] = state.loop.create_future()
    call = None
    classified = "failed"
    try:
        call = dispatcher.send(question.permit, destination, sink, Extras(), _unchanged, resolve(ended))
        outcome = await ended
        answer = _classifier_answer(outcome, dispatcher.dialect(target.name))
        classified = _classification(outcome, answer, policy)
    except UntranslatableRequest:
        classified = "refused"
        return features
    finally:
        if call is not None and type(outcome) is Interrupted:
            call.abandon()
        state.metrics.classifications.add((policy.name, classified))
        record.classification = classified
        usage = usage_of(answer.get("usage"), answer.get("service_tier"))
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


def _classification(outcome: Outcome, answer: Mapping[str, Any], policy: Policy) -> str:
    """How the classifier's call ended, for the metric: a classifier that is always refused would go unnoticed."""
    if type(outcome) is not Complete:
        return "failed"
    if outcome.status >= 300:
        return "refused"
    return "unnamed" if classify.task_of(answer, policy) is None else "named"


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
    trace = request.headers.get("traceparent") if record.span is None else record.span.traceparent
    lines = b"x-request-id: %b\r\n" % record.id.encode()
    return lines + message.header("traceparent", trace) if trace is not None else lines


def _unchanged(outcome: Complete) -> Outcome:
    return outcome
