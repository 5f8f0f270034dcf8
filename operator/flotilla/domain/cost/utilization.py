"""How much of a deployment's token capacity was used.

It is measured by tokens: a GPU's own utilization shows 78 % at one request per second (vllm-cost-meter, Llama-3.1-8B on
an H100: 78 % and 279 W at 4.1 % of the saturated throughput).
"""

from decimal import Decimal

_ONE = Decimal(1)


def saturation_ratio(tokens: Decimal, *, seconds: Decimal, tokens_per_second: Decimal) -> Decimal | None:
    """Served over what `tokens_per_second` could have served in that time; None without either. 1 at most."""
    capacity = tokens_per_second * seconds
    return min(tokens / capacity, _ONE) if capacity > 0 else None


def at_full_load(effective_usd: Decimal, saturation: Decimal) -> Decimal:
    """The unit cost that the same hardware has when it is saturated."""
    return effective_usd * saturation
