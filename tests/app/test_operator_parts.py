"""Configuration, CLI, health, logs and metrics of the operator's process."""

import asyncio
import json
import logging
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from typer.testing import CliRunner

from flotilla import __version__
from flotilla.api.crd import dump
from flotilla.app import _serve, main
from flotilla.cli import app
from flotilla.config import OperatorConfig
from flotilla.console.metrics import Metrics
from flotilla.console.server import start_server
from flotilla.logs import JsonFormatter, redact
from flotilla_devcluster.stack import samples, value

D = Decimal


def test_a_faulty_price_catalogue_ends_the_operator_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("source: [")
    assert main(OperatorConfig(price_catalog=file)) == 2
    assert str(file) in capsys.readouterr().err


def test_a_kubeconfig_that_is_not_there_ends_the_operator_with_words(tmp_path: Path) -> None:
    from flotilla.errors import FlotillaError
    from flotilla.kube.client import KubeClient

    async def connect() -> None:
        await KubeClient.connect(kubeconfig=tmp_path / "none", user_agent="x")

    import asyncio

    with pytest.raises(FlotillaError, match="none does not exist"):
        asyncio.run(connect())


async def test_connections_are_closed_after_the_loops_that_use_them_have_ended() -> None:
    class Control:
        def __init__(self) -> None:
            self.synced, self.steps = asyncio.Event(), list[str]()

        async def run(self) -> None:
            self.synced.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.steps.append("ended")

        async def stop(self, *, leading: bool) -> None:
            self.steps.append(f"closed, leading: {leading}")

    control, stop, lost = Control(), asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(_serve(control, stop, lost))  # type: ignore[arg-type]
    await asyncio.wait_for(control.synced.wait(), 5)
    lost.set()
    assert await serving == 0
    assert control.steps == ["ended", "closed, leading: False"]


def test_the_command_prints_its_version_and_the_crds() -> None:
    run = CliRunner()
    assert run.invoke(app, ["--version"]).stdout.strip() == __version__
    assert run.invoke(app, ["crds"]).stdout == dump()


async def test_health_follows_the_checks_and_metrics_are_served() -> None:
    metrics, well = Metrics(version="1.2.3"), {"part": True}

    async def families() -> list[Metric]:
        return list(metrics.registry.collect())

    server = await start_server(
        host="127.0.0.1",
        port=0,
        families=families,
        live={"part": lambda: well["part"]},
        ready={"synced": lambda: well["part"]},
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            for path in ("/healthz", "/readyz"):
                for good, status in ((True, 200), (False, 503)):
                    well["part"] = good
                    async with session.get(path) as answer:
                        assert answer.status == status
                        assert ("failed" in await answer.text()) is not good
            async with session.get("/metrics") as answer:
                assert 'flotilla_build_info{version="1.2.3"} 1.0' in await answer.text()
    finally:
        await server.stop()


def test_own_metrics_count_passes_calls_and_the_queue() -> None:
    metrics = Metrics(version="1")
    metrics.reconciled("ModelDeployment", "success", 0.1)
    metrics.api_call("patch", "deployments", 200, 0.1)
    metrics.event("pods")
    metrics.leading(True)
    metrics.observe(
        depth=lambda: 4,
        oldest_age_s=lambda: 1.5,
        watch_restarts=lambda: 2,
        watch_silent_s=lambda: 7.0,
        objects=lambda: {"pods": 9},
        kinds=("pods", "services"),
    )
    found = samples(generate_latest(metrics.registry).decode())
    assert value(found, "flotilla_reconcile_total", kind="ModelDeployment", outcome="success") == 1
    assert value(found, "flotilla_api_requests_total", verb="patch", resource="deployments", code="200") == 1
    assert (value(found, "flotilla_last_event_timestamp_seconds", resource="pods") or 0) > 1_700_000_000
    assert value(found, "flotilla_workqueue_depth") == 4
    assert value(found, "flotilla_workqueue_oldest_age_seconds") == D("1.5")
    assert value(found, "flotilla_watch_restarts") == 2
    assert value(found, "flotilla_watch_silent_seconds") == 7
    assert value(found, "flotilla_objects", resource="services") == 0
    assert value(found, "flotilla_leader") == 1


def test_every_metric_of_the_operator_is_documented() -> None:
    metrics = Metrics(version="1")
    metrics.observe(
        depth=lambda: 0,
        oldest_age_s=lambda: 0.0,
        watch_restarts=lambda: 0,
        watch_silent_s=lambda: 0.0,
        objects=dict,
        kinds=("pods",),
    )
    page = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()
    section = page[page.index("## The operator itself") :]
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.registry.collect()
        if family.name.startswith("flotilla_")
    }
    assert set(re.findall(r"^\| `(\w+)`", section, re.M)) == names


@pytest.mark.parametrize(
    "secret", ["Bearer abc.def-123", "hf_abcdefghijk", "sk-proj-abcdefgh", "eyJhbGciOiJIUzI1.eyJzdWIi.x"]
)
def test_secrets_do_not_reach_the_log(secret: str) -> None:
    assert "[redacted]" in redact(f"before {secret} after")
    assert secret not in redact(f"before {secret} after")


def test_a_log_line_is_one_json_object_with_the_extra_fields_and_the_traceback() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it %s", ("failed",), sys.exc_info())
    record.key = "ns/a"
    line = JsonFormatter().format(record)
    entry = json.loads(line)
    assert "\n" not in line
    assert (entry["level"], entry["message"], entry["key"]) == ("ERROR", "it failed", "ns/a")
    assert "ValueError: boom" in entry["exception"]


def test_the_operator_does_not_load_the_synchronous_client_of_kubernetes() -> None:
    """It would take a tenth of its memory."""
    loaded = "import flotilla.app, sys; print([m for m in ('kubernetes.dynamic', 'requests') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
