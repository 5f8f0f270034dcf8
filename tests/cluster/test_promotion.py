"""Routing by evidence on a whole cluster, under load: promoted, taken back by a guard, voided by an edit."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from openai import OpenAI
from tests.cluster.test_gateway import ask, policy, serve
from tests.support.hosted import HostedApi
from tests.support.models import Models

from flotilla.api.routing_policy import ModelDeploymentRef
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.evaluation.revision import self_hosted_revision

pytestmark = pytest.mark.cluster

EVALUATION: dict[str, Any] = {
    "task": "classification",
    "dataset": {"source": "configmap://cases/cases.jsonl"},
    "targets": [{"name": "base", "modelDeploymentRef": {"name": "tiny"}}],
    "scorer": {"method": "Label"},
    "rerun": {"afterChange": "Disabled"},
}
GUARD = {"errorPermille": 100, "minRequests": 5}
STEPS = [{"percent": 5, "minutes": 0}, {"percent": 25, "minutes": 0}]


def by_evidence(hosted: HostedApi, guard: dict[str, Any] = GUARD) -> dict[str, Any]:
    preference = [{"target": "small", "evaluations": ["triage"]}, {"target": "frontier"}]
    route = {"preference": preference, "promotion": {"steps": STEPS, "guard": guard}}
    return {**policy("support", hosted_url=hosted.url), "rules": [], "defaultRoute": route}


def qualify(models: Models, seconds: int) -> None:
    """The Evaluation says Qualified about what `tiny` serves now; a run that ended later has more `seconds`."""
    model, deployment = models.get("ModelDeployment", "tiny"), models.get("Deployment", "tiny")
    finished = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    result = {
        "target": "base",
        "revision": self_hosted_revision(ModelDeploymentRef(name="tiny"), model, deployment),
        "verdict": "Qualified",
        "message": "960 of 1000 cases are right.",
        "finishedTime": finished.isoformat(),
    }
    models.patch("Evaluation", "triage", {"status": {"results": [result]}}, subresource="status")


def shares(models: Models) -> dict[str, int]:
    live = models.get("RoutingPolicy", "support") or {}
    rules = live.get("status", {}).get("rules") or [{}]
    return {share["target"]: share["percent"] for share in rules[0].get("shares", ())}


@contextmanager
def load(client: OpenAI) -> Iterator[list[str]]:
    """Two clients that ask without a pause; a failed request fails the test. Yields the decisions so far."""
    stop, told = threading.Event(), list[str]()

    def keep_asking() -> None:
        while not stop.is_set():
            told.append(ask(client)[1])

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(keep_asking) for _ in range(2)]
        try:
            yield told
        finally:
            stop.set()
            for task in asking:
                task.result()


def test_traffic_follows_the_evidence_under_load_without_a_failed_request(
    models: Models, spec: dict[str, Any], hosted: HostedApi
) -> None:
    client = serve(models, spec, hosted)
    models.apply("triage", EVALUATION, kind="Evaluation")
    models.apply("support", by_evidence(hosted), kind="RoutingPolicy")
    models.wait(lambda: shares(models) == {"frontier": 100}, "all traffic at the pilot")
    with load(client) as told:
        # Qualified: 5 %, 25 %, 100 %.
        qualify(models, 0)
        seen: list[int] = []

        def promoted() -> bool:
            percent = shares(models).get("small", 0)
            if percent and (not seen or seen[-1] != percent):
                seen.append(percent)
            return percent == 100

        models.wait(promoted, "the promotion", timeout_s=90)
        assert seen == [5, 25, 100]
        models.wait(lambda: "target=small" in told[-1], "requests to the small model")
        models.wait_condition("support", "Qualified", "True", kind="RoutingPolicy")

        # A breached guard takes everything back within seconds.
        models.apply("support", by_evidence(hosted, {**GUARD, "firstTokenP99Milliseconds": 1}), kind="RoutingPolicy")
        models.wait(lambda: shares(models) == {"frontier": 100}, "the guard to take the traffic back", timeout_s=10)
        models.wait(lambda: "target=frontier" in told[-1], "requests to the pilot", timeout_s=10)
        models.wait_condition("support", "Qualified", "False", "GuardBreached", kind="RoutingPolicy")

        # A newer verdict lets it try again; the operator dies in the middle of that.
        models.apply("support", by_evidence(hosted), kind="RoutingPolicy")
        qualify(models, 60)
        models.wait(lambda: shares(models).get("small"), "another promotion")
        models.stack.restart_operator()
        models.wait(lambda: shares(models) == {"small": 100}, "the promotion after a restart", timeout_s=90)

        # An edit voids the verdict before the new pods answer.
        before = (models.get("Deployment", "tiny") or {})["metadata"]["annotations"][ANNOTATION_TEMPLATE_HASH]
        models.apply(
            "tiny",
            {**spec, "scaling": {"minReplicas": 1, "maxReplicas": 1}, "resources": {"memory": "2Gi"}},
        )

        def changed() -> bool:
            live = models.get("Deployment", "tiny") or {}
            return bool(live["metadata"]["annotations"][ANNOTATION_TEMPLATE_HASH] != before)

        models.wait(changed, "the new pod template")
        asked = len(told)
        assert shares(models) == {"frontier": 100}
        models.wait(lambda: len(told) > asked + 20, "more requests")
        assert all("target=frontier" in decision for decision in told[asked + 2 :])
        models.wait_condition("support", "Qualified", "False", "VerdictLost", kind="RoutingPolicy")
        models.wait_ready("tiny")
        assert shares(models) == {"frontier": 100}
    moves = [
        event["reason"]
        for event in models.list("Event")
        if event["reason"] in ("Promoted", "GuardBreached", "VerdictLost")
    ]
    assert {"Promoted", "GuardBreached", "VerdictLost"} <= set(moves)
