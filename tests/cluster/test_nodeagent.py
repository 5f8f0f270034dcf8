"""The node agent plays kubelet: what its pods show is what Kubernetes documents."""

from typing import Any

import pytest
from tests.support.models import Models

from flotilla.errors import Transient
from flotilla_devcluster.nodeagent.pod import expand

pytestmark = pytest.mark.cluster


def run(models: Models, name: str, *, failure: str = "", **container: Any) -> None:
    """A bare pod on the CPU node."""
    engine = {"name": "main", "image": "example.com/unknown:1", **container}
    annotations = {"flotilla.dev/sim-failure": failure} if failure else {}
    pod = {
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"nodeName": "cpu-1", "terminationGracePeriodSeconds": 10, "containers": [engine]},
    }
    models.stack.plane.api.request("POST", models.path("Pod"), pod)


def main(models: Models, name: str) -> dict[str, Any]:
    """Status of the pod's container, empty while there is none."""
    pod = models.get("Pod", name) or {}
    found: dict[str, Any] = next(iter(pod.get("status", {}).get("containerStatuses", ())), {})
    return found


def test_a_container_of_an_unknown_image_is_played_and_gets_ready(models: Models) -> None:
    run(models, "played")
    models.wait(lambda: main(models, "played").get("ready"), "the pod to be ready")
    pod = models.get("Pod", "played") or {}
    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["podIP"].startswith("10.244.")


def test_the_apiserver_reaches_a_pod_at_its_address(models: Models) -> None:
    """As it does for `kubectl get --raw`, and for `flotilla cost` without an address."""
    run(models, "reached", image="vllm/vllm-openai:v0.33.0", args=["m/x", "--port", "8000"])
    models.wait(lambda: main(models, "reached").get("ready"), "the pod to be ready")

    def proxied(port: int, path: str) -> Any:
        return models.stack.plane.api.request("GET", f"{models.path('Pod', f'reached:{port}')}/proxy{path}")

    models.wait(lambda: proxied(8000, "/v1/models")["data"][0]["id"] == "m/x", "the engine's answer")
    with pytest.raises(Transient, match="error trying to reach service"):
        proxied(8001, "/v1/models")


def test_pods_have_addresses_of_their_own(models: Models) -> None:
    for number in range(4):
        run(models, f"p{number}")
    models.wait(lambda: all(main(models, f"p{n}").get("ready") for n in range(4)), "the pods to be ready")
    assert len({(models.get("Pod", f"p{n}") or {})["status"]["podIP"] for n in range(4)}) == 4


def test_a_crashing_container_backs_off_and_counts(models: Models) -> None:
    run(models, "crash", failure="CrashLoop")
    models.wait(lambda: main(models, "crash").get("restartCount", 0) >= 2, "two restarts")
    assert main(models, "crash")["lastState"]["terminated"]["exitCode"] == 1


def test_a_container_out_of_memory_says_so(models: Models) -> None:
    run(models, "oom", failure="OOMKilled")
    models.wait(lambda: main(models, "oom").get("restartCount", 0) >= 1, "a restart")
    ended = main(models, "oom")["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_an_image_that_cannot_be_pulled_waits(models: Models) -> None:
    run(models, "pull", failure="ImagePullBackOff")
    waiting = models.wait(lambda: main(models, "pull").get("state", {}).get("waiting"), "the waiting state")
    assert waiting["reason"] == "ImagePullBackOff"


def test_a_deleted_pod_leaves_after_its_pre_stop_hook(models: Models) -> None:
    engine: dict[str, Any] = {"image": "vllm/vllm-openai:v0.33.0", "args": ["m/x", "--port", "8000"]}
    run(models, "leaving", **engine, lifecycle={"preStop": {"sleep": {"seconds": 2}}})
    models.wait(lambda: "running" in main(models, "leaving").get("state", {}), "the engine's process to run")
    models.wait(lambda: main(models, "leaving").get("ready"), "the pod to be ready")
    models.delete("Pod", "leaving")
    assert (models.get("Pod", "leaving") or {})["metadata"]["deletionTimestamp"]
    models.wait(lambda: models.get("Pod", "leaving") is None, "the pod to go")


@pytest.mark.parametrize(
    ("text", "expanded"), [("$(A)-$(B)", "1-$(B)"), ("$$(A)", "$(A)"), ("plain", "plain"), ("$(A)$(A)", "11")]
)
def test_variables_are_expanded_as_the_kubelet_does(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded
