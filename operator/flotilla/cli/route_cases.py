"""What a RoutingPolicy does with a request, as `flotilla route` prints it and as a table of cases expects it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flotilla.api.routing_policy import RoutingPolicy
from flotilla.errors import InvalidSpec
from flotilla.routing.check import RESOLUTION, check
from flotilla.routing.classify import question
from flotilla.routing.decide import Decision, decide
from flotilla.routing.document import DeploymentFacts, Policy, compile_policy, facts_of
from flotilla.routing.request import Features, Operation, features_of

_EXPECTED = frozenset({"rule", "target", "candidates", "class", "escalation", "allowed", "refused", "status"})
_CASE = frozenset({"name", "headers", "body", "operation", "client", "task", "unavailable", "expect"})


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy as a gateway would have it, and what is wrong with it."""

    policy: Policy
    findings: tuple[dict[str, str], ...]

    @property
    def unsound(self) -> list[dict[str, str]]:
        """Findings other than references, which a file need not hold."""
        return [finding for finding in self.findings if finding["problem"] not in RESOLUTION]


def load_policy(path: Path) -> Loaded:
    """Read the one RoutingPolicy of a file; ModelDeployments in it tell names and context lengths.

    Without any, every model that the policy refers to is taken for there. Raises InvalidSpec, OSError.
    """
    objects = [obj for obj in _parsed(path) if isinstance(obj, dict)]
    policies = [obj for obj in objects if obj.get("kind") == "RoutingPolicy"]
    if len(policies) != 1:
        raise InvalidSpec(f"{path} holds {len(policies)} RoutingPolicies; exactly one is expected.", field="kind")
    given = policies[0]
    meta = {"namespace": "default", "uid": "", **(given.get("metadata") or {})}
    try:
        policy = RoutingPolicy.model_validate({**given, "metadata": meta})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidSpec(f"{first['msg']} (value: {first['input']!r})", field=where) from error
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
    return Loaded(compile_policy(policy, facts), findings)


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
    name, expected = str(case.get("name") or f"case {number}"), case.get("expect")
    strange = sorted(set(case) - _CASE)
    if strange:
        raise InvalidSpec(f"{strange[0]!r} is none of {', '.join(sorted(_CASE))}.", field=f"cases[{number}]")
    if not isinstance(expected, dict) or not expected:
        raise InvalidSpec(f"Case {name!r} expects nothing.", field=f"cases[{number}].expect")
    strange = sorted(set(expected) - _EXPECTED)
    if strange:
        raise InvalidSpec(f"{strange[0]!r} is none of {', '.join(sorted(_EXPECTED))}.", field=f"cases[{number}].expect")
    answer = answer_of(policy, case)
    differences = [
        {"field": field, "expected": value, "actual": answer.get(field)}
        for field, value in expected.items()
        if (sorted(value) if field == "allowed" else value) != answer.get(field)
    ]
    return {"name": name, "differences": differences, "why": answer["why"]}


def _seen(features: Features) -> dict[str, Any]:
    """What the decision looked at; never the prompt."""
    return {
        "model": features.model,
        "task": features.task,
        "promptTokens": features.prompt_tokens,
        "tools": features.tools,
        "streaming": features.stream,
        "session": features.session,
    }


def readable(answer: Mapping[str, Any]) -> str:
    lines = [f"  {line}" for line in answer["why"]]
    if "refused" in answer:
        lines.append(f"Refused: {answer['status']} {answer['refused']}. {answer['message']}")
    else:
        lines.append(f"Target: {answer['target']}")
    lines += [f"Finding: {finding['path']}: {finding['message']}" for finding in answer["findings"]]
    return "\n".join(lines)


def report(results: Sequence[Mapping[str, Any]], findings: Iterable[Mapping[str, str]]) -> list[str]:
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
        raise InvalidSpec(f"This is no YAML: {error}", field=str(path)) from error


def mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidSpec(f"A mapping is expected, not {type(value).__name__}.", field=where)
    return value


def _known(field: str, value: Any, known: Iterable[str]) -> None:
    if value is not None and value not in known:
        raise InvalidSpec(f"{value!r} is none of {', '.join(sorted(known)) or 'none'}.", field=field)
