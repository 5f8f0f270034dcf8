"""Merge conditions without touching what did not change."""

from collections.abc import Mapping, Sequence
from typing import Any


def set_condition(
    existing: Sequence[Mapping[str, Any]],
    *,
    type: str,
    status: str,
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> list[dict[str, Any]]:
    """Return the conditions with one set, sorted by type. `now` (RFC 3339) is used only when `status` changes."""
    old = next((c for c in existing if c["type"] == type), None)
    since = old["lastTransitionTime"] if old is not None and old["status"] == status else now
    fresh = {
        "type": type,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": since,
        "reason": reason,
        "message": message,
    }
    others = [dict(c) for c in existing if c["type"] != type]
    return sorted([*others, fresh], key=lambda c: str(c["type"]))
