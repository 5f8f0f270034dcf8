"""`flotilla render`: what the operator would make of resources, without a cluster, for the review of a change."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from flotilla.api.model_deployment import ModelDeployment
from flotilla.api.routing_policy import RoutingPolicy
from flotilla.api.scaling import ScalingMode
from flotilla.cli import manifests
from flotilla.constants import ANNOTATION_HASH
from flotilla.domain.resolve import Catalog, Resolved, resolve
from flotilla.domain.routing.check import Problem, check
from flotilla.domain.routing.document import DeploymentFacts, facts_of
from flotilla.errors import InvalidSpec
from flotilla.render.workload import children

Object = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What one resource becomes."""

    kind: str
    namespace: str
    name: str
    summary: str = ""
    objects: list[Object] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """Why the operator would not act on it."""
    notes: list[str] = field(default_factory=list)
    """What its status would point out."""

    @property
    def title(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def outcomes(documents: Sequence[Object], catalog: Catalog, *, namespace: str) -> list[Outcome]:
    """One for each of our resources; others are passed over."""
    ours = [document for document in documents if manifests.is_ours(document)]
    deployments: dict[str, dict[str, DeploymentFacts]] = defaultdict(dict)
    for document in ours:
        if document.get("kind") == "ModelDeployment" and (name := (document.get("metadata") or {}).get("name")):
            deployments[_namespace(document, namespace)][str(name)] = facts_of(document)
    return [_outcome(document, catalog, deployments, namespace) for document in ours]


def _namespace(document: Object, default: str) -> str:
    return str((document.get("metadata") or {}).get("namespace") or default)


def _outcome(
    document: Object, catalog: Catalog, deployments: Mapping[str, Mapping[str, DeploymentFacts]], namespace: str
) -> Outcome:
    meta = document.get("metadata") or {}
    found = Outcome(str(document.get("kind")), _namespace(document, namespace), str(meta.get("name", "?")))
    try:
        parsed = manifests.parse(document, namespace=namespace)
        if isinstance(parsed, ModelDeployment):
            _deployment(found, parsed, catalog)
        elif isinstance(parsed, RoutingPolicy):
            _policy(found, parsed, deployments.get(found.namespace, {}))
    except InvalidSpec as error:
        found.refusals.append(f"{error.field}: {error}".lstrip(": "))
    return found


def _deployment(found: Outcome, model: ModelDeployment, catalog: Catalog) -> None:
    resolved = resolve(model.metadata.name, model.spec, catalog)
    found.summary = _summary(resolved)
    found.notes += resolved.warnings
    scaling = model.spec.scaling
    wanted = scaling.min_replicas if scaling.mode is ScalingMode.INTERNAL else model.spec.replicas
    replicas = 1 if wanted is None else wanted
    found.objects = [_unowned(child) for child in children(model, resolved, replicas=replicas)]


def _summary(resolved: Resolved) -> str:
    fit = resolved.fit
    parts = [
        f"{resolved.profile.name} {resolved.engine_version}",
        resolved.quantization.method,
        f"{resolved.gpus} x {resolved.accelerator.class_name}",
        f"{fit.context_length} tokens of context, {fit.verdict}" if fit and fit.context_length else "fit unknown",
    ]
    return ", ".join(parts)


def _unowned(child: Object) -> Object:
    """Without the owner, whose uid only a cluster can give, and the hash, which contains it."""
    meta = {key: value for key, value in child["metadata"].items() if key not in ("ownerReferences", "annotations")}
    kept = {key: value for key, value in child["metadata"]["annotations"].items() if key != ANNOTATION_HASH}
    return {**child, "metadata": {**meta, **({"annotations": kept} if kept else {})}}


def _policy(found: Outcome, policy: RoutingPolicy, deployments: Mapping[str, DeploymentFacts]) -> None:
    for finding in check(policy.spec, deployments):
        # What is not among the files may be in the cluster.
        missing = finding.problem is Problem.MODEL_DEPLOYMENT_NOT_FOUND
        (found.notes if missing else found.refusals).append(f"{finding.path}: {finding.message}")
    found.summary = f"{len(policy.spec.rules)} rules, {len(policy.spec.targets)} targets"


def as_yaml(found: Sequence[Outcome]) -> str:
    """A stream of manifests with a comment before each resource's."""
    parts = []
    for outcome in found:
        lines = [f"# {outcome.title}: {outcome.summary or 'refused'}"]
        lines += [f"# refused: {text}" for text in outcome.refusals] + [f"# note: {text}" for text in outcome.notes]
        parts.append("\n".join(lines) + "\n")
        parts += ["---\n" + yaml.safe_dump(obj, sort_keys=False, width=110) for obj in outcome.objects]
    return "".join(parts)


def as_json(found: Sequence[Outcome]) -> str:
    """A list with kind, namespace, name, summary, objects, refusals and notes of each."""
    keys = ("kind", "namespace", "name", "summary", "objects", "refusals", "notes")
    return json.dumps([{key: getattr(outcome, key) for key in keys} for outcome in found], indent=2)
