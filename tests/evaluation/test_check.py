"""What keeps an Evaluation from running although its schema is fulfilled."""

from typing import Any

import pytest
from tests.support.schema import put
from tests.support.whole import EVALUATION

from flotilla.api.evaluation import EvaluationSpec
from flotilla.evaluation.check import check_evaluation
from flotilla.routing.document import DeploymentFacts

FACTS = {
    "qwen2-5-1-5b": DeploymentFacts(
        name="qwen2-5-1-5b", served_name="q", engine="vllm", adapters=("triage",), context_length=None
    )
}


def found(*changes: tuple[tuple[Any, ...], Any], facts: Any = None) -> list[tuple[str, str, bool]]:
    spec = EVALUATION["spec"]
    for path, value in changes:
        spec = put(spec, path, value)
    findings = check_evaluation(EvaluationSpec.model_validate(spec), FACTS if facts is None else facts)
    assert all(finding.message.endswith(".") for finding in findings)
    return [(finding.field, finding.reason, finding.waits) for finding in findings]


def test_a_sound_evaluation_has_no_findings() -> None:
    assert found((("requirements", "quality"), {"minPermille": 900})) == []


@pytest.mark.parametrize(
    ("path", "value", "finding"),
    [
        (
            ("targets", 1, "modelDeploymentRef", "name"),
            "other",
            ("spec.targets[1].modelDeploymentRef.name", "ModelDeploymentNotFound", True),
        ),
        (
            ("targets", 1, "modelDeploymentRef", "adapter"),
            "other",
            ("spec.targets[1].modelDeploymentRef.adapter", "AdapterNotFound", True),
        ),
        (
            ("targets", 0, "external", "baseURL"),
            "https://10.0.0.1/v1",
            ("spec.targets[0].external.baseURL", "ForbiddenAddress", False),
        ),
        (
            ("targets", 0, "external", "provider"),
            "Bedrock",
            ("spec.targets[0].external.provider", "ProviderNotSupported", False),
        ),
        (
            ("requirements", "quality", "withinPermilleOf", "target"),
            "frontier",
            ("spec.requirements.quality.withinPermilleOf.target", "JudgeIsMeasure", False),
        ),
    ],
)
def test_each_finding_names_the_field(path: tuple[Any, ...], value: Any, finding: tuple[str, str, bool]) -> None:
    quality = (("requirements", "quality"), {"minPermille": 900})
    assert found(*((quality,) if "quality" not in path else ()), (path, value)) == [finding]


def test_a_judge_alone_has_nothing_to_judge() -> None:
    targets = [EVALUATION["spec"]["targets"][0]]
    quality = (("requirements", "quality"), {"minPermille": 900})
    assert found(quality, (("targets",), targets)) == [("spec.scorer.judge.target", "NothingToJudge", False)]
