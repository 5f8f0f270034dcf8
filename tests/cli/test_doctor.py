"""`flotilla doctor`: each thing that a cluster may lack is found and comes with what helps."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from tests.cli.test_status import MODEL, POLICY

from flotilla.api import crd
from flotilla.catalog.accelerators import load_accelerators
from flotilla.cli.doctor import Check, Facts, Result, examine, healthy, json_text, read
from flotilla.kube.client import KubeClient, ObjectList
from flotilla.kube.kinds import Kind

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
CRDS = {definition["metadata"]["name"]: definition for definition in map(crd.crd, crd.DEFINITIONS)}
OPERATOR = {
    "metadata": {"name": "flotilla-operator", "namespace": "flotilla-system"},
    "status": {"readyReplicas": 2},
}


def lease(age_s: float = 1, holder: str = "pod-1") -> dict[str, Any]:
    renewed = (NOW - timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"spec": {"holderIdentity": holder, "leaseDurationSeconds": 60, "renewTime": renewed}}


def node(
    name: str = "gpu-1",
    *,
    gpus: int = 4,
    labels: dict[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
    kubelet: str = "v1.36.4",
) -> dict[str, Any]:
    known = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/cuda.driver-version.full": "580.95.05"}
    own = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    return {
        "metadata": {"name": name, "labels": known if labels is None else labels},
        "spec": {"taints": own if taints is None else taints},
        "status": {
            "allocatable": {"cpu": "64", **({"nvidia.com/gpu": str(gpus)} if gpus else {})},
            "nodeInfo": {"kubeletVersion": kubelet},
        },
    }


DEFAULT = {"metadata": {"name": "gp3", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}
GOOD = Facts(
    crds=CRDS,
    wanted_crds=CRDS,
    operators=[OPERATOR],
    lease=lease(),
    now=NOW,
    missing_rights=[],
    nodes=[node()],
    storage_classes=[DEFAULT],
    pod_monitors=True,
    models=[MODEL],
    policies=[],
    accelerators=load_accelerators(),
)


def found(**changes: Any) -> dict[str, Check]:
    return {check.name: check for check in examine(replace(GOOD, **changes))}


def test_a_good_cluster_has_nothing_to_mend() -> None:
    checks = examine(GOOD)
    assert {check.result for check in checks} == {Result.OK}
    assert healthy(checks)
    assert {check.name: check.message for check in checks}["Accelerators"] == "4 x nvidia-l4."
    assert '"remedy"' not in json_text(checks)


NAME = "modeldeployments.flotilla.dev"


@pytest.mark.parametrize(
    ("changes", "name", "result", "said"),
    [
        ({"crds": {**CRDS, NAME: None}}, "CRDs", Result.FAIL, NAME),
        ({"crds": {**CRDS, NAME: {"spec": {"versions": []}}}}, "CRDs", Result.WARN, "another release"),
        ({"lease": None, "operators": []}, "Operator", Result.FAIL, "ever taken the Lease"),
        ({"lease": None}, "Operator", Result.FAIL, "never taken its Lease"),
        ({"lease": lease(age_s=90)}, "Operator", Result.FAIL, "for 90 s"),
        ({"lease": lease(holder="")}, "Operator", Result.FAIL, "none acts"),
        ({"missing_rights": ["cannot patch services"]}, "RBAC", Result.FAIL, "cannot patch services"),
        ({"nodes": [node(kubelet="v1.28.3-gke.1")]}, "Kubelets", Result.FAIL, "gpu-1"),
        ({"nodes": []}, "Accelerators", Result.WARN, "No node"),
        ({"nodes": [node(gpus=0)]}, "Device plugin", Result.FAIL, "gpu-1"),
        ({"nodes": [node(labels={})]}, "GPU labels", Result.FAIL, "gpu-1"),
        ({"nodes": [node(taints=[{"key": "sku", "effect": "NoSchedule"}])]}, "Taints", Result.WARN, "sku:NoSchedule"),
        (
            {"nodes": [node(labels={"nvidia.com/gpu.product": "NVIDIA-L4"})]},
            "Drivers",
            Result.UNKNOWN,
            "No node reports",
        ),
        ({"storage_classes": []}, "Storage", Result.WARN, "default"),
        ({"pod_monitors": False}, "Prometheus", Result.WARN, "PodMonitor"),
        ({"policies": [POLICY]}, "n/p", Result.FAIL, "No such target."),
        ({"policies": [POLICY]}, "Models", Result.WARN, "1 of 2"),
    ],
)
def test_what_is_missing_is_named(changes: dict[str, Any], name: str, result: Result, said: str) -> None:
    check = found(**changes)[name]
    assert check.result is result
    assert said in check.message
    assert check.remedy


def test_what_is_stuck_comes_with_the_command_that_says_more() -> None:
    remedy = found(policies=[{key: value for key, value in POLICY.items() if key != "kind"}])["n/p"].remedy
    assert remedy == "kubectl describe routingpolicy p --namespace n"


def test_a_missing_price_is_named() -> None:
    condition = {"type": "CostKnown", "status": "False", "reason": "UnknownHostedModel", "message": "?"}
    conditions = [*MODEL["status"]["conditions"], condition]
    priceless = {**MODEL, "status": {**MODEL["status"], "conditions": conditions}}
    assert found(models=[priceless])["Prices"].result is Result.WARN


def test_what_one_may_not_see_is_unknown_and_fails_nothing() -> None:
    hidden: dict[str, Any] = dict.fromkeys(
        ("missing_rights", "nodes", "storage_classes", "pod_monitors", "models", "policies")
    )
    checks = examine(replace(GOOD, **hidden))
    assert healthy(checks)
    assert sum(check.result is Result.UNKNOWN for check in checks) == 5
    assert all(check.remedy for check in checks if check.result is Result.UNKNOWN)


def test_an_operator_outside_of_the_cluster_is_seen_by_its_lease() -> None:
    assert "outside the cluster" in found(operators=[])["Operator"].message


class Cluster:
    """Answers as an apiserver that lets the operator do everything in the namespaces `team-a` and its own."""

    def __init__(self, settings: str) -> None:
        self.settings = settings

    async def pages(self, kind: Kind, **_: Any) -> AsyncIterator[ObjectList]:
        volume = {"name": "config", "configMap": {"name": "settings"}}
        pod = {"serviceAccountName": "flotilla-operator", "volumes": [volume]}
        yield ObjectList([{**OPERATOR, "spec": {"template": {"spec": pod}}}], "1")

    async def list(self, kind: Kind, **_: Any) -> ObjectList:
        return ObjectList([], "1")

    async def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> dict[str, Any] | None:
        return {"data": {"config.yaml": self.settings}} if kind.plural == "configmaps" else None

    async def create(self, kind: Kind, obj: dict[str, Any]) -> dict[str, Any]:
        asked = obj["spec"]["resourceAttributes"]
        return {"status": {"allowed": asked["namespace"] in ("team-a", "flotilla-system")}}


async def test_an_operator_of_some_namespaces_is_asked_for_its_rights_there() -> None:
    seen = await read(cast("KubeClient", Cluster("namespaces: [team-a]")), "flotilla-system")
    assert seen.missing_rights == []
    seen = await read(cast("KubeClient", Cluster("namespaces: [team-a, team-b]")), "flotilla-system")
    assert "cannot patch deployments in team-b" in (seen.missing_rights or ())
    seen = await read(cast("KubeClient", Cluster("")), "flotilla-system")
    assert "cannot list nodes" in (seen.missing_rights or ())
