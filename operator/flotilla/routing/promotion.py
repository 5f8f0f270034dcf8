"""Where the traffic of a route with a preference goes: a pure state machine over evidence, guard figures and time.

`advance` is called whenever something may have changed. Its state is the `RouteStatus` that it returned before, which
the gateway's document keeps, so that a restart of the operator continues in the middle of a step. `served` turns a
state into the split and the fallbacks that gateways execute; gateways know nothing of evaluations.

One target holds the traffic (the holder), and at most one cheaper target is under promotion (the candidate). Traffic
moves to a candidate step by step. It moves back at once: when the candidate loses its verdict or breaches the guard,
the holder takes all; when the holder does, the next target of the preference takes its share. The last target needs no
evidence, so that there is always one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from flotilla.api.preference import (
    Guard,
    OnInconclusive,
    PreferredTarget,
    Promotion,
    RouteReason,
    RouteShare,
    RouteStatus,
    Withdrawal,
)
from flotilla.api.routing_policy import Fallback, RouteSpec, WeightedTarget

DEFAULT_PROMOTION = Promotion()


class EvidenceState(StrEnum):
    """What all required evaluations together say about the present revision of a target."""

    QUALIFIED = "Qualified"
    DISQUALIFIED = "Disqualified"
    INCONCLUSIVE = "Inconclusive"
    UNKNOWN = "Unknown"
    """No evaluation has judged the present revision."""


@dataclass(frozen=True, slots=True)
class TargetEvidence:
    """What is known of the quality of one target."""

    state: EvidenceState
    revision: str = ""
    """Of what the target serves now."""
    message: str = ""
    """A sentence that says why, such as the evaluation and its interval."""
    finished_s: float | None = None
    """Unix time of the newest verdict about the revision."""


NO_EVALUATION_NEEDED = TargetEvidence(EvidenceState.QUALIFIED, message="It needs no evaluation.")


@dataclass(frozen=True, slots=True)
class GuardFigures:
    """What the gateways counted of one target and its present revision, in the last minutes and in the step."""

    requests: int = 0
    """Attempts that ended, in the window."""
    errors: int = 0
    answers: int = 0
    escalations: int = 0
    timed: int = 0
    """Answers whose time to the first token is known."""
    slow: int = 0
    """Those that took longer than the guard allows."""
    step_requests: int = 0
    """Attempts since the step began."""


@dataclass(frozen=True, slots=True)
class RouteAdvance:
    """The state after a look, and when to look again if nothing else happens before."""

    status: RouteStatus
    again_s: float | None = None


@dataclass(slots=True)
class _Draft:
    """The state while `advance` works on it."""

    holder: str
    candidate: str | None
    step: int
    since: str
    reason: RouteReason
    message: str
    withdrawn: dict[str, Withdrawal] = field(default_factory=dict)

    def move(self, now: str, reason: RouteReason, message: str) -> None:
        """Note why traffic moves."""
        self.since, self.reason, self.message = now, reason, message


def advance(
    name: str,
    preference: Sequence[PreferredTarget],
    promotion: Promotion | None,
    before: RouteStatus | None,
    evidence: Mapping[str, TargetEvidence],
    figures: Mapping[str, GuardFigures],
    now_s: float,
) -> RouteAdvance:
    """The next state of one route.

    `evidence` is by target; one that is missing is unknown. `figures` are by target too, and leave out what the
    gateways did not report: then no step ends and no guard is breached.
    """
    wanted, now = promotion or DEFAULT_PROMOTION, rfc3339(now_s)
    order = [item.target for item in preference]
    known = {item.target: _evidence_of(item, evidence) for item in preference}
    draft = _continued(order, before, now)
    had = {share.target: share.revision for share in before.shares} if before is not None else {}
    draft.withdrawn = {
        target: one
        for target, one in draft.withdrawn.items()
        if target in known and not _superseded(one, known[target])
    }

    def lost(target: str) -> str | None:
        """Why a target with a share of the traffic must not keep it, None where it may."""
        mine = known[target]
        if target in had and had[target] != mine.revision:
            return f"Target {target!r} serves another revision than the one that qualified. {mine.message}"
        keeps = mine.state is EvidenceState.QUALIFIED or (
            mine.state is EvidenceState.INCONCLUSIVE and wanted.on_inconclusive is OnInconclusive.HOLD and target in had
        )
        return None if keeps else f"Target {target!r} is not qualified any more. {mine.message}"

    def withdraw(target: str) -> tuple[RouteReason, str] | None:
        """Whether the target loses its share now, and why."""
        if target == order[-1]:
            return None
        if (why := lost(target)) is not None:
            return RouteReason.VERDICT_LOST, why
        if (bound := breach(wanted.guard, figures.get(target))) is not None:
            draft.withdrawn[target] = Withdrawal(
                target=target,
                revision=known[target].revision,
                since=now,
                verdict_time=_time(known[target].finished_s),
                message=bound,
            )
            return RouteReason.GUARD_BREACHED, f"Target {target!r} breached the guard: {bound}"
        return None

    def eligible(target: str) -> bool:
        return known[target].state is EvidenceState.QUALIFIED and target not in draft.withdrawn

    fell = False
    if draft.candidate is not None and (why := withdraw(draft.candidate)) is not None:
        draft.candidate, draft.step, fell = None, 0, True
        draft.move(now, *why)
    if (why := withdraw(draft.holder)) is not None:
        fell = True
        later = order[order.index(draft.holder) + 1 :]
        draft.holder = next(target for target in later if eligible(target) or target == order[-1])
        draft.move(now, *why)
    waits_s = _promote(draft, order, wanted, known, figures, eligible=eligible, fell=fell, now=now, now_s=now_s)
    qualified = [t for t in order if eligible(t) or t in (draft.holder, draft.candidate, order[-1])]
    status = RouteStatus(
        name=name,
        holder=draft.holder,
        candidate=draft.candidate,
        step=draft.step,
        since=draft.since,
        shares=_shares(draft, wanted, known),
        qualified=[*qualified, *(t for t in order if t in draft.withdrawn and _qualified(known[t]))],
        reason=draft.reason,
        message=draft.message[:1000],
        withdrawn=list(draft.withdrawn.values()),
    )
    return RouteAdvance(status, waits_s)


def _promote(
    draft: _Draft,
    order: Sequence[str],
    wanted: Promotion,
    known: Mapping[str, TargetEvidence],
    figures: Mapping[str, GuardFigures],
    *,
    eligible: Callable[[str], bool],
    fell: bool,
    now: str,
    now_s: float,
) -> float | None:
    """Begin, continue or end a promotion; returns after how many seconds the present step may end.

    `fell` is whether another target lost its share in this look.
    """
    began = False
    if draft.candidate is None:
        cheaper = order[: order.index(draft.holder)]
        draft.candidate = next((target for target in cheaper if eligible(target)), None)
        if draft.candidate is None:
            return None
        draft.step, began = 0, True
        if not fell:
            # Why traffic fell in this look is more important than what begins with the same look.
            draft.move(now, RouteReason.PROMOTING, f"{draft.candidate!r} qualified. {known[draft.candidate].message}")
    if not wanted.steps:
        _complete(draft, now, why=draft.message if fell else "")
        return None
    if began:
        return wanted.steps[0].minutes * 60.0
    if draft.step >= len(wanted.steps):
        draft.step, draft.since = len(wanted.steps) - 1, now
    if known[draft.candidate].state is not EvidenceState.QUALIFIED:
        draft.reason, draft.message = RouteReason.INCONCLUSIVE, f"The step is held. {known[draft.candidate].message}"
        return None
    if draft.reason is RouteReason.INCONCLUSIVE:
        draft.reason, draft.message = RouteReason.PROMOTING, f"{draft.candidate!r} is qualified again."
    left_s = unix_s(draft.since) + wanted.steps[draft.step].minutes * 60.0 - now_s
    if left_s > 0:
        return left_s
    mine = figures.get(draft.candidate)
    if mine is None or mine.step_requests < wanted.guard.min_requests:
        return None
    draft.step += 1
    if draft.step >= len(wanted.steps):
        _complete(draft, now)
        return None
    step = wanted.steps[draft.step]
    draft.move(
        now,
        RouteReason.PROMOTING,
        f"Step {draft.step + 1} of {len(wanted.steps)}: {draft.candidate!r} takes {step.percent} %.",
    )
    return step.minutes * 60.0


def _complete(draft: _Draft, now: str, *, why: str = "") -> None:
    """The candidate takes all; `why` is what happened just before, if anything."""
    assert draft.candidate is not None
    draft.holder, draft.candidate, draft.step = draft.candidate, None, 0
    draft.move(now, RouteReason.PROMOTED, f"{why} {draft.holder!r} takes all traffic.".strip())


def breach(guard: Guard, figures: GuardFigures | None) -> str | None:
    """The bound that is breached and by what; None where none is, or nothing is known.

    Shares of fewer requests than `minRequests` are computed as of that number, so that one bad request of three does
    not end a promotion, while a target that fails all of them does at once.
    """
    if figures is None:
        return None
    least = guard.min_requests
    for name, bound, bad, total in (
        ("errorPermille", guard.error_permille, figures.errors, figures.requests),
        ("escalationPermille", guard.escalation_permille, figures.escalations, figures.answers),
    ):
        if bound is not None and bad * 1000 > bound * max(total, least):
            return f"{bad} of {total} requests count for {name}, which is {bound}."
    slowest = guard.first_token_p99_milliseconds
    if slowest is not None and figures.slow * 100 > max(figures.timed, least):
        return (
            f"{figures.slow} of {figures.timed} answers began after more than {slowest} ms (firstTokenP99Milliseconds)."
        )
    return None


def served(route: RouteSpec, status: RouteStatus) -> RouteSpec:
    """The route as gateways execute it: shares as a split, and every qualified target as a fallback."""
    others = route.fallback.targets if route.fallback is not None else []
    barred = {item.target for item in route.preference} - set(status.qualified)
    targets = [target for target in dict.fromkeys([*status.qualified, *others]) if target not in barred]
    fallback = (route.fallback or Fallback(targets=targets)).model_copy(update={"targets": targets})
    split = [WeightedTarget(target=share.target, weight=share.percent) for share in status.shares]
    return route.model_copy(update={"split": split, "fallback": fallback})


def _continued(order: Sequence[str], before: RouteStatus | None, now: str) -> _Draft:
    """What is left of the state for a preference that may have been edited."""
    last = order[-1]
    if before is None:
        return _Draft(last, None, 0, now, RouteReason.PILOT, f"No target has qualified yet; {last!r} takes all.")
    withdrawn = {one.target: one for one in before.withdrawn}
    draft = _Draft(before.holder, before.candidate, before.step, before.since, before.reason, before.message, withdrawn)
    if draft.holder not in order:
        draft.holder = last
        draft.move(now, RouteReason.POLICY_CHANGED, f"The target before is no longer preferred; {last!r} takes all.")
    if draft.candidate is not None and draft.candidate not in order[: order.index(draft.holder)]:
        draft.candidate, draft.step = None, 0
        draft.move(now, RouteReason.POLICY_CHANGED, f"The preference was edited; {draft.holder!r} takes all.")
    return draft


def _evidence_of(item: PreferredTarget, evidence: Mapping[str, TargetEvidence]) -> TargetEvidence:
    if not item.evaluations:
        return NO_EVALUATION_NEEDED
    return evidence.get(item.target) or TargetEvidence(EvidenceState.UNKNOWN, message="Nothing is known of it.")


def _qualified(evidence: TargetEvidence) -> bool:
    return evidence.state is EvidenceState.QUALIFIED


def _superseded(withdrawal: Withdrawal, evidence: TargetEvidence) -> bool:
    """Whether a newer verdict or another revision lets the target try again."""
    return withdrawal.revision != evidence.revision or withdrawal.verdict_time != _time(evidence.finished_s)


def _shares(draft: _Draft, wanted: Promotion, known: Mapping[str, TargetEvidence]) -> list[RouteShare]:
    trial = wanted.steps[draft.step].percent if draft.candidate is not None else 0
    pairs = ((draft.candidate, trial), (draft.holder, 100 - trial))
    return [
        RouteShare(target=target, percent=percent, revision=known[target].revision)
        for target, percent in pairs
        if target is not None and percent
    ]


def combine(verdicts: Iterable[TargetEvidence]) -> TargetEvidence:
    """What several required evaluations say together: the worst of them, and when the newest was made."""
    found = list(verdicts)
    worst = max(found, key=lambda one: _SEVERITY.index(one.state))
    times = [one.finished_s for one in found if one.finished_s is not None]
    return TargetEvidence(worst.state, worst.revision, worst.message, max(times, default=None))


_SEVERITY = (
    EvidenceState.QUALIFIED,
    EvidenceState.INCONCLUSIVE,
    EvidenceState.UNKNOWN,
    EvidenceState.DISQUALIFIED,
)


def _time(unix: float | None) -> str | None:
    return None if unix is None else rfc3339(unix)


def rfc3339(unix: float) -> str:
    """A Unix time as Kubernetes writes it, in whole seconds."""
    return datetime.fromtimestamp(int(unix), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unix_s(text: str) -> float:
    """The Unix time again."""
    return datetime.fromisoformat(text).timestamp()
