"""Answer one admitted request: attempt, fall back, judge, escalate, and write the reply.

`Exchange.run` is the whole course of a request after its admission. `record.attempts` has one entry for each attempt,
and the next target always follows from it and from the one decision that was made at admission, so that no retry,
fallback or escalation can reach a target that the decision did not permit. `Reply` writes to the client.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import orjson

from flotilla.api.routing_policy import Failure, OnExhausted, Signal
from flotilla.gateway import answers
from flotilla.gateway.admission import AdmittedRequest
from flotilla.gateway.answers import TargetAnswer
from flotilla.gateway.anthropic.outbound_requests import DROPPED_HEADER, UntranslatableRequest
from flotilla.gateway.attempt import Failed, Interrupted, Outcome, ResponseSink, Streamed, StreamSink
from flotilla.gateway.dialect import Extras
from flotilla.gateway.dispatch import Destination, unix_s
from flotilla.gateway.http import message
from flotilla.gateway.http.client import UpstreamConnection
from flotilla.gateway.http.message import Request, Response
from flotilla.gateway.metrics import ESCALATION, FIRST
from flotilla.gateway.openai import responses
from flotilla.gateway.openai.responses import Buffering, StreamRelay
from flotilla.gateway.record import Record
from flotilla.gateway.state import GatewayState
from flotilla.gateway.tracing import now_ns
from flotilla.routing.check import Collector
from flotilla.routing.decide import SERVER_ERROR, Attempt, Permit, Refusal, decision_header, escalate, next_step
from flotilla.routing.request import Operation

INTERRUPTED: Final = "upstream_stream_interrupted"
_COMMENT_WHILE_WAITING: Final = b": waiting for a replica\n\n"
_JITTER_S = 0.05
_REJECTED = Refusal(502, "answer_rejected", "No target gave an answer that is good enough.", SERVER_ERROR)


class Exchange:
    """One admitted request. `run` answers it in every case; it is cancelled when the client leaves."""

    def __init__(self, state: GatewayState, request: Request, admitted: AdmittedRequest, record: Record) -> None:
        self._state, self._response, self._admitted, self._record = state, request.response, admitted, record
        self._decision, self._dispatcher = admitted.decision, admitted.dispatcher
        self._attempts = record.attempts
        self._reply = Reply(state.loop, request.response, admitted, record)
        self._deadline_s = request.arrived_s + self._decision.route.timeouts.total_seconds

    async def run(self) -> None:
        """Make attempts until one has an answer or no target is left; then judge the answer and reply."""
        permit, destination = self._decision.first, None
        while True:
            outcome, answer = await self._attempt(permit, destination, escalated=False)
            if type(outcome) is not Failed:
                break
            destination = await self._retry_elsewhere(permit, outcome)
            if destination is not None:
                continue
            follower = next_step(self._decision, self._attempts, outcome.failure, self._unavailable())
            if follower is None or self._state.loop.time() >= self._deadline_s:
                self._fail(permit, outcome)
                return
            self._state.metrics.fallbacks.add((self._policy_name, permit.target.name, str(outcome.failure)))
            permit = follower
        if type(outcome) is Interrupted:
            self._interrupt(outcome)
        elif type(outcome) is Streamed:
            self._reply.end()
        else:
            await self._send_or_escalate(answer)

    # attempts

    async def _attempt(
        self, permit: Permit, destination: Destination | None, *, escalated: bool
    ) -> tuple[Outcome, TargetAnswer]:
        """Make one attempt and add it to the record."""
        target = permit.target.name
        answer = TargetAnswer(target)
        self._attempts.append(Attempt(target, escalated=escalated))
        found = destination or self._dispatcher.destination(permit) or await self._find_replica(permit)
        if isinstance(found, Failed):
            self._record_failure(found.failure)
            return found, answer
        extras = self._extras(permit, escalated)
        dialect = self._dispatcher.dialect(permit)
        logprobs = extras.logprobs and not self._admitted.client_wants_logprobs
        sink = self._make_sink(permit, answer, logprobs, escalated)
        span, since_s, since_ns = self._record.span, self._state.loop.time(), 0
        if span is not None:
            since_ns = now_ns()
        outcome: Outcome = Interrupted("the client left")
        try:
            outcome = await self._dispatcher.send(
                permit,
                found,
                sink,
                extras,
                sent=self._attach,
                read=lambda complete: answers.read_answer(
                    complete, answer, self._admitted, dialect, created=unix_s(), logprobs=logprobs
                ),
            )
        except UntranslatableRequest as error:
            body = responses.error_body(str(error), code="unsupported_by_targets", param=error.param)
            outcome = answer.set_error(400, body)
        finally:
            self._response.source = None
            # If the client left, it has received, and the target has generated, what came until then.
            self._record.response_began(sink.first_byte_s)
            usage = answer.usage(self._admitted.features.prompt_tokens)
            self._record.add_usage(permit.target, usage, ESCALATION if escalated else FIRST)
            if span is not None:
                span.record_attempt(
                    permit.target,
                    found.origin,
                    self._admitted.features,
                    since_ns=since_ns,
                    first_byte_s=sink.first_byte_s - since_s,
                    outcome=outcome,
                    usage=usage,
                    answer=answer.fields,
                    escalated=escalated,
                )
        if type(outcome) is Failed:
            self._record_failure(outcome.failure)
        return outcome, answer

    async def _find_replica(self, permit: Permit) -> Destination | Failed:
        """For a model without a replica: fail at once if the rule has a fallback for that case, else wait for one."""
        assert permit.target.cluster is not None
        if self._dispatcher.failed_endpoints:
            return Failed(Failure.NO_ENDPOINTS, "all of its replicas failed", 502)
        fallback = self._decision.route.fallback
        if fallback is not None and Failure.NO_ENDPOINTS in fallback.on:
            trial = [*self._attempts[:-1], Attempt(permit.target.name, Failure.NO_ENDPOINTS)]
            if next_step(self._decision, trial, Failure.NO_ENDPOINTS, self._unavailable()) is not None:
                self._state.record_missed_demand(permit.target.cluster.model_deployment)
                return Failed(Failure.NO_ENDPOINTS, "it has no replica", 503, nothing_sent=True)
        if not self._admitted.features.stream or self._another_attempt_possible():
            return await self._dispatcher.wait_for_replica(permit, self._deadline_s)
        with self._reply.keepalive(self._state.pending.heartbeat_s):
            return await self._dispatcher.wait_for_replica(permit, self._deadline_s)

    def _another_attempt_possible(self) -> bool:
        """Whether another answer could be sent if this attempt fails. Then the status must not be sent yet."""
        if self._attempts[-1].escalated:
            return True
        return any(next_step(self._decision, self._attempts, failure) is not None for failure in Failure)

    async def _retry_elsewhere(self, permit: Permit, outcome: Failed) -> Destination | None:
        """Another replica of the same target after a connection failure, if there is one and the budget allows it."""
        if outcome.failure is not Failure.CONNECT or len(self._attempts) >= self._decision.route.max_attempts:
            return None
        destination = self._dispatcher.another_endpoint(permit)
        if destination is None or not self._state.retry_budget.spend():
            return None
        self._state.metrics.retries.add((self._policy_name, permit.target.name))
        await asyncio.sleep(random.random() * _JITTER_S)  # noqa: S311 - jitter
        return destination if self._state.loop.time() < self._deadline_s else None

    def _extras(self, permit: Permit, escalated: bool) -> Extras:
        """What the target is asked for beyond what the client asked for."""
        measures_confidence = (
            permit.target.cluster is not None
            and not escalated
            and self._admitted.operation is Operation.CHAT
            and Signal.LOW_CONFIDENCE in self._admitted.signals
        )
        return Extras(usage=self._admitted.features.stream, logprobs=measures_confidence)

    def _make_sink(self, permit: Permit, answer: TargetAnswer, logprobs: bool, escalated: bool) -> ResponseSink:
        """The receiver of the attempt's answer. A stream also gets a relay, which becomes a part of `answer`."""
        if not self._admitted.features.stream:
            return ResponseSink(self._state.loop, total_s=self._deadline_s)
        timeouts, escalation, buffering = self._decision.route.timeouts, self._decision.route.escalation, None
        if escalation is not None and self._admitted.signals:
            last = escalated and escalation.on_exhausted is not OnExhausted.FAIL
            buffering = None if last else Buffering(escalation.max_buffered_tokens, Collector())
        answer.relay = StreamRelay(
            self._response,
            on_start=self._reply.start_stream,
            strip_usage=not self._admitted.client_wants_usage,
            strip_logprobs=logprobs,
            buffering=buffering,
        )
        return StreamSink(
            self._state.loop,
            answer.relay,
            total_s=self._deadline_s,
            first_token_s=timeouts.first_token_seconds,
            idle_s=timeouts.idle_seconds,
            translate=self._dispatcher.dialect(permit).stream_translator(unix_s(), include_usage=True),
        )

    def _record_failure(self, failure: Failure) -> None:
        """Mark the last attempt as failed."""
        last = self._attempts[-1]
        self._attempts[-1] = Attempt(last.target, failure, last.escalated)

    # judgement

    async def _send_or_escalate(self, answer: TargetAnswer) -> None:
        """Send the answer to the client, or ask a better model if the rule's signals say so."""
        if answer.status >= 300 or not self._admitted.signals:
            self._reply.send(answer)
            return
        rate = self._state.escalation_rates[self._policy_name, self._decision.rule]
        found = answers.answer_signals(answer, self._admitted)
        chosen = escalate(
            self._decision,
            self._attempts,
            found,
            escalated_percent=rate.percent,
            unavailable=self._unavailable(),
        )
        rate.count(escalated=chosen.permit is not None)
        if found:
            self._reply.signal = chosen.reason
        if chosen.permit is None:
            self._reply.send(answer)
            return
        self._state.metrics.escalations.add((self._policy_name, self._decision.rule, chosen.reason))
        await self._escalate(chosen.permit, answer)

    async def _escalate(self, permit: Permit, first: TargetAnswer) -> None:
        """Ask the better model. If that fails too, the rule's `onExhausted` says what the client gets."""
        escalation = self._decision.route.escalation
        assert escalation is not None
        latest_s = self._state.loop.time() + escalation.max_added_latency_seconds
        self._deadline_s = min(self._deadline_s, latest_s)
        outcome, second = await self._attempt(permit, None, escalated=True)
        if type(outcome) is Streamed:
            self._reply.end()
            return
        if type(outcome) is Interrupted:
            self._interrupt(outcome)
            return
        has_answer = type(outcome) is not Failed and second.status < 300
        rejects = escalation.on_exhausted is OnExhausted.FAIL
        if has_answer and not (rejects and answers.answer_signals(second, self._admitted)):
            self._reply.send(second)
        elif rejects:
            self._record.outcome = "failed"
            self._reply.refuse(_REJECTED)
        else:
            if type(outcome) is not Failed:
                # The better model refused the request itself, so the first answer is sent.
                self._record_failure(Failure.SERVER_ERROR)
            self._reply.send(first)

    # the end

    def _attach(self, connection: UpstreamConnection) -> None:
        """From now on a client that reads slowly slows this connection down."""
        self._response.source = connection

    def _interrupt(self, outcome: Interrupted) -> None:
        self._record_failure(Failure.CONNECT)
        self._reply.interrupt(outcome)

    def _fail(self, permit: Permit, outcome: Failed) -> None:
        """No attempt is left: report the last failure."""
        self._record.outcome, self._record.detail = "failed", outcome.detail
        self._reply.refuse(answers.failure_refusal(permit.target.name, outcome))

    def _unavailable(self) -> frozenset[str]:
        return self._state.unavailable(self._decision.policy)

    @property
    def _policy_name(self) -> str:
        return self._decision.policy.name


class Reply:
    """Writes the reply to one admitted request. Once a stream has begun, errors are sent as events in it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, response: Response, admitted: AdmittedRequest, record: Record
    ) -> None:
        self._loop, self._response, self._admitted, self._record = loop, response, admitted, record
        self.signal = ""
        """Why the first answer was not good enough, for the decision header."""

    def send(self, answer: TargetAnswer) -> None:
        """Send a complete answer, a target's refusal, or a stream that was held back."""
        if answer.relay is not None and not answer.body:
            answer.relay.flush()
            self.end()
            return
        self._record.outcome = "ok" if answer.status < 400 else "client_error"
        if self._response.started:
            # A target may have formatted its error over several lines, and a line break would end the event's field.
            self._send_error_event(orjson.dumps(orjson.loads(answer.body)))
            return
        self._response.send(answer.status, answer.body, self._headers())
        if self._response.status >= 500:
            # The answer could not be translated to the API of the client.
            self._record.outcome = "failed"

    def start_stream(self) -> None:
        """Send status and headers of a stream, unless they are sent already."""
        if not self._response.started:
            self._response.start(200, self._headers())

    def end(self) -> None:
        """The stream is complete."""
        self._record.outcome = "ok"
        self._response.end()

    def interrupt(self, outcome: Interrupted) -> None:
        """Send an error in the stream. Without [DONE] after it, no client takes the stream for complete."""
        self._record.outcome, self._record.detail = "interrupted", outcome.detail
        self._response.write(responses.error_event(f"The target broke off its answer: {outcome.detail}.", INTERRUPTED))
        self._response.end(close=True)

    def refuse(self, refusal: Refusal) -> None:
        """Send an error instead of an answer."""
        self._record.refusal = refusal
        body = responses.refusal_body(refusal)
        if self._response.started:
            self._send_error_event(body)
        else:
            self._response.send(refusal.status, body, self._headers() + responses.refusal_headers(refusal))

    @contextmanager
    def keepalive(self, interval_s: float) -> Iterator[None]:
        """Send a comment at this interval, so that no proxy closes the connection of a waiting stream as idle."""
        self._schedule_comment(interval_s)
        try:
            yield
        finally:
            self._timer.cancel()

    def _schedule_comment(self, interval_s: float) -> None:
        self._timer = self._loop.call_later(interval_s, self._send_comment, interval_s)

    def _send_comment(self, interval_s: float) -> None:
        self.start_stream()
        self._response.write(_COMMENT_WHILE_WAITING)
        self._schedule_comment(interval_s)

    def _send_error_event(self, error: bytes) -> None:
        self._response.write(b"data: %b\n\n" % error)
        self._response.end(close=True)

    def _headers(self) -> bytes:
        lines = b"x-request-id: %b\r\n" % self._admitted.request_id.encode()
        route = decision_header(self._admitted.decision, self._record.attempts, self.signal)
        lines += message.header("x-flotilla-route", route)
        if self._admitted.dispatcher.dropped:
            lines += message.header(DROPPED_HEADER, ", ".join(self._admitted.dispatcher.dropped))
        return lines
