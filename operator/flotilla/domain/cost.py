"""Dollars, in Decimal. Formulas and their published examples: tests/unit/test_cost.py.

The basis is the GPU's price with its host included, for as long as a pod holds it: from scheduled to gone, loading and
idling too. A unit cost without traffic is None and never 0, which would read as free.
"""

from dataclasses import dataclass
from decimal import Decimal

MILLION = Decimal(1_000_000)
SECONDS_PER_HOUR = Decimal(3600)


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """US dollars for one million tokens."""

    input_usd_per_million: Decimal
    output_usd_per_million: Decimal
    cached_usd_per_million: Decimal | None = None
    """None: the provider bills cached input like other input."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a window. `cached` are among `prompt`."""

    prompt: Decimal = Decimal(0)
    generated: Decimal = Decimal(0)
    cached: Decimal = Decimal(0)

    @property
    def total(self) -> Decimal:
        return self.prompt + self.generated


def accrued_usd(usd_per_hour: Decimal, seconds: Decimal) -> Decimal:
    """What `seconds` at a rate cost."""
    return usd_per_hour * seconds / SECONDS_PER_HOUR


def usd_per_million(usd: Decimal, tokens: Decimal) -> Decimal | None:
    """Blended unit cost over input and output; None without tokens."""
    return usd / tokens * MILLION if tokens > 0 else None


def usd_per_million_at(usd_per_hour: Decimal, tokens_per_second: Decimal) -> Decimal | None:
    """Unit cost of hardware at a throughput; None without one."""
    return usd_per_million(usd_per_hour, tokens_per_second * SECONDS_PER_HOUR)


def hosted_usd(usage: Usage, prices: TokenPrices) -> Decimal:
    """What a hosted model would have cost for the same tokens."""
    cached_price = (
        prices.input_usd_per_million if prices.cached_usd_per_million is None else prices.cached_usd_per_million
    )
    uncached = usage.prompt - usage.cached
    return (
        uncached * prices.input_usd_per_million
        + usage.cached * cached_price
        + usage.generated * prices.output_usd_per_million
    ) / MILLION


def break_even_tasks_per_day(fixed_usd_per_day: Decimal, hosted_usd_per_task: Decimal) -> Decimal | None:
    """From how many tasks a day on one replica set costs less than the hosted API; None when a task is free there."""
    return fixed_usd_per_day / hosted_usd_per_task if hosted_usd_per_task > 0 else None
