"""What a request may cost, and what it did: the seam between an exchange and the stores of limits."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from flotilla.domain.routing.decide import Decision
from flotilla.domain.routing.document import Policy
from flotilla.domain.routing.refusal import Refusal
from flotilla.domain.routing.request import Features


class Lease(Protocol):
    """What was set aside for one request."""

    async def settle(self, usd: Decimal, tokens: int) -> None:
        """Exchange what was set aside for what it was; once."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request within its limits; the decision may have become narrower."""

    decision: Decision
    lease: Lease | None


class Accounts(Protocol):
    """Rates and budgets."""

    async def admit(self, decision: Decision, features: Features) -> Admitted | Refusal:
        """Count the request and set aside what it may cost."""


def limited(policy: Policy) -> bool:
    """Whether there is anything to ask the accounts."""
    return bool(policy.limits.rates or policy.limits.budgets)
