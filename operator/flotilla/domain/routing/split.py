"""Weighted rendezvous hashing: shares are proportional, a seed keeps its target, and when one target goes or a weight
changes, only the sessions that must move do."""

import math
from collections.abc import Sequence
from hashlib import blake2b


def split(shares: Sequence[tuple[str, int]], seed: str) -> str:
    """The target of a seed, of one or more with their weights."""
    if len(shares) == 1:
        return shares[0][0]
    return min(shares, key=lambda share: (_distance(seed, share[0]) / share[1], share[0]))[0]


def _distance(seed: str, target: str) -> float:
    """An exponentially distributed number that depends on nothing but its arguments."""
    number = int.from_bytes(blake2b(f"{seed}/{target}".encode(), digest_size=8).digest())
    return -math.log((number + 1) / 2**64)
