"""The conditions of an Evaluation, from what its check found and what its run came to. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from flotilla.api.types import Verdict, set_conditions
from flotilla.errors import InvalidSpec
from flotilla.evaluation.check import EvaluationFinding

_SHOWN = 5


def evaluation_conditions(
    unreadable: InvalidSpec | None, findings: Sequence[EvaluationFinding], complete: Verdict
) -> list[Verdict]:
    """All conditions, Ready, Reconciling and Stalled included. `complete` is what the run came to."""
    wrong = [finding for finding in findings if not finding.waits]
    if unreadable is not None:
        accepted = Verdict("Accepted", "False", unreadable.reason, f"{unreadable.field}: {unreadable}")
    else:
        accepted = _verdict("Accepted", "Accepted", "The evaluation is sound.", wrong)
    missing = [finding for finding in findings if finding.waits]
    resolved = _verdict("ResolvedRefs", "ResolvedRefs", "Every target exists.", missing)
    chain = [accepted, resolved, complete]
    blocked = next((verdict for verdict in chain if verdict.status != "True"), None)
    waits = blocked is not None and blocked is not accepted and blocked.reason not in STUCK
    return [*_summary(blocked, waits=waits), *chain]


STUCK = frozenset({"DatasetInvalid", "RunFailed"})
"""Reasons of Complete that last until somebody changes something."""


def _summary(blocked: Verdict | None, *, waits: bool) -> list[Verdict]:
    settled = Verdict("Reconciling", "False", "Settled", "Nothing is left to do.")
    free = Verdict("Stalled", "False", "Progressing", "Nothing blocks the resource.")
    if blocked is None:
        return [Verdict("Ready", "True", "Ready", "There are results of what the targets serve now."), settled, free]
    return [
        Verdict("Ready", "False", blocked.reason, blocked.message),
        Verdict("Reconciling", "True", blocked.reason, blocked.message) if waits else settled,
        free if waits else Verdict("Stalled", "True", blocked.reason, blocked.message),
    ]


def _verdict(type_: str, good: str, message: str, findings: Sequence[EvaluationFinding]) -> Verdict:
    if not findings:
        return Verdict(type_, "True", good, message)
    shown = " ".join(f"{finding.field}: {finding.message}" for finding in findings[:_SHOWN])
    more = f" ({len(findings) - _SHOWN} more.)" if len(findings) > _SHOWN else ""
    return Verdict(type_, "False", findings[0].reason, shown + more)


def build_evaluation_status(
    live: Mapping[str, Any], verdicts: Sequence[Verdict], *, now: str, parts: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole status; `parts` are its fields beside the conditions, and what is None is left out."""
    generation = int(live["metadata"]["generation"])
    conditions = set_conditions(
        (live.get("status") or {}).get("conditions") or (), verdicts, generation=generation, now=now
    )
    return {
        "conditions": conditions,
        "observedGeneration": generation,
        **{name: value for name, value in parts.items() if value is not None},
    }
