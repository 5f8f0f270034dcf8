"""Merge conditions without touching what did not change."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition without its times. `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str


def set_conditions(
    existing: Sequence[Mapping[str, Any]], verdicts: Iterable[Verdict], *, generation: int, now: str
) -> list[dict[str, Any]]:
    """The conditions with those of `verdicts` set, sorted by type. `now` (RFC 3339) is used where a status changes."""
    merged = {c["type"]: dict(c) for c in existing}
    for verdict in verdicts:
        old = merged.get(verdict.type)
        since = old["lastTransitionTime"] if old is not None and old["status"] == verdict.status else now
        merged[verdict.type] = {
            "type": verdict.type,
            "status": verdict.status,
            "observedGeneration": generation,
            "lastTransitionTime": since,
            "reason": verdict.reason,
            "message": verdict.message,
        }
    return [merged[type_] for type_ in sorted(merged)]
