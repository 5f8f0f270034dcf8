"""How much of a GPU a pod holds, in whole GPUs."""

import re
from decimal import Decimal
from fractions import Fraction

_SHARE = re.compile(r"^([1-9]\d{0,3})/([1-9]\d{0,3})$")


def gpu_units(count: int, share: Fraction = Fraction(1)) -> Decimal:
    """`count` units of a class, each of which is `share` of a GPU."""
    return Decimal(count) * share.numerator / share.denominator


def time_slice(replicas: int) -> Fraction:
    """One of `replicas` shares of a GPU by time-slicing or MPS."""
    return Fraction(1, replicas)


def parse_share(text: str) -> Fraction:
    """Read `1/7`; raises ValueError."""
    found = _SHARE.match(text)
    share = Fraction(int(found[1]), int(found[2])) if found else Fraction(0)
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is not a share of a GPU: write a fraction up to 1/1, such as 1/7")
    return share
