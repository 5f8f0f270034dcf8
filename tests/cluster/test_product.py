"""What a user sees: scaling on load, dollars, and clear words where something is wrong."""

import asyncio
import time
from typing import Any

import pytest
from tests.support.models import Models

from flotilla.cost.ledger_store import record_name
from flotilla.render.rbac import permissions
from flotilla_devcluster import traffic
from flotilla_devcluster.apiserver import select
from flotilla_devcluster.stack import NAMESPACE, USER, samples, value

pytestmark = pytest.mark.cluster


def test_load_scales_out_and_its_end_scales_in(models: Models, spec: dict[str, Any]) -> None:
    scaling = {
        "maxReplicas": 3,
        "queueDepthPerReplica": 2,
        "scaleDownDelaySeconds": 2,
        "scaleDownPercentPerMinute": 100,
    }
    models.apply("elastic", {**spec, "scaling": scaling})
    models.wait_ready("elastic")
    url = models.stack.service_url("elastic", models.namespace)
    assert url is not None
    tally, most = traffic.Tally(), 1

    def enough() -> bool:
        nonlocal most
        most = max(most, (models.get("ModelDeployment", "elastic") or {})["status"]["readyReplicas"])
        return most == 3 or time.monotonic() > deadline

    deadline = time.monotonic() + 60
    asyncio.run(traffic.burst([traffic.Crowd(url, "elastic", 12)], until=enough, tally=tally))
    assert most == 3
    assert tally.failed == 0
    models.wait(
        lambda: (models.get("Deployment", "elastic") or {})["spec"]["replicas"] == 1, "the scale-in", timeout_s=60
    )
    notes = [event["note"] for event in models.list("Event") if event["regarding"]["name"] == "elastic"]
    assert any(note.startswith("Scaled from 1 to ") for note in notes)
    metrics = samples(models.stack.operator.metrics())
    labels = {"modeldeployment": "elastic", "namespace": models.namespace}
    assert (
        value(metrics, "flotilla_deployment_tokens_total", token_type="output", **labels) or 0
    ) == tally.output_tokens
    assert (value(metrics, "flotilla_deployment_cost_usd_total", **labels) or 0) > 0
    assert (value(metrics, "flotilla_deployment_cost_usd_per_million_tokens", **labels) or 0) > 0
    assert value(metrics, "flotilla_savings_usd", comparator="openai/gpt-5-mini", **labels) is not None


def test_a_deployment_without_traffic_has_no_unit_cost(models: Models, spec: dict[str, Any]) -> None:
    models.apply("quiet", spec)
    models.wait_ready("quiet")
    labels = {"modeldeployment": "quiet", "namespace": models.namespace}

    def priced() -> bool:
        return value(samples(models.stack.operator.metrics()), "flotilla_deployment_cost_usd_per_hour", **labels) == 1

    models.apply("quiet", {**spec, "cost": {"gpuHourlyPrice": "1"}})
    models.wait(priced, "the price to be on /metrics")
    metrics = samples(models.stack.operator.metrics())
    assert value(metrics, "flotilla_deployment_cost_usd_per_million_tokens", **labels) is None
    models.delete("ModelDeployment", "quiet")
    models.wait(
        lambda: value(samples(models.stack.operator.metrics()), "flotilla_desired_replicas", **labels) is None,
        "the series to vanish",
    )


def test_tgi_serves_and_its_status_warns_of_the_engine(models: Models, spec: dict[str, Any]) -> None:
    models.apply("old", {**spec, "engine": {"name": "tgi"}})
    models.wait_ready("old")
    condition = models.condition("old", "SpecValid")
    assert (condition["status"], condition["reason"]) == ("True", "ValidWithWarnings")
    assert "maintenance mode" in condition["message"]
    models.wait_condition("old", "ScalingActive", "True", "Steady")


BROKEN: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("class", {"accelerator": {"class": "nvidia-l5"}}, "SpecValid", "UnknownAccelerator", "Did you mean nvidia-l4"),
    ("age", {"engine": {"name": "vllm", "version": "0.1.0"}}, "SpecValid", "UnsupportedVersion", "spec.engine.version"),
    (
        "flag",
        {"engine": {"name": "vllm", "args": ["--port=1"]}},
        "SpecValid",
        "ArgumentRefused",
        "spec.engine.args[0]: '--port=1' is set by the operator",
    ),
    (
        "fp4",
        {"quantization": {"method": "gguf"}},
        "SpecValid",
        "UnsupportedQuantization",
        "spec.quantization.method: gguf left vLLM's core",
    ),
    (
        "price",
        {"cost": {"compareWith": [{"provider": "openai", "model": "gpt-nonsense"}]}},
        "CostKnown",
        "UnknownHostedModel",
        "spec.cost.compareWith[0].model",
    ),
    ("gpu", {"accelerator": {"class": "nvidia-b200"}}, "Scheduled", "Unschedulable", "No node carries the labels"),
    (
        "many",
        {"scaling": {"minReplicas": 9, "maxReplicas": 9}},
        "Scheduled",
        "Unschedulable",
        "Insufficient nvidia.com/gpu",
    ),
    (
        "secret",
        {"model": {"source": "hf://a/b", "credentialsSecret": {"name": "nope", "key": "token"}}},
        "ModelLoaded",
        "CreateContainerConfigError",
        'secret "nope" not found',
    ),
    ("crash", {"engine": {"name": "vllm", "args": ["--no-such-flag"]}}, "ModelLoaded", "CrashLoopBackOff", "exit code"),
]


@pytest.mark.parametrize(("name", "change", "type_", "reason", "message"), BROKEN, ids=[case[0] for case in BROKEN])
def test_bad_input_is_named_in_a_condition(
    models: Models, spec: dict[str, Any], name: str, change: dict[str, Any], type_: str, reason: str, message: str
) -> None:
    models.apply(name, {**spec, **change})
    condition = models.wait_condition(name, type_, "False", reason)
    assert message in condition["message"]


def test_broken_resources_do_not_delay_a_good_one(models: Models, spec: dict[str, Any]) -> None:
    for number, (_, change, *_) in enumerate(BROKEN):
        models.apply(f"broken-{number}", {**spec, **change, "scaling": {"mode": "None"}, "replicas": 0})
    models.apply("good", spec)
    models.wait_ready("good")


def test_a_corrected_spec_recovers(models: Models, spec: dict[str, Any]) -> None:
    models.apply("fixed", {**spec, "accelerator": {"class": "nvidia-l5"}})
    models.wait_condition("fixed", "Stalled", "True", "UnknownAccelerator")
    models.apply("fixed", spec)
    models.wait_ready("fixed")
    assert models.condition("fixed", "Stalled")["status"] == "False"


def test_the_pods_of_a_spec_that_was_refused_are_accounted_and_their_number_stays(
    models: Models, spec: dict[str, Any]
) -> None:
    models.apply("edited", spec)
    models.wait_ready("edited")
    models.apply("edited", {**spec, "accelerator": {"class": "nvidia-l44"}})
    models.apply("never", {**spec, "accelerator": {"class": "nvidia-l44"}})
    models.wait_condition("edited", "ScalingActive", "False", "SpecInvalid")
    models.wait_condition("never", "Stalled", "True", "UnknownAccelerator")
    stalled = "flotilla_stalled"
    models.wait(lambda: models.metric("edited", stalled) == 1 == models.metric("never", stalled), "both to be stalled")
    assert models.metric("edited", "flotilla_ready_replicas") == 1
    hours = "flotilla_deployment_gpu_hours_total"
    before = models.metric("edited", hours) or 0
    models.wait(lambda: (models.metric("edited", hours) or 0) > before, "more GPU-hours")


def test_a_routing_policy_says_what_is_wrong_and_follows_its_models(models: Models, spec: dict[str, Any]) -> None:
    policy = {
        **_policy("tiny"),
        "dataPolicy": {"unknownClass": "any", "classes": [{"name": "any", "allowBoundaries": ["External"]}]},
        "rules": [{"name": "lost", "route": {"split": [{"target": "nowhere"}]}}],
    }
    models.apply("support", policy, kind="RoutingPolicy")
    wait = models.wait_condition
    assert (
        "spec.rules[0].route.split[0].target: 'nowhere'"
        in wait("support", "Accepted", "False", "UnknownTarget", kind="RoutingPolicy")["message"]
    )
    wait("support", "ResolvedRefs", "False", "ModelDeploymentNotFound", kind="RoutingPolicy")
    wait("support", "SovereigntyEnforceable", "False", "ClassWithoutTarget", kind="RoutingPolicy")
    models.apply("tiny", spec)
    wait("support", "ResolvedRefs", "True", kind="RoutingPolicy")
    policy["rules"] = []
    policy["dataPolicy"] = {"unknownClass": "any", "classes": [{"name": "any", "allowBoundaries": ["Cluster"]}]}
    models.apply("support", policy, kind="RoutingPolicy")
    wait("support", "Accepted", "True", kind="RoutingPolicy")
    wait("support", "SovereigntyEnforceable", "True", kind="RoutingPolicy")
    wait("support", "Programmed", "True", kind="RoutingPolicy")
    models.delete("ModelDeployment", "tiny")
    wait("support", "ResolvedRefs", "False", "ModelDeploymentNotFound", kind="RoutingPolicy")


def test_what_is_granted_is_used_and_what_is_used_is_granted(models: Models, spec: dict[str, Any]) -> None:
    """From the apiserver's audit log; a child that no plan has any more stands for older releases."""
    uid = models.apply("used", {**spec, "scaling": {"minReplicas": 2, "maxReplicas": 2}})["metadata"]["uid"]
    models.wait(lambda: models.get("PodDisruptionBudget", "used"), "the budget")
    models.wait_ready("used")
    models.apply("policy", _policy("used"), kind="RoutingPolicy")
    models.wait_condition("policy", "ResolvedRefs", "True", kind="RoutingPolicy")
    models.apply("used", {**spec, "engine": {**spec["engine"], "args": ["--max-num-seqs=9"]}})
    models.wait(lambda: models.get("PodDisruptionBudget", "used") is None, "the budget to be pruned")
    for kind in ("Deployment", "Service"):
        _make_stale(models, kind, uid)
    record = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{record_name(models.namespace, 'used')}"
    models.wait(lambda: models.stack.plane.api.get(record), "what it has cost to be written down")
    models.delete("ModelDeployment", "used")
    models.wait(lambda: models.stack.plane.api.get(record) is None, "that to go with the resource", timeout_s=10)
    models.stack.restart_operator()  # a watch is in the log once it has ended
    events = [
        event
        for event in select(models.stack.audit.since(0), user=USER)
        if event.namespace in (models.namespace, NAMESPACE, "") and event.group != "authorization.k8s.io"
    ]
    assert [event for event in events if event.code in (401, 403)] == []
    names = ((event, event.resource + (f"/{event.subresource}" if event.subresource else "")) for event in events)
    used = {(event.group, resource, event.verb) for event, resource in names if resource}
    granted = {(rule.group, resource, verb) for rule, resource, verb in permissions()}
    assert used - granted == set()
    # An apply that makes an object is authorized as create too, and logged as patch.
    used |= {(group, resource, "create") for group, resource, verb in used if verb == "patch"}
    assert granted - used <= {
        ("flotilla.dev", "modeldeployments/finalizers", "update"),  # asked for by an admission plugin, not by us
        ("flotilla.dev", "evaluations/finalizers", "update"),
        ("", "pods", "patch"),  # before a scale-in, by the tests of scaling
        ("", "pods/status", "patch"),  # the readiness gate of adapters, by their tests
        # By the tests of evaluations.
        ("flotilla.dev", "evaluations/status", "patch"),
        *(("batch", "jobs", verb) for verb in ("get", "create", "patch", "delete")),
        # Gateways use these; the operator holds them to be allowed to grant them.
        *(("discovery.k8s.io", "endpointslices", verb) for verb in ("get", "list", "watch")),
    }


def _policy(model: str) -> dict[str, Any]:
    return {
        "hostModels": ["support"],
        "targets": [{"name": "small", "modelDeploymentRef": {"name": model}}],
        "dataPolicy": {"unknownClass": "any", "classes": [{"name": "any", "allowBoundaries": ["Cluster"]}]},
        "defaultRoute": {"split": [{"target": "small"}]},
    }


def _make_stale(models: Models, kind: str, uid: str) -> None:
    """A copy of a child under a name that no plan has; returns once it is pruned."""
    child = models.get(kind, "used") or {}
    stale = {"metadata": {**child["metadata"], "name": "stale"}, "spec": child["spec"]}
    for field in ("uid", "resourceVersion", "managedFields", "creationTimestamp"):
        stale["metadata"].pop(field)
    for field in ("clusterIP", "clusterIPs"):
        stale["spec"].pop(field, None)
    assert stale["metadata"]["ownerReferences"][0]["uid"] == uid
    models.stack.plane.api.request("POST", models.path(kind), stale)
    models.wait(lambda: models.get(kind, "stale") is None, f"the stale {kind} to be pruned")
