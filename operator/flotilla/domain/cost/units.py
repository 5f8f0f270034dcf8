"""How much of a GPU a pod holds, in whole GPUs."""

import re
from decimal import Decimal
from fractions import Fraction

COMPUTE_SLICES, MEMORY_SLICES = 7, 8
"""Of the GPUs that have MIG, from the A100 on."""
_SHARE = re.compile(r"^([1-9]\d{0,3})/([1-9]\d{0,3})$")


def gpu_units(count: int, share: Fraction = Fraction(1)) -> Decimal:
    """`count` units of a class, each of which is `share` of a GPU."""
    return Decimal(count) * share.numerator / share.denominator


def mig_share(compute_slices: int, memory_slices: int) -> Fraction:
    """The greater of the slice's two shares, so that what no other slice can use is paid for: two 3g.40gb are a GPU."""
    return max(Fraction(compute_slices, COMPUTE_SLICES), Fraction(memory_slices, MEMORY_SLICES))


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
