"""Rules for every pod and role that we render, beyond what Pod Security refuses; the names are kube-linter's."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hack import manifests
from tests.chart.test_chart import MONITORS, whole
from tests.chart.test_kustomize import kustomized
from tests.support.helm import Helm, Object

GATEWAY = manifests.ROOT / "tests/golden/gateway/two-policies.yaml"
GOLDEN = sorted((manifests.ROOT / "tests/golden/manifests").glob("*.yaml"))


def deployments(objects: list[Object]) -> Iterator[Object]:
    yield from (obj for obj in objects if obj["kind"] == "Deployment")


def findings(deployment: Object) -> list[str]:
    """Names of kube-linter's checks that fail."""
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    found = []
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        security, resources = container["securityContext"], container["resources"]
        checks = {
            "no-read-only-root-fs": security.get("readOnlyRootFilesystem") is True,
            "privilege-escalation-container": security.get("allowPrivilegeEscalation") is False,
            "drop-all-capabilities": security["capabilities"] == {"drop": ["ALL"]},
            "unset-cpu-requirements": "cpu" in resources["requests"],
            "unset-memory-requirements": {"memory"} <= set(resources["requests"]) & set(resources["limits"]),
            "no-liveness-probe": "livenessProbe" in container,
            "no-readiness-probe": "readinessProbe" in container,
            "latest-tag": not container["image"].endswith(":latest") and ":" in container["image"].rpartition("/")[2],
            "env-var-secret": not any(
                "value" in variable and any(word in variable["name"] for word in ("TOKEN", "SECRET", "PASSWORD"))
                for variable in container.get("env", ())
            ),
        }
        found += [name for name, good in checks.items() if not good]
    whole = {
        "run-as-non-root": pod["securityContext"].get("runAsNonRoot") is True,
        "host-path": not any("hostPath" in volume for volume in pod.get("volumes", ())),
        "host-namespaces": not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        "service-links": pod.get("enableServiceLinks") is False,
    }
    return found + [name for name, good in whole.items() if not good]


@pytest.mark.parametrize("values", [{}, whole(), {"monitoring": MONITORS}], ids=["defaults", "everything", "monitored"])
def test_the_operator_breaks_no_rule(helm: Helm, values: dict[str, Any]) -> None:
    (deployment,) = deployments(helm.render(values))
    assert findings(deployment) == []


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in manifests.OVERLAYS)])
def test_what_kustomize_renders_breaks_no_rule(folder: str) -> None:
    (deployment,) = deployments(kustomized(manifests.ROOT / "manifests" / folder))
    assert findings(deployment) == []


def test_the_gateway_breaks_no_rule() -> None:
    (deployment,) = deployments(list(yaml.load_all(GATEWAY.read_text(), Loader=yaml.CSafeLoader)))
    assert findings(deployment) == []


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_no_model_breaks_a_rule(path: Any) -> None:
    for deployment in deployments(list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))):
        assert findings(deployment) == []
        # Only the operator talks to the apiserver.
        assert deployment["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_a_broken_rule_is_found(helm: Helm) -> None:
    (deployment,) = deployments(helm.render({"image": {"tag": "latest"}, "env": [{"name": "A_TOKEN", "value": "x"}]}))
    del deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    assert findings(deployment) == ["no-liveness-probe", "latest-tag", "env-var-secret"]


def test_nothing_is_reachable_from_outside_of_the_cluster(helm: Helm) -> None:
    services = [obj for obj in helm.render() if obj["kind"] == "Service"]
    assert [service["spec"]["type"] for service in services] == ["ClusterIP"]
    assert not any(obj["kind"] in ("Ingress", "HTTPRoute") for obj in helm.render())
