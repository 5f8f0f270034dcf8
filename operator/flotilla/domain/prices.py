"""Hosted prices from genai-prices: a packaged catalogue, no network, isolated here because it is below version 1.

Loading the catalogue takes half a second and 95 MiB, so the operator asks for single models in a child process
(`telemetry.price_desk`), and what comes back is the small value below.
"""

import difflib
import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any

from flotilla.domain.cost.hosted import AS_THEY_ARE, Terms
from flotilla.domain.cost.tokens import TokenPrices
from flotilla.errors import InvalidSpec

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
    tokenizer that came with Opus 4.7 was announced as up to 1.35 times that of before. The same open model elsewhere
    counts the same.
    """
    if "claude" not in model:
        return Decimal(1)
    found = _CLAUDE_VERSION.search(model)
    version = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    return _NEW_CLAUDE_TOKENS if version >= _NEW_CLAUDE else _CLAUDE_TOKENS


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
