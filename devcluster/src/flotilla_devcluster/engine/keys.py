"""API keys, as OpenAI clients send them."""

from __future__ import annotations

import hmac
from collections.abc import Iterable


def opens(authorization: str, keys: Iterable[str]) -> bool:
    """Whether the header `Bearer KEY` has one of these keys."""
    scheme, _, key = authorization.partition(" ")
    known = any(hmac.compare_digest(key.encode(), expected.encode()) for expected in keys)
    return known and scheme.lower() == "bearer"
