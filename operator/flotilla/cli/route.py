"""`flotilla route`: what the gateway would do with a request, and why, without a cluster.

`explain` prints the decision on one request, `test` compares decisions with a table, `calibrate` fits a confidence
curve.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from flotilla import validation
from flotilla.api.preference import Promotion, RouteStatus
from flotilla.api.routing_policy import CalibrationPoint, RoutingPolicy
from flotilla.cli import manifests
from flotilla.cli.common import EXIT_NO, EXIT_OK, EXIT_USAGE, Json, command_app, fail
from flotilla.errors import InvalidSpec
from flotilla.routing.check import RESOLUTION, check, choices_of
from flotilla.routing.classify import Judged, expected_calibration_error, fit, held_out_error, question, tradeoffs
from flotilla.routing.decide import Decision, decide
from flotilla.routing.document import DeploymentFacts, Policy, compile_policy, facts_of
from flotilla.routing.escalation import margin_p10
from flotilla.routing.promotion import EvidenceState, TargetEvidence, advance
from flotilla.routing.request import Features, Operation, features_of

app = command_app(no_args_is_help=True, help="Show what a RoutingPolicy does with a request, and why.")
_ABOVE_PERMILLE = (50, 100, 150, 200, 300, 500)
_EXPECTED = frozenset({"rule", "target", "candidates", "class", "escalation", "shares", "allowed", "refused", "status"})
_CASE = frozenset({"name", "headers", "body", "operation", "client", "task", "unavailable", "qualified", "expect"})


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy as a gateway would have it, and the findings about it."""

    policy: Policy
    findings: tuple[dict[str, str], ...]

    @property
    def unsound(self) -> list[dict[str, str]]:
        """Findings other than missing references, which a file need not contain."""
        return [finding for finding in self.findings if finding["problem"] not in RESOLUTION]


def load_policy(path: Path) -> Loaded:
    """Read the one RoutingPolicy of a file; ModelDeployments in it give names and context lengths.

    Without any, every model that the policy refers to is assumed to exist. Raises InvalidSpec, OSError.
    """
    objects = [obj for obj in _parsed(path) if isinstance(obj, dict)]
    policies = [obj for obj in objects if obj.get("kind") == "RoutingPolicy"]
    if len(policies) != 1:
        raise InvalidSpec(
            f"{path} contains {len(policies)} RoutingPolicies; it must contain exactly one.", field="kind"
        )
    given = policies[0]
    policy = manifests.parse(given, namespace="default")
    assert isinstance(policy, RoutingPolicy)
    models = [obj for obj in objects if obj.get("kind") == "ModelDeployment"]
    facts = {fact.name: fact for fact in (facts_of(model) for model in models)}
    if not models:
        references = (t.model_deployment_ref for t in policy.spec.targets)
        adapters: dict[str, list[str]] = {}
        for reference in references:
            if reference is not None:
                adapters.setdefault(reference.name, []).extend([reference.adapter] if reference.adapter else [])
        facts = {name: DeploymentFacts(name, name, "", tuple(found)) for name, found in adapters.items()}
    findings = tuple(
        {"problem": str(finding.problem), "path": finding.path, "message": finding.message}
        for finding in check(policy.spec, facts)
    )
    unknown = [finding for finding in findings if finding["problem"] == "UnknownTarget"]
    if unknown:
        raise InvalidSpec(unknown[0]["message"], field=unknown[0]["path"])
    compiled = compile_policy(policy, facts)
    states = given.get("status", {}).get("rules") if isinstance(given.get("status"), dict) else None
    return Loaded(_with_states(compiled, states), findings)


def _with_states(policy: Policy, states: Any) -> Policy:
    """The policy with the shares of a live object's status; without them all traffic goes to the pilots."""
    try:
        found = {state.name: state for state in map(RouteStatus.model_validate, states or ())}
    except ValidationError as error:
        raise validation.refused(error) from error
    preferred = {name for name, route in policy.named_routes() if route.preference}
    return policy.with_routes({name: state for name, state in found.items() if name in preferred})


def with_qualified(policy: Policy, targets: Collection[str]) -> Policy:
    """The policy after evaluations have qualified these targets and their promotions are complete."""
    if not targets:
        return policy
    known = {item.target for _, route in policy.named_routes() for item in route.preference}
    for target in targets:
        _known("qualified", target, known)
    evidence = {
        target: TargetEvidence(EvidenceState.QUALIFIED, message="It is assumed to be qualified.") for target in targets
    }
    return policy.with_routes(
        {
            name: advance(name, route.preference, Promotion(steps=[]), None, evidence, {}, 0).status
            for name, route in policy.named_routes()
            if route.preference
        }
    )


def run(table: Path) -> tuple[Loaded, list[dict[str, Any]]]:
    """Read a table of cases and decide each; raises InvalidSpec, OSError, ValueError."""
    content = mapping(_parsed(table)[0], str(table))
    loaded = load_policy(table.parent / str(content.get("policy", "")))
    listed = content.get("cases")
    if not isinstance(listed, list) or not listed:
        raise InvalidSpec("A list of cases is expected.", field="cases")
    return loaded, [result_of(loaded.policy, mapping(case, f"cases[{n}]"), n) for n, case in enumerate(listed)]


def answer_of(policy: Policy, case: Mapping[str, Any], *, seed: str = "") -> dict[str, Any]:
    """The decision on one request, as it is printed and as cases expect it."""
    policy = with_qualified(policy, [str(target) for target in case.get("qualified") or ()])
    body = case.get("body") or {}
    headers = {str(name).lower(): str(value) for name, value in (case.get("headers") or {}).items()}
    operation, client = Operation(case.get("operation") or Operation.CHAT), case.get("client")
    _known("client", client, [known.name for known in policy.clients])
    for target in case.get("unavailable") or ():
        _known("unavailable", target, policy.target)
    features = features_of(body, headers, policy, operation=operation, client=client)
    if features.model not in policy.host_models:
        raise InvalidSpec(
            f"{features.model!r} is not one of spec.hostModels ({', '.join(policy.host_models)}), so this policy does "
            "not get the request.",
            field="body.model",
        )
    asked = question(policy, features, body)
    if asked is not None:
        features = features.with_task(case.get("task"))
    decision = decide(policy, features, seed, frozenset(case.get("unavailable") or ()))
    seen = _seen(features)
    if asked is not None:
        seen["classifier"] = asked.permit.target.name
    if isinstance(decision, Decision):
        return {
            "rule": decision.rule,
            "class": decision.data_class,
            "target": decision.candidates[0],
            "candidates": list(decision.candidates),
            "escalation": decision.escalation,
            "shares": {share.target: share.weight for share in decision.route.split},
            "allowed": sorted(decision.allowed),
            "request": seen,
            "why": list(decision.why),
        }
    return {
        "refused": decision.code,
        "status": decision.status,
        "rule": decision.rule,
        "class": decision.data_class,
        "message": decision.message,
        "request": seen,
        "why": list(decision.why),
    }


def result_of(policy: Policy, case: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The differences between the decision on one case and its expectations."""
    name, expected = str(case.get("name") or f"case {number}"), case.get("expect")
    unknown = sorted(set(case) - _CASE)
    if unknown:
        raise InvalidSpec(f"{unknown[0]!r} is unknown. Known are {', '.join(sorted(_CASE))}.", field=f"cases[{number}]")
    if not isinstance(expected, dict) or not expected:
        raise InvalidSpec(f"Case {name!r} has no expectations.", field=f"cases[{number}].expect")
    unknown = sorted(set(expected) - _EXPECTED)
    if unknown:
        raise InvalidSpec(
            f"{unknown[0]!r} is unknown. Known are {', '.join(sorted(_EXPECTED))}.", field=f"cases[{number}].expect"
        )
    answer = answer_of(policy, case)
    differences = [
        {"field": field, "expected": value, "actual": answer.get(field)}
        for field, value in expected.items()
        if (sorted(value) if field == "allowed" else value) != answer.get(field)
    ]
    return {"name": name, "differences": differences, "why": answer["why"]}


def _seen(features: Features) -> dict[str, Any]:
    """The input of the decision, without the prompt."""
    return {
        "model": features.model,
        "task": features.task,
        "promptTokens": features.prompt_tokens,
        "tools": features.tools,
        "streaming": features.stream,
        "session": features.session,
    }


def readable(answer: Mapping[str, Any]) -> str:
    """An answer of `answer_of` as text."""
    lines = [f"  {line}" for line in answer["why"]]
    if "refused" in answer:
        lines.append(f"Refused: {answer['status']} {answer['refused']}. {answer['message']}")
    else:
        lines.append(f"Target: {answer['target']}")
    lines += [f"Finding: {finding['path']}: {finding['message']}" for finding in answer["findings"]]
    return "\n".join(lines)


def report(results: Sequence[Mapping[str, Any]], findings: Iterable[Mapping[str, str]]) -> list[str]:
    """The lines about a table of cases."""
    lines = [f"Finding: {finding['path']}: {finding['message']}" for finding in findings]
    for result in results:
        lines.append(f"{'FAIL' if result['differences'] else 'ok  '} {result['name']}")
        for difference in result["differences"]:
            lines.append(f"     {difference['field']}:")
            lines.append(f"     - {json.dumps(difference['expected'])}")
            lines.append(f"     + {json.dumps(difference['actual'])}")
        if result["differences"]:
            lines += [f"       {line}" for line in result["why"]]
    failed = sum(bool(result["differences"]) for result in results)
    lines.append(f"{len(results) - failed} of {len(results)} cases are decided as expected.")
    return lines


def _parsed(path: Path) -> list[Any]:
    try:
        return list(yaml.safe_load_all(path.read_text())) or [None]
    except yaml.YAMLError as error:
        raise InvalidSpec(f"This is not YAML: {error}", field=str(path)) from error


def mapping(value: Any, where: str) -> dict[str, Any]:
    """The value, if it is a mapping; raises InvalidSpec."""
    if not isinstance(value, dict):
        raise InvalidSpec(f"It must be a mapping, not {type(value).__name__}.", field=where)
    return value


def _known(field: str, value: Any, known: Iterable[str]) -> None:
    if value is not None and value not in known:
        raise InvalidSpec(f"{value!r} is unknown. Known are {', '.join(sorted(known)) or 'none'}.", field=field)


@app.command()
def explain(
    policy: Annotated[
        Path, typer.Option("--policy", "-p", help="File with a RoutingPolicy, and ModelDeployments if any.")
    ],
    request: Annotated[Path, typer.Option("--request", "-r", help="Request body as JSON; - reads standard input.")],
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="name=value; repeatable.")] = None,
    operation: Annotated[str, typer.Option(help="chat/completions, completions or embeddings.")] = "chat/completions",
    client: Annotated[str | None, typer.Option(help="The one of spec.clients whose key the request has.")] = None,
    task: Annotated[str | None, typer.Option(help="The classifier's answer.")] = None,
    seed: Annotated[str, typer.Option(help="Request id, which decides in a split without a session.")] = "",
    unavailable: Annotated[list[str] | None, typer.Option(help="A target that is failing; repeatable.")] = None,
    qualified: Annotated[
        list[str] | None,
        typer.Option(help="A preferred target whose promotion is complete; repeatable. Default: the policy's status."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print which target a request goes to, and why.

    Exit code 0: it is served; 1: it is refused.
    """
    try:
        loaded = load_policy(policy)
        text = typer.get_text_stream("stdin").read() if str(request) == "-" else request.read_text()
        case = {
            "body": mapping(json.loads(text), str(request)),
            "headers": dict(_header(pair) for pair in header or ()),
            "operation": operation,
            "client": client,
            "task": task,
            "unavailable": unavailable or [],
            "qualified": qualified or [],
        }
        answer: dict[str, Any] = answer_of(loaded.policy, case, seed=seed)
    except (InvalidSpec, OSError, ValueError) as error:
        fail(error, EXIT_USAGE)
    answer["findings"] = list(loaded.findings)
    typer.echo(json.dumps(answer, indent=2) if as_json else readable(answer))
    raise typer.Exit(EXIT_NO if "refused" in answer else EXIT_OK)


def _header(pair: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not separator or not name:
        raise InvalidSpec(f"{pair!r} is not name=value.", field="--header")
    return name, value


@app.command("test")
def run_table(
    table: Annotated[Path, typer.Argument(help="YAML with `policy` (a file next to it) and `cases`.")],
    as_json: Json = False,
) -> None:
    """Check the decisions on a table of requests, and print the differences.

    Exit code 1: some decisions differ from what is expected.
    """
    try:
        loaded, results = run(table)
    except (InvalidSpec, OSError, ValueError) as error:
        fail(error, EXIT_USAGE)
    if as_json:
        typer.echo(json.dumps({"findings": list(loaded.findings), "cases": results}, indent=2))
    else:
        typer.echo("\n".join(report(results, loaded.unsound)))
    failed = any(result["differences"] for result in results)
    raise typer.Exit(EXIT_NO if failed or loaded.unsound else EXIT_OK)


@app.command()
def calibrate(
    answers: Annotated[Path, typer.Argument(help="JSON lines: answer (or margin) and wrong.")],
) -> None:
    """Fit the calibration of a small model's confidence, and print it as YAML.

    Each line of the file has `wrong` (true or false, as judged) and either
    `answer`, the body of a chat completion with logprobs: true and
    top_logprobs: 2, or `margin`. The quality of the fit goes to standard error.
    """
    try:
        samples = list(_judged(answers))
        points = fit(samples)
    except (InvalidSpec, OSError) as error:
        fail(error, EXIT_USAGE)
    typer.echo("\n".join(_calibration_report(points, samples)), err=True)
    listed = [point.model_dump(mode="json", by_alias=True) for point in points]
    typer.echo(yaml.safe_dump({"calibration": listed}, sort_keys=False), nl=False)


def _calibration_report(points: Any, samples: list[Judged]) -> Iterator[str]:
    raw = [CalibrationPoint(margin_permille=margin, error_permille=1000 - margin) for margin in (0, 1000)]
    yield f"{len(samples)} answers, {sum(sample.wrong for sample in samples)} of them wrong."
    yield (
        f"Calibration error on held-out answers: {held_out_error(samples):.3f} "
        f"(of the margin itself: {expected_calibration_error(raw, samples):.3f})."
    )
    yield "escalateAboveErrorPermille   escalated   wrong among the kept"
    for row in tradeoffs(points, samples, _ABOVE_PERMILLE):
        kept = f"{row.wrong_after:20.1%}" if row.escalated < 1 else f"{'-':>20}"
        yield f"{row.above_permille:26}   {row.escalated:9.1%}   {kept}"


def _judged(path: Path) -> Iterator[Judged]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidSpec(f"{place} is not JSON: {error}.") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("wrong"), bool):
            raise InvalidSpec(f'{place} needs "wrong": true or false.')
        margin = entry.get("margin")
        if margin is None and isinstance(entry.get("answer"), dict):
            choice = next(iter(choices_of(entry["answer"])), None)
            margin = margin_p10(choice.text, choice.logprobs) if choice is not None else None
        if not isinstance(margin, int | float) or not 0 <= margin <= 1:
            raise InvalidSpec(
                f'{place} needs "margin" from 0 to 1, or "answer" with the probabilities of its tokens. '
                "Request them with logprobs: true and top_logprobs: 2."
            )
        yield Judged(float(margin), entry["wrong"])
