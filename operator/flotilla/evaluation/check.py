"""What is wrong with an Evaluation that its schema cannot tell: references, addresses, the roles of targets. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from flotilla.api.evaluation import EvaluationSpec
from flotilla.api.routing_policy import Provider
from flotilla.routing.check import base_url_problem
from flotilla.routing.document import DeploymentFacts

_OTHER_LOGIN = frozenset({Provider.BEDROCK, Provider.VERTEX_AI})


@dataclass(frozen=True, slots=True)
class EvaluationFinding:
    """Something in the spec that keeps the evaluation from running."""

    field: str
    reason: str
    """Of the condition, in CamelCase."""
    message: str
    waits: bool = False
    """Whether another object may end it, without a change of the spec."""


def check_evaluation(
    spec: EvaluationSpec, deployments: Mapping[str, DeploymentFacts], *, allow_private_hosted_addresses: bool = False
) -> list[EvaluationFinding]:
    """All findings, in the order of the spec. `deployments` are the ModelDeployments of the namespace, by name."""
    findings: list[EvaluationFinding] = []
    for index, target in enumerate(spec.targets):
        path = f"spec.targets[{index}]"
        reference, external = target.model_deployment_ref, target.external
        if external is not None:
            wrong = base_url_problem(external.base_url, allow_private=allow_private_hosted_addresses)
            if wrong is not None:
                findings.append(EvaluationFinding(f"{path}.external.baseURL", "ForbiddenAddress", wrong))
            by_deployment = external.provider is Provider.AZURE_OPENAI and external.api_version is not None
            if external.provider in _OTHER_LOGIN or by_deployment:
                findings.append(
                    EvaluationFinding(
                        f"{path}.external.provider",
                        "ProviderNotSupported",
                        f"Evaluations ask APIs of OpenAI's form by an API key; {external.provider} as set here has "
                        "another login. Use the same model at a provider that has such an API.",
                    )
                )
        if reference is None:
            continue
        known = deployments.get(reference.name)
        if known is None:
            findings.append(
                EvaluationFinding(
                    f"{path}.modelDeploymentRef.name",
                    "ModelDeploymentNotFound",
                    f"No ModelDeployment of this namespace is named {reference.name!r}. Create it or correct the name.",
                    waits=True,
                )
            )
        elif reference.adapter is not None and reference.adapter not in known.adapters:
            findings.append(
                EvaluationFinding(
                    f"{path}.modelDeploymentRef.adapter",
                    "AdapterNotFound",
                    f"ModelDeployment {reference.name!r} has no adapter {reference.adapter!r}. Add it to its "
                    "spec.model.adapters, or correct the name.",
                    waits=True,
                )
            )
    judge = spec.scorer.judge
    if judge is not None and all(target.name == judge.target for target in spec.targets):
        findings.append(
            EvaluationFinding(
                "spec.scorer.judge.target",
                "NothingToJudge",
                "The judge is the only target, and a judge is not scored itself. Add the targets that it shall judge.",
            )
        )
    within = spec.requirements.quality.within_permille_of if spec.requirements.quality else None
    if within is not None and judge is not None and within.target == judge.target:
        findings.append(
            EvaluationFinding(
                "spec.requirements.quality.withinPermilleOf.target",
                "JudgeIsMeasure",
                f"Target {within.target!r} judges and is not scored: nothing can be compared with it. Name another.",
            )
        )
    return findings
