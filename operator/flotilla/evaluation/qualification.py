"""Whether a target of a RoutingPolicy has qualified: what its required Evaluations say about what it serves. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from flotilla.api.routing_policy import ExternalTarget, ModelDeploymentRef
from flotilla.evaluation.revision import hosted_revision, self_hosted_revision
from flotilla.routing.document import Target
from flotilla.routing.promotion import EvidenceState, TargetEvidence, combine

Object = Mapping[str, Any]
_STATES = {
    "Qualified": EvidenceState.QUALIFIED,
    "Disqualified": EvidenceState.DISQUALIFIED,
    "Inconclusive": EvidenceState.INCONCLUSIVE,
}


def target_evidence(
    target: Target,
    required: Sequence[str],
    evaluations: Mapping[str, Object],
    model: Object | None = None,
    deployment: Object | None = None,
) -> TargetEvidence:
    """What the required Evaluations, by name, say about the present revision of a target.

    `evaluations` are the live objects of the namespace by name. `model` and `deployment` are the ModelDeployment of a
    target in the cluster and its apps/v1 Deployment.
    """
    revision = present_revision(target, model, deployment)
    if revision is None:
        return TargetEvidence(EvidenceState.UNKNOWN, message=f"Nothing serves target {target.name!r} yet.")
    return combine(_judged(target, name, evaluations.get(name), revision, model, deployment) for name in required)


def present_revision(target: Target, model: Object | None, deployment: Object | None) -> str | None:
    """What the target serves now, None where nothing does. It is what an Evaluation calls the target's revision."""
    if target.cluster is not None:
        reference = ModelDeploymentRef(name=target.cluster.model_deployment, adapter=target.cluster.adapter)
        return self_hosted_revision(reference, model, deployment)
    assert target.hosted is not None
    hosted = target.hosted
    external = {"provider": hosted.provider, "baseURL": hosted.base_url, "model": hosted.served_model}
    return hosted_revision(ExternalTarget.model_validate({**external, "secretRef": hosted.secret_ref.model_dump()}))


def _judged(
    target: Target,
    name: str,
    evaluation: Object | None,
    revision: str,
    model: Object | None,
    deployment: Object | None,
) -> TargetEvidence:
    """What one Evaluation says."""

    def unknown(message: str) -> TargetEvidence:
        return TargetEvidence(EvidenceState.UNKNOWN, revision, message)

    if evaluation is None:
        return unknown(f"There is no Evaluation {name!r} in this namespace.")
    spec, status = evaluation.get("spec") or {}, evaluation.get("status") or {}
    asked = next((one for one in spec.get("targets") or () if _same_place(one, target)), None)
    if asked is None:
        return unknown(f"Evaluation {name!r} does not ask target {target.name!r}: add it to spec.targets there.")
    result = next((one for one in status.get("results") or () if one.get("target") == asked["name"]), None)
    if result is None or result.get("verdict") not in _STATES:
        return unknown(f"Evaluation {name!r} has no verdict about target {target.name!r} yet.")
    measured = revision
    if target.hosted is not None:
        # The Evaluation may write the same URL with a slash at its end.
        measured = hosted_revision(ExternalTarget.model_validate(asked["external"]))
    if result.get("revision") != measured:
        return unknown(f"Evaluation {name!r} has not judged the revision that target {target.name!r} serves now.")
    said = result.get("message") or result.get("reason") or ""
    message = f"Evaluation {name!r} says {result['verdict']}{f': {said}' if said else '.'}"
    return TargetEvidence(_STATES[result["verdict"]], revision, message[:500], _unix_s(result.get("finishedTime")))


def _same_place(asked: Object, target: Target) -> bool:
    """Whether a target of an Evaluation is the same model as one of a policy; their names may differ."""
    reference, external = asked.get("modelDeploymentRef"), asked.get("external")
    if target.cluster is not None:
        mine = (target.cluster.model_deployment, target.cluster.adapter)
        return reference is not None and (reference.get("name"), reference.get("adapter")) == mine
    assert target.hosted is not None
    hosted = (target.hosted.provider, target.hosted.base_url, target.hosted.served_model)
    return external is not None and hosted == (
        external.get("provider", "OpenAI"),
        external.get("baseURL", "").rstrip("/"),
        external.get("model"),
    )


def _unix_s(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
