"""`flotilla render`: the manifests that the operator would apply, without a cluster, for the review of a change."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from flotilla import __version__
from flotilla.api import admission
from flotilla.api.evaluation import Evaluation
from flotilla.api.model_deployment import ModelDeployment, ScalingMode
from flotilla.api.routing_policy import RoutingPolicy
from flotilla.cli import manifests
from flotilla.cli.common import EXIT_NO, EXIT_OK, EXIT_USAGE, Json, command_app, fail
from flotilla.constants import ANNOTATION_HASH, GATEWAY, IMAGE
from flotilla.errors import InvalidSpec
from flotilla.evaluation.check import check_evaluation
from flotilla.planning.resolve import Catalog, Resolved, load_catalog, resolve
from flotilla.render import gateway
from flotilla.render.workload import children, pod_template
from flotilla.routing.budgets import Admission, Candidate, admit
from flotilla.routing.check import Problem
from flotilla.routing.document import DOCUMENT_FILE, DeploymentFacts, facts_of

app = command_app()
Object = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """The result for one resource."""

    kind: str
    namespace: str
    name: str
    summary: str = ""
    objects: list[Object] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """Why the operator would refuse it."""
    notes: list[str] = field(default_factory=list)
    """Warnings that its status would have."""

    @property
    def title(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def outcomes(documents: Sequence[Object], catalog: Catalog, *, namespace: str) -> list[Outcome]:
    """One for each resource of Flotilla, and one for the gateway of each namespace; other resources are ignored."""
    documents = [document for document in documents if manifests.is_flotilla(document)]
    deployments: dict[str, dict[str, DeploymentFacts]] = defaultdict(dict)
    policies: dict[str, dict[str, RoutingPolicy]] = defaultdict(dict)
    evaluations: list[tuple[Outcome, Evaluation]] = []
    found = []
    for document in documents:
        outcome, parsed = _outcome(document, catalog, namespace)
        found.append(outcome)
        if isinstance(parsed, ModelDeployment):
            deployments[outcome.namespace][outcome.name] = facts_of(document)
        if isinstance(parsed, RoutingPolicy):
            policies[outcome.namespace][outcome.name] = parsed
        if isinstance(parsed, Evaluation):
            evaluations.append((outcome, parsed))
    for outcome, evaluation in evaluations:
        for finding in check_evaluation(evaluation.spec, deployments[outcome.namespace]):
            # A ModelDeployment that is not among the files may be in the cluster.
            (outcome.notes if finding.waits else outcome.refusals).append(f"{finding.field}: {finding.message}")
    for place in policies:
        found += _gateway(place, policies[place], deployments[place], found)
    return found


def _namespace(document: Object, default: str) -> str:
    return str((document.get("metadata") or {}).get("namespace") or default)


def _outcome(
    document: Object, catalog: Catalog, namespace: str
) -> tuple[Outcome, ModelDeployment | RoutingPolicy | Evaluation | None]:
    meta = document.get("metadata") or {}
    found = Outcome(str(document.get("kind")), _namespace(document, namespace), str(meta.get("name", "?")))
    try:
        reviewed = admission.review(document)
        found.refusals += [f"{error.field}: {error}" for error in reviewed.refusals]
        if found.refusals:
            return found, None
        parsed = manifests.parsed(reviewed, namespace=namespace)
        if isinstance(parsed, ModelDeployment):
            _deployment(found, parsed, catalog)
            return found, parsed
        if isinstance(parsed, RoutingPolicy):
            found.summary = f"{len(parsed.spec.rules)} rules, {len(parsed.spec.targets)} targets"
            return found, parsed
        if isinstance(parsed, Evaluation):
            found.summary = f"task {parsed.spec.task}, {len(parsed.spec.targets)} targets, {parsed.spec.scorer.method}"
            return found, parsed
    except InvalidSpec as error:
        found.refusals.append(f"{error.field}: {error}".lstrip(": "))
    return found, None


def _deployment(found: Outcome, model: ModelDeployment, catalog: Catalog) -> None:
    resolved = resolve(model.metadata.name, model.spec, catalog)
    found.summary = _summary(resolved)
    found.notes += resolved.warnings
    scaling = model.spec.scaling
    wanted = scaling.min_replicas if scaling.mode is ScalingMode.INTERNAL else model.spec.replicas
    replicas = 1 if wanted is None else wanted
    found.objects = [
        _unowned(child) for child in children(model, resolved, pod_template(model, resolved), replicas=replicas)
    ]


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


def _gateway(
    namespace: str,
    policies: Mapping[str, RoutingPolicy],
    deployments: Mapping[str, DeploymentFacts],
    found: Sequence[Outcome],
) -> list[Outcome]:
    """The gateway of all policies of a namespace, with default settings; adds the findings to each policy."""
    admitted = admit(
        namespace, [Candidate(name, name, "", policy) for name, policy in policies.items()], deployments, None
    )
    for outcome in found:
        if (outcome.kind, outcome.namespace) == ("RoutingPolicy", namespace) and outcome.name in policies:
            _add_findings(outcome, admitted.admissions[outcome.name])
    served = [policy.name for policy in admitted.document.policies]
    if not served:
        return []
    settings = gateway.GatewaySettings(image=f"{IMAGE}:{__version__}")
    objects = gateway.children(admitted.document, (), settings)
    summary = f"serves {', '.join(served)}"
    return [Outcome("Gateway", namespace, GATEWAY, summary, [_unowned(child) for child in objects])]


def _add_findings(outcome: Outcome, admission: Admission) -> None:
    for finding in admission.findings:
        # A ModelDeployment that is not among the files may be in the cluster.
        missing = finding.problem is Problem.MODEL_DEPLOYMENT_NOT_FOUND
        (outcome.notes if missing else outcome.refusals).append(f"{finding.path}: {finding.message}")


class _Readable(yaml.SafeDumper):
    """Writes text of several lines as a block, so that a diff shows the line that changed."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def as_yaml(found: Sequence[Outcome]) -> str:
    """A stream of manifests, with a comment before those of each resource."""
    parts = []
    for outcome in found:
        lines = [f"# {outcome.title}: {outcome.summary or 'refused'}"]
        lines += [f"# refused: {text}" for text in outcome.refusals] + [f"# note: {text}" for text in outcome.notes]
        parts.append("\n".join(lines) + "\n")
        parts += [
            "---\n" + yaml.dump(_spread(obj), Dumper=_Readable, sort_keys=False, width=110) for obj in outcome.objects
        ]
    return "".join(parts)


def _spread(obj: Object) -> Object:
    """The gateway's document with a line for each value; in the cluster it is one line."""
    text = (obj.get("data") or {}).get(DOCUMENT_FILE)
    return obj if text is None else {**obj, "data": {DOCUMENT_FILE: json.dumps(json.loads(text), indent=1) + "\n"}}


def json_text(found: Sequence[Outcome]) -> str:
    """A list with kind, namespace, name, summary, objects, refusals and notes of each."""
    keys = ("kind", "namespace", "name", "summary", "objects", "refusals", "notes")
    return json.dumps([{key: getattr(outcome, key) for key in keys} for outcome in found], indent=2)


@app.command()
def render(
    files: manifests.Files,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Namespace of resources whose file names none.")
    ] = "default",
    engines: Annotated[Path | None, typer.Option(help="Folder of engine profiles, as the operator's setting.")] = None,
    accelerators: Annotated[
        Path | None, typer.Option(help="File of accelerator classes, as the operator's setting.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the manifests that the operator would apply, without a cluster.

    Exit code 1: the operator would refuse a resource.
    """
    try:
        documents = manifests.read(files)
        catalog = load_catalog(engines=engines, accelerator_table=accelerators)
        found = outcomes(documents, catalog, namespace=namespace)
        if not found:
            raise InvalidSpec("The files contain no resource of Flotilla.", field="FILE")
    except InvalidSpec as error:
        fail(error, EXIT_USAGE)
    typer.echo(json_text(found) if as_json else as_yaml(found), nl=as_json)
    refused = [outcome for outcome in found if outcome.refusals]
    for outcome in refused:
        typer.echo("\n".join(f"{outcome.title}: {text}" for text in outcome.refusals), err=True)
    raise typer.Exit(EXIT_NO if refused else EXIT_OK)
