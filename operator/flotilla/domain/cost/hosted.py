"""What a hosted model would have billed for the tokens that we served."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from flotilla.domain.cost.tokens import MILLION, TokenPrices, Usage

CacheCredit = Literal["None", "Observed", "Fixed"]
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Terms:
    """How our tokens become theirs."""

    input_factor: Decimal = _ONE
    """Their tokens for one of ours of the same text."""
    output_factor: Decimal = _ONE
    """The same for answers; more where the hosted model reasons and bills that as output."""
    cache_credit: CacheCredit = "Observed"
    """Which input gets their price for cached input: none, what our own cache hit, or a fixed share of all."""
    cached_share: Decimal = Decimal(0)
    """For Fixed."""

    def credited(self, usage: Usage) -> Decimal:
        """Our input tokens that the hosted side would have had in its cache."""
        if self.cache_credit == "None":
            return Decimal(0)
        return usage.cached if self.cache_credit == "Observed" else usage.prompt * self.cached_share


AS_THEY_ARE = Terms()


class PerRequest(Protocol):
    """Prices that depend on the size of a request."""

    def at(self, prompt_tokens: float) -> TokenPrices:
        """For one request with a prompt of that size, in their tokens."""


def hosted_usd(usage: Usage, prices: TokenPrices, terms: Terms = AS_THEY_ARE) -> Decimal:
    """What a hosted model would have cost for the same text at these prices."""
    cached_price = (
        prices.input_usd_per_million if prices.cached_usd_per_million is None else prices.cached_usd_per_million
    )
    credited = terms.credited(usage)
    theirs = terms.input_factor * (
        (usage.prompt - credited) * prices.input_usd_per_million + credited * cached_price
    ) + terms.output_factor * (usage.generated * prices.output_usd_per_million)
    return theirs / MILLION


def hosted_usd_by_request(usage: Usage, requests: Decimal, price: PerRequest, terms: Terms = AS_THEY_ARE) -> Decimal:
    """As `hosted_usd`, at the prices of the mean request.

    Tiers are by request: a window's total would fall into a tier that no single request reaches. Without a count of
    requests the lowest tier holds, which does not flatter self-hosting.
    """
    mean = usage.prompt * terms.input_factor / requests if requests > 0 else Decimal(0)
    return hosted_usd(usage, price.at(float(mean)), terms)
