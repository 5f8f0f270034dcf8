"""The proof that the operator is level-triggered: whatever happens to the children, they come back as planned."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.models import Models

from flotilla.constants import API_VERSION
from flotilla_devcluster import programs
from flotilla_devcluster.apiserver import select
from flotilla_devcluster.stack import USER

pytestmark = pytest.mark.cluster


def test_a_model_becomes_pods_on_gpu_nodes_and_a_service_that_answers(models: Models, spec: dict[str, Any]) -> None:
    models.apply("tiny", spec)
    models.wait_ready("tiny")
    pods = models.list("Pod")
    assert [pod["spec"]["nodeName"].startswith("gpu") for pod in pods] == [True]
    url = models.stack.service_url("tiny", models.namespace)
    assert url is not None
    from openai import OpenAI

    answer = OpenAI(base_url=url, api_key="x").chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=5
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_a_hand_edited_child_is_put_back(models: Models, spec: dict[str, Any]) -> None:
    models.apply("edited", spec)
    models.wait_ready("edited")
    image = _engine(models, "edited")["image"]
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil:latest"}]
    models.stack.plane.api.request(
        "PATCH", models.path("Deployment", "edited"), patch, content_type="application/json-patch+json"
    )
    models.wait(lambda: _engine(models, "edited")["image"] == image, "the image to come back")


def test_a_hand_scaled_child_is_put_back(models: Models, spec: dict[str, Any]) -> None:
    models.apply("scaled", spec)
    models.wait_ready("scaled")
    models.patch("Deployment", "scaled", {"spec": {"replicas": 3}})
    models.wait(
        lambda: (models.get("Deployment", "scaled") or {})["spec"]["replicas"] == 1,
        "the replica count to come back",
    )


def test_what_others_add_to_a_child_is_taken_back_or_named(models: Models, spec: dict[str, Any]) -> None:
    models.apply("touched", spec)
    models.wait_ready("touched")

    def condition(type_: str) -> str:
        conditions = (models.get("ModelDeployment", "touched") or {})["status"]["conditions"]
        return str(next(one["reason"] for one in conditions if one["type"] == type_))

    def child(kind: str) -> dict[str, Any]:
        return models.get(kind, "touched") or {}

    models.patch("Service", "touched", {"spec": {"selector": {"more": "labels"}}})
    models.wait(lambda: "more" not in child("Service")["spec"]["selector"], "the selector to be as it was")
    models.patch("Service", "touched", {"metadata": {"ownerReferences": None}})
    models.wait(lambda: child("Service")["metadata"].get("ownerReferences"), "the Service to have its owner")
    models.patch("Deployment", "touched", {"metadata": {"ownerReferences": None}})
    models.wait(lambda: child("Deployment")["metadata"].get("ownerReferences"), "the Deployment to have its owner")
    models.patch("Deployment", "touched", {"spec": {"paused": True}})
    models.wait(lambda: condition("Stalled") == "DeploymentPaused", "the pause to be named")
    models.patch("Deployment", "touched", {"spec": {"paused": None}})
    models.wait(lambda: condition("Stalled") == "Progressing", "the condition to end with the pause")
    models.patch("Deployment", "touched", {"spec": {"template": {"spec": {"hostPID": True}}}})
    models.wait(lambda: condition("Stalled") == "ForeignChanges", "the added right to be named")
    models.patch("Deployment", "touched", {"spec": {"template": {"spec": {"hostPID": None}}}})
    models.wait(lambda: condition("Stalled") == "Progressing", "the condition to end with the right")


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_a_deleted_child_comes_back(models: Models, spec: dict[str, Any], kind: str) -> None:
    models.apply("deleted", spec)
    models.wait_ready("deleted")
    old = (models.get(kind, "deleted") or {})["metadata"]["uid"]
    models.delete(kind, "deleted")
    models.wait(lambda: (obj := models.get(kind, "deleted")) and obj["metadata"]["uid"] != old, f"a new {kind}")
    models.wait_ready("deleted")


def test_a_budget_appears_with_the_second_replica_and_is_pruned_with_it(models: Models, spec: dict[str, Any]) -> None:
    models.apply("pair", {**spec, "scaling": {"mode": "None"}, "replicas": 2})
    models.wait(lambda: models.get("PodDisruptionBudget", "pair"), "the budget")
    models.apply("pair", {**spec, "scaling": {"mode": "None"}, "replicas": 1})
    models.wait(lambda: models.get("PodDisruptionBudget", "pair") is None, "the budget to be pruned")


def test_deleting_the_resource_collects_everything(models: Models, spec: dict[str, Any]) -> None:
    models.apply("gone", {**spec, "scaling": {"mode": "None"}, "replicas": 2})
    models.wait(lambda: models.get("PodDisruptionBudget", "gone"), "the budget")
    models.wait_ready("gone")
    models.delete("ModelDeployment", "gone")
    kinds = ("Deployment", "Service", "PodDisruptionBudget", "Pod")
    models.wait(lambda: not any(models.list(kind) for kind in kinds), "all children to be collected", timeout_s=60)


def test_a_deleted_and_recreated_resource_gets_children_of_its_own(models: Models, spec: dict[str, Any]) -> None:
    models.apply("phoenix", spec)
    models.wait_ready("phoenix")
    models.delete("ModelDeployment", "phoenix")
    uid = models.apply("phoenix", spec)["metadata"]["uid"]

    def reborn() -> bool:
        child = models.get("Deployment", "phoenix")
        return child is not None and child["metadata"]["ownerReferences"][0]["uid"] == uid

    models.wait(reborn, "a Deployment of the new incarnation", timeout_s=60)
    models.wait_ready("phoenix")


def test_a_strangers_service_is_never_touched(models: Models, spec: dict[str, Any]) -> None:
    service = {
        "metadata": {"name": "taken"},
        "spec": {"selector": {"app": "mine"}, "ports": [{"name": "web", "port": 80}]},
    }
    before = models.stack.plane.api.request("POST", models.path("Service"), service)
    models.apply("taken", spec)
    condition = models.wait_condition("taken", "SpecValid", "False", "NameConflict")
    assert "Service named 'taken'" in condition["message"]
    after = models.get("Service", "taken")
    assert after is not None
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_a_strangers_deployment_is_never_touched(models: Models, spec: dict[str, Any]) -> None:
    template = {
        "metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    }
    deployment = {
        "metadata": {"name": "taken"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "x"}}, "template": template},
    }
    before = models.stack.plane.api.request("POST", models.path("Deployment"), deployment)
    models.apply("taken", spec)
    models.wait_condition("taken", "SpecValid", "False", "NameConflict")
    after = models.get("Deployment", "taken")
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"]


def test_a_second_pass_over_an_unchanged_fleet_makes_no_write(models: Models, spec: dict[str, Any]) -> None:
    for number in range(3):
        models.apply(f"steady-{number}", spec)
    for number in range(3):
        models.wait_ready(f"steady-{number}")
    stack, before = models.stack, models.wait_quiet()
    mark = stack.audit.mark()
    stack.restart_operator()
    models.wait(lambda: models.reconciled() >= 3, "a pass over every resource")
    assert models.wait_quiet() == before
    ours = [
        event
        for event in select(stack.audit.since(mark), user=USER, writes=True)
        if event.namespace == models.namespace
    ]
    assert ours == []


def test_a_child_deleted_while_the_operator_is_down_comes_back(models: Models, spec: dict[str, Any]) -> None:
    models.apply("absent", spec)
    models.wait_ready("absent")
    models.stack.operator.stop()
    try:
        models.delete("Service", "absent")
        models.delete("Deployment", "absent")
        models.wait(lambda: models.get("Deployment", "absent") is None, "the Deployment to go")
    finally:
        models.stack.start_operator()
    models.wait(lambda: models.get("Deployment", "absent"), "the Deployment to come back")
    models.wait(lambda: models.get("Service", "absent"), "the Service to come back")


def test_kubectl_apply_of_the_same_file_twice_changes_no_generation(
    models: Models, spec: dict[str, Any], tmp_path: Path
) -> None:
    manifest = {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": "same"},
        "spec": spec,
    }
    file = tmp_path / "same.yaml"
    file.write_text(yaml.safe_dump(manifest))

    def kubectl(*words: str) -> str:
        base = [
            str(programs.find_kubectl()),
            f"--kubeconfig={models.stack.plane.kubeconfig}",
            "-n",
            models.namespace,
        ]
        return subprocess.run([*base, *words], check=True, capture_output=True, text=True).stdout

    kubectl("apply", "-f", str(file))
    models.wait_ready("same")
    first = json.loads(kubectl("get", "mdep", "same", "-o", "json"))["metadata"]["generation"]
    assert "unchanged" in kubectl("apply", "-f", str(file))
    assert json.loads(kubectl("get", "mdep", "same", "-o", "json"))["metadata"]["generation"] == first
    child = models.get("Deployment", "same")
    assert child is not None
    assert child["metadata"]["generation"] == 1


def _engine(models: Models, name: str) -> dict[str, Any]:
    deployment = models.get("Deployment", name)
    assert deployment is not None
    container: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return container
