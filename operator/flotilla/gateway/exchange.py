"""One request from its first look to its last word: decide, attempt, judge, escalate, settle. One ledger counts all
attempts, and every dial takes its Permit from one decision."""

import asyncio
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import orjson

from flotilla.api.routes import Failure, OnExhausted, Signal
from flotilla.domain.routing import answer as judgement
from flotilla.domain.routing import classify
from flotilla.domain.routing.collect import Collector, choices_of
from flotilla.domain.routing.decide import (
    Attempt,
    Decision,
    Permit,
    decide,
    decision_header,
    escalate,
    next_step,
    wanted_signals,
)
from flotilla.domain.routing.document import Policy
from flotilla.domain.routing.money import Usage, usage_of
from flotilla.domain.routing.refusal import Refusal, invalid_api_key, model_not_found
from flotilla.domain.routing.request import Features, Operation, features_of
from flotilla.gateway import wire
from flotilla.gateway.accounts import Lease, limited
from flotilla.gateway.anthropic import DROPPED_HEADER, Untranslatable
from flotilla.gateway.attempt import Attempt as Incoming
from flotilla.gateway.attempt import StreamAttempt
from flotilla.gateway.body import BadBody, Body, image_problem, parse
from flotilla.gateway.config import Setup
from flotilla.gateway.dial import Dialer, Place, unix_s
from flotilla.gateway.dialect import Wanted
from flotilla.gateway.outcome import Broken, Failed, Outcome, Streamed, Whole
from flotilla.gateway.record import Record
from flotilla.gateway.relay import Judging, Relay, without_logprobs
from flotilla.gateway.request import Request
from flotilla.gateway.shared import Shared
from flotilla.gateway.tracing import now_ns
from flotilla.gateway.upstream import Connection

_PREFIX_CHARS = 1024
_SHORT = 4096
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*\})')
_JITTER_S = 0.05
INTERRUPTED = "upstream_stream_interrupted"


@dataclass(slots=True)
class Answered:
    """What an attempt brought that can be given to the client."""

    target: str
    body: bytes = b""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of `body`."""
    status: int = 200
    relay: Relay | None = None
    """Of a stream that is held back."""
    signals: tuple[Signal, ...] = ()


class Exchange:
    """One request. `run` answers it, whatever happens; when the client leaves, `run` is cancelled."""

    def __init__(self, shared: Shared, setup: Setup, request: Request, operation: Operation, request_id: str) -> None:
        self._shared, self._setup = shared, setup
        self._request, self._answer = request, request.answer
        self._operation, self._id = operation, request_id
        self._ledger: list[Attempt] = []
        self._signal = ""
        self._lease: Lease | None = None
        self._asked: Body
        self._policy: Policy
        self._features: Features
        self._decision: Decision
        self._dialer: Dialer = None  # type: ignore[assignment]
        self._deadline_s = 0.0
        self.record = Record(request, request_id)
        self._span = shared.tracing.begin(request) if shared.tracing is not None else None

    async def run(self) -> None:
        """Answer the request."""
        try:
            refusal = await self._decided()
            if refusal is not None:
                self._refuse(refusal)
                return
            await self._attempts()
        except asyncio.CancelledError:
            self.record.outcome = "cancelled"
            raise
        finally:
            if self._lease is not None:
                await asyncio.shield(self._settle(self._lease))
            self._close()

    def _close(self) -> None:
        answered = next((attempt.target for attempt in reversed(self._ledger) if attempt.failure is None), "")
        waited_s = self._dialer.upstream_s if self._dialer is not None else 0.0
        self.record.close(self._shared, upstream_s=waited_s, attempts=len(self._ledger), target=answered)
        if self._span is not None:
            self._span.end(self.record)

    # before the first dial

    async def _decided(self) -> Refusal | None:
        """Read, identify, decide, and set money aside; a Refusal where the request ends here."""
        request = self._request
        try:
            self._asked = asked = parse(request.body)
        except BadBody as error:
            return Refusal(400, error.code, str(error), param=error.param, retryable=False)
        model = asked.fields["model"]
        policy = self._setup.document.by_model.get(model)
        if policy is None:
            return model_not_found(model)
        self._policy = self.record.policy = policy
        client = None
        if policy.clients:
            client = self._setup.client_of(policy, request.headers.get("authorization", ""))
            if client is None:
                return invalid_api_key(policy.name)
        features = features_of(asked.fields, request.headers, policy, operation=self._operation, client=client)
        self.record.features = features
        problem = image_problem(asked.fields.get("messages")) if self._operation is Operation.CHAT else None
        if problem is not None:
            return Refusal(400, "invalid_image_url", problem, param="messages", retryable=False)
        self._dialer = Dialer(self._shared, self._setup, policy, asked, self._operation, self._extra_lines())
        self._dialer.affinity = self._affinity(features)
        if policy.classifier is not None:
            features = await self._classified(features)
        self._features = self.record.features = features
        decided = decide(policy, features, self._id, self._shared.unavailable(policy))
        if isinstance(decided, Refusal):
            return decided
        accounts = self._shared.accounts
        if accounts is not None and limited(policy):
            admitted = await accounts.admit(decided, features)
            if isinstance(admitted, Refusal):
                return admitted
            decided, self._lease = admitted.decision, admitted.lease
        self._decision = self.record.decision = decided
        self._deadline_s = request.arrived_s + decided.route.timeouts.total_seconds
        self._shared.retries.earn()
        return None

    async def _classified(self, features: Features) -> Features:
        """Ask the classifier for the task. It may fail: the request goes on without a task then."""
        question = classify.question(self._policy, features, self._asked.fields)
        if question is None:
            return features
        loop = self._shared.loop
        body = Body(orjson.dumps(question.body), question.body)
        dialer = Dialer(self._shared, self._setup, self._policy, body, Operation.CHAT, b"")
        place = dialer.place(question.permit)
        if place is None:
            return features
        incoming = Incoming(loop, total_s=loop.time() + question.timeout_s)
        try:
            outcome = await dialer.run(question.permit, place, incoming, Wanted(), sent=_ignored, read=_as_it_is)
        except Untranslatable:
            return features
        self._dialer.upstream_s += dialer.upstream_s
        if type(outcome) is not Whole or outcome.status >= 300:
            return features
        try:
            _, content = dialer.dialect(question.permit).answer(outcome.status, outcome.body, unix_s())
            task = classify.task_of(orjson.loads(content), self._policy)
        except ValueError:
            return features
        return features.with_task(task)

    def _extra_lines(self) -> bytes:
        """Headers that engines in the cluster get of the client's: to find a request again, and nothing else."""
        lines = b"x-request-id: %b\r\n" % self._id.encode()
        trace = self._span.traceparent if self._span is not None else self._request.headers.get("traceparent")
        return lines + wire.header("traceparent", trace) if trace is not None else lines

    def _affinity(self, features: Features) -> int | None:
        """A hash of the session, or of the prompt's beginning: the replica that has it in its cache is preferred."""
        if features.session is not None:
            return crc32(features.session.encode())
        messages = self._asked.fields.get("messages")
        if not messages or not isinstance(messages[0], dict):
            return None
        content = messages[0].get("content")
        return crc32(content[:_PREFIX_CHARS].encode(errors="replace")) if isinstance(content, str) else None

    # the attempts

    async def _attempts(self) -> None:
        """Attempt until one answers or none is left; then judge."""
        permit: Permit | None = self._decision.first
        place: Place | None = None
        outcome: Outcome
        answered: Answered
        while True:
            assert permit is not None
            outcome, answered = await self._attempt(permit, place, escalated=False)
            if type(outcome) is not Failed:
                break
            place = await self._again(permit, outcome)
            if place is not None:
                continue
            follower = next_step(self._decision, self._ledger, outcome.failure, self._shared.unavailable(self._policy))
            if follower is None or self._shared.loop.time() >= self._deadline_s:
                self._fail(permit, outcome)
                return
            self._shared.metrics.fallbacks.add((self._policy.name, permit.target.name, str(outcome.failure)))
            permit = follower
        if type(outcome) is Broken:
            self._interrupt(outcome)
        elif type(outcome) is Streamed:
            self._answer.end()
            self.record.outcome = "ok"
        else:
            await self._judged(answered)

    async def _attempt(self, permit: Permit, place: Place | None, *, escalated: bool) -> tuple[Outcome, Answered]:
        """One entry of the ledger."""
        target = permit.target.name
        answered = Answered(target)
        self._ledger.append(Attempt(target, escalated=escalated))
        place = place or self._dialer.place(permit)
        outcome: Outcome
        if place is None:
            found = await self._wait(permit)
            if isinstance(found, Failed):
                outcome = found
                self._ledger[-1] = Attempt(target, found.failure, escalated)
                return outcome, answered
            place = found
        since_s, since_ns = self._shared.loop.time(), now_ns() if self._span is not None else 0
        wanted = self._wanted(permit, escalated)
        outcome = Broken("the client left")
        incoming = self._incoming(permit, answered, wanted, escalated)
        try:
            outcome = await self._dialer.run(
                permit,
                place,
                incoming,
                wanted,
                sent=self._sent,
                read=lambda whole: self._read(permit, whole, answered, wanted),
            )
        except Untranslatable as error:
            body = wire.error_body(str(error), code="unsupported_by_targets", param=error.param)
            outcome = Whole(400, body)
            answered.status, answered.body = 400, body
        finally:
            self._answer.source = None
            # A client that leaves has had, and the target has made, what came until then.
            usage = self._usage(answered)
            self.record.first_byte(incoming.first_byte_s)
            self.record.count(permit.target, usage)
            if self._span is not None:
                self._span.attempt(
                    permit.target,
                    place.origin,
                    self._features,
                    since_ns=since_ns,
                    first_byte_s=incoming.first_byte_s - since_s,
                    outcome=outcome,
                    usage=usage,
                    answer=answered.fields,
                    escalated=escalated,
                )
        if type(outcome) is Failed:
            self._ledger[-1] = Attempt(target, outcome.failure, escalated)
        return outcome, answered

    async def _wait(self, permit: Permit) -> Place | Failed:
        """A model without a replica: elsewhere, where the rule says so, or hold the request."""
        fallback = self._decision.route.fallback
        assert permit.target.cluster is not None
        if self._dialer.failed_at:
            return Failed(Failure.NO_ENDPOINTS, "all of its replicas failed", 502)
        if fallback is not None and Failure.NO_ENDPOINTS in fallback.on:
            self._shared.miss(permit.target.cluster.model_deployment)
            trial = [*self._ledger[:-1], Attempt(permit.target.name, Failure.NO_ENDPOINTS)]
            if next_step(self._decision, trial, Failure.NO_ENDPOINTS, self._shared.unavailable(self._policy)):
                return Failed(Failure.NO_ENDPOINTS, "it has no replica", 503, nothing_sent=True)
        return await self._dialer.held(permit, self._deadline_s)

    async def _again(self, permit: Permit, outcome: Failed) -> Place | None:
        """The same target once more, where another replica of it is there and the budget of retries allows it."""
        if outcome.failure is not Failure.CONNECT or len(self._ledger) >= self._decision.route.max_attempts:
            return None
        place = self._dialer.other_endpoint(permit)
        if place is None or not self._shared.retries.spend():
            return None
        self._shared.metrics.retries.add((self._policy.name, permit.target.name))
        await asyncio.sleep(random.random() * _JITTER_S)  # noqa: S311 - jitter
        return place if self._shared.loop.time() < self._deadline_s else None

    def _wanted(self, permit: Permit, escalated: bool) -> Wanted:
        cluster = permit.target.cluster is not None
        doubt = cluster and not escalated and Signal.LOW_CONFIDENCE in self._signals()
        return Wanted(usage=self._features.stream, logprobs=doubt and self._operation is Operation.CHAT)

    def _signals(self) -> frozenset[Signal]:
        """The signals that matter: none where no escalation is possible."""
        return wanted_signals(self._decision.route) if self._decision.escalation is not None else frozenset()

    def _incoming(self, permit: Permit, answered: Answered, wanted: Wanted, escalated: bool) -> Incoming:
        """What takes the answer of an attempt."""
        timeouts, loop = self._decision.route.timeouts, self._shared.loop
        if not self._features.stream:
            return Incoming(loop, total_s=self._deadline_s)
        judging = None
        escalation = self._decision.route.escalation
        if escalation is not None and self._signals():
            fail = escalation.on_exhausted is OnExhausted.FAIL
            if not escalated or fail:
                judging = Judging(escalation.max_buffered_tokens, Collector())
        options = self._asked.fields.get("stream_options")
        asked_usage = isinstance(options, dict) and options.get("include_usage") is True
        relay = answered.relay = Relay(
            self._answer,
            commit=self._commit,
            strip_usage=not asked_usage,
            strip_logprobs=wanted.logprobs and not self._asked.fields.get("logprobs"),
            judging=judging,
        )
        return StreamAttempt(
            loop,
            relay,
            total_s=self._deadline_s,
            first_token_s=timeouts.first_token_seconds,
            idle_s=timeouts.idle_seconds,
            translate=self._dialer.dialect(permit).translator(unix_s(), include_usage=True),
        )

    def _read(self, permit: Permit, outcome: Whole, answered: Answered, wanted: Wanted) -> Outcome:
        """Look at a whole answer: it must be what it says, or it does not reach the client."""
        try:
            status, content = self._dialer.dialect(permit).answer(outcome.status, outcome.body, unix_s())
            fields = read_answer(content, self._operation)
        except ValueError:
            if outcome.status < 300:
                return Failed(Failure.SERVER_ERROR, "the answer is no JSON of its API")
            status, fields, content = outcome.status, {}, b""
        answered.status, answered.body, answered.fields = status, content, fields
        if status >= 300:
            if type(fields.get("error")) is not dict:
                message = fields.get("message")
                said = message if isinstance(message, str) else "The target refused the request without saying why."
                answered.body = wire.error_body(said)
        elif wanted.logprobs and not self._asked.fields.get("logprobs"):
            answered.signals = self._judge(choices_of(fields))
            without_logprobs(fields)
            answered.body = orjson.dumps(fields)
        return Whole(status, answered.body)

    def _usage(self, answered: Answered) -> Usage | None:
        """Tokens of an attempt: as counted by the target, or else by the pieces that came; None where nothing came."""
        relay = answered.relay
        if relay is not None and relay.events:
            return relay.usage or Usage(self._features.prompt_tokens, relay.events)
        return usage_of(answered.fields.get("usage")) if answered.status < 300 else None

    # after the attempts

    async def _judged(self, answered: Answered) -> None:
        """Give the answer to the client, unless a better model is asked for another."""
        escalation = self._decision.route.escalation
        rate = self._shared.rates[self._policy.name, self._decision.rule] if escalation is not None else None
        if answered.status < 300 and rate is not None and self._signals():
            found = self._found(answered)
            chosen = escalate(
                self._decision,
                self._ledger,
                found,
                escalated_percent=rate.percent,
                unavailable=self._shared.unavailable(self._policy),
            )
            rate.count(escalated=chosen.permit is not None)
            if chosen.permit is not None:
                self._signal = chosen.reason
                self._shared.metrics.escalations.add((self._policy.name, self._decision.rule, chosen.reason))
                await self._escalated(chosen.permit, answered)
                return
            if found:
                self._signal = chosen.reason
        self._give(answered)

    async def _escalated(self, permit: Permit, first: Answered) -> None:
        """Ask the better model; what is given when that fails too is the rule's choice."""
        escalation = self._decision.route.escalation
        assert escalation is not None
        started = self._shared.loop.time()
        self._deadline_s = min(self._deadline_s, started + escalation.max_added_latency_seconds)
        outcome, second = await self._attempt(permit, None, escalated=True)
        fail = escalation.on_exhausted is OnExhausted.FAIL
        if type(outcome) is Streamed:
            self._answer.end()
            self.record.outcome = "ok"
        elif type(outcome) is Broken:
            self._interrupt(outcome)
        elif type(outcome) is Failed or second.status >= 300 or (fail and self._found(second)):
            if fail:
                self._refuse(
                    Refusal(502, "answer_rejected", "No target gave an answer that is good enough.", "server_error")
                )
                return
            if type(outcome) is not Failed:
                # It refused what the client asked: the first answer stands.
                self._ledger[-1] = Attempt(permit.target.name, Failure.SERVER_ERROR, escalated=True)
            self._give(first)
        else:
            self._give(second)

    def _found(self, answered: Answered) -> tuple[Signal, ...]:
        if answered.relay is not None:
            collected = answered.relay.collected
            return self._judge(collected.choices()) if collected is not None else ()
        return answered.signals or self._judge(choices_of(answered.fields))

    def _judge(self, choices: tuple[judgement.Choice, ...]) -> tuple[Signal, ...]:
        escalation = self._decision.route.escalation
        if escalation is None:
            return ()
        expected = judgement.expectations(self._asked.fields, self._signals(), escalation.confidence)
        return judgement.signals(choices, expected)

    def _give(self, answered: Answered) -> None:
        """The answer, as it is."""
        self.record.outcome = "ok" if answered.status < 400 else "client_error"
        if answered.relay is not None and answered.status < 300 and not answered.body:
            answered.relay.flush()
            self._answer.end()
            return
        self._answer.whole(answered.status, answered.body, self._headers())

    def _commit(self) -> None:
        """The first event of a stream goes out: from now on there is no other attempt."""
        self._answer.start(200, self._headers())

    def _sent(self, connection: Connection) -> None:
        self._answer.source = connection

    def _headers(self) -> bytes:
        lines = b"x-request-id: %b\r\n" % self._id.encode()
        lines += wire.header("x-flotilla-route", decision_header(self._decision, self._ledger, self._signal))
        if self._dialer.dropped:
            lines += wire.header(DROPPED_HEADER, ", ".join(self._dialer.dropped))
        return lines

    def _interrupt(self, outcome: Broken) -> None:
        """Tell in the stream that it is not whole; without [DONE] no client can take it for whole."""
        self._ledger[-1] = Attempt(self._ledger[-1].target, Failure.CONNECT, self._ledger[-1].escalated)
        self.record.outcome = "interrupted"
        self.record.detail = outcome.detail
        message = f"The target broke off its answer: {outcome.detail}."
        self._answer.write(wire.error_event(message, INTERRUPTED))
        self._answer.end(close=True)

    def _fail(self, permit: Permit, outcome: Failed) -> None:
        """No attempt is left."""
        self.record.detail = outcome.detail
        self._refuse(failure_refusal(permit.target.name, outcome), outcome="failed")

    def _refuse(self, refusal: Refusal, *, outcome: str = "refused") -> None:
        self.record.outcome = outcome
        self.record.refusal = refusal
        lines = b"x-request-id: %b\r\n" % self._id.encode() + wire.refusal_headers(refusal)
        if self._ledger:
            lines += wire.header("x-flotilla-route", decision_header(self._decision, self._ledger, self._signal))
        self._answer.whole(refusal.status, wire.refusal_body(refusal), lines)

    async def _settle(self, lease: Lease) -> None:
        await lease.settle(self.record.usd, self.record.total_tokens)


_CODES = {
    Failure.CONNECT: "upstream_unreachable",
    Failure.TIMEOUT: "upstream_timeout",
    Failure.SERVER_ERROR: "upstream_error",
    Failure.RATE_LIMITED: "upstream_rate_limited",
    Failure.UNAUTHORIZED: "upstream_unauthorized",
    Failure.NO_ENDPOINTS: "no_capacity",
}


def read_answer(content: bytes, operation: Operation) -> dict[str, Any]:
    """The fields of an answer; of embeddings, which are long lists of numbers, only the usage. Raises ValueError."""
    if operation is Operation.EMBEDDINGS and len(content) > _SHORT:
        found = _USAGE.search(content[-_SHORT:]) or _USAGE.search(content[:_SHORT])
        if not (content.lstrip()[:1] == b"{" and content.rstrip()[-1:] == b"}"):
            raise ValueError("no JSON object")
        return {"usage": orjson.loads(found[1])} if found else {}
    fields = orjson.loads(content)
    if type(fields) is not dict:
        raise ValueError("no JSON object")
    return fields


def failure_refusal(target: str, outcome: Failed) -> Refusal:
    """What a client hears of the last attempt."""
    wait = outcome.retry_after
    return Refusal(
        outcome.status,
        _CODES[outcome.failure],
        f"Target {target!r} did not serve the request: {outcome.detail}.",
        type="server_error",
        retry_after_s=int(wait) if wait is not None and wait.isascii() and wait.isdigit() else None,
    )


def _ignored(connection: Connection) -> None:
    """A classifier's answer is slowed down by nobody."""


def _as_it_is(outcome: Whole) -> Outcome:
    return outcome
