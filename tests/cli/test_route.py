"""`flotilla route`: the gateway's own decision on the command line, and a table of cases for a user's CI."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.routing import SOUND
from tests.support.schema import put
from typer.testing import CliRunner, Result

from flotilla.cli import app
from flotilla.constants import API_VERSION

CASES = Path(__file__).parents[2] / "docs" / "guides" / "routing-cases.yaml"
POLICY = {"apiVersion": API_VERSION, "kind": "RoutingPolicy", "metadata": {"name": "policy"}, "spec": SOUND}
BODY = {"model": "support", "messages": [{"role": "user", "content": "Which one?"}]}
CASE = {
    "name": "short",
    "headers": {"x-flotilla-task": "classification", "x-data-class": "public"},
    "body": BODY,
    "expect": {"rule": "classify", "target": "small", "escalation": "frontier"},
}


def route(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["route", *arguments], input=stdin)


def files(folder: Path, cases: list[dict[str, Any]], *objects: dict[str, Any]) -> str:
    (folder / "policy.yaml").write_text(yaml.safe_dump_all(objects or [POLICY]))
    table = folder / "cases.yaml"
    table.write_text(yaml.safe_dump({"policy": "policy.yaml", "cases": cases}))
    return str(table)


def explain(folder: Path, *options: str, body: dict[str, Any] = BODY) -> Result:
    files(folder, [])
    policy = str(folder / "policy.yaml")
    return route("explain", "--policy", policy, "--request", "-", *options, stdin=json.dumps(body))


def test_the_guides_cases_are_decided_as_they_say() -> None:
    result = route("test", str(CASES))
    assert result.exit_code == 0, result.output
    assert "4 of 4 cases are decided as expected." in result.output


def test_explain_names_rule_target_and_reasons(tmp_path: Path) -> None:
    result = explain(tmp_path, "-H", "X-Flotilla-Task=classification", "-H", "x-data-class=public")
    assert result.exit_code == 0
    assert "Rule 'classify' is the first that matches." in result.output
    assert result.output.endswith("Target: small\n")


def test_explain_as_json_holds_the_whole_decision_and_no_prompt(tmp_path: Path) -> None:
    result = explain(tmp_path, "--json", "-H", "x-data-class=public", "--unavailable", "medium")
    answer = json.loads(result.output)
    assert (answer["rule"], answer["candidates"], answer["class"]) == ("default", ["frontier"], "public")
    assert answer["findings"] == []
    assert "Which one" not in result.output


def test_a_refusal_is_told_with_its_code(tmp_path: Path) -> None:
    result = explain(tmp_path, "--unavailable", "medium")
    assert result.exit_code == 1
    assert "Refused: 503 no_capacity." in result.output


def test_a_case_that_is_decided_otherwise_fails_with_a_diff(tmp_path: Path) -> None:
    wrong = {**CASE, "expect": {"target": "medium"}}
    result = route("test", files(tmp_path, [CASE, wrong]))
    assert result.exit_code == 1
    assert "ok   short" in result.output
    assert '- "medium"\n     + "small"' in result.output
    assert "1 of 2 cases" in result.output
    told = json.loads(route("test", "--json", files(tmp_path, [CASE, wrong])).output)
    assert told["cases"][1]["differences"] == [{"field": "target", "expected": "medium", "actual": "small"}]


def test_a_policy_that_the_operator_would_not_accept_fails_whatever_the_cases_say(tmp_path: Path) -> None:
    unreachable = put(POLICY, ("spec", "rules"), [SOUND["rules"][0], {**SOUND["rules"][0], "name": "late"}])
    result = route("test", files(tmp_path, [CASE], unreachable))
    assert result.exit_code == 1
    assert "Rule 'late' can never apply" in result.output


def test_model_deployments_beside_the_policy_tell_their_context_length(tmp_path: Path) -> None:
    models = [
        {"kind": "ModelDeployment", "metadata": {"name": name}, "spec": {"model": {"contextLength": length}}}
        for name, length in (("qwen-small", 256), ("qwen-medium", 32768))
    ]
    long = {**CASE, "body": put(BODY, ("messages", 0, "content"), "x" * 4000), "expect": {"target": "medium"}}
    assert route("test", files(tmp_path, [long], POLICY, *models)).exit_code == 0


def test_the_classifiers_answer_is_given_by_the_case(tmp_path: Path) -> None:
    tasks = [{"name": "classification", "description": "Sort."}, {"name": "other", "description": "Else."}]
    policy = put(POLICY, ("spec", "classifier"), {"target": "medium", "tasks": tasks})
    case = {**CASE, "headers": {}, "task": "classification", "expect": {"rule": "classify"}}
    assert "ok   short" in route("test", files(tmp_path, [case], policy)).output


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"expect": {}}, "cases[0].expect: Case 'short' has no expectations."),
        ({"expect": {"targett": "x"}}, "cases[0].expect: 'targett' is unknown. Known are"),
        ({"exptect": {}}, "cases[0]: 'exptect' is unknown. Known are"),
        ({"unavailable": ["nowhere"]}, "unavailable: 'nowhere' is unknown. Known are frontier, medium, small."),
        ({"client": "nobody"}, "client: 'nobody' is unknown. Known are none."),
        ({"operation": "chat"}, "'chat' is not a valid Operation"),
        ({"body": {"model": "other"}}, "body.model: 'other' is not one of spec.hostModels (support)"),
    ],
)
def test_a_wrong_case_is_no_failed_case(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    result = route("test", files(tmp_path, [{**CASE, **change}]))
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        ([], "contains 0 RoutingPolicies"),
        ([POLICY, POLICY], "contains 2 RoutingPolicies"),
        ([put(POLICY, ("spec", "hostModels"), [])], "spec.hostModels"),
        ([put(POLICY, ("spec", "defaultRoute", "split", 0, "target"), "no")], "spec.defaultRoute.split[0].target"),
    ],
)
def test_a_policy_that_cannot_be_read_is_named(tmp_path: Path, objects: list[dict[str, Any]], says: str) -> None:
    result = route("test", files(tmp_path, [CASE], *(objects or [{"kind": "Other"}])))
    assert result.exit_code == 2
    assert says in result.stderr


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    assert route("test", str(tmp_path / "nothing.yaml")).exit_code == 2
    (tmp_path / "odd.yaml").write_text("a: [")
    assert "This is not YAML" in route("test", str(tmp_path / "odd.yaml")).stderr
    assert explain(tmp_path, "-H", "nonsense").exit_code == 2


PREFERENCE = {"preference": [{"target": "small", "evaluations": ["triage"]}, {"target": "frontier"}]}
PREFERRING = put(put(POLICY, ("spec", "rules"), []), ("spec", "defaultRoute"), PREFERENCE)


def test_a_preference_sends_everything_to_the_pilot_until_a_target_is_qualified(tmp_path: Path) -> None:
    public = {**CASE, "headers": {"x-data-class": "public"}}
    pilot = {**public, "expect": {"target": "frontier", "shares": {"frontier": 100}}}
    small = {**public, "qualified": ["small"], "expect": {"target": "small", "candidates": ["small", "frontier"]}}
    assert route("test", files(tmp_path, [pilot, small], PREFERRING)).exit_code == 0
    unknown = {**public, "qualified": ["medium"], "expect": {"target": "medium"}}
    assert "qualified: 'medium' is unknown" in route("test", files(tmp_path, [unknown], PREFERRING)).stderr


def test_a_live_policys_status_says_where_its_traffic_goes(tmp_path: Path) -> None:
    state = {
        "name": "default",
        "holder": "small",
        "since": "2026-11-29T12:00:00Z",
        "shares": [{"target": "small", "percent": 100, "revision": "r1"}],
        "qualified": ["small", "frontier"],
        "reason": "Promoted",
        "message": "'small' takes all traffic.",
    }
    live = {**PREFERRING, "status": {"rules": [state]}}
    case = {**CASE, "headers": {}, "expect": {"target": "small", "shares": {"small": 100}}}
    result = route("test", files(tmp_path, [case, {**case, "expect": {"target": "x"}}], live))
    assert "ok   short" in result.output
    assert "shared as small 100 %. 'small' takes all traffic." in result.output
