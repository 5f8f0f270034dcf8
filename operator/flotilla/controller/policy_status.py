"""The conditions of a RoutingPolicy, from what its check found and what its gateway reports."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flotilla.api.preference import RouteReason, RouteStatus
from flotilla.api.types import Verdict, set_conditions
from flotilla.errors import FlotillaError, InvalidSpec, NameTaken
from flotilla.kube.observed import STUCK_REASONS, Pod
from flotilla.routing.budgets import MAX_BYTES, Admission
from flotilla.routing.check import RESOLUTION, SOVEREIGNTY, PolicyFinding, Problem

_ACCEPTANCE = frozenset(Problem) - RESOLUTION - SOVEREIGNTY
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """What a pod of a gateway reports about itself."""

    hash: str
    """Of the document that it serves."""
    problem: str = ""
    """Why that is not the newest one."""
    missing_keys: tuple[str, ...] = ()
    """Keys of Secrets that were not mounted, by `key_file`."""


@dataclass(frozen=True, slots=True)
class GatewayView:
    """What is known of a namespace's gateway."""

    wanted_hash: str
    pods: tuple[Pod, ...] = ()
    reports: Mapping[str, GatewayReport] = field(default_factory=dict)
    """Of the ready pods, by uid; without those that did not answer."""
    error: FlotillaError | None = None
    """Why its objects are not what they should be."""

    @property
    def behind(self) -> bool:
        """Whether a ready pod has yet to report the document. It is asked again then, because no event reports it."""
        return bool(self.lagging)

    @property
    def lagging(self) -> tuple[Pod, ...]:
        """The ready pods that have yet to report the document."""
        return tuple(p for p in self.ready if p.uid not in self.reports or not self.serves(self.reports[p.uid]))

    def serves(self, report: GatewayReport) -> bool:
        """Whether a pod serves the document."""
        return report.hash == self.wanted_hash

    @property
    def missing_keys(self) -> frozenset[str]:
        """Keys that some pod lacks."""
        return frozenset(key for report in self.reports.values() for key in report.missing_keys)

    @property
    def ready(self) -> tuple[Pod, ...]:
        """The pods that clients reach."""
        return tuple(pod for pod in self.pods if pod.ready and not pod.terminating)


def judge(admission: Admission, *, generation: int, gateway: GatewayView) -> list[Verdict]:
    """All conditions, Ready, Reconciling and Stalled included."""
    unreadable, findings = admission.unreadable, admission.findings
    if unreadable is not None:
        accepted = Verdict("Accepted", "False", unreadable.reason, f"{unreadable.field}: {unreadable}")
    else:
        accepted = _verdict("Accepted", "Accepted", "The policy is sound.", findings, _ACCEPTANCE)
    resolved = _verdict("ResolvedRefs", "ResolvedRefs", "Every reference exists.", findings, RESOLUTION)
    sovereignty = _verdict(
        "SovereigntyEnforceable",
        "Enforceable",
        "Every data class has a target, and every route has one for every class.",
        findings,
        SOVEREIGNTY,
    )
    served = programmed(admission, generation=generation, gateway=gateway)
    chain = [accepted, resolved, sovereignty, served]
    blocked = next((verdict for verdict in chain if verdict.status == "False"), None)
    stuck = isinstance(gateway.error, InvalidSpec | NameTaken) or admission.too_large
    return [*_summary(blocked, waits=blocked is resolved or (blocked is served and not stuck)), *chain]


def programmed(admission: Admission, *, generation: int, gateway: GatewayView) -> Verdict:
    """Whether every replica that clients reach serves this generation of the policy."""

    def no(reason: str, message: str) -> Verdict:
        return Verdict("Programmed", "False", reason, message)

    if admission.too_large:
        kept = admission.served_generation
        served = "The gateway does not serve it." if kept is None else f"The gateway keeps serving generation {kept}."
        return no(
            "DocumentTooLarge",
            "The gateway's configuration has no space for this policy: those of a namespace may take "
            f"{MAX_BYTES} bytes. {served} Move some policies to another namespace.",
        )
    if admission.served_generation is None:
        return no("NotAccepted", "The gateway does not serve the policy: see Accepted and SovereigntyEnforceable.")
    if admission.served_generation != generation:
        return no(
            "OlderGenerationServed",
            f"The gateway keeps serving generation {admission.served_generation}, the last valid one: see Accepted and "
            "SovereigntyEnforceable.",
        )
    if isinstance(gateway.error, NameTaken):
        return no("NameConflict", str(gateway.error))
    if isinstance(gateway.error, InvalidSpec):
        return no(gateway.error.reason, str(gateway.error))
    if gateway.error is not None:
        return no("GatewayWaiting", f"An object of the gateway cannot be written yet: {gateway.error}")
    if not gateway.ready:
        stuck = next((pod for pod in gateway.pods if pod.waiting_reason in STUCK_REASONS), None)
        if stuck is not None:
            said = stuck.last_log_line or stuck.waiting_message or stuck.last_exit
            return no("GatewayNotStarting", f"The gateway does not start ({stuck.waiting_reason}): {said}")
        return no("GatewayStarting", "No replica of the gateway is ready yet.")
    if gateway.behind:
        problem = next((r.problem for r in gateway.reports.values() if r.problem and not gateway.serves(r)), "")
        said = f" It says: {problem}" if problem else ""
        return no("GatewayUpdating", f"Not every replica of the gateway serves the newest document yet.{said}")
    return Verdict("Programmed", "True", "Programmed", "Every replica of the gateway serves the policy.")


def build(
    live: Mapping[str, Any],
    admission: Admission,
    gateway: GatewayView,
    *,
    now: str,
    endpoint: str,
    routes: Sequence[RouteStatus] = (),
) -> dict[str, Any]:
    """The whole status; `now` is RFC 3339 and only ends up in changed conditions.

    `routes` are the states of the served rules with a preference.
    """
    generation = int(live["metadata"]["generation"])
    verdicts = judge(admission, generation=generation, gateway=gateway)
    before = (live.get("status") or {}).get("conditions") or ()
    conditions = set_conditions(
        before if routes else [one for one in before if one["type"] not in _OF_EVIDENCE],
        [*verdicts, *evidence_conditions(routes)],
        generation=generation,
        now=now,
    )
    status: dict[str, Any] = {"conditions": conditions, "observedGeneration": generation}
    if admission.served_generation is not None:
        status |= {
            "endpoint": endpoint,
            "configHash": gateway.wanted_hash,
            "programmedGeneration": admission.served_generation,
        }
    if routes:
        dumped = (route.model_dump(mode="json", by_alias=True, exclude_none=True) for route in routes)
        # An empty list is one that the apiserver may leave out.
        status["rules"] = [{name: value for name, value in one.items() if value != []} for one in dumped]
    return status


_OF_EVIDENCE = ("Qualified", "Promoting")


def evidence_conditions(routes: Sequence[RouteStatus]) -> list[Verdict]:
    """Qualified and Promoting, for a policy with a preference. They do not count for Ready."""
    if not routes:
        return []
    # Only a pilot, which needs no evaluation, has a share without a revision.
    pilots = [route for route in routes if not any(share.revision for share in route.shares)]
    if pilots:
        lost = [route for route in pilots if route.reason in (RouteReason.GUARD_BREACHED, RouteReason.VERDICT_LOST)]
        first = (lost or pilots)[0]
        reason = str(first.reason) if lost else "NoTargetQualified"
        qualified = Verdict("Qualified", "False", reason, f"Rule {first.name!r}: {first.message}")
    else:
        targets = ", ".join(f"{route.candidate or route.holder!r} for rule {route.name!r}" for route in routes)
        qualified = Verdict("Qualified", "True", "Qualified", f"Evidence qualifies {targets}.")
    moving = next((route for route in routes if route.candidate is not None), None)
    if moving is None:
        return [qualified, Verdict("Promoting", "False", "Settled", "No traffic is being moved.")]
    shares = ", ".join(f"{share.target} {share.percent} %" for share in moving.shares)
    message = f"Rule {moving.name!r}: {shares}. {moving.message}"
    return [qualified, Verdict("Promoting", "True", str(moving.reason), message)]


def _summary(blocked: Verdict | None, *, waits: bool) -> list[Verdict]:
    settled = Verdict("Reconciling", "False", "Settled", "Nothing is left to do.")
    free = Verdict("Stalled", "False", "Progressing", "Nothing blocks the resource.")
    if blocked is None:
        return [Verdict("Ready", "True", "Ready", "The policy is served."), settled, free]
    return [
        Verdict("Ready", "False", blocked.reason, blocked.message),
        Verdict("Reconciling", "True", blocked.reason, blocked.message) if waits else settled,
        free if waits else Verdict("Stalled", "True", blocked.reason, blocked.message),
    ]


def _verdict(
    type_: str, good: str, message: str, findings: Sequence[PolicyFinding], problems: Collection[Problem]
) -> Verdict:
    mine = [finding for finding in findings if finding.problem in problems]
    if not mine:
        return Verdict(type_, "True", good, message)
    shown = " ".join(f"{finding.path}: {finding.message}" for finding in mine[:_SHOWN])
    more = f" ({len(mine) - _SHOWN} more.)" if len(mine) > _SHOWN else ""
    return Verdict(type_, "False", str(mine[0].problem), shown + more)
