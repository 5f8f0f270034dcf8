"""Every manifest that we ship, judged by the apiserver: no unknown field, no refused value, Pod Security restricted."""

import copy
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import manifests
from tests.chart.test_chart import MONITORS, whole
from tests.chart.test_kustomize import kustomized
from tests.support.helm import Helm, Object

from flotilla.errors import FlotillaError, Forbidden, InvalidSpec
from flotilla_devcluster import apiserver
from flotilla_devcluster.controlplane import Cluster

pytestmark = pytest.mark.controlplane

ROOT = manifests.ROOT
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
GOLDEN = sorted((ROOT / "tests/golden/manifests").glob("*.yaml"))
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": whole(),
    "monitored": {"monitoring": MONITORS},
    "namespaced": {"config": {"namespaces": ["team-a", "team-b"]}},
}
FILES = [
    *(ROOT / "manifests/samples").glob("*.yaml"),
    *(ROOT / "manifests/samples/evaluation").glob("*.yaml"),
    *(ROOT / "manifests/argocd").glob("*.yaml"),
    *(ROOT / "manifests/flux").glob("*.yaml"),
]


@pytest.fixture(scope="module")
def foreign_kinds(controlplane: Cluster) -> Iterator[None]:
    """Argo CD's, Flux' and the Prometheus operator's."""
    documents = [json.loads(path.read_text()) for path in sorted((ROOT / "tests/data/crds").glob("*.json"))]
    apiserver.apply_crds(controlplane.api, documents)
    yield
    for document in documents:
        controlplane.api.request("DELETE", f"{CRDS}/{document['metadata']['name']}")


class DryRun:
    """Server-side apply that stores nothing and forgives nothing."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._api = cluster.api
        self._namespace = namespace
        self._paths: dict[tuple[str, str], tuple[str, bool]] = {}

    def __call__(self, obj: Object) -> Object:
        """The object as it would be stored; raises InvalidSpec or Forbidden with the server's words."""
        plural, namespaced = self._resource(obj["apiVersion"], obj["kind"])
        body = copy.deepcopy(obj)
        version = obj["apiVersion"]
        path = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if namespaced:
            body["metadata"]["namespace"] = self._namespace
            path += f"/namespaces/{self._namespace}"
        query = {"dryRun": "All", "fieldValidation": "Strict", "fieldManager": "test", "force": "true"}
        answer: Object = self._api.request(
            "PATCH",
            f"{path}/{plural}/{body['metadata']['name']}",
            body,
            content_type="application/apply-patch+yaml",
            **query,
        )
        return answer

    def _resource(self, version: str, kind: str) -> tuple[str, bool]:
        if (version, kind) not in self._paths:
            root = f"/apis/{version}" if "/" in version else f"/api/{version}"
            for resource in self._api.request("GET", root)["resources"]:
                if "/" not in resource["name"]:
                    self._paths[version, resource["kind"]] = (resource["name"], resource["namespaced"])
        return self._paths[version, kind]


@pytest.fixture
def dry_run(controlplane: Cluster, namespace: str) -> DryRun:
    return DryRun(controlplane, namespace)


@pytest.fixture
def restricted(controlplane: Cluster) -> Iterator[DryRun]:
    """In a namespace where Pod Security refuses what is not `restricted`."""
    name = f"restricted-{uuid.uuid4().hex[:8]}"
    controlplane.create_namespace(name)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    controlplane.api.request(
        "PATCH",
        f"/api/v1/namespaces/{name}",
        {"metadata": {"labels": labels}},
        content_type="application/merge-patch+json",
    )
    yield DryRun(controlplane, name)
    controlplane.delete_namespace(name)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_apiserver_takes_what_helm_renders(
    helm: Helm, dry_run: DryRun, foreign_kinds: None, values: dict[str, Any]
) -> None:
    for obj in helm.render(values):
        assert dry_run(obj)["metadata"]["name"] == obj["metadata"]["name"]


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in manifests.OVERLAYS)])
def test_the_apiserver_takes_what_kustomize_renders(dry_run: DryRun, folder: str) -> None:
    for obj in kustomized(ROOT / "manifests" / folder):
        assert dry_run(obj)["metadata"]["name"] == obj["metadata"]["name"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_apiserver_takes_every_file_of_manifests(dry_run: DryRun, foreign_kinds: None, path: Path) -> None:
    for obj in yaml.safe_load_all(path.read_text()):
        assert dry_run(obj)["metadata"]["name"] == obj["metadata"]["name"]


def test_a_misspelt_field_would_not_pass(helm: Helm, dry_run: DryRun) -> None:
    (deployment,) = (obj for obj in helm.render() if obj["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["serviceAcountName"] = "x"
    with pytest.raises(FlotillaError, match="serviceAcountName"):
        dry_run(deployment)


def pod_of(obj: Object) -> Object:
    """The pod that a Deployment makes; its account is left out, since it is not there."""
    spec = {key: value for key, value in obj["spec"]["template"]["spec"].items() if key != "serviceAccountName"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def test_the_operators_pod_is_restricted(helm: Helm, restricted: DryRun) -> None:
    for values in VALUES.values():
        (deployment,) = (obj for obj in helm.render({**values, "priorityClassName": ""}) if obj["kind"] == "Deployment")
        admitted = restricted(pod_of(deployment))
        assert admitted["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_engines_pod_is_restricted(restricted: DryRun, path: Path) -> None:
    deployments = [obj for obj in yaml.safe_load_all(path.read_text()) if obj["kind"] == "Deployment"]
    for deployment in deployments:
        pod = pod_of(deployment)
        pod["spec"].pop("priorityClassName", None)  # refused where the class does not exist, before Pod Security
        pod["spec"].pop("runtimeClassName", None)
        restricted(pod)
    assert deployments


def test_pod_security_refuses_a_pod_that_is_not(restricted: DryRun) -> None:
    (deployment,) = (obj for obj in yaml.safe_load_all(GOLDEN[0].read_text()) if obj["kind"] == "Deployment")
    pod = pod_of(deployment)
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    with pytest.raises(Forbidden, match="restricted"):
        restricted(pod)


def test_an_unknown_kind_of_quantization_in_a_sample_would_not_pass(dry_run: DryRun) -> None:
    obj = yaml.safe_load((ROOT / "manifests/samples/qwen2-5-7b.yaml").read_text())
    obj["spec"]["quantization"]["method"] = "fp9"
    with pytest.raises(InvalidSpec, match="fp9"):
        dry_run(obj)
