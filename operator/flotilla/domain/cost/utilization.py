"""How much of what is paid for works. By requests and tokens: a GPU's own utilization shows 78 % at a request a second.

(vllm-cost-meter, Llama-3.1-8B on an H100: 78 % and 279 W at 4.1 % of the saturated throughput.)
"""

from dataclasses import dataclass
from decimal import Decimal

_ZERO, _ONE = Decimal(0), Decimal(1)


@dataclass(frozen=True, slots=True)
class Split:
    """US dollars that add up to the whole."""

    used: Decimal
    headroom: Decimal
    """Replicas had requests and could have taken more."""
    idle: Decimal


def split(usd: Decimal, *, active_ratio: Decimal, saturation_ratio: Decimal) -> Split:
    """Three ways: by the share of time with requests, and by the share of the capacity that was served."""
    active = min(max(active_ratio, _ZERO), _ONE)
    saturation = min(max(saturation_ratio, _ZERO), active)
    used, idle = usd * saturation, usd * (_ONE - active)
    return Split(used=used, headroom=usd - used - idle, idle=idle)


def saturation_ratio(tokens: Decimal, *, seconds: Decimal, tokens_per_second: Decimal) -> Decimal | None:
    """Served over what `tokens_per_second` could have served in that time; None without either. 1 at most."""
    capacity = tokens_per_second * seconds
    return min(tokens / capacity, _ONE) if capacity > 0 else None


def at_full_load(effective_usd: Decimal, saturation: Decimal) -> Decimal:
    """The unit cost that the same hardware has when it is saturated."""
    return effective_usd * saturation


def effective(full_load_usd: Decimal, saturation: Decimal) -> Decimal | None:
    """The unit cost at a saturation; None at none. A cost without it is too low by exactly its inverse."""
    return full_load_usd / saturation if saturation > 0 else None
