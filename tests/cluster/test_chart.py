"""The chart in a real cluster: its pods act under its ServiceAccount, and its upgrade and end touch no model."""

import os
import pty
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import manifests
from tests.cluster.conftest import FAST, NODES
from tests.support.doc_commands import ROOT, own, reader, typed
from tests.support.helm import Helm

from flotilla.cost.ledger_store import record_name
from flotilla_devcluster.apiserver import AuditLog, select
from flotilla_devcluster.controlplane import ControlPlane
from flotilla_devcluster.network import local_address
from flotilla_devcluster.process import until
from flotilla_devcluster.stack import NodeAgent

pytestmark = pytest.mark.cluster

NAMESPACE = "flotilla-system"
OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/flotilla-operator"
OPERATOR_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modeldeployments.flotilla.dev"
NAME = "qwen2-5-7b"
"""The sample that the documentation speaks of."""
MODEL = f"/apis/flotilla.dev/v1alpha1/namespaces/default/modeldeployments/{NAME}"
CHILD = f"/apis/apps/v1/namespaces/default/deployments/{NAME}"
FORWARDED = "http://127.0.0.1:8080"
"""Where the pages have the operator's /metrics: at the end of a port-forward, for which a kubelet is needed."""
PODS = "/api/v1/namespaces/default/pods"


@dataclass
class Site:
    """A cluster without anything of Flotilla's, and helm for it."""

    plane: ControlPlane
    helm: Helm

    def leader(self) -> tuple[str, str, str]:
        """Image, address and metrics of the operator's pod that leads; empty while none does."""
        for pod in self.plane.api.request("GET", OPERATOR_PODS)["items"]:
            if "podIP" not in pod.get("status", {}) or "deletionTimestamp" in pod["metadata"]:
                continue
            url = f"http://{local_address(pod['status']['podIP'])}:8080"
            with suppress(OSError), urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
                text: str = answer.read().decode()
                if "\nflotilla_leader 1" in text:
                    return pod["spec"]["containers"][0]["image"], url, text
        return "", "", ""

    def is_settled(self) -> bool:
        """Whether the model serves, and nothing is left to do or to say."""
        status = (self.plane.api.get(MODEL) or {}).get("status", {})
        conditions = {(c["type"], c["status"]) for c in status.get("conditions", ())}
        wanted = {("Ready", "True"), ("Reconciling", "False"), ("ScalingActive", "True")}
        return wanted <= conditions and status["readyReplicas"] == 1

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
        yield Site(plane, Helm(helm.program, plane.kubeconfig))
        agent.stop()


def next_version(folder: Path) -> Path:
    """The chart as the release after this one: another version of everything that carries one."""
    chart = folder / "flotilla"
    shutil.copytree(manifests.CHART, chart)
    meta = chart / "Chart.yaml"
    meta.write_text(re.sub(r"ersion: \d.*", "ersion: 99.0.0", meta.read_text()))
    return chart


def follow_the_pages(site: Site, folder: Path) -> None:
    """Every line of ours in the documentation that asks a fleet, as its reader types it."""
    folder.mkdir()
    environ = {**reader(folder, {}), "KUBECONFIG": str(site.plane.kubeconfig), "HOME": str(folder), "COLUMNS": "200"}
    for line in own("fleet"):
        if "--watch" in line.words:
            watched(line.command, environ)
        else:
            assert typed(line.command.replace(FORWARDED, site.leader()[1]), folder, environ).stdout, line


def watched(command: str, environ: dict[str, str]) -> None:
    """On a terminal; Ctrl-C, once the model is shown, is its orderly end.

    A shell's background jobs ignore the signal, and so would all that tests start which run in one.
    """
    ours, terminal = pty.openpty()
    os.set_blocking(ours, False)
    argv = ["env", "--default-signal=INT", "bash", "-c", f"exec {command}"]
    with subprocess.Popen(argv, env=environ, stdin=terminal, stdout=terminal) as process:
        shown = b""

        def is_shown() -> bool:
            nonlocal shown
            with suppress(BlockingIOError):
                shown += os.read(ours, 1 << 16)
            return NAME.encode() in shown

        try:
            until(is_shown, what=f"{NAME} on the terminal", timeout_s=30)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(ours)
            os.close(terminal)


def test_from_install_to_uninstall(site: Site, tmp_path: Path) -> None:
    api, helm = site.plane.api, site.helm
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"config": FAST}))
    release = ("flotilla", manifests.CHART, "--namespace", NAMESPACE, "--values", values)

    helm("install", *release, "--create-namespace", "--wait", "--timeout", "60s")
    assert api.request("GET", OPERATOR)["status"]["readyReplicas"] == 2
    api.apply(MODEL, yaml.safe_load((ROOT / f"manifests/samples/{NAME}.yaml").read_text()))
    until(site.is_settled, what="the model to serve", timeout_s=60)
    before = site.running()
    follow_the_pages(site, tmp_path / "reader")

    audit = AuditLog(site.plane.audit_log)
    mark = audit.mark()
    upgrade = ("flotilla", next_version(tmp_path / "next"), *release[2:])
    helm("upgrade", *upgrade, "--wait", "--timeout", "60s")

    def passed_over() -> bool:
        image, _, metrics = site.leader()
        return image.endswith(":99.0.0") and 'flotilla_reconcile_total{kind="ModelDeployment"' in metrics

    until(passed_over, what="the new release to pass over the model", timeout_s=60)
    assert site.running() == before
    user = f"system:serviceaccount:{NAMESPACE}:flotilla-operator"
    writes = {
        (event.resource, event.namespace, event.name) for event in select(audit.since(mark), user=user, writes=True)
    }
    assert writes - {("selfsubjectaccessreviews", "", "")} <= {
        ("configmaps", NAMESPACE, record_name("default", NAME)),  # what the model has cost, at an orderly end
        ("leases", NAMESPACE, "flotilla-operator"),
    }
    assert not [event for event in select(audit.since(0), user=user) if event.code in (401, 403)]

    helm("uninstall", "flotilla", "--namespace", NAMESPACE, "--wait", "--timeout", "60s")
    assert api.get(OPERATOR) is None
    assert site.is_settled()
    assert site.running() == before

    helm("install", *release, "--set", "crds.keep=false")
    assert site.running() == before
    helm("uninstall", "flotilla", "--namespace", NAMESPACE)
    until(lambda: api.get(CRD) is None, what="the CRDs to go with the release", timeout_s=60)
