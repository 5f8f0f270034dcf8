"""What is wrong with a RoutingPolicy is found, named by its path, and shown in a condition."""

from typing import Any

import pytest
from tests.support.routing import FACTS, HOSTED, SOUND, resource
from tests.support.schema import put

from flotilla.api.types import SecretKeyRef
from flotilla.controller.policy_status import GatewayView, judge
from flotilla.routing.budgets import Admission
from flotilla.routing.check import PolicyFinding, Problem, absent_keys, address_problem, base_url_problem, check
from flotilla.routing.document import key_file

ROUTE: dict[str, Any] = {"split": [{"target": "small"}]}
CAPTURE = {"to": {"claimName": "captures"}}
CLIENT: dict[str, Any] = {"name": "helpdesk", "secretRef": {"name": "clients", "key": "helpdesk"}}
TASKS = [{"name": "classification", "description": "Sort."}, {"name": "drafting", "description": "Write."}]
DOUBTFUL = {
    "target": "frontier",
    "confidence": {
        "escalateAboveErrorPermille": 100,
        "calibration": [{"marginPermille": 0, "errorPermille": 1}, {"marginPermille": 9, "errorPermille": 2}],
    },
}


def findings(spec: dict[str, Any], **options: Any) -> list[PolicyFinding]:
    return check(resource(spec).spec, FACTS, **options)


def test_a_sound_policy_has_no_findings() -> None:
    assert findings(SOUND) == []


@pytest.mark.parametrize(
    ("path", "value", "problem", "where"),
    [
        (
            ("defaultRoute", "split", 0, "target"),
            "nowhere",
            Problem.UNKNOWN_TARGET,
            "spec.defaultRoute.split[0].target",
        ),
        (
            ("rules", 0, "route", "fallback", "targets"),
            ["nowhere"],
            Problem.UNKNOWN_TARGET,
            "spec.rules[0].route.fallback.targets[0]",
        ),
        (
            ("rules", 0, "route", "escalation", "target"),
            "nowhere",
            Problem.UNKNOWN_TARGET,
            "spec.rules[0].route.escalation.target",
        ),
        (("classifier",), {"target": "no", "tasks": TASKS}, Problem.UNKNOWN_TARGET, "spec.classifier.target"),
        (("classifier",), {"target": "small", "tasks": TASKS}, Problem.UNKNOWN_TASK, "spec.classifier.tasks[1].name"),
        (("capture",), {**CAPTURE, "classes": ["nothing"]}, Problem.UNKNOWN_DATA_CLASS, "spec.capture.classes[0]"),
        (("capture",), {**CAPTURE, "classes": ["public"]}, Problem.CAPTURE_FORBIDDEN, "spec.capture.classes[0]"),
        (
            ("capture",),
            {**CAPTURE, "classes": ["public"], "rules": ["default", "gone"]},
            Problem.UNKNOWN_RULE,
            "spec.capture.rules[1]",
        ),
        (("rules", 0, "match", "models"), ["stranger"], Problem.UNKNOWN_HOST_MODEL, "spec.rules[0].match.models"),
        (("rules", 0, "name"), "default", Problem.RESERVED_NAME, "spec.rules[0].name"),
        (
            ("rules", 0, "match", "headers"),
            [{"name": "x-data-class", "value": "secret"}],
            Problem.UNKNOWN_DATA_CLASS,
            "spec.rules[0].match.headers[0].value",
        ),
        (("clients",), [{**CLIENT, "dataClass": "secret"}], Problem.UNKNOWN_DATA_CLASS, "spec.clients[0].dataClass"),
        (
            ("targets", 0, "modelDeploymentRef", "name"),
            "gone",
            Problem.MODEL_DEPLOYMENT_NOT_FOUND,
            "spec.targets[0].modelDeploymentRef.name",
        ),
        (
            ("targets", 0, "modelDeploymentRef", "adapter"),
            "gone",
            Problem.ADAPTER_NOT_FOUND,
            "spec.targets[0].modelDeploymentRef.adapter",
        ),
        (
            ("targets", 2, "external", "baseURL"),
            "https://169.254.169.254/latest",
            Problem.FORBIDDEN_ADDRESS,
            "spec.targets[2].external.baseURL",
        ),
        (
            ("clients",),
            [{"name": "leak", "secretRef": HOSTED["secretRef"]}],
            Problem.SHARED_KEY,
            "spec.targets[2].external.secretRef",
        ),
        (("rules", 0, "route", "escalation", "target"), "small", Problem.ESCALATES_TO_ITSELF, "spec.rules[0].route."),
        (("defaultRoute", "escalation"), DOUBTFUL, Problem.BAD_CALIBRATION, "spec.defaultRoute.escalation.confidence"),
        (
            ("limits", "rates"),
            [{"name": "r", "per": "Client", "requestsPerMinute": 1}],
            Problem.LIMIT_WITHOUT_CLIENTS,
            "spec.limits.rates[0].per",
        ),
        (("dataPolicy", "classes", 0, "allowRegions"), ["mars"], Problem.CLASS_WITHOUT_TARGET, "spec.dataPolicy"),
        (("dataPolicy", "classes", 1, "allowRegions"), ["eu"], Problem.OUTSIDE_EVERY_CLASS, "spec.rules[0].route.fall"),
        (("defaultRoute",), {"split": [{"target": "frontier"}]}, Problem.ROUTE_CLOSED, "spec.dataPolicy.classes[0]"),
    ],
)
def test_each_problem_is_found_at_its_place_and_stops_the_policy(
    path: tuple[str | int, ...], value: Any, problem: Problem, where: str
) -> None:
    found = findings(put(SOUND, path, value))
    assert any(f.problem is problem and f.path.startswith(where) for f in found), found
    shown = {v.type: v for v in judge(Admission(tuple(found)), generation=1, gateway=GatewayView(""))}
    assert shown["Ready"].status == "False"


def test_an_escalation_outside_of_every_class_is_found() -> None:
    spec = put(SOUND, ("dataPolicy", "classes", 1, "allowBoundaries"), ["Cluster"])
    paths = [f.path for f in findings(spec) if f.problem is Problem.OUTSIDE_EVERY_CLASS]
    assert "spec.rules[0].route.escalation.target" in paths


def test_a_budget_needs_the_price_of_every_hosted_target() -> None:
    budget = {"budgets": [{"name": "month", "amountUSD": "10"}]}
    assert findings({**SOUND, "limits": budget}) == []
    free = {name: value for name, value in HOSTED.items() if name != "price"}
    (found,) = findings(put({**SOUND, "limits": budget}, ("targets", 2, "external"), free))
    assert found.problem is Problem.BUDGET_WITHOUT_PRICE
    assert "frontier" in found.message


def test_a_key_that_two_hosts_would_see_is_found() -> None:
    twin = {"name": "twin", "external": HOSTED}
    assert findings({**SOUND, "targets": [*SOUND["targets"], twin]}) == []
    stranger = put(twin, ("external", "baseURL"), "https://elsewhere.example.org/v1")
    found = findings({**SOUND, "targets": [*SOUND["targets"], stranger]})
    assert [(f.problem, f.path) for f in found] == [(Problem.SHARED_KEY, "spec.targets[3].external.secretRef")]


def test_a_rule_behind_a_wider_one_is_unreachable() -> None:
    found = findings({**SOUND, "rules": [{"name": "all", "route": ROUTE}, SOUND["rules"][0]]})
    assert [f.path for f in found if f.problem is Problem.UNREACHABLE_RULE] == ["spec.rules[1].match"]


def test_keys_that_the_gateway_does_not_find_are_found_at_their_references() -> None:
    spec = resource({**SOUND, "clients": [CLIENT]}).spec
    missing = {key_file(SecretKeyRef(name="provider", key="api-key")), key_file(SecretKeyRef(name="x", key="y"))}
    assert [finding.path for finding in absent_keys(spec, missing)] == ["spec.targets[2].external.secretRef"]
    missing.add(key_file(SecretKeyRef(**CLIENT["secretRef"])))
    assert next(f.path for f in absent_keys(spec, missing)) == "spec.clients[0].secretRef"


def test_a_model_that_an_older_policy_serves_is_taken() -> None:
    (found,) = findings(SOUND, taken={"support": "older"})
    assert found.problem is Problem.HOST_MODEL_TAKEN
    assert "'older'" in found.message


FORBIDDEN = [
    "http://api.example.com/v1",
    "https://user@api.example.com/v1",
    "https://api.example.com@10.0.0.1/v1",
    "https://127.0.0.1/v1",
    "https://127.1/v1",
    "https://2130706433/v1",
    "https://0x7f000001/v1",
    "https://0x7f.0.0.1/v1",
    "https://0177.0.0.1/v1",
    "https://017700000001/v1",
    "https://127.0.0.1./v1",
    "https://10.1.2.3/v1",
    "https://172.16.0.1/v1",
    "https://192.168.1.1/v1",
    "https://100.64.0.1/v1",
    "https://169.254.169.254/latest/meta-data",
    "https://0.0.0.0/v1",
    "https://224.0.0.1/v1",
    "https://[::1]/v1",
    "https://[::ffff:127.0.0.1]/v1",
    "https://[::ffff:a9fe:a9fe]/v1",
    "https://[::127.0.0.1]/v1",
    "https://[64:ff9b::7f00:1]/v1",
    "https://[2002:7f00:1::]/v1",
    "https://[fd00:ec2::254]/v1",
    "https://[fe80::1%25eth0]/v1",
    "https://localhost/v1",
    "https://LOCALHOST./v1",
    "https://foo.localhost/v1",
    "https://kubernetes/api",
    "https://kubernetes.default.svc/api",
    "https://redis.team.svc.cluster.local/",
    "https://metadata.google.internal/v1",
    "https://printer.local/v1",
    "https://api.example.com/v1?key=1",
    "https://api.example.com/v1#a",
    "https://api.example.com:0/v1",
    "https://api.example.com:99999/v1",
    "https://api..example.com/v1",
    "https://-api.example.com/v1",
    "https://exämple.com/v1",
    "https://api.example.com/v1\r\nhost: x",
    "ftp://api.example.com/v1",
    "https:///v1",
]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_a_url_that_leads_into_the_cluster_or_is_ambiguous_is_refused(url: str) -> None:
    assert base_url_problem(url) is not None


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://api.anthropic.com",
        "https://8.8.8.8/v1",
        "https://xn--exmple-cua.com:8443/v1",
        "https://[2606:4700::1111]/v1",
        "https://3com.example/v1",
    ],
)
def test_a_public_url_is_allowed(url: str) -> None:
    assert base_url_problem(url) is None


def test_loopback_is_allowed_only_by_the_setting_for_tests() -> None:
    assert base_url_problem("http://127.0.0.1:8000/v1", allow_private=True) is None
    assert base_url_problem("http://user@127.0.0.1:8000/v1", allow_private=True) is not None
    spec = put(SOUND, ("targets", 2, "external", "baseURL"), "http://127.0.0.1:8000/v1")
    assert findings(spec, allow_private_hosted_addresses=True) == []
    assert [f.problem for f in findings(spec)] == [Problem.FORBIDDEN_ADDRESS]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.1.1", "nonsense"])
def test_an_address_that_a_name_resolves_to_is_judged_too(address: str) -> None:
    assert address_problem(address) is not None
    assert address_problem("8.8.4.4") is None
