"""The CRDs as a cluster has them: no drift, subresources, columns, selectors, and no diff for GitOps."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.controlplane import Kubectl
from tests.support.schema import put
from tests.support.whole import EVALUATION, MODEL_DEPLOYMENT, ROUTING_POLICY

from flotilla.api.crd import DEFINITIONS, files
from flotilla.errors import InvalidSpec
from flotilla_devcluster.controlplane import Cluster

pytestmark = pytest.mark.controlplane

ROOT = Path(__file__).parents[2]
SAMPLES = [
    *sorted((ROOT / "manifests" / "samples").glob("*.yaml")),
    *sorted((ROOT / "manifests" / "samples" / "tasks").glob("*.yaml")),
    ROOT / "manifests" / "samples" / "autoscaling" / "hpa.yaml",
    *sorted((ROOT / "manifests" / "samples" / "evaluation").glob("*.yaml")),
]
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def test_the_files_of_crds_are_what_the_models_generate() -> None:
    assert {path.name: path.read_text() for path in (ROOT / "crds").glob("flotilla.dev_*")} == files()


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.kind)
def test_what_the_apiserver_stores_is_what_the_file_says(controlplane: Cluster, definition: Any) -> None:
    wanted = yaml.safe_load((ROOT / "crds" / f"flotilla.dev_{definition.plural}.yaml").read_text())["spec"]
    live = controlplane.api.get(f"{CRD_PATH}/{definition.plural}.flotilla.dev")
    assert live is not None
    assert live["spec"].pop("conversion") == {"strategy": "None"}
    assert live["spec"] == wanted


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.kind)
def test_applying_a_crd_again_changes_nothing(controlplane: Cluster, definition: Any) -> None:
    manifest = yaml.safe_load((ROOT / "crds" / f"flotilla.dev_{definition.plural}.yaml").read_text())
    path = f"{CRD_PATH}/{definition.plural}.flotilla.dev"
    first = controlplane.api.apply(path, manifest, manager="kubectl")
    second = controlplane.api.apply(path, manifest, manager="kubectl")
    assert second["metadata"]["generation"] == first["metadata"]["generation"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_applied_twice_shows_no_diff(kubectl: Kubectl, namespace: str, sample: Path) -> None:
    kubectl("apply", "--server-side", "-f", str(sample), namespace=namespace)
    first = _versions(kubectl("get", "-f", str(sample), "-o", "json", namespace=namespace))
    assert kubectl("diff", "--server-side", "-f", str(sample), namespace=namespace) == ""
    kubectl("apply", "--server-side", "-f", str(sample), namespace=namespace)
    assert _versions(kubectl("get", "-f", str(sample), "-o", "json", namespace=namespace)) == first


def _versions(printed: str) -> list[tuple[int | None, str]]:
    """Of one object, or of a list. A controller's status may move, a spec of ours may not."""
    found = json.loads(printed)
    items = [item for item in found.get("items", [found]) if item["kind"] != "HorizontalPodAutoscaler"]
    return [(item["metadata"].get("generation"), item["metadata"]["resourceVersion"]) for item in items]


def path(namespace: str, plural: str = "modeldeployments") -> str:
    return f"/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/{plural}"


def test_status_and_spec_are_written_apart(controlplane: Cluster, namespace: str) -> None:
    created = controlplane.api.request("POST", path(namespace), {**MODEL_DEPLOYMENT, "status": {"readySummary": "7/7"}})
    assert "status" not in created
    where = f"{path(namespace)}/whole"
    changed = {"spec": {"replicas": 5}, "status": {"readySummary": "1/2"}}
    written = controlplane.api.request("PATCH", f"{where}/status", changed, content_type="application/merge-patch+json")
    assert written["status"] == {"readySummary": "1/2"}
    assert written["spec"]["replicas"] == 2
    assert written["metadata"]["generation"] == created["metadata"]["generation"]


def test_scale_writes_the_replicas_and_shows_the_selector(
    controlplane: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    controlplane.api.request("POST", path(namespace), MODEL_DEPLOYMENT)
    where = f"{path(namespace)}/whole"
    status = {"status": {"replicas": 2, "selector": "flotilla.dev/model=whole"}}
    controlplane.api.request("PATCH", f"{where}/status", status, content_type="application/merge-patch+json")
    kubectl("scale", "mdep/whole", "--replicas=7", namespace=namespace)
    scale = controlplane.api.get(f"{where}/scale")
    assert scale is not None
    assert scale["spec"] == {"replicas": 7}
    assert scale["status"] == {"replicas": 2, "selector": "flotilla.dev/model=whole"}


def test_scale_is_refused_where_the_operator_counts(controlplane: Cluster, namespace: str) -> None:
    internal = put(MODEL_DEPLOYMENT, ("spec", "scaling", "mode"), "Internal")
    del internal["spec"]["replicas"]
    controlplane.api.request("POST", path(namespace), internal)
    body = {"spec": {"replicas": 3}}
    with pytest.raises(InvalidSpec, match=r"spec\.replicas belongs to scaling\.mode External or None"):
        controlplane.api.request(
            "PATCH", f"{path(namespace)}/whole/scale", body, content_type="application/merge-patch+json"
        )


def test_kubectl_shows_the_columns_and_knows_the_short_names(
    controlplane: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    controlplane.api.request("POST", path(namespace), MODEL_DEPLOYMENT)
    controlplane.api.request("POST", path(namespace, "routingpolicies"), ROUTING_POLICY)
    controlplane.api.request("POST", path(namespace, "evaluations"), EVALUATION)
    header, row = kubectl("get", "mdep", namespace=namespace).splitlines()
    assert header.split() == [
        "NAME", "ENGINE", "QUANTIZATION", "ACCELERATOR", "REPLICAS", "READY", "REASON", "AGE",
    ]  # fmt: skip
    assert row.split()[:3] == ["whole", "vllm", "nvidia-l4"]
    wide = kubectl("get", "mdep", "-o", "wide", namespace=namespace).splitlines()[0]
    assert "ENDPOINT" in wide
    assert "GPU $/H" in wide
    assert "hf://Qwen" in kubectl("get", "mdep", "-o", "wide", namespace=namespace)
    assert kubectl("get", "rpol", namespace=namespace).split()[:7] == [
        "NAME", "ACCEPTED", "RESOLVED", "SOVEREIGNTY", "PROGRAMMED", "READY", "AGE",
    ]  # fmt: skip
    everything = kubectl("get", "flotilla", "-o", "name", namespace=namespace)
    assert everything.split() == [
        "evaluation.flotilla.dev/whole",
        "modeldeployment.flotilla.dev/whole",
        "routingpolicy.flotilla.dev/whole",
    ]


def test_field_selectors_find_by_engine_and_accelerator(
    controlplane: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    controlplane.api.request("POST", path(namespace), MODEL_DEPLOYMENT)
    found = kubectl("get", "mdep", "--field-selector=spec.engine.name=vllm", "-o", "name", namespace=namespace)
    assert found.strip() == "modeldeployment.flotilla.dev/whole"
    assert kubectl("get", "mdep", "--field-selector=spec.engine.name=tgi", "-o", "name", namespace=namespace) == ""
    other = "--field-selector=spec.accelerator.class=nvidia-h100-80gb"
    assert kubectl("get", "mdep", other, "-o", "name", namespace=namespace) == ""


def test_kubectl_explains_a_field(kubectl: Kubectl) -> None:
    assert "queueDepthPerReplica is the wanted number" in kubectl("explain", "mdep.spec.scaling.queueDepthPerReplica")
