"""One attempt: to the right endpoint of a permitted target, waiting for one where there is none yet."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from flotilla.api.routing_policy import Failure, Hold
from flotilla.gateway.attempt import Attempt
from flotilla.gateway.body import Body
from flotilla.gateway.breaker import Breaker
from flotilla.gateway.config import Setup
from flotilla.gateway.dialect import Dialect, Wanted
from flotilla.gateway.endpoints import Endpoint
from flotilla.gateway.hold import Held
from flotilla.gateway.origin import Origin
from flotilla.gateway.outcome import Broken, Failed, Outcome, Whole
from flotilla.gateway.shared import Shared
from flotilla.gateway.upstream import CannotConnect
from flotilla.gateway.upstream_connection import Connection
from flotilla.routing.decide import Permit
from flotilla.routing.document import Policy
from flotilla.routing.request import Operation

HOLD_RETRY_S = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt goes; a hosted API has no endpoint of ours."""

    origin: Origin
    endpoint: Endpoint | None


class Dialer:
    """The attempts of one request."""

    __slots__ = (
        "_asked",
        "_extra",
        "_operation",
        "_policy",
        "_setup",
        "_shared",
        "affinity",
        "dropped",
        "failed_at",
        "upstream_s",
    )

    def __init__(
        self, shared: Shared, setup: Setup, policy: Policy, asked: Body, operation: Operation, extra: bytes
    ) -> None:
        self._shared, self._setup, self._policy = shared, setup, policy
        self._asked, self._operation, self._extra = asked, operation, extra
        self.affinity: int | None = None
        self.failed_at: list[Endpoint] = []
        """Endpoints that this request has met and that failed."""
        self.dropped: tuple[str, ...] = ()
        """Fields of the client's that the last target's API has no word for."""
        self.upstream_s = 0.0
        """Time that targets took, and waiting for one."""

    def dialect(self, permit: Permit) -> Dialect:
        """How the target is spoken to."""
        return self._setup.dialects[self._policy.name, permit.target.name]

    def place(self, permit: Permit) -> Place | None:
        """Where to send it now; None for a model without endpoints, or one that others wait for."""
        target = permit.target
        if target.hosted is not None:
            return Place(self._setup.origins[target.hosted.base_url], None)
        assert target.cluster is not None
        owner = target.cluster.model_deployment
        if self._shared.room.waiting(owner):
            return None
        return self._endpoint(owner)

    async def held(self, permit: Permit, deadline_s: float) -> Place | Failed:
        """Wait for an endpoint, in line and within the policy's bounds."""
        shared = self._shared
        assert permit.target.cluster is not None
        owner = permit.target.cluster.model_deployment
        started = shared.loop.time()
        until = min(started + self._policy.hold.max_wait_seconds, deadline_s)
        place, result = None, Held.READY
        while place is None and result is Held.READY:
            left = until - shared.loop.time()
            bounds: Hold = self._policy.hold
            result = await shared.room.wait(owner, self._policy.uid, bounds, size=len(self._asked.raw), timeout_s=left)
            place = self._endpoint(owner) if result is Held.READY else None
        waited = shared.loop.time() - started
        self.upstream_s += waited
        shared.metrics.hold.observe((owner, str(result)), waited)
        if place is not None:
            return place
        why = "too many requests wait for it" if result is Held.FULL else f"none within {waited:.0f} s"
        return Failed(Failure.NO_ENDPOINTS, f"it has no replica, and {why}", 503, str(HOLD_RETRY_S), nothing_sent=True)

    async def run(
        self,
        permit: Permit,
        place: Place,
        attempt: Attempt,
        wanted: Wanted,
        *,
        sent: Callable[[Connection], None],
        read: Callable[[Whole], Outcome],
    ) -> Outcome:
        """Send the request and wait for the outcome; whatever happens, nothing stays open behind.

        `sent` is told which connection brings the answer, `read` judges whether a whole one is what it should be.
        """
        shared = self._shared
        dialect = self.dialect(permit)
        if not dialect.has_key:
            return Failed(Failure.UNAUTHORIZED, "the Secret with its key is missing", 502, nothing_sent=True)
        payload = dialect.payload(self._asked, wanted)
        self.dropped = payload.dropped
        message = dialect.message(place.origin, self._operation, payload.content, self._extra)
        endpoint = place.endpoint
        if endpoint is not None:
            endpoint.outstanding += 1
        started = shared.loop.time()
        for breaker in self._breakers(permit, endpoint):
            breaker.sent(started)
        outcome: Outcome | None = None
        try:
            outcome = await self._answered(permit, place.origin, message, attempt, sent)
            if type(outcome) is Whole:
                outcome = read(outcome)
        finally:
            if endpoint is not None:
                endpoint.outstanding -= 1
            self.upstream_s += shared.loop.time() - started
            self._judge(permit, endpoint, outcome)
        return outcome

    async def _answered(
        self,
        permit: Permit,
        origin: Origin,
        message: bytes,
        attempt: Attempt,
        sent: Callable[[Connection], None],
    ) -> Outcome:
        shared = self._shared
        try:
            connection = await shared.upstream.send(permit, origin, message, attempt)
        except CannotConnect as error:
            return Failed(Failure.CONNECT, str(error), 502, nothing_sent=True)
        shared.clocks.add(attempt)
        try:
            attempt.connection = connection
            sent(connection)
            outcome = await attempt.outcome
            if type(outcome) is Failed and connection.closed_unread:
                # A kept connection that the other side closed as we wrote: it never read the request.
                attempt.renew()
                try:
                    connection = await shared.upstream.resend(permit, origin, message, attempt)
                except CannotConnect as error:
                    return Failed(Failure.CONNECT, str(error), 502, nothing_sent=True)
                attempt.connection = connection
                sent(connection)
                outcome = await attempt.outcome
            return outcome
        finally:
            shared.clocks.discard(attempt)
            connection.leave(attempt)

    def _endpoint(self, owner: str) -> Place | None:
        endpoint = self._shared.book.pool(owner).pick(
            self._shared.loop.time(), affinity=self.affinity, without=self.failed_at
        )
        return None if endpoint is None else Place(endpoint.origin, endpoint)

    def other_endpoint(self, permit: Permit) -> Place | None:
        """Another endpoint of the same target, where there is one that has not failed this request."""
        target = permit.target
        return None if target.cluster is None else self._endpoint(target.cluster.model_deployment)

    def _breakers(self, permit: Permit, endpoint: Endpoint | None) -> list[Breaker]:
        found = [] if endpoint is None else [endpoint.breaker]
        known = self._shared.breakers.get((self._policy.uid, permit.target.name))
        return found if known is None else [*found, known]

    def _judge(self, permit: Permit, endpoint: Endpoint | None, outcome: Outcome | None) -> None:
        """Breakers learn from what the other side did, and nothing from a client that left (outcome None)."""
        shared, target = self._shared, permit.target.name
        failure: Failure | None = None
        if outcome is None:
            for breaker in self._breakers(permit, endpoint):
                breaker.gave_no_verdict()
            return
        if type(outcome) is Failed:
            failure = outcome.failure
        elif type(outcome) is Broken:
            failure = None if outcome.by_client else Failure.CONNECT
        shared.judge(self._policy, target, failure)
        shared.metrics.attempts.add((self._policy.name, target, str(failure) if failure else "ok"))
        if endpoint is None:
            return
        if failure is None:
            endpoint.breaker.succeeded()
        elif failure in (Failure.CONNECT, Failure.TIMEOUT, Failure.SERVER_ERROR):
            # Nobody listens: the slice will say so in a moment, and until then the others are taken.
            gone = type(outcome) is Failed and outcome.nothing_sent
            endpoint.breaker.failed(shared.loop.time(), at_once=gone)
            self.failed_at.append(endpoint)
        else:
            endpoint.breaker.gave_no_verdict()


def unix_s() -> int:
    """For the field `created` of translated answers."""
    return int(time.time())
