"""What a hosted model costs: prices by tier, token factors, cache credit, and weights of token types."""

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from typing import Any, Literal, Protocol

from flotilla.errors import InvalidSpec

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
class TokenUsage:
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

    def __add__(self, other: "TokenUsage") -> "TokenUsage":
        return TokenUsage(self.prompt + other.prompt, self.generated + other.generated, self.cached + other.cached)


@dataclass(frozen=True, slots=True)
class TokenWeights:
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

    def work(self, usage: TokenUsage) -> Decimal:
        """The usage in tokens of uncached input."""
        return usage.uncached + self.cached * usage.cached + self.output * usage.generated


MEASURED = TokenWeights()


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


def unit_costs(usd: Decimal, usage: TokenUsage, weights: TokenWeights) -> UnitCosts | None:
    """Split a cost over input, cached input and output by weight; None without tokens."""
    blended = usd_per_million(usd, usage.total)
    unit = usd_per_million(usd, weights.work(usage))
    if blended is None or unit is None:
        return None
    return UnitCosts(blended, unit, unit * weights.cached, unit * weights.output)


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

    def credited(self, usage: TokenUsage) -> Decimal:
        """Our input tokens that the hosted side would have had in its cache."""
        if self.cache_credit == "None":
            return Decimal(0)
        return usage.cached if self.cache_credit == "Observed" else usage.prompt * self.cached_share


AS_THEY_ARE = Terms()


class PerRequest(Protocol):
    """Prices that depend on the size of a request."""

    def at(self, prompt_tokens: float) -> TokenPrices:
        """For one request with a prompt of that size, in their tokens."""


def hosted_usd(usage: TokenUsage, prices: TokenPrices, terms: Terms = AS_THEY_ARE) -> Decimal:
    """What a hosted model would have cost for the same text at these prices."""
    cached_price = (
        prices.input_usd_per_million if prices.cached_usd_per_million is None else prices.cached_usd_per_million
    )
    credited = terms.credited(usage)
    theirs = terms.input_factor * (
        (usage.prompt - credited) * prices.input_usd_per_million + credited * cached_price
    ) + terms.output_factor * (usage.generated * prices.output_usd_per_million)
    return theirs / MILLION


def hosted_usd_by_request(
    usage: TokenUsage, requests: Decimal, price: PerRequest, terms: Terms = AS_THEY_ARE
) -> Decimal:
    """As `hosted_usd`, at the prices of the mean request.

    Tiers are by request: a window's total would fall into a tier that no single request reaches. Without a count of
    requests the lowest tier holds, which does not flatter self-hosting.
    """
    mean = usage.prompt * terms.input_factor / requests if requests > 0 else Decimal(0)
    return hosted_usd(usage, price.at(float(mean)), terms)


BATCH = {"processing": "batch"}
"""The catalogue's name for prices of requests that may wait."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """US dollars per million tokens: a base, and higher steps from a size of the request's prompt on."""

    base: Decimal
    steps: tuple[tuple[int, Decimal], ...] = ()

    def at(self, prompt_tokens: float) -> Decimal:
        """The price for a request with a prompt of that size."""
        return next((price for start, price in reversed(self.steps) if prompt_tokens > start), self.base)


@dataclass(frozen=True, slots=True)
class HostedPrice:
    """A hosted model by the catalogue's own names."""

    provider: str
    model: str
    source: str
    input: Tiers
    output: Tiers
    cached: Tiers | None
    note: str = ""
    """A note for the reader, as a sentence: for example that the price differs by the hour."""

    @property
    def comparator(self) -> str:
        """As metrics name it."""
        return f"{self.provider}/{self.model}"

    def at(self, prompt_tokens: float) -> TokenPrices:
        """Prices for the mean request. A window's total would fall into a tier that no single request reaches."""
        return TokenPrices(
            input_usd_per_million=self.input.at(prompt_tokens),
            output_usd_per_million=self.output.at(prompt_tokens),
            cached_usd_per_million=None if self.cached is None else self.cached.at(prompt_tokens),
        )


@dataclass(frozen=True, slots=True)
class Comparator:
    """A hosted model that would do the same work, and how it would count and bill it."""

    price: HostedPrice
    terms: Terms = AS_THEY_ARE
    batch: bool = False

    @property
    def name(self) -> str:
        """As metrics name it."""
        return f"{self.price.comparator}@batch" if self.batch else self.price.comparator

    @property
    def mode(self) -> str:
        return "batch" if self.batch else "standard"


_CLAUDE_TOKENS, _NEW_CLAUDE_TOKENS = Decimal("1.20"), Decimal("1.35")
_NEW_CLAUDE = (4, 7)
_CLAUDE_VERSION = re.compile(r"(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")


def token_factor(model: str) -> Decimal:
    """Hosted tokens for one of a Llama 3 tokenizer's, of English text, code and JSON.

    OpenAI's o200k counts 0.997 to 1.026 of it and Google's is near; Claude's was measured at 1.2 to 1.3, and the
    tokenizer of Opus 4.7 was announced as up to 1.35 times the previous count. The same open model elsewhere counts
    the same.
    """
    if "claude" not in model:
        return Decimal(1)
    found = _CLAUDE_VERSION.search(model)
    version = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    return _NEW_CLAUDE_TOKENS if version >= _NEW_CLAUDE else _CLAUDE_TOKENS


CATALOGUE_PUBLISHED = {"0.2.3": date(2026, 11, 10)}
"""Day on which a version of genai-prices was published (uv.lock); the package itself does not say."""


def catalogue_date(installed: str | None = None) -> date | None:
    """Of the installed version of the price catalogue, or another; None where it is not known."""
    return CATALOGUE_PUBLISHED.get(installed or version("genai-prices"))


def find(provider: str, model: str, *, field: str, at: datetime, batch: bool = False) -> HostedPrice:
    """Look a model up as of a time; raises InvalidSpec with near names. `field` is the path for the error.

    A price for batches must be there by name: the catalogue answers an unknown variant with the standard price.
    """
    from genai_prices.data import providers

    known = {p.id: p for p in providers}
    if provider not in known:
        near = difflib.get_close_matches(provider, known, n=3, cutoff=0.5) or sorted(known)[:10]
        raise _unknown(f"provider {provider!r}", near, f"{field}.provider")
    # Some providers sell others' models under the others' names: the catalogue then asks those in turn.
    found: Any = known[provider].find_model(model, all_providers=providers)
    if found is None:
        ids = [m.id for m in known[provider].models]
        near = difflib.get_close_matches(model, ids, n=3, cutoff=0.4) or ids[:5]
        raise _unknown(f"model {model!r} of {provider}", near, f"{field}.model")
    if batch and not any(variant.when == BATCH for variant in found.price_variants or ()):
        raise InvalidSpec(
            f"The price catalogue has no price for batches of {provider}/{found.id}. Set mode to Standard, or give "
            "prices of your own.",
            field=f"{field}.mode",
            reason="UnknownHostedModel",
        )
    prices = found.get_prices(at, BATCH if batch else None)
    plain, output = _tiers(getattr(prices, "input_mtok", None)), _tiers(getattr(prices, "output_mtok", None))
    if plain is None or output is None:
        raise InvalidSpec(
            f"The price catalogue has no price per token for {provider}/{found.id}. Choose another model.",
            field=f"{field}.model",
            reason="UnknownHostedModel",
        )
    return HostedPrice(
        provider=provider,
        model=found.id,
        source=f"genai-prices {version('genai-prices')}",
        input=plain,
        output=output,
        cached=_tiers(getattr(prices, "cache_read_mtok", None)),
        note="" if batch else _by_the_hour(found, at),
    )


def _by_the_hour(model: Any, at: datetime) -> str:
    """A sentence with the prices of that day where they differ by the hour; empty where they do not."""
    if not isinstance(model.prices, list):
        return ""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    changes: list[tuple[str, str]] = []
    for half_hours in range(48):
        moment = day + timedelta(minutes=30 * half_hours)
        prices = model.get_prices(moment)
        plain, output = _tiers(getattr(prices, "input_mtok", None)), _tiers(getattr(prices, "output_mtok", None))
        if plain is None or output is None:
            return ""
        text = f"{plain.base}/{output.base}"
        if not changes or changes[-1][1] != text:
            changes.append((f"{moment:%H:%M}", text))
    if len(changes) < 2:
        return ""
    return (
        f"Its price differs by the hour (UTC, in/out): {', '.join(f'{text} from {start}' for start, text in changes)}."
    )


def _tiers(price: Any) -> Tiers | None:
    if price is None:
        return None
    tiers = (
        Tiers(price)
        if isinstance(price, Decimal)
        else Tiers(price.base, tuple(sorted((tier.start, tier.price) for tier in price.tiers)))
    )
    # Catalogues have used negative numbers for "it depends"; as prices they would earn money.
    amounts = (tiers.base, *(usd for _, usd in tiers.steps))
    return tiers if all(usd.is_finite() and usd >= 0 for usd in amounts) else None


def _unknown(what: str, near: list[str], field: str) -> InvalidSpec:
    return InvalidSpec(
        f"The price catalogue has no {what}. Did you mean {', '.join(near)}?",
        field=field,
        reason="UnknownHostedModel",
    )
