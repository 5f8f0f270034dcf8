"""What a GitOps tool sees of our resources while they live: nothing that it did not put there."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.controlplane import Kubectl
from tests.support.models import Models

from flotilla_devcluster import programs, traffic

pytestmark = pytest.mark.cluster

SAMPLES = sorted((Path(__file__).parents[2] / "manifests/samples").glob("*.yaml"))
MANAGER = "argocd-controller"


def test_no_sample_shows_a_diff_after_load(models: Models) -> None:
    """By the server-side dry run that Argo CD compares with, and Flux too."""
    kubectl = Kubectl(programs.find_kubectl(), models.stack.plane.kubeconfig)
    files = [argument for path in SAMPLES for argument in ("-f", str(path))]
    kubectl("apply", "--server-side", f"--field-manager={MANAGER}", *files, namespace=models.namespace)
    wanted = [yaml.safe_load(path.read_text()) for path in SAMPLES]
    for obj in wanted:
        if obj["kind"] == "ModelDeployment":
            models.wait_ready(obj["metadata"]["name"])
    url = models.stack.service_url("qwen2-5-7b", models.namespace)
    assert url is not None
    tally, deadline = traffic.Tally(), time.monotonic() + 30

    def grown() -> bool:
        replicas = (models.get("Deployment", "qwen2-5-7b") or {})["spec"]["replicas"]
        return replicas > 1 or time.monotonic() > deadline

    asyncio.run(traffic.burst([traffic.Crowd(url, "qwen2-5-7b", 24)], until=grown, tally=tally))
    assert (models.get("ModelDeployment", "qwen2-5-7b") or {})["status"]["scaling"]["desiredReplicas"] > 1
    difference = kubectl("diff", "--server-side", f"--field-manager={MANAGER}", *files, namespace=models.namespace)
    assert difference == ""
    for obj in wanted:
        live: dict[str, Any] = models.get(obj["kind"], obj["metadata"]["name"]) or {}
        meta = live["metadata"]
        assert meta["generation"] == 1
        assert meta.get("annotations") == obj["metadata"].get("annotations")
        assert meta.get("labels") == obj["metadata"].get("labels")
        assert "finalizers" not in meta
