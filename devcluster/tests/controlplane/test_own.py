"""Control planes that tests start themselves: several at once, failures of the apiserver, failures to start."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.support import toys

from flotilla.errors import InvalidSpec, NotReady, Transient
from flotilla_devcluster import programs
from flotilla_devcluster.apiserver import Api
from flotilla_devcluster.components import Tuning
from flotilla_devcluster.controlplane import APISERVER, ControlPlane
from flotilla_devcluster.process import until

pytestmark = pytest.mark.controlplane


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A whole control plane that this module may break."""
    crds = toys.write_crd(tmp_path_factory.mktemp("crds"))
    directory = tmp_path_factory.mktemp("plane")
    tuning = Tuning(node_monitor_grace_period_s=5, pod_eviction_s=2)
    with ControlPlane.start(directory=directory, crds=crds, tuning=tuning) as started:
        yield started


def test_two_at_once_are_two_clusters_that_end_apart(tmp_path: Path) -> None:
    """Started at the same moment from threads that end, which must not take the processes with them."""

    def start(name: str) -> ControlPlane:
        return ControlPlane.start(directory=tmp_path / name, controllers=False)

    with ThreadPoolExecutor(max_workers=2) as pool:
        planes = list(pool.map(start, ["one", "two"]))
    with planes[0] as one, planes[1] as two:
        assert one.url != two.url
        one.create_namespace("only-in-one", controllers=False)
        assert one.api.get("/api/v1/namespaces/only-in-one") is not None
        assert two.api.get("/api/v1/namespaces/only-in-one") is None
        pids = [process.pid for process in one.processes.values()]
        one.stop()
        one.stop()
        assert [pid for pid in pids if psutil.pid_exists(pid)] == []
        assert not (one.directory / "etcd").exists()
        assert (one.directory / "logs" / "kube-apiserver.log").exists()
        two.check()
        assert two.api.healthy()


def test_children_of_a_custom_resource_are_collected_within_seconds(plane: ControlPlane) -> None:
    """A collector that started before the kind existed would take half a minute."""
    plane.create_namespace("collected")
    path = toys.PATH.format(namespace="collected")
    body = {"apiVersion": "tests.flotilla.dev/v1", "kind": "Toy", "metadata": {"name": "owner"}}
    owner = plane.api.request("POST", path, body)
    reference = {
        "apiVersion": body["apiVersion"],
        "kind": "Toy",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
    }
    child = {"metadata": {"name": "child", "ownerReferences": [reference]}}
    plane.api.request("POST", "/api/v1/namespaces/collected/configmaps", child)
    plane.api.request("DELETE", f"{path}/owner")
    child_path = "/api/v1/namespaces/collected/configmaps/child"
    assert until(lambda: plane.api.get(child_path) is None, what="the child to go", timeout_s=5)


def test_objects_survive_a_restart_of_the_apiserver(plane: ControlPlane) -> None:
    plane.create_namespace("survivor")
    before = plane.processes[APISERVER].pid
    plane.restart_apiserver()
    assert plane.processes[APISERVER].pid != before
    assert plane.api.get("/api/v1/namespaces/survivor") is not None
    # The controllers have found it again.
    plane.create_namespace("after-the-restart", timeout_s=30)


def test_paused_apiserver_answers_nothing_until_it_is_resumed(plane: ControlPlane) -> None:
    impatient = Api(plane.access, timeout_s=0.3)
    assert impatient.healthy()
    plane.pause_apiserver()
    try:
        with pytest.raises(Transient, match="got no answer"):
            impatient.get("/api/v1/namespaces")
    finally:
        plane.resume_apiserver()
    until(impatient.healthy, what="the resumed apiserver", timeout_s=5)


def test_tuning_reaches_the_pods(plane: ControlPlane) -> None:
    pod = {"metadata": {"name": "tolerant"}, "spec": {"containers": [{"name": "main", "image": "x"}]}}
    made = plane.api.request("POST", "/api/v1/namespaces/default/pods", pod)
    assert {toleration["tolerationSeconds"] for toleration in made["spec"]["tolerations"]} == {2}


def test_component_that_dies_at_the_start_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    broken = tmp_path / "kube-apiserver"
    broken.write_text("#!/bin/sh\necho unknown flag >&2\nexit 1\n")
    broken.chmod(0o755)
    found = {**programs.find_control_plane(), APISERVER: broken}
    with pytest.raises(NotReady, match=r"(?s)kube-apiserver ended with exit status 1.*unknown flag"):
        ControlPlane.start(directory=tmp_path / "plane", programs=found)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path / "plane") in " ".join(p.info["cmdline"] or [])]
    assert left == []


def test_folder_of_another_control_plane_is_refused(plane: ControlPlane) -> None:
    with pytest.raises(InvalidSpec, match="is not empty"):
        ControlPlane.start(directory=plane.directory)


def test_folder_without_crds_is_refused_before_anything_waits(tmp_path: Path) -> None:
    (tmp_path / "crds").mkdir()
    with pytest.raises(NotReady, match="holds no CustomResourceDefinition"):
        ControlPlane.start(directory=tmp_path / "plane", crds=tmp_path / "crds")
