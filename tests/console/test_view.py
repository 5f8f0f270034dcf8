"""The console: what its JSON says, and what its server lets a browser do."""

from typing import Any

import aiohttp
import pytest
from prometheus_client.core import Metric

from flotilla.console import view
from flotilla.console.server import console_routes, start_server
from flotilla.console.view import MetricSample

BASE = {"namespace": "ml", "modeldeployment": "small"}


def model(name: str = "small", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "ml", "name": name},
        "spec": {"model": {"source": "hf://acme/small"}},
        "status": status,
    }


def condition(type_: str, status: str) -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": "Because", "message": f"{type_} it is."}


def only(*samples: MetricSample, **status: Any) -> view.Json:
    (row,) = view.fleet([model(**status)], [], samples, [])["models"]
    return dict(row)


def test_unknown_numbers_are_absent_and_not_zero() -> None:
    row = only()
    assert "usdPerHour" not in row
    assert "waiting" not in row
    assert row["savings"] == []
    assert row["state"] == "Pending"


def test_a_rate_that_is_split_over_labels_is_summed() -> None:
    rate = "flotilla_deployment_cost_usd_per_hour"
    row = only(
        MetricSample(rate, {**BASE, "gpu_type": "l4"}, 0.8),
        MetricSample(rate, {**BASE, "gpu_type": "h100"}, 2.0),
        MetricSample(rate, {**BASE, "modeldeployment": "other"}, 9.0),
    )
    assert row["usdPerHour"] == pytest.approx(2.8)


def test_costs_and_savings_are_those_of_the_last_hour() -> None:
    unit, savings = "flotilla_deployment_cost_usd_per_million_tokens", "flotilla_savings_usd"
    row = only(
        MetricSample(unit, {**BASE, "token_type": "blended", "window": "1h"}, 0.5),
        MetricSample(unit, {**BASE, "token_type": "output", "window": "1h"}, 1.5),
        MetricSample(unit, {**BASE, "token_type": "blended", "window": "24h"}, 7.0),
        MetricSample(savings, {**BASE, "comparator": "b", "window": "1h"}, -2.0),
        MetricSample(savings, {**BASE, "comparator": "a", "window": "1h"}, 3.0),
    )
    assert row["usdPerMillionTokens"] == 0.5
    assert row["savings"] == [{"comparator": "a", "usd": 3.0}, {"comparator": "b", "usd": -2.0}]


@pytest.mark.parametrize(
    ("true", "state"),
    [
        (["Ready"], "Ready"),
        (["Ready", "Reconciling"], "Reconciling"),
        (["Reconciling", "Stalled"], "Stalled"),
        (["SpecValid"], "Pending"),
    ],
)
def test_the_worst_condition_is_the_state(true: list[str], state: str) -> None:
    row = only(conditions=[condition(type_, "True") for type_ in true] + [condition("FitsMemory", "False")])
    assert row["state"] == state
    assert row["conditions"][-1]["message"] == "FitsMemory it is."


def test_totals_are_over_what_is_known() -> None:
    rows = [model("a"), model("b"), model("c")]
    samples = [
        MetricSample("flotilla_ready_replicas", {"namespace": "ml", "modeldeployment": "a"}, 2),
        MetricSample("flotilla_ready_replicas", {"namespace": "ml", "modeldeployment": "b"}, 0),
        MetricSample("flotilla_requests_waiting", {"namespace": "ml", "modeldeployment": "a"}, 3),
    ]
    totals = view.fleet(rows, [], samples, [])["totals"]
    assert totals == {"models": 3, "serving": 1, "stalled": 0, "waiting": 3}


def test_the_newest_decision_comes_first() -> None:
    regarding = {"kind": "ModelDeployment", "namespace": "ml", "name": "small"}
    events = [
        {
            "eventTime": f"2026-11-25T08:00:0{n}.000000Z",
            "type": "Normal",
            "reason": r,
            "note": "n",
            "regarding": regarding,
        }
        for n, r in enumerate(("ScaledOut", "ScaledIn"))
    ]
    decisions = view.fleet([], [], [], events)["decisions"]
    assert [decision["reason"] for decision in decisions] == ["ScaledIn", "ScaledOut"]
    assert decisions[0]["object"] == "ModelDeployment ml/small"


async def nothing() -> list[Metric]:
    return []


async def empty() -> view.Json:
    return view.fleet([], [], [], [])


async def test_a_browser_may_load_nothing_from_elsewhere_and_send_nothing() -> None:
    running = await start_server(
        host="127.0.0.1",
        port=0,
        families=nothing,
        live={},
        ready={},
        more=console_routes(empty),
    )
    base = f"http://127.0.0.1:{running.port}/console"
    try:
        async with aiohttp.ClientSession() as session:
            for path in ("/", "/page.js", "/page.css", "/fleet.json"):
                async with session.get(base + path) as answer:
                    assert answer.status == 200
                    policy = answer.headers["Content-Security-Policy"]
                    assert policy.startswith("default-src 'none'")
                    assert "unsafe" not in policy
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    assert "http:" not in (text := await answer.text())
                    assert "https:" not in text
            async with session.post(f"{base}/fleet.json") as answer:
                assert answer.status == 405
            async with session.get(base, allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (301, "/console/")
    finally:
        await running.stop()
