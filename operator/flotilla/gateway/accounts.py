"""What a request may cost, and what it did: the seam between an exchange and the stores of limits."""

from decimal import Decimal
from typing import Protocol

from flotilla.routing.decide import Decision, Refusal
from flotilla.routing.document import Policy
from flotilla.routing.request import Features


class Lease(Protocol):
    """What one request is counted as, and what is set aside for it."""

    async def set_aside(self, usd: Decimal, timeout_s: float) -> bool:
        """For one call of the classifier; False where a budget has no room for it, or nobody knows."""

    async def pay(self, usd: Decimal) -> None:
        """Exchange what was set aside for the call for what it cost."""

    async def reserve(self, decision: Decision) -> Decision | Refusal:
        """Set aside the most that the answer can cost; the decision may become narrower."""

    async def settle(self, usd: Decimal, tokens: int) -> None:
        """The request has ended, and was all this, its classifier's call included; once."""


class Accounts(Protocol):
    """Rates and budgets."""

    async def admit(self, policy: Policy, features: Features) -> Lease | Refusal:
        """Count the request in its rates, before anything is sent for it."""


def limited(policy: Policy) -> bool:
    """Whether there is anything to ask the accounts."""
    return bool(policy.limits.rates or policy.limits.budgets)
