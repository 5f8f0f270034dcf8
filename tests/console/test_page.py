"""The console in a real browser: it shows the fleet, follows it, and can be used with a keyboard alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client.core import Metric
from tests.support.browser import Page, browser

from flotilla.console import view
from flotilla.console.server import HealthServer, console_routes, start_server
from flotilla.console.view import MetricSample

MINUS = chr(0x2212)
BASE = {"namespace": "support", "modeldeployment": "qwen"}


def model(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "support", "name": "qwen"},
        "spec": {"model": {"source": "hf://Qwen/<img src=x onerror=alert(1)>"}},
        "status": {"engine": {"name": "vllm"}, "conditions": list(conditions)},
    }


def condition(type_: str, message: str) -> dict[str, Any]:
    return {"type": type_, "status": "True", "reason": "Because", "message": message}


class Fleet:
    """What the operator would know."""

    def __init__(self) -> None:
        self.models = [model(condition("Ready", "At least one replica serves the model."))]
        self.samples = [
            MetricSample("flotilla_ready_replicas", BASE, 1),
            MetricSample("flotilla_desired_replicas", BASE, 1),
            MetricSample("flotilla_requests_waiting", BASE, 7),
            MetricSample("flotilla_savings_usd", {**BASE, "comparator": "openai/gpt-5-mini", "window": "1h"}, -0.5),
        ]

    async def read(self) -> view.Json:
        return view.fleet(self.models, [], self.samples, [])


async def nothing() -> list[Metric]:
    return []


@asynccontextmanager
async def console(fleet: Fleet) -> AsyncIterator[tuple[Page, HealthServer]]:
    running = await start_server(
        host="127.0.0.1",
        port=0,
        families=nothing,
        live={},
        ready={},
        more=console_routes(fleet.read),
    )
    try:
        async with browser() as page:
            await page.open(f"http://127.0.0.1:{running.port}/console/")
            await page.until("document.querySelector('#models tbody tr') !== null")
            yield page, running
    finally:
        await running.stop()


async def test_the_page_shows_the_fleet_and_follows_it_without_closing_what_is_open() -> None:
    fleet = Fleet()
    async with console(fleet) as (page, running):
        row = await page.js("document.querySelector('#models tbody tr').innerText")
        assert "qwen" in row
        assert "\t7\t" in row
        assert f"{MINUS}$0.5000 openai/gpt-5-mini" in row
        # What a user wrote is text, whatever it looks like.
        assert "<img src=x" in row

        for _ in range(10):
            await page.press("Tab")
            if await page.js("document.activeElement.tagName") == "SUMMARY":
                break
        await page.press("Enter")
        await page.until("document.querySelector('#models details').open")
        assert "At least one replica" in await page.js("document.querySelector('#models details').innerText")

        fleet.models = [model(condition("Stalled", "It does not fit."))]
        await page.until("document.querySelector('#models summary').textContent === 'Stalled'")
        assert await page.js("document.querySelector('#models details').open")
        assert await page.js("document.activeElement.tagName") == "SUMMARY"
        assert "It does not fit." in await page.js("document.querySelector('#models details').innerText")

        fleet.models = []
        await page.until("!document.querySelector('.empty').hidden")
        assert page.errors == []

        await running.stop()
        await page.until("document.getElementById('freshness').className === 'lost'")


async def test_a_screen_reader_finds_headings_named_tables_and_row_headers() -> None:
    async with console(Fleet()) as (page, _):
        nodes = (await page.send("Accessibility.getFullAXTree"))["nodes"]
        told = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if "role" in node}

        assert {("heading", "Flotilla"), ("heading", "Models"), ("region", "Models")} <= told
        assert any(role == "columnheader" and name == "Waiting" for role, name in told)
        assert any(role == "rowheader" and name.startswith("qwen") for role, name in told)
        assert any(role == "status" for role, _ in told)
        assert page.errors == []
