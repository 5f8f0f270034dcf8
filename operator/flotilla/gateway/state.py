"""The parts that all requests of one gateway share. Made once by `app`, passed to everything that serves a request."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flotilla.gateway.attempt import Deadlines
from flotilla.gateway.capture import Capture
from flotilla.gateway.config import Config
from flotilla.gateway.endpoints import EndpointRegistry, EscalationRate, RetryBudget, TargetBreakers
from flotilla.gateway.guard import GuardCounts
from flotilla.gateway.http.client import UpstreamPool
from flotilla.gateway.http.message import MemoryBudget
from flotilla.gateway.limits.accounts import Accounts
from flotilla.gateway.metrics import GatewayMetrics
from flotilla.gateway.pending import PendingQueue
from flotilla.gateway.record import AccessLog, Record
from flotilla.gateway.tracing import Tracing
from flotilla.routing.document import Policy

_MISSED_DEMAND_S = 15.0
"""How long a request that was sent elsewhere counts as demand for the model that it asked for."""


@dataclass(slots=True)
class GatewayState:
    """The shared parts of a gateway, and its demand for each model."""

    loop: asyncio.AbstractEventLoop
    config: Config
    endpoints: EndpointRegistry
    upstream: UpstreamPool
    pending: PendingQueue
    deadlines: Deadlines
    metrics: GatewayMetrics
    access_log: AccessLog
    memory: MemoryBudget
    accounts: Accounts | None = None
    tracing: Tracing | None = None
    on_answered: Callable[[Record], None] | None = None
    """Called with each answered request of a route with a shadow, after the client has its answer."""
    capture: Capture | None = None
    retry_budget: RetryBudget = field(default_factory=RetryBudget)
    escalation_rates: defaultdict[tuple[str, str], EscalationRate] = field(
        default_factory=lambda: defaultdict(EscalationRate)
    )
    breakers: TargetBreakers = field(default_factory=TargetBreakers)
    guard: GuardCounts = field(default_factory=GuardCounts)
    missed: dict[str, deque[float]] = field(default_factory=dict)
    """By ModelDeployment: when requests were sent elsewhere because it had no endpoint, on the loop's clock."""

    def unavailable(self, policy: Policy) -> frozenset[str]:
        """Names of the policy's targets whose breaker is open now."""
        return self.breakers.unavailable(policy.uid, self.loop.time())

    def record_missed_demand(self, owner: str) -> None:
        """A request for a model without replicas was sent elsewhere; the model is still in demand."""
        self.missed.setdefault(owner, deque(maxlen=1000)).append(self.loop.time())

    def demand(self) -> Mapping[tuple[str, ...], float]:
        """By ModelDeployment: requests that wait, are in flight, or were sent elsewhere in the last 15 seconds."""
        setup = self.config.current
        if setup is None:
            return {}
        since = self.loop.time() - _MISSED_DEMAND_S
        return {
            (owner,): float(
                self.pending.count(owner)
                + sum(endpoint.outstanding for endpoint in self.endpoints.pool(owner).endpoints)
                + sum(1 for at in list(self.missed.get(owner, ())) if at > since)
            )
            for owner in setup.document.model_deployments
        }
