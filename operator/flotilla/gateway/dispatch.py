"""Send a request to a permitted target: choose the endpoint, wait for one if there is none, send, count the outcome.

A `Dispatcher` belongs to one client request and makes all of its attempts, so that it knows which endpoints have failed
already. The breakers and the metrics of attempts are updated here and nowhere else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from flotilla.api.routing_policy import Failure, Hold
from flotilla.gateway.attempt import Complete, Failed, Interrupted, Outcome, ResponseSink
from flotilla.gateway.config import Setup
from flotilla.gateway.dialect import Dialect, Extras
from flotilla.gateway.endpoints import Endpoint
from flotilla.gateway.http.client import ConnectFailed, Origin, UpstreamConnection
from flotilla.gateway.openai.requests import Body
from flotilla.gateway.pending import WaitResult
from flotilla.gateway.record import Record
from flotilla.gateway.resilience import Breaker
from flotilla.gateway.state import GatewayState
from flotilla.routing.decide import Permit
from flotilla.routing.document import Policy
from flotilla.routing.request import Operation

HOLD_RETRY_S = 5
"""Value of Retry-After when a request waited for a replica in vain."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an attempt is sent. `endpoint` is None for a hosted API, which has no pods of ours."""

    origin: Origin
    endpoint: Endpoint | None


class Dispatcher:
    """Makes the attempts of one client request, or the one call of its classifier."""

    __slots__ = (
        "_affinity",
        "_body",
        "_extra",
        "_operation",
        "_policy",
        "_record",
        "_setup",
        "_state",
        "dropped",
        "failed_endpoints",
    )

    def __init__(
        self,
        state: GatewayState,
        setup: Setup,
        policy: Policy,
        body: Body,
        operation: Operation,
        record: Record,
        *,
        extra: bytes = b"",
        affinity: int | None = None,
    ) -> None:
        self._state, self._setup, self._policy = state, setup, policy
        self._body, self._operation, self._extra = body, operation, extra
        self._affinity = affinity
        self._record = record
        self.failed_endpoints: list[Endpoint] = []
        """Endpoints at which an attempt of this request failed; they are not chosen again."""
        self.dropped: tuple[str, ...] = ()
        """Request fields that the last target's API does not have, and that were left out."""

    def dialect(self, permit: Permit) -> Dialect:
        """How requests to the target are written."""
        return self._setup.dialects[self._policy.name, permit.target.name]

    def destination(self, permit: Permit) -> Destination | None:
        """Where to send the request now.

        None if the model has no endpoint, or if other requests already wait for one.
        """
        target = permit.target
        if target.hosted is not None:
            return Destination(self._setup.origins[target.hosted.base_url], None)
        assert target.cluster is not None
        owner = target.cluster.model_deployment
        if self._state.pending.count(owner):
            return None
        return self._pick_endpoint(owner)

    async def wait_for_replica(self, permit: Permit, deadline_s: float) -> Destination | Failed:
        """Wait in the queue until the model has an endpoint, at most until `deadline_s` and the policy's `hold`
        bounds."""
        state = self._state
        assert permit.target.cluster is not None
        owner = permit.target.cluster.model_deployment
        started = state.loop.time()
        until = min(started + self._policy.hold.max_wait_seconds, deadline_s)
        destination, result = None, WaitResult.READY
        while destination is None and result is WaitResult.READY:
            left = until - state.loop.time()
            bounds: Hold = self._policy.hold
            result = await state.pending.wait(owner, self._policy.uid, bounds, size=len(self._body.raw), timeout_s=left)
            if result is WaitResult.READY and (destination := self._pick_endpoint(owner)) is None:
                state.pending.notify_gone(owner)
        waited = state.loop.time() - started
        self._record.upstream_s += waited
        state.metrics.hold.observe((owner, str(result)), waited)
        if destination is not None:
            return destination
        why = (
            "too many requests wait for it already"
            if result is WaitResult.FULL
            else f"none became ready within {waited:.0f} s"
        )
        return Failed(Failure.NO_ENDPOINTS, f"it has no replica, and {why}", 503, str(HOLD_RETRY_S), nothing_sent=True)

    async def send(
        self,
        permit: Permit,
        destination: Destination,
        sink: ResponseSink,
        extras: Extras,
        *,
        sent: Callable[[UpstreamConnection], None],
        read: Callable[[Complete], Outcome],
    ) -> Outcome:
        """Send the request and wait for its outcome. No connection or counter is left behind, whatever happens.

        `sent` is called with the connection that will bring the answer, so that the caller can slow it down. `read`
        checks a complete answer before its outcome is counted, and may turn it into a failure.

        Raises UntranslatableRequest if the target's API cannot express the request.
        """
        state = self._state
        dialect = self.dialect(permit)
        if not dialect.has_key:
            return Failed(Failure.UNAUTHORIZED, "the Secret with its key is missing", 502, nothing_sent=True)
        payload = dialect.payload(self._body, extras)
        self.dropped = payload.dropped
        message = dialect.request_bytes(destination.origin, self._operation, payload.content, self._extra)
        endpoint = destination.endpoint
        if endpoint is not None:
            endpoint.outstanding += 1
        started = state.loop.time()
        for breaker in self._breakers(permit, endpoint):
            breaker.started(started)
        outcome: Outcome | None = None
        try:
            outcome = await self._transfer(permit, destination.origin, message, sink, sent)
            if type(outcome) is Complete:
                outcome = read(outcome)
        finally:
            if endpoint is not None:
                endpoint.outstanding -= 1
            self._record.upstream_s += state.loop.time() - started
            self._record_outcome(permit, endpoint, outcome)
        return outcome

    async def _transfer(
        self,
        permit: Permit,
        origin: Origin,
        message: bytes,
        sink: ResponseSink,
        sent: Callable[[UpstreamConnection], None],
    ) -> Outcome:
        """Send the bytes on a pooled connection, once more on a new one if the pooled one turns out to be closed."""
        state = self._state
        try:
            connection = await state.upstream.send(permit, origin, message, sink)
        except ConnectFailed as error:
            return Failed(Failure.CONNECT, str(error), 502, nothing_sent=True)
        state.deadlines.add(sink)
        try:
            sink.connection = connection
            sent(connection)
            outcome = await sink.outcome
            if type(outcome) is Failed and connection.closed_before_response:
                # The target closed an idle connection while we wrote to it, so it has not read the request.
                sink.reset()
                try:
                    connection = await state.upstream.resend(permit, origin, message, sink)
                except ConnectFailed as error:
                    return Failed(Failure.CONNECT, str(error), 502, nothing_sent=True)
                sink.connection = connection
                sent(connection)
                outcome = await sink.outcome
            return outcome
        finally:
            state.deadlines.discard(sink)
            connection.detach(sink)

    def _pick_endpoint(self, owner: str) -> Destination | None:
        endpoint = self._state.endpoints.pool(owner).pick(
            self._state.loop.time(), affinity=self._affinity, without=self.failed_endpoints
        )
        return None if endpoint is None else Destination(endpoint.origin, endpoint)

    def another_endpoint(self, permit: Permit) -> Destination | None:
        """Another endpoint of the same target, if there is one at which this request has not failed yet."""
        target = permit.target
        return None if target.cluster is None else self._pick_endpoint(target.cluster.model_deployment)

    def _breakers(self, permit: Permit, endpoint: Endpoint | None) -> list[Breaker]:
        found = [] if endpoint is None else [endpoint.breaker]
        known = self._state.breakers.get(self._policy.uid, permit.target.name)
        return found if known is None else [*found, known]

    def _record_outcome(self, permit: Permit, endpoint: Endpoint | None, outcome: Outcome | None) -> None:
        """Update breakers and metrics. An outcome of None (the client left) says nothing about the target."""
        state, target = self._state, permit.target.name
        failure: Failure | None = None
        if outcome is None:
            for breaker in self._breakers(permit, endpoint):
                breaker.release()
            return
        suspect = None
        if type(outcome) is Failed:
            failure = outcome.failure
            suspect = self._client if outcome.by_request else None
            if failure is Failure.RATE_LIMITED and endpoint is None:
                # A full engine is one of several replicas and says nothing about the others; a hosted API is one.
                self._rest(target, outcome.retry_after)
        elif type(outcome) is Interrupted:
            failure = None if outcome.by_client else Failure.CONNECT
        state.breakers.record(self._policy.uid, target, failure, state.loop.time(), suspect=suspect)
        state.metrics.attempts.add((self._policy.name, target, str(failure) if failure else "ok"))
        if endpoint is None:
            return
        if failure is None:
            endpoint.breaker.succeeded()
        elif failure in (Failure.CONNECT, Failure.TIMEOUT, Failure.SERVER_ERROR):
            # Nothing listens there any more. The EndpointSlice will say so in a moment; until then use the others.
            gone = type(outcome) is Failed and outcome.nothing_sent
            if suspect is None:
                endpoint.breaker.failed(state.loop.time(), at_once=gone)
            else:
                endpoint.breaker.release()
            self.failed_endpoints.append(endpoint)
        else:
            endpoint.breaker.release()

    def _rest(self, target: str, retry_after: str | None) -> None:
        if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
            self._state.breakers.rest(self._policy.uid, target, int(retry_after), self._state.loop.time())

    @property
    def _client(self) -> str:
        """Who is served: the client by its key, else the address that the request came from."""
        features = self._record.features
        return (features.client if features is not None else None) or self._record.request.peer


def unix_s() -> int:
    """The time in whole Unix seconds, for the field `created` of translated answers."""
    return int(time.time())
