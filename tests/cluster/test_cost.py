"""Dollars on a whole cluster: they outlive the operator, and follow prices that change under it."""

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import Models

from flotilla.cost.ledger_store import record_name
from flotilla_devcluster import traffic
from flotilla_devcluster.apiserver import select
from flotilla_devcluster.stack import NAMESPACE, USER, Stack, samples, value

pytestmark = pytest.mark.cluster
CATALOG = 'source: contract\nasOf: 2020-01-01\ngpus: [{class: nvidia-l4, usd: "%s"}]\n'
NODE_PRICE = "flotilla.dev/node-hourly-price"


def annotate(stack: Stack, price: str | None) -> None:
    for node in ("gpu-1", "gpu-2"):
        body = {"metadata": {"annotations": {NODE_PRICE: price}}}
        path = f"/api/v1/nodes/{node}"
        stack.plane.api.request("PATCH", path, body, content_type="application/merge-patch+json")


@pytest.fixture
def catalog(stack: Stack, tmp_path: Path) -> Iterator[Path]:
    """Named in the operator's settings from its next start on, and gone from them and the nodes at the end."""
    file = tmp_path / "prices.yaml"
    before = stack.settings
    stack.settings = {**before, "price_catalog": str(file)}
    yield file
    annotate(stack, None)
    stack.settings = before
    stack.restart_operator()


def figures(models: Models, name: str) -> dict[str, Decimal | None]:
    found = samples(models.stack.operator.metrics())
    labels = {"namespace": models.namespace, "modeldeployment": name}
    names = ("deployment_cost_usd_total", "deployment_tokens_total", "deployment_requests_total",
             "deployment_gpu_hours_total", "hosted_equivalent_cost_usd_total")  # fmt: skip
    return {metric: value(found, f"flotilla_{metric}", **labels) for metric in names}


def test_a_killed_operators_successor_goes_on_and_prices_follow_the_catalogue(
    models: Models, spec: dict[str, Any], catalog: Path
) -> None:
    stack = models.stack
    models.apply("kept", {**spec, "cost": {"compareWith": [{"provider": "openai", "model": "gpt-5-mini"}]}})
    models.wait_ready("kept")
    url = stack.service_url("kept", models.namespace)
    assert url is not None
    tally = traffic.Tally()
    asyncio.run(traffic.burst([traffic.Crowd(url, "kept", 2)], until=lambda: tally.requests >= 4, tally=tally))

    def counted() -> bool:
        return figures(models, "kept")["deployment_requests_total"] == tally.requests

    models.wait(counted, "every request to be counted")
    records = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    kept = f"{records}/{record_name(models.namespace, 'kept')}"
    models.wait(lambda: stack.plane.api.get(kept), "the account's record")
    theirs = {found["metadata"]["name"] for found in models.list("ConfigMap")}
    assert theirs <= {"kube-root-ca.crt"}, "nothing of ours is in the tenant's namespace"
    before = figures(models, "kept")
    catalog.write_text(CATALOG % "0.5")
    stack.restart_operator(kill=True)
    models.wait(counted, "the successor to know every request")
    after = figures(models, "kept")
    for metric, amount in before.items():
        assert amount is not None, metric
        assert (after[metric] or 0) >= amount, metric
    assert after["deployment_tokens_total"] == before["deployment_tokens_total"]
    assert (after["deployment_cost_usd_total"] or 0) < 2 * (before["deployment_cost_usd_total"] or 0) + Decimal("0.01")

    def said(reason: str, *parts: str) -> bool:
        condition = models.condition("kept", "CostKnown")
        return condition.get("reason") == reason and all(part in condition["message"] for part in parts)

    models.wait(
        lambda: said("PriceStale", "0.5 USD/h (catalog: contract)", "is of 2020-01-01"), "the catalogue's price"
    )
    catalog.write_text(CATALOG % "free")
    models.wait(lambda: said("PriceStale", "the last good one stays in force", "(value: 'free')"), "the refusal")
    catalog.write_text(CATALOG % "0.6")
    models.wait(lambda: said("PriceStale", "0.6 USD/h (catalog: contract)"), "the new price")
    annotate(stack, "8")
    stack.restart_operator()
    models.wait(lambda: said("Priced", "2 USD/h (node: annotation of the node)"), "the node's price")
    models.wait_quiet()
    mark = stack.audit.mark()
    stack.restart_operator()
    models.wait_quiet()
    # Other tests' namespaces are still going, and what goes in them is repaired.
    writes = select(stack.audit.since(mark), user=USER, writes=True)
    assert "leases" in {event.resource for event in writes}, "its writes are seen"
    assert {event.resource for event in writes if event.namespace == models.namespace} == set()
    status = (models.get("ModelDeployment", "kept") or {})["status"]["cost"]
    assert (status["gpuHourlyPrice"], status["priceSource"]) == ("2", "node: annotation of the node")
    labels = {"modeldeployment": "kept", "capacity_type": "on-demand", "price_source": "node"}

    def rate() -> Decimal | None:
        return value(samples(stack.operator.metrics()), "flotilla_deployment_cost_usd_per_hour", **labels)

    models.wait(lambda: rate() == 2, "the rate by the node's price")
    own = Models(stack, NAMESPACE)
    stranger = {"metadata": {"name": "mine"}, "data": {"account.json": "{}"}}
    stack.plane.api.request("POST", records, stranger)
    stack.operator.stop()
    models.delete("ModelDeployment", "kept")
    models.wait(lambda: models.get("ModelDeployment", "kept") is None, "the resource to go")
    assert stack.plane.api.get(kept), "nobody was there to delete it"
    stack.start_operator()
    models.wait(lambda: stack.plane.api.get(kept) is None, "the record to follow its resource")
    assert own.get("ConfigMap", "mine")
    own.delete("ConfigMap", "mine")
