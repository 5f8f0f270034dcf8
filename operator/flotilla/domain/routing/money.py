"""What a request may cost, reserved before it is sent, and what it did cost, from the usage that came back.

Amounts are Decimal US dollars. Only hosted targets cost money here: pods of the cluster are paid for by the hour.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from flotilla.api.targets import Price
from flotilla.domain.routing.document import Target
from flotilla.domain.routing.request import Features, Operation

DEFAULT_MAX_TOKENS: Final = 4096
"""Of an answer that the client did not bound: reserved for, and asked of APIs that must be told."""
_IMAGE_TOKENS: Final = 1600
"""Anthropic's most for one image; OpenAI's high detail is below it for all but the largest."""
_MOST_TOKENS: Final = 1_000_000_000
"""Of one answer: more than any model can make, and few enough for every store to count."""
_MILLION: Final = Decimal(1_000_000)
_CACHE_WRITE: Final = Decimal("1.25")
"""Anthropic's price of a prompt token that is written to the cache, in prices of one that is not."""
_NANODOLLARS: Final = Decimal(1_000_000_000)
ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as OpenAI counts: cached and written ones are among the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_creation_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_creation_tokens + other.cache_creation_tokens,
        )


def usage_of(counted: Any) -> Usage | None:
    """Read the `usage` of an answer or chunk; None where it is missing or makes no sense."""
    if not isinstance(counted, dict):
        return None
    prompt, output = _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens", 0))
    if prompt is None or output is None:
        return None
    details = counted.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    cached = min(_count(details.get("cached_tokens")) or 0, prompt)
    written = min(_count(details.get("cache_creation_tokens")) or 0, prompt - cached)
    return Usage(prompt, output, cached, written)


def cost(usage: Usage, price: Price) -> Decimal:
    """What a hosted model charges for one answer."""
    fresh = Decimal(price.input_per_m_tok)
    cached = fresh if price.cached_input_per_m_tok is None else Decimal(price.cached_input_per_m_tok)
    plain_tokens = usage.prompt_tokens - usage.cached_tokens - usage.cache_creation_tokens
    total = (
        plain_tokens * fresh
        + usage.cached_tokens * cached
        + usage.cache_creation_tokens * fresh * _CACHE_WRITE
        + usage.completion_tokens * Decimal(price.output_per_m_tok)
    )
    return total / _MILLION


def spent(target: Target, usage: Usage) -> Decimal | None:
    """What one answer of a target cost: nothing in the cluster, None where a hosted target's price is unknown."""
    if target.hosted is None:
        return ZERO
    return None if target.price is None else cost(usage, target.price)


def most(features: Features, target: Target) -> Usage:
    """The most tokens that a target can count for a request, by the estimate of its prompt."""
    prompt = features.prompt_tokens + features.images * _IMAGE_TOKENS
    if features.operation is Operation.EMBEDDINGS:
        return Usage(prompt, 0)
    answer = features.max_tokens or DEFAULT_MAX_TOKENS
    length = target.capabilities.context_length
    if features.max_tokens is None and length is not None:
        answer = min(answer, max(length - prompt, 1))
    return Usage(prompt, answer * features.answers)


def reservation(features: Features, candidates: Iterable[Target], escalation: Target | None = None) -> Decimal:
    """The most that a request can cost: one answer of its dearest candidate, and one of the target it escalates to.

    Candidates that fail before their first byte cost nothing, so that only one of them is paid. A hosted target
    without a price counts as nothing: a policy with budgets and such a target is not accepted.
    """
    dearest = max((_worst(features, target) for target in candidates), default=ZERO)
    return dearest + (ZERO if escalation is None else _worst(features, escalation))


def nanodollars(usd: Decimal) -> int:
    """Whole billionths of a dollar, rounded up: what stores count in, exact in a double up to 9 million dollars."""
    return int((usd * _NANODOLLARS).to_integral_value(rounding=ROUND_CEILING))


def dollars(nano: int) -> Decimal:
    """The amount again."""
    return Decimal(nano) / _NANODOLLARS


def _worst(features: Features, target: Target) -> Decimal:
    """A provider may write the whole prompt to its cache, which costs more than reading it."""
    if target.hosted is None or target.price is None:
        return ZERO
    usage = most(features, target)
    if target.hosted.provider == "Anthropic":
        usage = Usage(usage.prompt_tokens, usage.completion_tokens, cache_creation_tokens=usage.prompt_tokens)
    return cost(usage, target.price)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
