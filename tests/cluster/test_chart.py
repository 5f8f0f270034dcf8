"""The chart in a real cluster: install, serve under its ServiceAccount, upgrade, uninstall."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import manifests
from tests.cluster.conftest import FAST, NODES
from tests.support.helm import Helm

from flotilla.constants import API_VERSION
from flotilla.control.ledger_store import record_name
from flotilla.devcluster.audit import AuditLog, select
from flotilla.devcluster.controlplane import ControlPlane
from flotilla.devcluster.nodeagent import NodeAgent
from flotilla.devcluster.operator import OperatorProcess
from flotilla.devcluster.wait import until

pytestmark = pytest.mark.cluster

NAMESPACE = "flotilla-system"
OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/flotilla-operator"
SETTINGS = f"/api/v1/namespaces/{NAMESPACE}/configmaps/flotilla-operator"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modeldeployments.flotilla.dev"
MODEL = "/apis/flotilla.dev/v1alpha1/namespaces/default/modeldeployments/m"
CHILD = "/apis/apps/v1/namespaces/default/deployments/m"
PODS = "/api/v1/namespaces/default/pods"
LOCAL = {"listen_host": "127.0.0.1", "listen_port": 0}
"""What differs for a process beside the cluster from the operator's pod in it."""


@dataclass
class Site:
    """A cluster without anything of Flotilla's, and helm for it."""

    plane: ControlPlane
    helm: Helm
    directory: Path
    starts: int = 0

    def start_operator(self) -> OperatorProcess:
        """With the settings and under the ServiceAccount that the chart installed."""
        self.starts += 1
        data = (self.plane.api.get(SETTINGS) or {})["data"]
        account = (self.plane.api.get(OPERATOR) or {})["spec"]["template"]["spec"]["serviceAccountName"]
        return OperatorProcess.start(
            self.plane,
            log=self.directory / f"operator-{self.starts}.log",
            settings={**yaml.safe_load(data["config.yaml"]), **LOCAL},
            kubeconfig=self.plane.service_account_kubeconfig(NAMESPACE, account),
        )

    def is_ready(self) -> bool:
        conditions = (self.plane.api.get(MODEL) or {}).get("status", {}).get("conditions", ())
        return any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)

    def running(self) -> dict[str, Any]:
        """What a restart of the model would change."""
        child = self.plane.api.get(CHILD) or {}
        pods = self.plane.api.request("GET", PODS)["items"]
        return {
            "generation": child["metadata"]["generation"],
            "template": child["spec"]["template"],
            "pods": sorted(pod["metadata"]["uid"] for pod in pods),
        }


@pytest.fixture
def site(helm: Helm, tmp_path: Path) -> Iterator[Site]:
    with ControlPlane.start(directory=tmp_path / "plane") as plane:
        agent = NodeAgent.start(plane.kubeconfig, NODES, tmp_path / "nodes")
        yield Site(plane, Helm(helm.program, plane.kubeconfig), tmp_path)
        agent.stop()


def next_version(folder: Path) -> Path:
    """The chart as the release after this one: another version of everything that carries one."""
    chart = folder / "flotilla"
    shutil.copytree(manifests.CHART, chart)
    meta = chart / "Chart.yaml"
    meta.write_text(re.sub(r"ersion: \d.*", "ersion: 99.0.0", meta.read_text()))
    return chart


def test_from_install_to_uninstall(site: Site, spec: dict[str, Any], tmp_path: Path) -> None:
    api, helm = site.plane.api, site.helm
    values = tmp_path / "values.yaml"
    asked = {"pod_address_map": "10.244.0.0/16=127.244.0.0/16", **FAST}
    values.write_text(yaml.safe_dump({"config": asked}))
    release = ("flotilla", manifests.CHART, "--namespace", NAMESPACE, "--values", values)

    helm("install", *release, "--create-namespace", "--wait", "--timeout", "60s")
    assert api.request("GET", OPERATOR)["status"]["readyReplicas"] == 2
    operator = site.start_operator()
    api.apply(MODEL, {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": "m"}, "spec": spec})
    until(site.is_ready, what="the model to serve", timeout_s=60)
    before = site.running()

    upgrade = ("flotilla", next_version(tmp_path / "next"), *release[2:])
    helm("upgrade", *upgrade, "--wait", "--timeout", "60s")
    assert ":99.0.0" in api.request("GET", OPERATOR)["spec"]["template"]["spec"]["containers"][0]["image"]
    audit = AuditLog(site.plane.audit_log)
    operator.stop()
    mark = audit.mark()
    operator = site.start_operator()
    until(lambda: "flotilla_reconcile_total" in operator.metrics(), what="a pass over the model", timeout_s=30)
    assert site.running() == before
    operator.stop()
    user = f"system:serviceaccount:{NAMESPACE}:flotilla-operator"
    writes = {
        (event.resource, event.namespace, event.name) for event in select(audit.since(mark), user=user, writes=True)
    }
    assert writes - {("selfsubjectaccessreviews", "", "")} <= {
        ("configmaps", NAMESPACE, record_name("default", "m")),  # what the model has cost, at an orderly end
        ("leases", NAMESPACE, "flotilla-operator"),
    }
    assert not [event for event in select(audit.since(0), user=user) if event.code in (401, 403)]

    helm("uninstall", "flotilla", "--namespace", NAMESPACE, "--wait", "--timeout", "60s")
    assert api.get(OPERATOR) is None
    assert site.is_ready()
    assert site.running() == before

    helm("install", *release, "--set", "crds.keep=false")
    assert site.running() == before
    helm("uninstall", "flotilla", "--namespace", NAMESPACE)
    until(lambda: api.get(CRD) is None, what="the CRDs to go with the release", timeout_s=60)
