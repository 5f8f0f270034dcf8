"""What keeps failures from spreading: circuit breakers, a budget of retries, a bound on escalations. Pure.

Every endpoint has a `Breaker` of its own (in `endpoints`), and every target one in `TargetBreakers`. After failures
in a row a breaker opens for a while; then one trial request decides whether it closes. Times are seconds of any
monotonic clock, given by the caller.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from flotilla.api.routing_policy import Failure

_RETRY_SHARE = 0.2
"""Retries for each request."""
_RETRY_RESERVE = 10.0
_RATE_WINDOW = 200
_RATE_MINIMUM = 20


class BreakerState(StrEnum):
    """Whether a breaker lets requests through."""

    CLOSED = "Closed"
    OPEN = "Open"
    HALF_OPEN = "HalfOpen"


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When to open, and for how long."""

    failures: int = 5
    """Failures in a row that open the breaker."""
    open_s: float = 5.0
    """How long it stays open the first time; doubled each time that the trial fails."""
    open_limit_s: float = 60.0
    trial_s: float = 30.0
    """A trial without an outcome for so long is given up, and another request is let through."""


class Breaker:
    """The circuit breaker of one endpoint or target."""

    __slots__ = ("_failures", "_opened", "_settings", "_trial_until_s", "_until_s")

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._failures = 0
        self._opened = 0
        """How often it opened in a row; 0 while it is closed."""
        self._until_s = 0.0
        self._trial_until_s = 0.0

    def state(self, now_s: float) -> BreakerState:
        """Closed, open, or half open: a trial is due or under way."""
        if not self._opened:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._until_s else BreakerState.HALF_OPEN

    def allows(self, now_s: float) -> bool:
        """Whether a request may be sent now. Call `started` when it is."""
        if not self._opened:
            return True
        return now_s >= self._until_s and now_s >= self._trial_until_s

    def started(self, now_s: float) -> None:
        """A request is sent.

        If the breaker is half open, it is the trial, and no other may be sent until it has ended.
        """
        if self._opened and now_s >= self._until_s:
            self._trial_until_s = now_s + self._settings.trial_s

    def succeeded(self) -> None:
        """The request was answered: the breaker closes."""
        self._failures = self._opened = 0
        self._trial_until_s = 0.0

    def release(self) -> None:
        """The request ended without saying anything about the target, for example because its client left."""
        self._trial_until_s = 0.0

    def failed(self, now_s: float, *, at_once: bool = False) -> None:
        """The request failed. With `at_once` this failure alone opens the breaker."""
        self._failures += 1
        trial = self._opened > 0 and now_s >= self._until_s
        if trial or (not self._opened and (at_once or self._failures >= self._settings.failures)):
            self._opened += 1
            wait_s = min(self._settings.open_s * 2 ** (self._opened - 1), self._settings.open_limit_s)
            self._until_s = now_s + wait_s
            self._trial_until_s = 0.0
            self._failures = 0


_TARGET_FAILURES = frozenset({Failure.CONNECT, Failure.TIMEOUT, Failure.SERVER_ERROR, Failure.UNAUTHORIZED})
"""Failures that say that a target is broken. A full queue (429) and a model without replicas do not."""
_SEVERAL_CLIENTS = 3
"""So many clients must get failures that a request may have caused, before such failures count against the target."""
_MAX_REST_S = 300.0
"""Bound of a Retry-After header."""


class TargetBreakers:
    """The breakers of all targets, by the policy's uid and the target's name.

    A target gets its breaker with its first failure, so that a gateway without failures looks nothing up.
    """

    def __init__(self) -> None:
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._suspects: dict[tuple[str, str], set[str]] = {}
        """Clients that got a failure which their request may have caused, since the target last answered."""
        self._rests_until_s: dict[tuple[str, str], float] = {}
        """Targets that asked not to be called for a while."""

    def __len__(self) -> int:
        return len(self._breakers)

    def get(self, policy_uid: str, target: str) -> Breaker | None:
        """The breaker of a target, None while it has not failed."""
        return self._breakers.get((policy_uid, target))

    def record(
        self, policy_uid: str, target: str, failure: Failure | None, now_s: float, *, suspect: str | None = None
    ) -> None:
        """Count how an attempt at a target ended; `failure` is None if the target answered.

        `suspect` is the client whose request may have caused the failure. Such failures count only once several clients
        got one and none of them an answer, so that the requests of one client never close a target to the others.
        """
        key = (policy_uid, target)
        found = self._breakers.get(key)
        if failure is None and self._suspects:
            self._suspects.pop(key, None)
        if failure in _TARGET_FAILURES and (suspect is None or self._several_clients(key, suspect)):
            if found is None:
                found = self._breakers[key] = Breaker(BreakerSettings())
            found.failed(now_s)
        elif found is not None:
            if failure is None:
                found.succeeded()
            else:
                found.release()

    def unavailable(self, policy_uid: str, now_s: float) -> frozenset[str]:
        """Names of the policy's targets that get no request now: their breaker is open, or they rest."""
        if not self._breakers and not self._rests_until_s:
            return frozenset()
        found = {key for key, breaker in self._breakers.items() if not breaker.allows(now_s)}
        found |= {key for key, until_s in self._rests_until_s.items() if now_s < until_s}
        return frozenset(target for uid, target in found if uid == policy_uid)

    def rest(self, policy_uid: str, target: str, seconds: float, now_s: float) -> None:
        """Send a target nothing for so long, as its Retry-After header asks; five minutes at most."""
        self._rests_until_s[policy_uid, target] = now_s + min(seconds, _MAX_REST_S)

    def keep(self, targets: Container[tuple[str, str]]) -> None:
        """Forget the breakers of all targets but these, given by policy uid and target name."""
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if key in targets}
        self._suspects = {key: clients for key, clients in self._suspects.items() if key in targets}
        self._rests_until_s = {key: until_s for key, until_s in self._rests_until_s.items() if key in targets}

    def _several_clients(self, key: tuple[str, str], client: str) -> bool:
        clients = self._suspects.setdefault(key, set())
        if len(clients) < _SEVERAL_CLIENTS:
            clients.add(client)
        return len(clients) >= _SEVERAL_CLIENTS


class RetryBudget:
    """Bounds retries to a share of the requests, so that a failing fleet does not get twice the load."""

    def __init__(self) -> None:
        self._left = _RETRY_RESERVE

    def earn(self) -> None:
        """A request was admitted, which allows a fifth of a retry."""
        self._left = min(self._left + _RETRY_SHARE, _RETRY_RESERVE)

    def spend(self) -> bool:
        """Whether a retry may be made now; if so, it is counted."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class EscalationRate:
    """The share of a rule's recent requests that were escalated."""

    def __init__(self) -> None:
        self._all = self._escalated = 0.0

    def count(self, *, escalated: bool) -> None:
        """Count a request. The weight of older ones is halved every 200 requests."""
        if self._all >= _RATE_WINDOW:
            self._all /= 2
            self._escalated /= 2
        self._all += 1
        self._escalated += escalated

    @property
    def percent(self) -> float:
        """From 0 to 100. Fewer than 20 requests count as 20, so that the first ones may escalate at all."""
        return 100 * self._escalated / max(self._all, _RATE_MINIMUM)
