"""Answer one admitted request: attempt, fall back, judge, escalate, and write the reply.

`Exchange.start` begins the course of a request after its admission. The first attempt and an answer that is good
enough need no task: the connection to the target calls back. Whatever must wait (another attempt, a replica, a better
answer) goes on in a task. `record.attempts` has one entry for each attempt, and the next target always follows from it
and from the one decision that was made at admission, so that no retry, fallback or escalation can reach a target that
the decision did not permit. `Reply` writes to the client.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import orjson

from flotilla.api.routing_policy import Failure, OnExhausted, Signal
from flotilla.errors import UntranslatableRequest
from flotilla.gateway.attempt import (
    Complete,
    Failed,
    HeldBack,
    Interrupted,
    Outcome,
    ResponseSink,
    Streamed,
    StreamSink,
    TargetAnswer,
    answer_signals,
    failure_refusal,
    read_answer,
    remove_logprobs,
)
from flotilla.gateway.config import RoutePlan, route_header
from flotilla.gateway.dialect import DROPPED_HEADER, Extras
from flotilla.gateway.dispatch import Call, Dispatcher, resolve, unix_s
from flotilla.gateway.endpoints import Destination
from flotilla.gateway.http import message
from flotilla.gateway.metrics import ESCALATION, FIRST
from flotilla.gateway.openai import responses
from flotilla.gateway.openai.responses import Buffering, StreamRelay
from flotilla.gateway.record import Record
from flotilla.gateway.refusals import refusal_failure
from flotilla.gateway.state import GatewayState
from flotilla.gateway.tracing import now_ns
from flotilla.routing.budgets import answer_bound, must_bound
from flotilla.routing.check import Collector
from flotilla.routing.decide import SERVER_ERROR, Attempt, Permit, Refusal, escalate, next_step
from flotilla.routing.request import Operation

log = logging.getLogger(__name__)

DEFECT: Final = "request failed with an unexpected error; please report this"
INTERRUPTED: Final = "upstream_stream_interrupted"
_COMMENT_WHILE_HELD: Final = b": reading the answer\n\n"
_COMMENT_WHILE_WAITING: Final = b": waiting for a replica\n\n"
_JITTER_S = 0.05
_LEFT: Final = Interrupted("the client left")
_NO_EXTRAS: Final = Extras()
_WITH_USAGE: Final = Extras(usage=True)
_REJECTED = Refusal(502, "answer_rejected", "No target gave an answer that is good enough.", SERVER_ERROR)


class Exchange:
    """One admitted request. It is answered in every case, and `ended` is called once after that."""

    __slots__ = (
        "_answer",
        "_attempts",
        "_call",
        "_deadline_s",
        "_decision",
        "_dispatcher",
        "_ended",
        "_escalated",
        "_logprobs",
        "_plan",
        "_record",
        "_reply",
        "_response",
        "_since_ns",
        "_since_s",
        "_sink",
        "_state",
        "_stream",
        "_task",
    )

    def __init__(
        self,
        state: GatewayState,
        record: Record,
        plan: RoutePlan,
        dispatcher: Dispatcher,
        ended: Callable[[Record], None],
    ) -> None:
        request, decision, features = record.request, plan.decision, record.features
        assert features is not None
        self._state, self._record, self._plan, self._dispatcher, self._ended = state, record, plan, dispatcher, ended
        self._decision, self._attempts, self._response = decision, record.attempts, request.response
        self._stream = features.stream
        self._reply = Reply(state.loop, record, plan, dispatcher)
        self._deadline_s = request.arrived_s + decision.route.timeouts.total_seconds
        self._task: asyncio.Task[None] | None = None
        self._call: Call | None = None
        # Of the present attempt.
        self._answer: TargetAnswer
        self._sink: ResponseSink
        self._escalated = self._logprobs = False
        self._since_s, self._since_ns = 0.0, 0

    def start(self) -> None:
        """Make the first attempt."""
        self._record.request.on_left = self.abandon
        permit = self._plan.first
        self._attempts.append(Attempt(permit.target.name))
        destination = self._dispatcher.destination(permit)
        if destination is None:
            self._go_on(self._course(permit))
        else:
            self._send(permit, destination, escalated=False, done=self._first_ended)

    def abandon(self) -> None:
        """The client has left: stop, and have the target stop."""
        if self._task is not None:
            self._task.cancel()
        elif self._call is not None:
            self._record.outcome = "cancelled"
            self._call.abandon()
            self._note(self._plan.first, _LEFT)
            self._end()

    # the course

    def _first_ended(self, outcome: Outcome) -> None:
        """The first attempt has its outcome. An answer that is good enough is sent at once."""
        try:
            permit = self._plan.first
            self._note(permit, outcome)
            if type(outcome) is Failed:
                self._go_on(self._course(permit, outcome))
                return
            better = self._conclude(outcome)
            if better is not None:
                self._go_on(self._escalate(better, self._answer))
                return
        except Exception:  # the outermost handler: the client must get an answer
            log.exception(DEFECT)
            self._defect()
        self._end()

    def _go_on(self, course: Coroutine[Any, Any, None]) -> None:
        """From here on the request has a task of its own."""
        self._task = self._state.loop.create_task(self._guarded(course))

    async def _guarded(self, course: Coroutine[Any, Any, None]) -> None:
        try:
            await course
        except asyncio.CancelledError:
            self._record.outcome = "cancelled"
            raise
        except Exception:  # the outermost handler: the client must get an answer
            log.exception(DEFECT)
            self._defect()
        finally:
            self._end()

    def _end(self) -> None:
        """Break the cycles of references: the garbage collector that would find them runs seldom."""
        self._call = None
        self._record.request.on_left = None
        self._ended(self._record)

    def _defect(self) -> None:
        if not self._response.started:
            self._response.send(
                500, responses.error_body("The gateway failed.", kind=SERVER_ERROR, code="internal_error")
            )

    async def _course(self, permit: Permit, outcome: Outcome | None = None) -> None:
        """Make attempts until one has an answer or no target is left; then judge the answer and reply.

        The last attempt in the record is one at `permit`, with this outcome; it is made here if there is none.
        """
        destination: Destination | None = None
        while True:
            if outcome is None:
                outcome = await self._attempt(permit, destination, escalated=False)
            if type(outcome) is not Failed:
                break
            destination = await self._retry_elsewhere(permit, outcome)
            if destination is None:
                follower = next_step(self._decision, self._attempts, outcome.failure, self._unavailable())
                if follower is None or self._state.loop.time() >= self._deadline_s:
                    self._fail(permit, outcome)
                    return
                self._state.metrics.fallbacks.add((self._policy_name, permit.target.name, str(outcome.failure)))
                permit = follower
            self._attempts.append(Attempt(permit.target.name))
            outcome = None
        better = self._conclude(outcome)
        if better is not None:
            await self._escalate(better, self._answer)

    def _conclude(self, outcome: Outcome) -> Permit | None:
        """Reply, unless the answer must be asked again of a better model, which is then returned."""
        if type(outcome) is Streamed:
            self._reply.end()
        elif type(outcome) is Interrupted:
            self._interrupt(outcome)
        else:
            better = self._judge(self._answer) if self._plan.signals and self._answer.status < 300 else None
            if better is not None:
                return better
            self._reply.send(self._answer)
        self._record.answer = self._answer
        return None

    # attempts

    async def _attempt(self, permit: Permit, destination: Destination | None, *, escalated: bool) -> Outcome:
        """Make the attempt that is the last in the record."""
        found = destination or self._dispatcher.destination(permit) or await self._find_replica(permit)
        if isinstance(found, Failed):
            self._record_failure(found.failure)
            return found
        ended: asyncio.Future[Outcome] = self._state.loop.create_future()
        outcome: Outcome = _LEFT
        try:
            self._send(permit, found, escalated=escalated, done=resolve(ended))
            outcome = await ended
        finally:
            if self._call is not None and outcome is _LEFT:
                self._call.abandon()
            self._note(permit, outcome)
        return outcome

    def _send(
        self, permit: Permit, destination: Destination, *, escalated: bool, done: Callable[[Outcome], None]
    ) -> None:
        """Send the request to a target. `done` is called with the outcome, perhaps before this returns."""
        self._answer = answer = TargetAnswer(permit.target.name)
        self._escalated = escalated
        extras = _WITH_USAGE if self._stream else _NO_EXTRAS
        if self._plan.asks_more:
            extras = self._extras(permit)
        self._logprobs = extras.logprobs and not self._client_wants("logprobs")
        self._sink = sink = self._make_sink(permit, answer)
        if self._record.span is not None:
            self._since_s, self._since_ns = self._state.loop.time(), now_ns()
        sink.memory, sink.client = self._state.memory, self._record.request.held_by
        self._call = None
        if answer.relay is not None and answer.relay.holds:
            self._reply.comment_while_held(self._state.pending.heartbeat_s, answer.relay)
        try:
            self._call = self._dispatcher.send(
                permit, destination, sink, extras, self._read, done, self._response if self._stream else None
            )
        except UntranslatableRequest as error:
            body = responses.error_body(str(error), code="unsupported_by_targets", param=error.param)
            done(answer.set_error(400, body))

    def _read(self, complete: Complete) -> Outcome:
        """Check a complete answer, before its outcome is counted."""
        answer = self._answer
        outcome = read_answer(
            complete, answer, self._dispatcher.dialect(answer.target), self._record.operation, unix_s()
        )
        if self._plan.follows_refusals and (refused := self._followed_refusal(answer)) is not None:
            return refused
        if self._logprobs and type(outcome) is Complete:
            # Judged before the probabilities are removed, which only the gateway asked for.
            self._signals(answer)
            remove_logprobs(answer)
        return outcome

    def _followed_refusal(self, answer: TargetAnswer) -> Failed | None:
        """The refusal as a failure if the rule has a fallback for its kind; else the client gets the refusal."""
        fallback = self._decision.route.fallback
        assert fallback is not None
        kind = refusal_failure(answer.status, answer.fields)
        if kind is None or kind not in fallback.on or self._escalated:
            return None
        why = "is too long for it" if kind is Failure.CONTEXT_LENGTH else "was stopped by its content filter"
        return Failed(kind, f"the request {why}", 400)

    def _note(self, permit: Permit, outcome: Outcome) -> None:
        """Record how the present attempt ended. A client that left has received what had come until then."""
        record, answer, sink = self._record, self._answer, self._sink
        features = record.features
        assert features is not None
        sink.release_memory()
        self._reply.stop_comments()
        record.response_began(sink.first_byte_s)
        usage = answer.usage(features.prompt_tokens)
        record.add_usage(permit.target, usage, ESCALATION if self._escalated else FIRST)
        if type(outcome) is Failed:
            self._record_failure(outcome.failure)
        if record.span is not None and self._call is not None:
            record.span.record_attempt(
                permit.target,
                self._call.origin,
                features,
                since_ns=self._since_ns,
                first_byte_s=sink.first_byte_s - self._since_s,
                outcome=outcome,
                usage=usage,
                answer=answer.fields,
                escalated=self._escalated,
            )

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
        if not self._stream or self._another_attempt_possible():
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

    def _extras(self, permit: Permit) -> Extras:
        """What the target is asked for beyond what the client asked for."""
        features = self._record.features
        assert features is not None
        measures_confidence = (
            Signal.LOW_CONFIDENCE in self._plan.signals
            and permit.target.cluster is not None
            and not self._escalated
            and self._record.operation is Operation.CHAT
        )
        needs_bound = must_bound(self._decision.policy, permit.target, features)
        bound = answer_bound(features, permit.target) if needs_bound else None
        return Extras(usage=self._stream, logprobs=measures_confidence, bound=bound)

    def _make_sink(self, permit: Permit, answer: TargetAnswer) -> ResponseSink:
        """The receiver of the attempt's answer. A stream also gets a relay, which becomes a part of `answer`."""
        if not self._stream:
            return ResponseSink(self._state.loop, total_s=self._deadline_s)
        timeouts, escalation, buffering = self._decision.route.timeouts, self._decision.route.escalation, None
        if escalation is not None and self._plan.signals:
            last = self._escalated and escalation.on_exhausted is not OnExhausted.FAIL
            buffering = None if last else Buffering(escalation.max_buffered_tokens, Collector())
        options = self._client_wants("stream_options")
        answer.relay = StreamRelay(
            self._response,
            on_start=self._reply.start_stream,
            strip_usage=not (isinstance(options, dict) and options.get("include_usage") is True),
            strip_logprobs=self._logprobs,
            buffering=buffering,
        )
        if self._state.capture is not None:
            answer.relay.captured = self._state.capture.collector(self._record)
        return StreamSink(
            self._state.loop,
            answer.relay,
            total_s=self._deadline_s,
            first_token_s=timeouts.first_token_seconds,
            idle_s=timeouts.idle_seconds,
            translate=self._dispatcher.dialect(permit.target.name).stream_translator(unix_s(), include_usage=True),
        )

    def _record_failure(self, failure: Failure) -> None:
        """Mark the last attempt as failed."""
        last = self._attempts[-1]
        self._attempts[-1] = Attempt(last.target, failure, last.escalated)

    # judgement

    def _signals(self, answer: TargetAnswer) -> tuple[Signal, ...]:
        body = self._record.body
        assert body is not None
        return answer_signals(answer, self._decision, self._plan.signals, body.fields)

    def _judge(self, answer: TargetAnswer) -> Permit | None:
        """The better model to ask, if the rule's signals say so."""
        found = self._signals(answer)
        rate = self._state.escalation_rates[self._policy_name, self._decision.rule]
        if not found:
            rate.count(escalated=False)
            return None
        chosen = escalate(
            self._decision,
            self._attempts,
            found,
            escalated_percent=rate.percent,
            unavailable=self._unavailable(),
        )
        rate.count(escalated=chosen.permit is not None)
        self._reply.signal = chosen.reason
        if chosen.permit is not None:
            self._state.metrics.escalations.add((self._policy_name, self._decision.rule, chosen.reason))
        return chosen.permit

    async def _escalate(self, permit: Permit, first: TargetAnswer) -> None:
        """Ask the better model. If that fails too, the rule's `onExhausted` says what the client gets."""
        escalation = self._decision.route.escalation
        assert escalation is not None
        latest_s = self._state.loop.time() + escalation.max_added_latency_seconds
        self._deadline_s = min(self._deadline_s, latest_s)
        self._attempts.append(Attempt(permit.target.name, escalated=True))
        dropped = self._dispatcher.dropped
        outcome = await self._attempt(permit, None, escalated=True)
        second = self._answer
        self._count_escalation(outcome, second)
        self._record.answer, self._record.rejected = second, first
        if type(outcome) is Streamed:
            self._reply.end()
            return
        if type(outcome) is Interrupted:
            self._interrupt(outcome)
            return
        has_answer = type(outcome) in (Complete, HeldBack) and second.status < 300
        rejects = escalation.on_exhausted is OnExhausted.FAIL
        if has_answer and not (rejects and self._signals(second)):
            self._reply.send(second)
        elif rejects:
            self._record.answer = self._record.rejected = None
            self._record.outcome = "failed"
            self._reply.refuse(_REJECTED)
        else:
            self._record.answer, self._record.rejected = first, None
            # What the better model was not sent has no effect on the first answer.
            self._dispatcher.dropped = dropped
            self._reply.send(first)

    def _count_escalation(self, outcome: Outcome, second: TargetAnswer) -> None:
        """Count how the better model ended. That it refused the request itself is no failure, and no answer either."""
        if type(outcome) is Failed or type(outcome) is Interrupted:
            ended = "failed"
        elif second.status >= 300:
            ended = "refused"
            last = self._attempts[-1]
            self._attempts[-1] = Attempt(last.target, Failure.SERVER_ERROR, escalated=True, refused=True)
        else:
            ended = "answered"
        self._record.escalation = ended
        self._state.metrics.escalation_outcomes.add((self._policy_name, self._decision.rule, ended))

    # the end

    def _interrupt(self, outcome: Interrupted) -> None:
        self._record_failure(Failure.CONNECT)
        self._reply.interrupt(outcome)

    def _fail(self, permit: Permit, outcome: Failed) -> None:
        """No attempt is left: report the last failure."""
        self._record.outcome, self._record.detail = "failed", outcome.detail
        self._reply.refuse(failure_refusal(permit.target.name, outcome))

    def _client_wants(self, name: str) -> Any:
        """A field of the client's request."""
        body = self._record.body
        assert body is not None
        return body.fields.get(name)

    def _unavailable(self) -> frozenset[str]:
        return self._state.unavailable(self._decision.policy)

    @property
    def _policy_name(self) -> str:
        return self._decision.policy.name


class Reply:
    """Writes the reply to one admitted request. Once a stream has begun, errors are sent as events in it."""

    __slots__ = ("_dispatcher", "_loop", "_plan", "_record", "_response", "_timer", "signal")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, record: Record, plan: RoutePlan, dispatcher: Dispatcher
    ) -> None:
        self._loop, self._record, self._plan, self._dispatcher = loop, record, plan, dispatcher
        self._response = record.request.response
        self._timer: asyncio.TimerHandle | None = None
        self.signal = ""
        """Why the first answer was not good enough, for the decision header."""

    def send(self, answer: TargetAnswer) -> None:
        """Send a complete answer, a target's refusal, or a stream that was held back."""
        if answer.relay is not None and not answer.body:
            answer.relay.flush()
            self.end()
            return
        self._record.outcome = "ok" if answer.status < 400 else "client_error"
        response = self._response
        if response.started:
            # A target may have formatted its error over several lines, and a line break would end the event's field.
            self._send_error_event(orjson.dumps(orjson.loads(answer.body)))
            return
        response.send(answer.status, answer.body, self._headers())
        if response.status >= 500:
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
            self.stop_comments()

    def comment_while_held(self, interval_s: float, relay: StreamRelay) -> None:
        """Send comments as long as what has come of a stream is held back to be judged."""

        def comment() -> None:
            if relay.holds:
                if relay.events:
                    self.start_stream()
                    self._response.write(_COMMENT_WHILE_HELD)
                self._timer = self._loop.call_later(interval_s, comment)

        self._timer = self._loop.call_later(interval_s, comment)

    def stop_comments(self) -> None:
        """The answer is there, or the wait is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
        record, plan, dropped = self._record, self._plan, self._dispatcher.dropped
        attempts = record.attempts
        if len(attempts) == 1 and attempts[0].failure is None and not self.signal:
            route = plan.header
        else:
            route = route_header(plan.decision, attempts, self.signal)
        lines = b"x-request-id: %b\r\n%b" % (record.id.encode(), route)
        return lines + message.header(DROPPED_HEADER, ", ".join(dropped)) if dropped else lines
