"""An Evaluation on a whole cluster: a real llama.cpp as the small model, a stand-in for the hosted API, a real Job."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.labelled import Labelled
from tests.support.models import Models

pytestmark = pytest.mark.cluster

SAMPLES = Path(__file__).parents[2] / "manifests/samples"
CASES, EVALUATION = yaml.safe_load_all((SAMPLES / "evaluation/local.yaml").read_text())
TICKETS = [json.loads(line) for line in CASES["data"]["cases.jsonl"].splitlines()]


@contextmanager
def serving(api: Labelled) -> Iterator[Labelled]:
    """In a thread of its own, because tests of clusters are not asynchronous."""
    loop, ready, done = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with api.serving():
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield api
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(20)
        loop.close()


def prepare(models: Models) -> dict[str, Any]:
    """The small model, the cases, and the spec of the sample."""
    models.apply("smollm2-135m", yaml.safe_load((SAMPLES / "smollm2-135m.yaml").read_text())["spec"])
    models.stack.plane.api.request("POST", models.path("ConfigMap"), CASES)
    models.wait_ready("smollm2-135m")
    spec: dict[str, Any] = EVALUATION["spec"]
    return spec


def result(models: Models, target: str) -> dict[str, Any]:
    status = (models.get("Evaluation", "triage") or {})["status"]
    return next(one for one in status["results"] if one["target"] == target)


def test_a_real_small_model_is_disqualified_and_the_frontier_is_not(models: Models) -> None:
    spec = prepare(models)
    secret = {"metadata": {"name": "hosted"}, "data": {"key": base64.b64encode(b"sk-test").decode()}}
    models.stack.plane.api.request("POST", models.path("Secret"), {"apiVersion": "v1", "kind": "Secret", **secret})
    with serving(Labelled.of({ticket["input"]: ticket["expected"] for ticket in TICKETS})) as hosted:
        external = {
            "baseURL": hosted.url,
            "model": "frontier-1",
            "secretRef": {"name": "hosted", "key": "key"},
            "price": {"inputPerMTok": "2.50", "outputPerMTok": "10"},
        }
        targets = [*spec["targets"], {"name": "frontier", "external": external}]
        within = {"target": "frontier", "permille": 100}
        requirements = {"quality": {"minPermille": 900, "withinPermilleOf": within}}
        models.apply("triage", {**spec, "targets": targets, "requirements": requirements}, kind="Evaluation")
        models.wait_condition("triage", "Complete", "False", "Running", kind="Evaluation")
        models.wait(
            lambda: models.condition("triage", "Complete", kind="Evaluation").get("status") == "True",
            "the evaluation to end",
            timeout_s=240,
        )
    small, frontier = result(models, "small"), result(models, "frontier")
    assert (small["verdict"], small["reason"], small["cases"]) == ("Disqualified", "QualityTooLow", len(TICKETS))
    assert small["highPermille"] < 900
    assert small["totalP99Milliseconds"] > 0
    assert (frontier["qualityPermille"], frontier["verdict"]) == (1000, "Qualified")
    assert float(frontier["costPerThousandTasksUSD"]) > 0
    assert small["revision"] != frontier["revision"]
    (pod,) = (p for p in models.list("Pod") if p["metadata"]["labels"].get("flotilla.dev/evaluation") == "triage")
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["status"]["phase"] == "Succeeded"
    events = {(event["regarding"]["name"], event["reason"]) for event in models.list("Event")}
    assert ("triage", "Disqualified") in events
    # An edit of the model voids the verdict, and the evaluation runs again.
    before = small["revision"]
    models.patch("ModelDeployment", "smollm2-135m", {"spec": {"model": {"contextLength": 1024}}})
    models.wait(
        lambda: (models.get("Evaluation", "triage") or {})["status"].get("run", {}).get("reason") == "RevisionChanged",
        "a run for the new revision",
        timeout_s=120,
    )
    assert result(models, "small")["revision"] == before


def test_a_dataset_with_a_wrong_line_is_named_in_the_condition(models: Models) -> None:
    spec = prepare(models)
    broken = {"data": {"cases.jsonl": '{"input": "a", "expected": "billing"}\n{"input": 7}\n'}}
    models.patch("ConfigMap", CASES["metadata"]["name"], broken)
    models.apply("triage", spec, kind="Evaluation")
    condition = models.wait_condition("triage", "Complete", "False", "DatasetInvalid", kind="Evaluation")
    assert "line 2: input must be a text" in condition["message"]
    assert models.condition("triage", "Stalled", kind="Evaluation")["status"] == "True"
