"""`flotilla envelope`: from a cluster's objects and its gateways' metrics to text, JSON, HTML and an exit code."""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.reports.test_envelope import DEPLOYMENT, EVALUATION, MODEL, POLICY
from typer.testing import CliRunner, Result

from flotilla.cli import app
from flotilla.cli.kubeconfig import Cluster
from flotilla.errors import Transient
from flotilla.kube.client import ObjectList
from flotilla.kube.kinds import DEPLOYMENT as DEPLOYMENTS
from flotilla.kube.kinds import EVALUATION as EVALUATIONS
from flotilla.kube.kinds import MODEL_DEPLOYMENT, Kind

TEXT = """\
# TYPE flotilla_gateway_requests_total counter
flotilla_gateway_requests_total{policy="support",rule="classify",target="small",class="sovereign",outcome="ok"} 200
# TYPE flotilla_gateway_ttft_seconds histogram
flotilla_gateway_ttft_seconds_bucket{policy="support",target="small",le="0.1"} 150
flotilla_gateway_ttft_seconds_bucket{policy="support",target="small",le="0.25"} 200
flotilla_gateway_ttft_seconds_bucket{policy="support",target="small",le="+Inf"} 200
flotilla_gateway_ttft_seconds_count{policy="support",target="small"} 200
flotilla_gateway_ttft_seconds_sum{policy="support",target="small"} 16
"""


class FakeClient:
    """Stands for KubeClient: two gateway pods with the same metrics."""

    answers: ClassVar[dict[str, str]] = {}

    async def get(self, kind: Kind, name: str, *, namespace: str) -> Mapping[str, Any] | None:
        return POLICY if name == "support" else None

    async def list(self, kind: Kind, *, namespace: str) -> ObjectList:
        items = {EVALUATIONS: [EVALUATION], MODEL_DEPLOYMENT: [MODEL], DEPLOYMENTS: [DEPLOYMENT]}[kind]
        return ObjectList(items=items, resource_version="1")

    async def pages(self, kind: Kind, **_: object) -> AsyncIterator[ObjectList]:
        yield ObjectList(items=[{"metadata": {"name": name}} for name in self.answers], resource_version="1")

    async def pod_text(self, namespace: str, name: str, port: int, path: str) -> str:
        if not self.answers[name]:
            raise Transient("it does not answer")
        return self.answers[name]

    async def close(self) -> None:
        return None


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    made.answers = {"gw-1": TEXT, "gw-2": TEXT}  # type: ignore[misc]

    async def connect(self: Cluster) -> FakeClient:
        return made

    monkeypatch.setattr(Cluster, "connect", connect)
    monkeypatch.setattr(Cluster, "find", classmethod(lambda cls, *_: cls(None)))
    return made


def run(*options: str) -> Result:
    return CliRunner().invoke(app, ["envelope", "support", "-n", "team", *options])


def test_the_gateways_counters_are_added_up(client: FakeClient) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "since the start of the gateways, from the gateways' own metrics" in result.output
    assert "small     first token p99" in result.output
    assert "n 400" in result.output
    assert "sovereign  400 requests, none outside (at most 0.75%)" in result.output


def test_bounds_give_the_exit_code_and_say_which_fails(client: FakeClient) -> None:
    assert run("--fail-if", "firstTokenP99>1.5").exit_code == 0
    failed = run("--fail-if", "firstTokenP99>0.1", "--fail-if", "small.costPerThousandTasks>1")
    assert failed.exit_code == 1
    assert "Fails: firstTokenP99>0.1: firstTokenP99 of all is" in failed.stderr
    assert "Fails: small.costPerThousandTasks>1: nothing is known" in failed.stderr
    assert run("--fail-if", "speed>1").exit_code == 2


def test_json_and_html(client: FakeClient, tmp_path: Path) -> None:
    result = run("--json", "--html", str(tmp_path / "envelope.html"))
    content = json.loads(result.output)
    assert content["policy"] == "support"
    assert "start" not in content
    assert "<h1>Envelope of team/support</h1>" in (tmp_path / "envelope.html").read_text()


def test_a_gateway_that_does_not_answer_makes_no_half_envelope(client: FakeClient) -> None:
    client.answers = {"gw-1": TEXT, "gw-2": ""}  # type: ignore[misc]
    result = run()
    assert result.exit_code == 3
    assert "gw-2: it does not answer" in result.stderr
