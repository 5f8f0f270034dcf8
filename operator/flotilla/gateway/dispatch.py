"""Send a request to a permitted target: choose the endpoint, wait for one if there is none, send, count the outcome.

A `Dispatcher` belongs to one client request and makes all of its attempts, so that it knows which endpoints have failed
already. Breakers and the metrics of attempts are updated here and nowhere else.
"""

import asyncio
import time
from collections.abc import Callable

from flotilla.api.routing_policy import Failure, Hold
from flotilla.catalog.providers import KNOWN_FIELDS
from flotilla.gateway.attempt import Complete, Failed, Interrupted, Outcome, ResponseSink
from flotilla.gateway.config import Setup
from flotilla.gateway.dialect import Dialect, Extras
from flotilla.gateway.endpoints import Breaker, Destination, Endpoint, prefix_blocks
from flotilla.gateway.http.client import ConnectFailed, UpstreamConnection
from flotilla.gateway.http.message import Response
from flotilla.gateway.metrics import OTHER
from flotilla.gateway.openai.requests import Body
from flotilla.gateway.pending import WaitResult
from flotilla.gateway.record import Record
from flotilla.gateway.state import GatewayState
from flotilla.routing.decide import Permit
from flotilla.routing.document import Policy, Target
from flotilla.routing.request import Operation

HOLD_RETRY_S = 5
"""Value of Retry-After when a request waited for a replica in vain."""


class Call:
    """A request that was sent to a target: from `Dispatcher.send` until its outcome, which `done` is called with.

    `read` checks a complete answer before its outcome is counted, and may turn it into a failure.
    """

    __slots__ = (
        "_connecting",
        "_dispatcher",
        "_done",
        "_ended",
        "_endpoint",
        "_message",
        "_permit",
        "_read",
        "_response",
        "_sent_again",
        "_since_s",
        "_state",
        "origin",
        "sink",
    )

    def __init__(
        self,
        dispatcher: "Dispatcher",
        permit: Permit,
        destination: Destination,
        sink: ResponseSink,
        message: bytes,
        read: Callable[[Complete], Outcome],
        done: Callable[[Outcome], None],
        response: Response | None,
    ) -> None:
        self._dispatcher, self._permit, self.sink, self._message = dispatcher, permit, sink, message
        self._state = dispatcher.state
        self.origin, self._endpoint = destination.origin, destination.endpoint
        self._read, self._done, self._response = read, done, response
        self._connecting: asyncio.Task[None] | None = None
        self._sent_again = self._ended = False
        self._since_s = 0.0

    def start(self) -> None:
        """Send on a connection that is kept, or else connect in a task."""
        state, endpoint = self._state, self._endpoint
        self._since_s = now = state.loop.time()
        if endpoint is not None:
            endpoint.outstanding += 1
            endpoint.breaker.started(now)
        breaker = self._dispatcher.target_breaker(self._permit)
        if breaker is not None:
            breaker.started(now)
        self.sink.on_outcome = self._on_outcome
        connection = state.upstream.send_on_idle(self._permit, self.origin, self._message, self.sink)
        if connection is None:
            self._connecting = state.loop.create_task(self._connect())
        else:
            self._attach(connection)

    def abandon(self) -> None:
        """The client has left: close the connection, so that the target stops. `done` is not called."""
        self.sink.on_outcome = None
        self._end(None)

    async def _connect(self) -> None:
        try:
            connection = await self._state.upstream.send(self._permit, self.origin, self._message, self.sink)
        except ConnectFailed as error:
            self._connecting = None
            self._on_outcome(Failed(Failure.CONNECT, str(error), 502, nothing_sent=True))
        else:
            self._connecting = None
            self._attach(connection)

    def _attach(self, connection: UpstreamConnection) -> None:
        """From now on the deadline counts, and a client that reads slowly slows this connection down."""
        self.sink.connection = connection
        self._state.deadlines.sinks.add(self.sink)
        if self._response is not None:
            self._response.source = connection

    def _on_outcome(self, outcome: Outcome) -> None:
        sink = self.sink
        connection = sink.connection
        stale = type(outcome) is Failed and connection is not None and connection.closed_before_response
        if stale and not self._sent_again:
            # The target closed an idle connection while we wrote to it, so it has not read the request.
            self._sent_again = True
            self._state.deadlines.sinks.discard(sink)
            sink.on_outcome = self._on_outcome
            self._connecting = self._state.loop.create_task(self._connect())
            return
        if type(outcome) is Complete:
            outcome = self._read(outcome)
        self._end(outcome)
        self._done(outcome)

    def _end(self, outcome: Outcome | None) -> None:
        """Leave no connection and no counter behind. `outcome` is None if the client left."""
        if self._ended:
            return
        self._ended = True
        sink, state = self.sink, self._state
        if self._connecting is not None:
            self._connecting.cancel()
        state.deadlines.sinks.discard(sink)
        if sink.connection is not None:
            sink.connection.detach(sink)
        if self._response is not None:
            self._response.source = None
        if self._endpoint is not None:
            self._endpoint.outstanding -= 1
        now = state.loop.time()
        self._dispatcher.record.upstream_s += now - self._since_s
        self._dispatcher.count(self._permit, self._endpoint, outcome, now)


class Dispatcher:
    """Makes the attempts of one client request, or the one call of its classifier."""

    __slots__ = (
        "_affinity",
        "_body",
        "_extra",
        "_operation",
        "_policy",
        "_session",
        "_setup",
        "dropped",
        "failed_endpoints",
        "record",
        "state",
    )

    def __init__(
        self,
        state: GatewayState,
        setup: Setup,
        policy: Policy,
        body: Body,
        operation: Operation,
        record: Record,
        extra: bytes = b"",
        session: str | None = None,
    ) -> None:
        self.state, self._setup, self._policy = state, setup, policy
        self._body, self._operation, self._extra = body, operation, extra
        self._session = session
        self._affinity: tuple[str, tuple[int, ...]] = ("", ())
        self.record = record
        self.failed_endpoints: list[Endpoint] = []
        """Endpoints at which an attempt of this request failed; they are not chosen again."""
        self.dropped: tuple[str, ...] = ()
        """Request fields that the last target's API does not have, and that were left out."""

    def dialect(self, target: str) -> Dialect:
        """How requests to the target are written."""
        return self._setup.dialects[self._policy.name, target]

    def destination(self, permit: Permit) -> Destination | None:
        """Where to send the request now.

        None if the model has no endpoint, or if other requests already wait for one.
        """
        target = permit.target
        if target.hosted is not None:
            return Destination(self._setup.origins[target.hosted.base_url])
        assert target.cluster is not None
        owner = target.cluster.model_deployment
        if self.state.pending.count(owner):
            return None
        return self._pick_endpoint(target)

    async def wait_for_replica(self, permit: Permit, deadline_s: float) -> Destination | Failed:
        """Wait in the queue until the model has an endpoint, at most until `deadline_s` and the policy's `hold`
        bounds."""
        state = self.state
        assert permit.target.cluster is not None
        owner = permit.target.cluster.model_deployment
        started = state.loop.time()
        until = min(started + self._policy.hold.max_wait_seconds, deadline_s)
        destination, result = None, WaitResult.READY
        while destination is None and result is WaitResult.READY:
            left = until - state.loop.time()
            bounds: Hold = self._policy.hold
            result = await state.pending.wait(owner, self._policy.uid, bounds, size=len(self._body.raw), timeout_s=left)
            if result is WaitResult.READY and (destination := self._pick_endpoint(permit.target)) is None:
                state.pending.notify_gone(owner)
        waited = state.loop.time() - started
        self.record.upstream_s += waited
        state.metrics.hold.observe((owner, str(result)), waited)
        if destination is not None:
            return destination
        why = (
            "too many requests wait for it already"
            if result is WaitResult.FULL
            else f"none became ready within {waited:.0f} s"
        )
        return Failed(Failure.NO_ENDPOINTS, f"it has no replica, and {why}", 503, str(HOLD_RETRY_S), nothing_sent=True)

    def send(
        self,
        permit: Permit,
        destination: Destination,
        sink: ResponseSink,
        extras: Extras,
        read: Callable[[Complete], Outcome],
        done: Callable[[Outcome], None],
        response: Response | None = None,
    ) -> Call | None:
        """Send the request. `done` is called once with its outcome, perhaps before this returns; see `Call`.

        `response` is the client's, so that a slow client can slow the target down. Raises UntranslatableRequest if the
        target's API cannot express the request, and returns None after `done` if nothing could be sent.
        """
        dialect = self.dialect(permit.target.name)
        if problem := dialect.key_problem:
            done(Failed(Failure.UNAUTHORIZED, problem, 502, nothing_sent=True))
            return None
        payload = dialect.payload(self._body, extras, self._operation)
        if payload.dropped or self.dropped:
            self._note_dropped(permit.target.name, payload.dropped)
        message = dialect.request_bytes(destination.origin, self._operation, payload.content, self._extra)
        call = Call(self, permit, destination, sink, message, read, done, response)
        call.start()
        return call

    def _note_dropped(self, target: str, dropped: tuple[str, ...]) -> None:
        """Fields that the target is not sent: for the client, the log and a metric."""
        self.dropped = self.record.dropped = dropped
        for field in dropped:
            name = field if field in KNOWN_FIELDS else OTHER
            self.state.metrics.dropped_fields.add((self._policy.name, target, name))

    def another_endpoint(self, permit: Permit) -> Destination | None:
        """Another endpoint of the same target, if there is one at which this request has not failed yet."""
        target = permit.target
        return None if target.cluster is None else self._pick_endpoint(target)

    def target_breaker(self, permit: Permit) -> Breaker | None:
        """The breaker of the target, None while it has not failed."""
        return self.state.breakers.get(self._policy.uid, permit.target.name)

    def count(self, permit: Permit, endpoint: Endpoint | None, outcome: Outcome | None, now_s: float) -> None:
        """Update breakers and metrics. An outcome of None (the client left) says nothing about the target."""
        state, target = self.state, permit.target.name
        failure: Failure | None = None
        if outcome is None:
            if endpoint is not None:
                endpoint.breaker.release()
            breaker = self.target_breaker(permit)
            if breaker is not None:
                breaker.release()
            return
        suspect = None
        if type(outcome) is Failed:
            failure = outcome.failure
            suspect = self._client if outcome.by_request or outcome.by_gateway else None
            if failure is Failure.RATE_LIMITED and endpoint is None and not outcome.by_gateway:
                # A full engine is one of several replicas and says nothing about the others; a hosted API is one.
                self._rest(target, outcome.retry_after, now_s)
        elif type(outcome) is Interrupted:
            failure = None if outcome.by_client else Failure.CONNECT
        state.breakers.record(self._policy.uid, target, failure, now_s, suspect=suspect)
        state.metrics.attempts.add((self._policy.name, target, "ok" if failure is None else str(failure)))
        if endpoint is None:
            return
        if failure is None:
            endpoint.breaker.succeeded()
        elif failure in (Failure.CONNECT, Failure.TIMEOUT, Failure.SERVER_ERROR):
            # Nothing listens there any more. The EndpointSlice will say so in a moment; until then use the others.
            gone = type(outcome) is Failed and outcome.nothing_sent
            if suspect is None:
                endpoint.breaker.failed(now_s, at_once=gone)
            else:
                endpoint.breaker.release()
            self.failed_endpoints.append(endpoint)
        else:
            endpoint.breaker.release()

    def _pick_endpoint(self, target: Target) -> Destination | None:
        assert target.cluster is not None
        pool = self.state.endpoints.pool(target.cluster.model_deployment)
        if len(pool.endpoints) > 1 and self._affinity[0] != target.name:
            blocks = prefix_blocks(self._body.fields, target.served_model, self._session)
            self._affinity = (target.name, blocks)
        endpoint = pool.pick(self.state.loop.time(), affinity=self._affinity[1], without=self.failed_endpoints)
        return None if endpoint is None else endpoint.destination

    def _rest(self, target: str, retry_after: str | None, now_s: float) -> None:
        if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
            self.state.breakers.rest(self._policy.uid, target, int(retry_after), now_s)

    @property
    def _client(self) -> str:
        """Who is served: the client by its key, else the address that the request came from."""
        features = self.record.features
        return (features.client if features is not None else None) or self.record.request.peer


def resolve(future: asyncio.Future[Outcome]) -> Callable[[Outcome], None]:
    """A function that sets the future's result, unless whoever waited for it was cancelled."""
    return lambda outcome: None if future.done() else future.set_result(outcome)


def unix_s() -> int:
    """The time in whole Unix seconds, for the field `created` of translated answers."""
    return int(time.time())
