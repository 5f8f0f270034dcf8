"""Which verdicts of Evaluations count for a target of a policy: those about the same model as it is served now."""

from typing import Any

import pytest
from tests.support.routing import SOUND, compiled
from tests.support.schema import put

from flotilla.api.routing_policy import ExternalTarget, ModelDeploymentRef
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.evaluation.qualification import target_evidence
from flotilla.evaluation.revision import hosted_revision, self_hosted_revision
from flotilla.routing.promotion import TargetEvidence

MODEL: dict[str, Any] = {
    "metadata": {"name": "qwen-small"},
    "status": {"adapters": [{"name": "triage", "digest": "a1"}]},
}
DEPLOYMENT: dict[str, Any] = {"metadata": {"annotations": {ANNOTATION_TEMPLATE_HASH: "t1"}}}
PRESENT = self_hosted_revision(ModelDeploymentRef(name="qwen-small"), MODEL, DEPLOYMENT)
ADAPTED = self_hosted_revision(ModelDeploymentRef(name="qwen-small", adapter="triage"), MODEL, DEPLOYMENT)
RESULT: dict[str, Any] = {
    "target": "base",
    "revision": PRESENT,
    "verdict": "Qualified",
    "message": "950 of 1000 cases are right.",
    "finishedTime": "2026-01-01T00:00:00Z",
}
EVALUATION: dict[str, Any] = {
    "spec": {"targets": [{"name": "base", "modelDeploymentRef": {"name": "qwen-small"}}]},
    "status": {"results": [RESULT]},
}


def judged(evaluation: dict[str, Any] | None, target: str = "small", spec: dict[str, Any] = SOUND) -> TargetEvidence:
    found = {} if evaluation is None else {"triage": evaluation}
    return target_evidence(compiled(spec).target[target], ["triage"], found, MODEL, DEPLOYMENT)


def test_a_verdict_about_what_is_served_now_counts_whatever_the_evaluation_calls_the_target() -> None:
    found = judged(EVALUATION)
    assert (found.state, found.revision, found.finished_s) == ("Qualified", PRESENT, 1767225600.0)
    assert found.message == "Evaluation 'triage' says Qualified: 950 of 1000 cases are right."


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        (None, "There is no Evaluation 'triage'"),
        (put(EVALUATION, ("spec", "targets", 0, "modelDeploymentRef", "name"), "other"), "does not ask target 'small'"),
        (put(EVALUATION, ("spec", "targets", 0, "modelDeploymentRef", "adapter"), "triage"), "does not ask target"),
        (put(EVALUATION, ("status",), {}), "has no verdict about target 'small' yet"),
        (put(EVALUATION, ("status", "results", 0, "verdict"), "Perhaps"), "has no verdict"),
        (put(EVALUATION, ("status", "results", 0, "revision"), "old"), "has not judged the revision"),
    ],
)
def test_everything_else_leaves_it_unknown_and_says_why(evaluation: dict[str, Any] | None, says: str) -> None:
    found = judged(evaluation)
    assert found.state == "Unknown"
    assert says in found.message


def test_a_verdict_about_the_model_says_nothing_of_its_adapter() -> None:
    adapted = put(SOUND, ("targets", 0, "modelDeploymentRef", "adapter"), "triage")
    assert judged(EVALUATION, spec=adapted).state == "Unknown"
    asked = put(EVALUATION, ("spec", "targets", 0, "modelDeploymentRef", "adapter"), "triage")
    assert judged(put(asked, ("status", "results", 0, "revision"), ADAPTED), spec=adapted).state == "Qualified"


def test_a_hosted_model_is_known_by_its_url_with_or_without_a_slash_at_the_end() -> None:
    external = {**SOUND["targets"][2]["external"], "baseURL": "https://api.example.com/v1/"}
    revision = hosted_revision(ExternalTarget.model_validate(external))
    evaluation = {
        "spec": {"targets": [{"name": "big", "external": external}]},
        "status": {"results": [{**RESULT, "target": "big", "revision": revision}]},
    }
    assert judged(evaluation, "frontier").state == "Qualified"


def test_a_model_that_is_not_there_is_unknown() -> None:
    found = target_evidence(compiled(SOUND).target["small"], ["triage"], {"triage": EVALUATION})
    assert (found.state, found.message) == ("Unknown", "Nothing serves target 'small' yet.")
