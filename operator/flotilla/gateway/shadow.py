"""Copies of answered requests to another target, to compare its answers; clients notice nothing of them.

`Shadow.offer` is called after the client has its answer. A copy goes only to a target that the request's own decision
allows. It has breakers and metrics of its own, so that its failures close no target to clients, and it is the first
thing to be dropped: when the route has too many copies, when the gateway or the target is busy, or when the day's
money is spent. Money is reserved before a copy is sent, for at least as many tokens as can be charged.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Final
from zlib import crc32

import orjson

from flotilla.api.preference import ShadowSpec
from flotilla.api.routing_policy import Failure
from flotilla.errors import UntranslatableRequest
from flotilla.gateway.attempt import Complete, Failed, Outcome, ResponseSink, TargetAnswer, read_answer
from flotilla.gateway.config import Setup
from flotilla.gateway.dialect import Extras
from flotilla.gateway.dispatch import Call, Dispatcher, resolve, unix_s
from flotilla.gateway.endpoints import Destination, TargetBreakers
from flotilla.gateway.limits.store import RESERVATION_GRACE_S, LimitStore, Reservation, SubjectBudget
from flotilla.gateway.metrics import SHADOW, GatewayMetrics
from flotilla.gateway.openai.requests import Body
from flotilla.gateway.record import Record
from flotilla.gateway.state import GatewayState
from flotilla.routing.agreement import agree, text_of
from flotilla.routing.budgets import DEFAULT_MAX_TOKENS, ZERO, Usage, reservation, spent
from flotilla.routing.decide import Decision, Permit, fits, lacks
from flotilla.routing.request import Features, Operation

log = logging.getLogger(__name__)

_DAY_S: Final = 86_400
_BUSY_REQUESTS: Final = 64
"""With so many requests of clients in flight, a gateway makes no copies."""
_BUSY_ENDPOINT: Final = 8
"""Requests at the least busy replica of the target with which it gets no copies."""
_CLOSE_S: Final = 1.0
_CLIENT: Final = "shadow copies"
"""Under which the memory of copies is counted."""
_NO_EXTRAS: Final = Extras()


class Shadow:
    """Makes the copies of one gateway. `in_flight` is how many requests of clients it is answering."""

    def __init__(self, state: GatewayState, store: LimitStore, in_flight: Callable[[], int]) -> None:
        self._state = state
        self._store = store
        self._in_flight = in_flight
        # Everything is shared with clients' requests, but for what would let a copy's failure count against them.
        self._own = replace(state, breakers=TargetBreakers(), metrics=GatewayMetrics(), accounts=None, tracing=None)
        self._running: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def running(self) -> int:
        """Copies that have no answer yet."""
        return len(self._tasks)

    def offer(self, record: Record) -> None:
        """Copy the request, or drop it and count why. One that failed or that has no text is not copied."""
        if self._closed or not _answered(record):
            return
        decision, setup = record.decision, self._state.config.current
        shadow = decision.route.shadow if decision is not None else None
        if decision is None or shadow is None or setup is None or not _chosen(record, shadow.percent):
            return
        if setup.document.by_name.get(decision.policy.name) is not decision.policy:
            return  # the document was replaced meanwhile
        reason = self._obstacle(record, decision, shadow)
        if reason is not None:
            self._count(decision, shadow, reason)
            return
        assert record.body is not None
        size = 2 * len(record.body.raw)
        if not self._state.memory.take(_CLIENT, size):
            self._count(decision, shadow, "busy")
            return
        self._running[decision.policy.uid, decision.rule] += 1
        task = self._state.loop.create_task(self._copy(record, decision, shadow, setup, size))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Make no more copies, and let those that are under way end for a second; then end them."""
        self._closed = True
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _obstacle(self, record: Record, decision: Decision, shadow: ShadowSpec) -> str | None:
        """Why the request is not copied, as the metric says it; None if it is."""
        features = record.features
        assert features is not None
        if shadow.target not in decision.allowed:
            return "class"
        target = decision.policy.target[shadow.target]
        if lacks(target, features) is not None or not fits(target, features):
            return "unsupported"
        if self._running[decision.policy.uid, decision.rule] >= shadow.max_concurrent:
            return "full"
        memory = self._state.memory
        if self._in_flight() >= _BUSY_REQUESTS or 2 * memory.used_bytes > memory.limit_bytes:
            return "busy"
        if target.cluster is not None:
            owner = target.cluster.model_deployment
            endpoints = self._state.endpoints.pool(owner).endpoints
            if self._state.pending.count(owner) or min((e.outstanding for e in endpoints), default=_BUSY_ENDPOINT) >= (
                _BUSY_ENDPOINT
            ):
                return "busy"
        if shadow.target in self._own.unavailable(decision.policy) | self._state.unavailable(decision.policy):
            return "breaker"
        return None

    async def _copy(self, record: Record, decision: Decision, shadow: ShadowSpec, setup: Setup, size: int) -> None:
        outcome = "failed"
        try:
            outcome = await self._ask(record, decision, shadow, setup)
        except Exception:  # a copy must never do more harm than to be lost
            log.exception("a shadow copy failed with an unexpected error; please report this")
        finally:
            self._running[decision.policy.uid, decision.rule] -= 1
            self._state.memory.give_back(_CLIENT, size)
            self._count(decision, shadow, outcome)

    async def _ask(self, record: Record, decision: Decision, shadow: ShadowSpec, setup: Setup) -> str:
        """Send the copy, settle what it cost, and compare; returns the outcome for the metric."""
        permit = decision.permit(shadow.target)
        features = record.features
        assert features is not None
        body = _whole_body(record, features)
        timeout_s = float(decision.route.timeouts.total_seconds)
        held = await self._reserve(decision, shadow, permit, features, body, timeout_s)
        if held is None:
            return "budget"
        usage: Usage | None = None
        answer = TargetAnswer(shadow.target)
        since_s = self._state.loop.time()
        # Until it is known to have cost less, as after a timeout, the provider may charge all that was reserved.
        cost = held[0].usd if held else ZERO
        try:
            outcome = await self._send(record, decision, permit, setup, body, answer, timeout_s)
            if type(outcome) is Complete:
                usage = answer.usage(features.prompt_tokens)
            if usage is not None:
                cost = min(_cost(permit, usage), cost) if held else ZERO
            elif not (type(outcome) is Failed and outcome.failure is Failure.TIMEOUT):
                cost = ZERO
        except UntranslatableRequest:
            cost = ZERO
            return "unsupported"
        finally:
            if held:
                await self._store.settle(held[0], cost)
        if usage is not None:
            self._bill(decision, permit, usage)
        if type(outcome) is not Complete or answer.status >= 300:
            return "failed"
        self._state.metrics.copy_duration.observe(
            (decision.policy.name, shadow.target), self._state.loop.time() - since_s
        )
        self._compare(record, decision, shadow, answer)
        return "ok"

    async def _reserve(
        self,
        decision: Decision,
        shadow: ShadowSpec,
        permit: Permit,
        features: Features,
        body: Body,
        timeout_s: float,
    ) -> tuple[Reservation, ...] | None:
        """Reserve the highest cost of a copy: nothing for the cluster; None if the day's money does not suffice."""
        # No token is shorter than a byte, and the copy bounds its answer.
        most = replace(features, prompt_tokens=len(body.raw), max_tokens=features.max_tokens or DEFAULT_MAX_TOKENS)
        usd = reservation(most, (permit.target,))
        if usd <= 0:
            return ()
        budget = SubjectBudget(
            decision.policy.uid, f"shadow/{decision.rule}", "", Decimal(shadow.max_usd_per_day), _DAY_S
        )
        found = await self._store.reserve((budget,), usd, timeout_s + RESERVATION_GRACE_S)
        return (found,) if isinstance(found, Reservation) else None

    async def _send(
        self,
        record: Record,
        decision: Decision,
        permit: Permit,
        setup: Setup,
        body: Body,
        answer: TargetAnswer,
        timeout_s: float,
    ) -> Outcome | None:
        copy = Record(record.request, f"{record.id}-shadow", record.operation)
        copy.features = record.features
        line = b"x-request-id: %b\r\n" % copy.id.encode()
        dispatcher = Dispatcher(self._own, setup, decision.policy, body, record.operation, copy, line)
        destination = dispatcher.destination(permit)
        if destination is None:
            return None
        endpoint = destination.endpoint
        if endpoint is not None:
            # Counted as load of the replica, but not for its breaker.
            endpoint.outstanding += 1
            destination = Destination(destination.origin)
        ended: asyncio.Future[Outcome] = self._state.loop.create_future()
        sink = ResponseSink(self._state.loop, total_s=self._state.loop.time() + timeout_s)
        call: Call | None = None
        dialect = dispatcher.dialect(permit.target.name)

        def read(complete: Complete) -> Outcome:
            return read_answer(complete, answer, dialect, record.operation, unix_s())

        try:
            call = dispatcher.send(permit, destination, sink, _NO_EXTRAS, read, resolve(ended))
            return await ended
        finally:
            if endpoint is not None:
                endpoint.outstanding -= 1
            if call is not None and not ended.done():
                call.abandon()

    def _bill(self, decision: Decision, permit: Permit, usage: Usage) -> None:
        name, target, metrics = decision.policy.name, permit.target, self._state.metrics
        for token_type, tokens in (
            ("input", usage.prompt_tokens - usage.cached_tokens),
            ("cached_input", usage.cached_tokens),
            ("output", usage.completion_tokens),
        ):
            metrics.tokens.add((name, target.name, SHADOW, token_type), tokens)
        if target.hosted is not None and target.price is not None:
            metrics.cost.add((name, target.name, SHADOW), _cost(permit, usage))

    def _compare(self, record: Record, decision: Decision, shadow: ShadowSpec, answer: TargetAnswer) -> None:
        """Count whether both answers agree. Streamed answers of clients are not kept, and so not compared."""
        given = text_of(record.answer.fields) if record.answer is not None else None
        said = text_of(answer.fields)
        if given is None or said is None:
            return
        result = "agree" if agree(shadow.compare, given, said) else "differ"
        self._state.metrics.agreement.add((decision.policy.name, shadow.target, decision.rule, result))
        self._state.access_log.write(
            {
                "time": round(time.time(), 3),
                "event": "shadow",
                "id": record.id,
                "policy": decision.policy.name,
                "rule": decision.rule,
                "target": shadow.target,
                "result": result,
            }
        )

    def _count(self, decision: Decision, shadow: ShadowSpec, outcome: str) -> None:
        self._state.metrics.copies.add((decision.policy.name, shadow.target, decision.rule, outcome))


def _answered(record: Record) -> bool:
    """Whether the request was answered by another target than the shadow's, with a text."""
    decision = record.decision
    if decision is None or decision.route.shadow is None or record.outcome != "ok":
        return False
    given = next((attempt.target for attempt in reversed(record.attempts) if attempt.failure is None), None)
    return record.operation is not Operation.EMBEDDINGS and given != decision.route.shadow.target


def _chosen(record: Record, percent: int) -> bool:
    """By the request's ID, so that a repeated request is copied again or not again."""
    return crc32(f"shadow/{record.id}".encode(errors="replace")) % 100 < percent


def _whole_body(record: Record, features: Features) -> Body:
    """The request without a stream, and with a bound on the answer's tokens."""
    assert record.body is not None
    fields = {name: value for name, value in record.body.fields.items() if name != "stream_options"}
    if fields.get("stream"):
        fields["stream"] = False
    if features.max_tokens is None:
        fields["max_tokens"] = DEFAULT_MAX_TOKENS
    return Body(orjson.dumps(fields), fields)


def _cost(permit: Permit, usage: Usage) -> Decimal:
    return spent(permit.target, usage) or ZERO
