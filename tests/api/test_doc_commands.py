"""Every kubectl and helm line of README and docs, as it stands, with the real programs against a real apiserver."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.doc_commands import PAGES, QUICK_START, ROOT, Line, blocks, checkout, in_shell, reader
from tests.support.helm import Helm

from flotilla_devcluster import apiserver, programs
from flotilla_devcluster.controlplane import ControlPlane

pytestmark = pytest.mark.controlplane

PENDING = "unable to forward port because pod is not running"
"""What kubectl says where no kubelet runs the pod that it found."""
ROLLBACK = "helm rollback flotilla --namespace flotilla-system"
"""Inside a sentence of docs/operations/upgrade.md."""
Shell = Callable[[str], subprocess.CompletedProcess[str]]


def blocks_with(program: str) -> list[list[Line]]:
    """The lines with that program, block by block; each sequence once."""
    found: dict[tuple[str, ...], list[Line]] = {}
    for page in PAGES:
        for block in blocks(page):
            kept = [line for line in block if line.program == program and line.page != QUICK_START]
            if kept:
                found.setdefault(tuple(line.command for line in kept), kept)
    return list(found.values())


def shell(plane: ControlPlane, folder: Path, helm: Helm) -> Shell:
    environ = reader(folder, {"kubectl": programs.find_kubectl(), "helm": helm.program})
    environ |= {"KUBECONFIG": str(plane.kubeconfig), "HOME": str(folder)}
    directory = checkout(folder)

    return lambda command: in_shell(command, directory, environ)


def succeed(run: Shell, *commands: str) -> None:
    for command in commands:
        done = run(command)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture(scope="module")
def prepared(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """What the pages presume: Flotilla, Argo CD, Flux and the Prometheus operator are installed, a model is ready."""
    folder = tmp_path_factory.mktemp("reader")
    with ControlPlane.start(directory=folder / "plane", crds=ROOT / "crds", controllers=False) as plane:
        foreign = sorted((ROOT / "tests/data/crds").glob("*.json"))
        apiserver.apply_crds(plane.api, [json.loads(path.read_text()) for path in foreign])
        run = shell(plane, folder, helm)
        ready = '{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Ready","message":"",'
        ready += '"lastTransitionTime":"2026-01-01T00:00:00Z","observedGeneration":1}]}}'
        succeed(
            run,
            "kubectl apply --server-side -k manifests/base",
            "kubectl create namespace argocd && kubectl create configmap argocd-cm --namespace argocd",
            "kubectl create namespace flux-system",
            "kubectl apply -f manifests/samples",
            f"kubectl patch mdep qwen2-5-7b --subresource=status --type=merge --patch '{ready}'",
        )
        namespace = "namespaces/flotilla-system"
        operator = plane.api.request("GET", f"/apis/apps/v1/{namespace}/deployments/flotilla-operator")
        template = operator["spec"]["template"]
        pod = {"metadata": {"name": "operator", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
        plane.api.request("POST", f"/api/v1/{namespace}/pods", pod)
        yield run


@pytest.mark.parametrize("block", blocks_with("kubectl"), ids=lambda block: f"{block[0].page}: {block[0].command}")
def test_a_line_with_kubectl_works(prepared: Shell, block: list[Line]) -> None:
    for line in block:
        done = prepared(line.command)
        if "port-forward" in line.words:
            assert PENDING in done.stderr, line.command
        else:
            assert done.returncode == 0, f"{line.command}: {done.stderr}"


@pytest.fixture
def empty(helm: Helm, tmp_path: Path) -> Iterator[Shell]:
    """A cluster that has nothing of Flotilla's."""
    with ControlPlane.start(directory=tmp_path / "plane", controllers=False) as plane:
        yield shell(plane, tmp_path, helm)


def test_lines_with_helm_work_in_the_order_of_a_releases_life(empty: Shell) -> None:
    """--wait is tests/cluster/test_chart.py's: here nothing runs pods."""
    commands = {line.command.replace(" --wait", "") for block in blocks_with("helm") for line in block}
    installs, upgrades, ends = (
        sorted(command for command in commands if command.startswith(f"helm {verb} "))
        for verb in ("install", "upgrade", "uninstall")
    )
    assert {*installs, *upgrades, *ends} == commands
    assert upgrades
    assert ends
    assert f"`{ROLLBACK}`" in (ROOT / "docs/operations/upgrade.md").read_text()
    succeed(empty, "kubectl create namespace flotilla-system", "kubectl apply --server-side -k crds")
    succeed(empty, "kubectl create namespace team-a", "kubectl create namespace team-b")
    for install in installs:
        # The CRDs are there since the release before, or by hand where the chart brings none.
        succeed(empty, install if "crds.enabled=false" in install else f"{install} --take-ownership")
        if "namespaces" not in install:
            succeed(empty, *upgrades)
        succeed(empty, *ends)
    succeed(empty, installs[0], *upgrades, ROLLBACK, *ends, "kubectl get crd modeldeployments.flotilla.dev")
