"""The conditions of an Evaluation, from what its check found and what its run came to. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flotilla.api.types import Verdict, set_conditions
from flotilla.errors import InvalidSpec
from flotilla.evaluation.check import EvaluationFinding
from flotilla.evaluation.summary import RunSummary, load_summary
from flotilla.kube import observed

_SHOWN = 5


STUCK = frozenset({"DatasetInvalid", "KeyMissing", "RunFailed", "NameConflict"})
"""Reasons of Complete that last until somebody changes something."""


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run is. `reason` is that of the condition Complete."""

    reason: str
    said: str = ""
    """What the run or Kubernetes reports."""
    address: str = ""
    """Of the pod that runs."""
    summary: RunSummary | None = None
    """Of a run that has ended with results."""
    finished_time: str = ""
    targets: tuple[str, ...] = ()


def run_state(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> RunState:
    """From the Job and its pods."""
    conditions = {c["type"]: c for c in (job.get("status") or {}).get("conditions") or () if c.get("status") == "True"}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True):
        container: Mapping[str, Any] = next(iter((pod.get("status") or {}).get("containerStatuses") or ()), {})
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode") == 0:
            return _ended(ended)
    if "Failed" in conditions:
        failed = conditions["Failed"]
        return RunState(
            "RunFailed", f"{failed.get('reason', '')}: {failed.get('message', '')} {_last_said(pods)}".strip()
        )
    if "Complete" in conditions:
        return RunState("RunFailed", "The Job has ended, and its pod with the results is gone.")
    if "Suspended" in conditions or (job.get("spec") or {}).get("suspend"):
        return RunState("Queued", "The Job is suspended.")
    if not pods:
        return RunState("Starting", "The Job has no pod yet.")
    reduced = observed.pod(pods[0])
    if not reduced.scheduled:
        return RunState("Starting", reduced.scheduling_message or "The pod is not scheduled yet.")
    if reduced.waiting_reason:
        said = _last_said(pods)
        if reduced.restarts or said:
            return RunState("TargetUnreachable", said or reduced.waiting_message)
        return RunState("Starting", f"{reduced.waiting_reason} {reduced.waiting_message}".strip())
    return RunState("Running", address=reduced.ip)


def _ended(ended: Mapping[str, Any]) -> RunState:
    finished = str(ended.get("finishedAt") or "")
    try:
        summary = load_summary(str(ended.get("message") or ""))
    except InvalidSpec as error:
        return RunState("RunFailed", str(error), finished_time=finished)
    if summary.error:
        reason = summary.reason if summary.reason in STUCK else "RunFailed"
        return RunState(reason, summary.error, finished_time=finished)
    return RunState("Complete", summary=summary, finished_time=finished)


def _last_said(pods: Sequence[Mapping[str, Any]]) -> str:
    """The error of the last attempt that ended."""
    for pod in pods:
        container: Mapping[str, Any] = next(iter((pod.get("status") or {}).get("containerStatuses") or ()), {})
        for part in ("state", "lastState"):
            message = ((container.get(part) or {}).get("terminated") or {}).get("message")
            if message:
                try:
                    return load_summary(message).error
                except InvalidSpec:
                    return ""
    return ""


def completeness(state: RunState, run: Mapping[str, Any] | None = None) -> Verdict:
    """The condition Complete."""
    run = run or {}
    again = f" When it is corrected, delete Job {run.get('jobName', '')!r} to run again." if run else ""

    def no(reason: str, message: str) -> Verdict:
        return Verdict("Complete", "False", reason, message)

    if state.reason == "Complete":
        return Verdict("Complete", "True", "Complete", "Every target that is asked for has results.")
    if state.reason == "TargetsNotReady":
        names = ", ".join(sorted(state.targets))
        return no(
            "TargetsNotReady",
            f"These targets do not serve their newest revision yet: {names}. A model at zero replicas is not "
            "started for an evaluation: set spec.scaling.minReplicas to 1 for it.",
        )
    if state.reason == "Running":
        done, total = run.get("casesDone"), run.get("casesTotal")
        return no("Running", f"{done} of {total} cases are done." if total else "The run has begun.")
    if state.reason == "TargetUnreachable":
        return no("TargetUnreachable", f"The run is interrupted and tries again. {state.said}")
    if state.reason == "Queued":
        return no("Queued", "The Job waits in its queue.")
    if state.reason == "Starting":
        return no("Starting", f"The Job starts. {state.said}")
    if state.reason == "DatasetInvalid":
        return no("DatasetInvalid", f"The dataset cannot be used: {state.said}{again}")
    if state.reason == "KeyMissing":
        return no("KeyMissing", f"{state.said}{again}")
    return no("RunFailed", f"The run has failed. {state.said}{again}")


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
