"""The verbs that ask a cluster, against a real one."""

import json
from typing import Any

import pytest
from tests.support.models import Models
from typer.testing import CliRunner, Result

from flotilla.cli import app

pytestmark = pytest.mark.cluster


def test_the_verbs_show_a_fleet_and_what_is_wrong_with_it(models: Models, spec: dict[str, Any]) -> None:
    def invoke(*arguments: str) -> Result:
        access = ["--kubeconfig", str(models.stack.plane.kubeconfig)]
        return CliRunner().invoke(app, [*arguments, *access])

    here = ("--namespace", models.namespace)
    models.apply("good", spec)
    models.wait_ready("good")
    models.wait(lambda: (models.get("ModelDeployment", "good") or {})["status"]["readyReplicas"] == 1, "the replica")
    result = invoke("status", *here, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["models"]
    assert (row["name"], row["state"], row["ready_replicas"], row["usd_per_hour"]) == ("good", "Ready", 1, "0.80")

    models.apply("bad", {**spec, "accelerator": {"class": "nvidia-l5"}})
    models.wait_condition("bad", "Stalled", "True")
    result = invoke("status", *here)
    assert result.exit_code == 1
    assert "Did you mean nvidia-l4" in result.stdout.replace("\n", " ")

    described = json.loads(invoke("describe", "good", *here, "--json").stdout)
    assert [pod["ready"] for pod in described["pods"]] == [True]
    assert "Serving" in {event["reason"] for event in described["events"]}
    assert "gpu-" in invoke("describe", "good", *here).stdout
    lines = [json.loads(line) for line in invoke("logs", "good", *here, "--json").stdout.splitlines()]
    assert {line["pod"] for line in lines} == {pod["name"] for pod in described["pods"]}
    assert invoke("logs", "good", *here, "--tail", "1").stdout == f"{lines[-1]['pod']} | {lines[-1]['line']}\n"
    assert invoke("logs", "good", *here, "--no-prefix", "--since", "1h").stdout.splitlines()[0] == lines[0]["line"]
    assert invoke("logs", "good", *here, "--previous").exit_code == 1
    assert "No ModelDeployment 'nothing'" in invoke("logs", "nothing", *here).stderr
    rates = invoke("top", "--metrics", models.stack.operator.url, "--json", "--interval", "1", *here)
    (now,) = [row for row in json.loads(rates.stdout) if row["name"] == "good"]
    assert (now["ready_replicas"], now["desired_replicas"], now["usd_per_hour"]) == (1, 1, "0.8048")
    missing = invoke("describe", "nothing", *here)
    assert missing.exit_code == 1
    assert "There are bad, good." in missing.stderr

    bad = f"{models.namespace}/bad"

    def doctor() -> dict[str, Any]:
        """It shows five of what is broken; what other tests broke is still being deleted."""
        result = invoke("doctor", "--json")
        assert result.exit_code == 1
        found = {check["name"]: check for check in json.loads(result.stdout)}
        return found if bad in found else {}

    checks = models.wait(doctor, "the broken model among those that doctor shows")
    assert checks[bad]["result"] == "fail"
    for name, said in (
        ("CRDs", "this release"),
        ("Operator", "holds the Lease"),
        ("RBAC", "all"),
        ("Accelerators", "8 x nvidia-l4"),
    ):
        assert checks[name]["result"] == "ok", checks[name]
        assert said in checks[name]["message"]
    assert checks["Prometheus"]["result"] == "warn"
