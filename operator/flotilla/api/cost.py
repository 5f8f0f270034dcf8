"""spec.cost: what a ModelDeployment is priced at, and the hosted models it is compared with."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.types import Cel, ListMap, Model, Usd


class BillingMode(StrEnum):
    """Which of a hosted model's prices is meant."""

    STANDARD = "Standard"
    BATCH = "Batch"


class CacheCreditMode(StrEnum):
    """Which input gets a hosted model's price for cached input."""

    NONE = "None"
    OBSERVED = "Observed"
    FIXED = "Fixed"


class HostedModelRef(Model):
    """A hosted model by the names of the genai-prices catalogue."""

    provider: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-_.a-z0-9]*$", min_length=1, max_length=63)]
    """provider such as openai or anthropic."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """model such as gpt-5-mini."""


class HostedPrices(Model):
    """A hosted model's prices in US dollars for one million tokens."""

    input_usd_per_million: Usd
    """inputUsdPerMillion tokens."""
    output_usd_per_million: Usd
    """outputUsdPerMillion tokens."""
    cached_usd_per_million: Usd | None = None
    """cachedUsdPerMillion tokens that the provider finds in its prompt cache. Default: as other input."""


_CACHED_PERCENT = Cel(
    "(has(self.cachedPercent)) == (has(self.cacheCredit) && self.cacheCredit == 'Fixed')",
    "spec.cost.compareWith[*].cachedPercent belongs to cacheCredit Fixed: set both or neither",
    field_path=".cachedPercent",
)
_OWN_PRICES = Cel(
    "!has(self.prices) || !has(self.mode) || self.mode == 'Standard'",
    "spec.cost.compareWith[*].mode Batch is for prices of the catalogue; write batch prices into prices as they are",
    field_path=".mode",
)


class ComparatorSpec(HostedModelRef):
    """A hosted model that would do the same work, and how it would count and bill it."""

    mode: BillingMode = BillingMode.STANDARD
    """mode Batch takes the provider's prices for requests that may wait for hours."""
    input_tokens_percent: Annotated[int, Field(ge=10, le=1000)] | None = None
    """inputTokensPercent are the provider's tokens for 100 of ours of the same text.

    Default: 100, and 120 to 135 for Claude, whose tokenizer makes more of them."""
    output_tokens_percent: Annotated[int, Field(ge=10, le=10_000)] | None = None
    """outputTokensPercent is the same for answers; more for a model that reasons and bills that. Default: as input."""
    cache_credit: CacheCreditMode = CacheCreditMode.OBSERVED
    """cacheCredit selects which input gets the provider's price for cached input.

    None, what our own prefix cache hit (Observed), or cachedPercent of all (Fixed)."""
    cached_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """cachedPercent of the input, for cacheCredit Fixed."""
    prices: HostedPrices | None = None
    """prices of your own contract, for a model that the catalogue does not know or prices otherwise."""


class OwnedHardware(Model):
    """A machine that was bought. Maintenance is paid in each of the years."""

    purchase_usd: Usd
    """purchaseUsd of the machine."""
    gpus: Annotated[int, Field(ge=1, le=1024)]
    """gpus that it has."""
    years: Annotated[int, Field(ge=1, le=20)]
    """years over which it is written off."""
    maintenance_percent_per_year: Annotated[int, Field(ge=0, le=100)] = 0
    """maintenancePercentPerYear of the purchase price."""
    power_watts: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """powerWatts that the machine draws."""
    usd_per_kwh: Usd | None = None
    """usdPerKwh of electricity."""
    pue_percent: Annotated[int, Field(ge=100, le=500)] = 100
    """puePercent is the data centre's power over the machine's, such as 140."""


_POWER_PRICE = Cel(
    "!has(self.powerWatts) || self.powerWatts == 0 || has(self.usdPerKwh)",
    "spec.cost.owned.powerWatts needs spec.cost.owned.usdPerKwh",
    field_path=".powerWatts",
)


class CostSpec(Model):
    """What the deployment is priced at, and the hosted models it is compared with."""

    compare_with: Annotated[
        list[Annotated[ComparatorSpec, _CACHED_PERCENT, _OWN_PRICES]], ListMap(("provider", "model"), 5)
    ] = Field(default_factory=list)
    """compareWith are hosted models that would do the same work. Default: the operator's."""
    gpu_hourly_price: Usd | None = None
    """gpuHourlyPrice is your own price of one whole GPU for one hour in US dollars, such as "2.10".

    It wins over the node's annotation, the operator's catalogue, OpenCost and the built-in table."""
    owned: Annotated[OwnedHardware, _POWER_PRICE] | None = None
    """owned prices GPUs of a machine that was bought, in place of gpuHourlyPrice."""
    output_token_weight_percent: Annotated[int, Field(ge=1, le=10_000)] = 280
    """outputTokenWeightPercent is the cost of a token of output for 100 of uncached input, to divide the cost by."""
    cached_token_weight_percent: Annotated[int, Field(ge=0, le=100)] = 5
    """cachedTokenWeightPercent is the same for a token of cached input."""
    max_tokens_per_second: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """maxTokensPerSecond of output that one replica makes at full load. Default: the most that was seen."""
    overhead_usd_per_day: Usd | None = None
    """overheadUsdPerDay is what running it costs beside the GPUs; it moves the break-even and not the bill."""
    monthly_budget_usd: Usd | None = None
    """monthlyBudgetUsd is exported for alerts."""


ONE_PRICE = Cel(
    "!has(self.gpuHourlyPrice) || !has(self.owned)",
    "spec.cost takes gpuHourlyPrice or owned, not both",
    field_path=".owned",
)


class ComparatorStatus(HostedModelRef):
    """A hosted model in use, by the names of its source."""

    mode: Annotated[str, StringConstraints(max_length=63)] | None = None
    """mode is Standard or Batch."""
    source: Annotated[str, StringConstraints(max_length=253)] | None = None
    """source of its prices."""
    input_tokens_percent: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """inputTokensPercent are its tokens for 100 of ours."""
    output_tokens_percent: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """outputTokensPercent are its tokens for 100 of ours, of answers."""


class CostStatus(Model):
    """Where the dollars come from; the amounts are metrics."""

    gpu_hourly_price: Annotated[str, StringConstraints(max_length=40)] | None = None
    """gpuHourlyPrice of one whole GPU in US dollars; the highest where replicas run on nodes of several prices."""
    price_source: Annotated[str, StringConstraints(max_length=253)] | None = None
    """priceSource is where the price is from: resource, owned, node, catalog, opencost or built-in, and which."""
    price_as_of: Annotated[str, StringConstraints(max_length=40)] | None = None
    """priceAsOf is the date of the price."""
    comparators: Annotated[list[ComparatorStatus], ListMap(("provider", "model"), 5)] | None = None
    """comparators are the hosted models in use, by the catalogue's own names, and how their bill is counted."""
