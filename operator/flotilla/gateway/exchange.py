"""One accepted request until its last word: attempt, follow, judge, escalate. One ledger counts all attempts, and every
dial takes its Permit from one decision."""

import asyncio
import random

from flotilla.api.routing_policy import Failure, OnExhausted, Signal
from flotilla.gateway import answers, wire
from flotilla.gateway.answers import Answered
from flotilla.gateway.anthropic import Untranslatable
from flotilla.gateway.attempt import Attempt as Incoming
from flotilla.gateway.attempt import StreamAttempt
from flotilla.gateway.dial import Place, unix_s
from flotilla.gateway.dialect import Wanted
from flotilla.gateway.intake import Accepted
from flotilla.gateway.outcome import Broken, Failed, Outcome, Streamed
from flotilla.gateway.record import ESCALATION, FIRST, Record
from flotilla.gateway.relay import Judging, Relay
from flotilla.gateway.reply import Reply
from flotilla.gateway.request import Request
from flotilla.gateway.shared import Shared
from flotilla.gateway.tracing import now_ns
from flotilla.gateway.upstream_connection import Connection
from flotilla.routing.check import Collector
from flotilla.routing.decide import SERVER_ERROR, Attempt, Permit, Refusal, escalate, next_step
from flotilla.routing.request import Operation

_JITTER_S = 0.05
_REJECTED = Refusal(502, "answer_rejected", "No target gave an answer that is good enough.", SERVER_ERROR)


class Exchange:
    """One request. `run` answers it, whatever happens; when the client leaves, `run` is cancelled."""

    def __init__(self, shared: Shared, request: Request, accepted: Accepted, record: Record) -> None:
        self._shared, self._answer, self._accepted, self._record = shared, request.answer, accepted, record
        self._decision, self._dialer = accepted.decision, accepted.dialer
        self._ledger = record.ledger
        self._reply = Reply(shared.loop, request.answer, accepted, record)
        self._deadline_s = request.arrived_s + self._decision.route.timeouts.total_seconds

    async def run(self) -> None:
        """Attempt until one answers or none is left; then judge."""
        permit, place = self._decision.first, None
        while True:
            outcome, answered = await self._attempt(permit, place, escalated=False)
            if type(outcome) is not Failed:
                break
            place = await self._same_target(permit, outcome)
            if place is not None:
                continue
            follower = next_step(self._decision, self._ledger, outcome.failure, self._unavailable())
            if follower is None or self._shared.loop.time() >= self._deadline_s:
                self._fail(permit, outcome)
                return
            self._shared.metrics.fallbacks.add((self._policy_name, permit.target.name, str(outcome.failure)))
            permit = follower
        if type(outcome) is Broken:
            self._interrupt(outcome)
        elif type(outcome) is Streamed:
            self._reply.end()
        else:
            await self._judged(answered)

    # attempts

    async def _attempt(self, permit: Permit, place: Place | None, *, escalated: bool) -> tuple[Outcome, Answered]:
        """One entry of the ledger."""
        target = permit.target.name
        answered = Answered(target)
        self._ledger.append(Attempt(target, escalated=escalated))
        found = place or self._dialer.place(permit) or await self._wait(permit)
        if isinstance(found, Failed):
            self._mark(found.failure)
            return found, answered
        wanted = self._wanted(permit, escalated)
        dialect = self._dialer.dialect(permit)
        logprobs = wanted.logprobs and not self._accepted.asked_logprobs
        incoming = self._incoming(permit, answered, logprobs, escalated)
        span, since_s, since_ns = self._record.span, self._shared.loop.time(), 0
        if span is not None:
            since_ns = now_ns()
        outcome: Outcome = Broken("the client left")
        try:
            outcome = await self._dialer.run(
                permit,
                found,
                incoming,
                wanted,
                sent=self._sent,
                read=lambda whole: answers.read(whole, answered, self._accepted, dialect, logprobs=logprobs),
            )
        except Untranslatable as error:
            body = wire.error_body(str(error), code="unsupported_by_targets", param=error.param)
            outcome = answered.refuse(400, body)
        finally:
            self._answer.source = None
            # A client that leaves has had, and the target has made, what came until then.
            self._record.first_byte(incoming.first_byte_s)
            usage = answered.usage(self._accepted.features.prompt_tokens)
            self._record.count(permit.target, usage, ESCALATION if escalated else FIRST)
            if span is not None:
                span.attempt(
                    permit.target,
                    found.origin,
                    self._accepted.features,
                    since_ns=since_ns,
                    first_byte_s=incoming.first_byte_s - since_s,
                    outcome=outcome,
                    usage=usage,
                    answer=answered.fields,
                    escalated=escalated,
                )
        if type(outcome) is Failed:
            self._mark(outcome.failure)
        return outcome, answered

    async def _wait(self, permit: Permit) -> Place | Failed:
        """A model without a replica: elsewhere, where the rule says so, or hold the request."""
        assert permit.target.cluster is not None
        if self._dialer.failed_at:
            return Failed(Failure.NO_ENDPOINTS, "all of its replicas failed", 502)
        fallback = self._decision.route.fallback
        if fallback is not None and Failure.NO_ENDPOINTS in fallback.on:
            trial = [*self._ledger[:-1], Attempt(permit.target.name, Failure.NO_ENDPOINTS)]
            if next_step(self._decision, trial, Failure.NO_ENDPOINTS, self._unavailable()) is not None:
                self._shared.miss(permit.target.cluster.model_deployment)
                return Failed(Failure.NO_ENDPOINTS, "it has no replica", 503, nothing_sent=True)
        if not self._accepted.features.stream or self._may_be_followed():
            return await self._dialer.held(permit, self._deadline_s)
        with self._reply.alive(self._shared.room.heartbeat_s):
            return await self._dialer.held(permit, self._deadline_s)

    def _may_be_followed(self) -> bool:
        """Whether something is left to ask, or to give, if this attempt fails: then no status may be said yet."""
        if self._ledger[-1].escalated:
            return True
        return any(next_step(self._decision, self._ledger, failure) is not None for failure in Failure)

    async def _same_target(self, permit: Permit, outcome: Failed) -> Place | None:
        """The same target once more, where another replica of it is there and the budget of retries allows it."""
        if outcome.failure is not Failure.CONNECT or len(self._ledger) >= self._decision.route.max_attempts:
            return None
        place = self._dialer.other_endpoint(permit)
        if place is None or not self._shared.retries.spend():
            return None
        self._shared.metrics.retries.add((self._policy_name, permit.target.name))
        await asyncio.sleep(random.random() * _JITTER_S)  # noqa: S311 - jitter
        return place if self._shared.loop.time() < self._deadline_s else None

    def _wanted(self, permit: Permit, escalated: bool) -> Wanted:
        doubt = (
            permit.target.cluster is not None
            and not escalated
            and self._accepted.operation is Operation.CHAT
            and Signal.LOW_CONFIDENCE in self._accepted.signals
        )
        return Wanted(usage=self._accepted.features.stream, logprobs=doubt)

    def _incoming(self, permit: Permit, answered: Answered, logprobs: bool, escalated: bool) -> Incoming:
        """What takes the answer of an attempt."""
        if not self._accepted.features.stream:
            return Incoming(self._shared.loop, total_s=self._deadline_s)
        timeouts, escalation, judging = self._decision.route.timeouts, self._decision.route.escalation, None
        if escalation is not None and self._accepted.signals:
            last = escalated and escalation.on_exhausted is not OnExhausted.FAIL
            judging = None if last else Judging(escalation.max_buffered_tokens, Collector())
        answered.relay = Relay(
            self._answer,
            commit=self._reply.commit,
            strip_usage=not self._accepted.asked_usage,
            strip_logprobs=logprobs,
            judging=judging,
        )
        return StreamAttempt(
            self._shared.loop,
            answered.relay,
            total_s=self._deadline_s,
            first_token_s=timeouts.first_token_seconds,
            idle_s=timeouts.idle_seconds,
            translate=self._dialer.dialect(permit).translator(unix_s(), include_usage=True),
        )

    def _mark(self, failure: Failure) -> None:
        """The last attempt failed."""
        last = self._ledger[-1]
        self._ledger[-1] = Attempt(last.target, failure, last.escalated)

    # judgement

    async def _judged(self, answered: Answered) -> None:
        """Give the answer to the client, unless a better model is asked for another."""
        if answered.status >= 300 or not self._accepted.signals:
            self._reply.give(answered)
            return
        rate = self._shared.rates[self._policy_name, self._decision.rule]
        found = answers.signals_of(answered, self._accepted)
        chosen = escalate(
            self._decision,
            self._ledger,
            found,
            escalated_percent=rate.percent,
            unavailable=self._unavailable(),
        )
        rate.count(escalated=chosen.permit is not None)
        if found:
            self._reply.signal = chosen.reason
        if chosen.permit is None:
            self._reply.give(answered)
            return
        self._shared.metrics.escalations.add((self._policy_name, self._decision.rule, chosen.reason))
        await self._escalated(chosen.permit, answered)

    async def _escalated(self, permit: Permit, first: Answered) -> None:
        """Ask the better model; what is given when that fails too is the rule's choice."""
        escalation = self._decision.route.escalation
        assert escalation is not None
        latest_s = self._shared.loop.time() + escalation.max_added_latency_seconds
        self._deadline_s = min(self._deadline_s, latest_s)
        outcome, second = await self._attempt(permit, None, escalated=True)
        if type(outcome) is Streamed:
            self._reply.end()
            return
        if type(outcome) is Broken:
            self._interrupt(outcome)
            return
        answer = type(outcome) is not Failed and second.status < 300
        if answer and not (escalation.on_exhausted is OnExhausted.FAIL and answers.signals_of(second, self._accepted)):
            self._reply.give(second)
        elif escalation.on_exhausted is OnExhausted.FAIL:
            self._record.outcome = "failed"
            self._reply.refuse(_REJECTED)
        else:
            if type(outcome) is not Failed:
                # It refused what the client asked for: the first answer stands.
                self._mark(Failure.SERVER_ERROR)
            self._reply.give(first)

    # the end

    def _sent(self, connection: Connection) -> None:
        self._answer.source = connection

    def _interrupt(self, outcome: Broken) -> None:
        self._mark(Failure.CONNECT)
        self._reply.interrupt(outcome)

    def _fail(self, permit: Permit, outcome: Failed) -> None:
        """No attempt is left."""
        self._record.outcome, self._record.detail = "failed", outcome.detail
        self._reply.refuse(answers.failure_refusal(permit.target.name, outcome))

    def _unavailable(self) -> frozenset[str]:
        return self._shared.unavailable(self._decision.policy)

    @property
    def _policy_name(self) -> str:
        return self._decision.policy.name
