"""The GPU dollars of an evaluation: its part of what the ledger charged to a deployment while it ran. Pure.

A deployment's dollars over a time are divided among its requests by their work, as the ledger weighs tokens. So the
parts of all who used it then, this evaluation among them, add up to what the ledger charged, idle time included.
"""

from dataclasses import dataclass
from decimal import Decimal

from flotilla.cost.hosted_prices import TokenUsage, TokenWeights


@dataclass(frozen=True, slots=True)
class MeterReading:
    """The ledger's totals of a deployment at one moment; they only grow."""

    usd: Decimal
    usage: TokenUsage


def own_usd(before: MeterReading, after: MeterReading, own: TokenUsage, weights: TokenWeights) -> Decimal | None:
    """The dollars for `own` among all that the deployment has done between two readings; None where it did nothing."""
    spent = after.usd - before.usd
    usage = TokenUsage(
        after.usage.prompt - before.usage.prompt,
        after.usage.generated - before.usage.generated,
        after.usage.cached - before.usage.cached,
    )
    # The engine's counters are read every few seconds, and may lack the last of our own requests.
    whole = max(weights.work(usage), weights.work(own))
    return None if whole <= 0 or spent < 0 else spent * weights.work(own) / whole
