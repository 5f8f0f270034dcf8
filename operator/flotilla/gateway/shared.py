"""What all requests of one gateway have in common."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from flotilla.api.routing_policy import Failure
from flotilla.gateway.access_log import AccessLog
from flotilla.gateway.accounts import Accounts
from flotilla.gateway.attempt import Clocks
from flotilla.gateway.breaker import Breaker, BreakerSettings
from flotilla.gateway.config import Config
from flotilla.gateway.endpoints import EndpointBook
from flotilla.gateway.hold import WaitingRoom
from flotilla.gateway.metrics import Metrics
from flotilla.gateway.tracing import Tracing
from flotilla.gateway.upstream import Upstream
from flotilla.routing.document import Policy

_VERDICTS = frozenset({Failure.CONNECT, Failure.TIMEOUT, Failure.SERVER_ERROR, Failure.UNAUTHORIZED})
"""Failures that say something about a target. A full queue is no defect, and a model at zero is none either."""
_MISS_S = 15.0
_RETRY_SHARE = 0.2
_RETRY_RESERVE = 10.0
_RATE_WINDOW = 200
_RATE_LEAST = 20


class RetryBudget:
    """Retries are a share of the requests: a fleet that fails is not asked twice as often for it."""

    def __init__(self) -> None:
        self._left = _RETRY_RESERVE

    def earn(self) -> None:
        """A request came."""
        self._left = min(self._left + _RETRY_SHARE, _RETRY_RESERVE)

    def spend(self) -> bool:
        """Whether one retry may be made; it is counted."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class EscalationRate:
    """The share of a rule's recent requests that escalated."""

    def __init__(self) -> None:
        self._all = self._escalated = 0.0

    def count(self, *, escalated: bool) -> None:
        """One request ended; older ones count less and less."""
        if self._all >= _RATE_WINDOW:
            self._all /= 2
            self._escalated /= 2
        self._all += 1
        self._escalated += escalated

    @property
    def percent(self) -> float:
        """From 0 to 100; of at least twenty requests, so that the first ones may escalate at all."""
        return 100 * self._escalated / max(self._all, _RATE_LEAST)


@dataclass(slots=True)
class Shared:
    """Made once, by the app."""

    loop: asyncio.AbstractEventLoop
    config: Config
    book: EndpointBook
    upstream: Upstream
    room: WaitingRoom
    clocks: Clocks
    metrics: Metrics
    access_log: AccessLog
    accounts: Accounts | None = None
    tracing: Tracing | None = None
    retries: RetryBudget = field(default_factory=RetryBudget)
    rates: defaultdict[tuple[str, str], EscalationRate] = field(default_factory=lambda: defaultdict(EscalationRate))
    breakers: dict[tuple[str, str], Breaker] = field(default_factory=dict)
    """By policy and target."""
    missed: dict[str, deque[float]] = field(default_factory=dict)
    """By ModelDeployment: when requests went elsewhere because it had no endpoint."""

    def breaker(self, policy: Policy, target: str) -> Breaker:
        """The breaker of a target."""
        key = (policy.uid, target)
        found = self.breakers.get(key)
        if found is None:
            found = self.breakers[key] = Breaker(BreakerSettings())
        return found

    def unavailable(self, policy: Policy) -> frozenset[str]:
        """The targets whose breakers let nothing through just now."""
        breakers = self.breakers
        if not breakers:
            return frozenset()
        now = self.loop.time()
        uid = policy.uid
        return frozenset(key[1] for key, breaker in breakers.items() if key[0] == uid and not breaker.admits(now))

    def judge(self, policy: Policy, target: str, failure: Failure | None) -> None:
        """Tell a target's breaker how an attempt ended. A target without a bad mark has no breaker yet."""
        key = (policy.uid, target)
        if failure is None:
            found = self.breakers.get(key)
            if found is not None:
                found.succeeded()
        elif failure in _VERDICTS:
            self.breaker(policy, target).failed(self.loop.time())
        elif key in self.breakers:
            self.breakers[key].gave_no_verdict()

    def miss(self, owner: str) -> None:
        """A request wanted a model at zero and went elsewhere: the model is wanted all the same."""
        self.missed.setdefault(owner, deque(maxlen=1000)).append(self.loop.time())

    def demand(self) -> Mapping[tuple[str, ...], float]:
        """By ModelDeployment: requests that are held, in flight, or went elsewhere in the last seconds."""
        setup = self.config.current
        if setup is None:
            return {}
        since = self.loop.time() - _MISS_S
        return {
            (owner,): float(
                self.room.waiting(owner)
                + sum(endpoint.outstanding for endpoint in self.book.pool(owner).endpoints)
                + sum(1 for at in list(self.missed.get(owner, ())) if at > since)
            )
            for owner in setup.document.model_deployments
        }
