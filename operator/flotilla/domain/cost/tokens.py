"""What tokens cost: blended, and by input, cached input and output."""

from dataclasses import dataclass
from decimal import Decimal

MILLION = Decimal(1_000_000)
SECONDS_PER_HOUR = Decimal(3600)
HOURS_PER_DAY = Decimal(24)


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

    @property
    def uncached(self) -> Decimal:
        return self.prompt - self.cached

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.generated + other.generated, self.cached + other.cached)


@dataclass(frozen=True, slots=True)
class Weights:
    """What a token costs against one of uncached input.

    Output at 2.8: SilyBench's Qwen3-8B FP8 on an H100 serves 1024 in, 128 out at 32.258 requests/s and 128 in, 1024 out
    at 14.749, which is 22.3 us for a token in and 63.4 us for one out. Cached input costs its lookup.
    """

    output: Decimal = Decimal("2.8")
    cached: Decimal = Decimal("0.05")

    @property
    def by_token_type(self) -> dict[str, Decimal]:
        """Under the names that metrics give them."""
        return {"input": Decimal(1), "cached_input": self.cached, "output": self.output}

    def work(self, usage: Usage) -> Decimal:
        """The usage in tokens of uncached input."""
        return usage.uncached + self.cached * usage.cached + self.output * usage.generated


MEASURED = Weights()


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """US dollars per million tokens; the three rates times their tokens add up to the cost."""

    blended: Decimal
    input: Decimal
    cached_input: Decimal
    output: Decimal


def accrued_usd(usd_per_hour: Decimal, seconds: Decimal) -> Decimal:
    """What `seconds` at a rate cost."""
    return usd_per_hour * seconds / SECONDS_PER_HOUR


def usd_per_million(usd: Decimal, tokens: Decimal) -> Decimal | None:
    """Blended unit cost over input and output; None without tokens."""
    return usd / tokens * MILLION if tokens > 0 else None


def usd_per_request(usd: Decimal, requests: Decimal) -> Decimal | None:
    """None without requests."""
    return usd / requests if requests > 0 else None


def unit_costs(usd: Decimal, usage: Usage, weights: Weights) -> UnitCosts | None:
    """Split a cost over input, cached input and output by weight; None without tokens."""
    blended = usd_per_million(usd, usage.total)
    unit = usd_per_million(usd, weights.work(usage))
    if blended is None or unit is None:
        return None
    return UnitCosts(blended, unit, unit * weights.cached, unit * weights.output)
