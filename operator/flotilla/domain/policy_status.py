"""The conditions of a RoutingPolicy, from what its check found."""

from collections.abc import Collection, Sequence

from flotilla.domain.readiness import Verdict
from flotilla.domain.routing.check import Finding, Problem
from flotilla.errors import InvalidSpec

_RESOLUTION = frozenset({Problem.MODEL_DEPLOYMENT_NOT_FOUND, Problem.ADAPTER_NOT_FOUND})
_SOVEREIGNTY = frozenset({Problem.CLASS_WITHOUT_TARGET, Problem.OUTSIDE_EVERY_CLASS, Problem.ROUTE_CLOSED})
_ACCEPTANCE = frozenset(Problem) - _RESOLUTION - _SOVEREIGNTY
_SHOWN = 5


def judge(findings: Sequence[Finding], unreadable: InvalidSpec | None = None) -> list[Verdict]:
    """All conditions, Ready, Reconciling and Stalled included."""
    if unreadable is not None:
        message = f"{unreadable.field}: {unreadable}"
        accepted = Verdict("Accepted", "False", unreadable.reason, message)
    else:
        accepted = _verdict("Accepted", "Accepted", "The policy is sound.", findings, _ACCEPTANCE)
    resolved = _verdict("ResolvedRefs", "ResolvedRefs", "Every reference exists.", findings, _RESOLUTION)
    sovereignty = _verdict(
        "SovereigntyEnforceable",
        "Enforceable",
        "Every data class has a target, and every route has one for every class.",
        findings,
        _SOVEREIGNTY,
    )
    programmed = Verdict(
        "Programmed",
        "False",
        "GatewayNotInstalled",
        "This release of Flotilla checks policies and has no gateway that serves them yet.",
    )
    chain = [accepted, resolved, sovereignty, programmed]
    blocked = next((v for v in chain if v.status == "False"), None)
    assert blocked is not None
    broken = blocked is not programmed
    waits = blocked is resolved
    return [
        Verdict("Ready", "False", blocked.reason, blocked.message),
        Verdict("Reconciling", "True", blocked.reason, blocked.message)
        if waits
        else Verdict("Reconciling", "False", "Settled", "Nothing is left to do."),
        Verdict("Stalled", "True", blocked.reason, blocked.message)
        if broken and not waits
        else Verdict("Stalled", "False", "Progressing", "Nothing blocks the resource."),
        *chain,
    ]


def _verdict(
    type_: str, good: str, message: str, findings: Sequence[Finding], problems: Collection[Problem]
) -> Verdict:
    mine = [finding for finding in findings if finding.problem in problems]
    if not mine:
        return Verdict(type_, "True", good, message)
    shown = " ".join(f"{finding.path}: {finding.message}" for finding in mine[:_SHOWN])
    more = f" ({len(mine) - _SHOWN} more.)" if len(mine) > _SHOWN else ""
    return Verdict(type_, "False", str(mine[0].problem), shown + more)
