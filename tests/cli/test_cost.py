"""`flotilla cost`, against a real Prometheus with two days of history, and against /metrics."""

import asyncio
import csv
import io
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.support.fleet_history import GPT, HAIKU, history
from tests.support.prometheus import Page, Prometheus, running_prometheus, serving
from typer.testing import CliRunner, Result

from flotilla.cli import app
from flotilla.cli.common import duration_s, plain, utc_days
from flotilla.cost.spending import Spent, grouped
from flotilla.errors import InvalidSpec
from flotilla.reports import focus

D = Decimal
KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
users: [{{name: u, user: {{token: t}}}}]
"""
FOCUS_VALUES = {
    "BillingCurrency": {"USD"},
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Bots", "Generative AI", "Machine Learning", "Natural Language Processing"},
}
"""What FOCUS 1.2 allows (specification/columns); of its services, those of AI and machine learning."""
GOLDEN = Path(__file__).parents[1] / "golden"
TOTALS = """\
# TYPE flotilla_build_info gauge
flotilla_build_info{version="1"} 1
# TYPE flotilla_leader gauge
flotilla_leader 1
# TYPE flotilla_deployment_info gauge
flotilla_deployment_info{namespace="shop",modeldeployment="small",model="hf://a/b\x1b[2J",engine="vllm",team="x"} 1
# TYPE flotilla_deployment_cost_usd counter
flotilla_deployment_cost_usd_total{namespace="shop",modeldeployment="small",state="serving"} 3
flotilla_deployment_cost_usd_total{namespace="shop",modeldeployment="small",state="idle"} 1
# TYPE flotilla_deployment_tokens counter
flotilla_deployment_tokens_total{namespace="shop",modeldeployment="small",token_type="output"} 2000000
"""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    now = time.time()
    text = history(now - 2 * 86_400, now - 1)
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), history=text) as running:
        yield running


@pytest.fixture
def operator() -> Iterator[Page]:
    with serving(TOTALS) as page:
        yield page


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cost", *arguments], env={"COLUMNS": "160", "FLOTILLA_PROMETHEUS_URL": ""})


def test_a_day_by_model_is_what_the_counters_grew(prometheus: Prometheus) -> None:
    done = run("--prometheus", prometheus.url, "--output", "json")
    assert done.exit_code == 0, done.output
    small, idle = json.loads(done.stdout)["items"]
    assert (small["name"], idle["name"]) == ("shop/small", "lab/idle")
    assert float(small["usd"]) == pytest.approx(28.8, rel=0.01)
    assert float(small["idleUsd"]) == pytest.approx(7.2, rel=0.01)
    assert small["requests"] == pytest.approx(86_400, rel=0.01)
    assert float(small["usdPerMillionTokens"]) == pytest.approx(1.2 / 3.96, rel=0.01)
    gpt, haiku = small["hosted"]
    assert (gpt["model"], haiku["model"]) == (GPT, HAIKU)
    assert float(gpt["savingsUsd"]) == pytest.approx(7.2, rel=0.02)
    assert idle["usdPerMillionTokens"] is None
    assert float(idle["usd"]) == pytest.approx(19.2, rel=0.01)


def test_a_change_of_leader_is_neither_a_gap_nor_counted_twice(prometheus: Prometheus) -> None:
    done = run("--prometheus", prometheus.url, "--output", "json", "--since", "30h")
    assert float(json.loads(done.stdout)["items"][0]["usd"]) == pytest.approx(36.0, rel=0.01)


def test_by_namespace_and_team(prometheus: Prometheus) -> None:
    for by, names in (("namespace", ["shop", "lab"]), ("team", ["support", "", "sales"])):
        done = run("--prometheus", prometheus.url, "--output", "json", "--by", by)
        assert [item["name"] for item in json.loads(done.stdout)["items"]] == names


def test_by_route_own_models_cost_by_the_work_that_they_did(prometheus: Prometheus) -> None:
    done = run("--prometheus", prometheus.url, "--by", "route", "--output", "csv")
    small, direct, frontier = csv.DictReader(io.StringIO(done.stdout))
    assert [(row["policy"], row["target"]) for row in (small, direct, frontier)] == [
        ("support", "small"), ("__direct__", "small"), ("support", "frontier"),
    ]  # fmt: skip
    assert float(small["usd"]) == pytest.approx(24 * 1.2 * 0.75, rel=0.01)
    assert float(small["wastedUsd"]) == pytest.approx(24 * 1.2 * 0.25, rel=0.01)
    assert float(direct["usd"]) == pytest.approx(24 * 1.2 * 0.25, rel=0.01)
    assert float(frontier["usd"]) == float(frontier["escalationUsd"]) == pytest.approx(6.0, rel=0.01)
    assert int(small["requests"]) == pytest.approx(86_400, rel=0.01)


def test_by_team_deployments_are_divided_and_hosted_charges_added(prometheus: Prometheus) -> None:
    done = run("--prometheus", prometheus.url, "--by", "team", "--output", "json")
    items = {item["name"]: item for item in json.loads(done.stdout)["items"]}
    assert float(items["sales"]["usd"]) == pytest.approx(24 * (1.2 * 0.25 + 0.25), rel=0.01)
    assert float(items["support"]["usd"]) == pytest.approx(24 * 1.2 * 0.75, rel=0.01)
    assert items["sales"]["outputTokens"] == pytest.approx(24 * 360_000 * 0.25, rel=0.01)
    assert items["support"]["outputTokens"] == pytest.approx(24 * 360_000 * 0.75, rel=0.01)
    assert items["sales"]["requests"] is None


@pytest.mark.parametrize(
    ("rule", "sales", "support", "small", "direct", "wasted"),
    [("proportional", 0.3, 0.9, 0.9, 0.3, 0.3), ("even", 0.375, 0.825, 0.825, 0.375, 0.275),
     ("owner", 0.225, 0.975, 0.675, 0.525, 0.225)],
)  # fmt: skip
def test_idle_time_is_carried_by_work_by_all_alike_or_by_the_owner(
    prometheus: Prometheus, rule: str, sales: float, support: float, small: float, direct: float, wasted: float
) -> None:
    at = ("--prometheus", prometheus.url, "--idle", rule, "--output", "json", "--by")
    teams = {item["name"]: float(item["usd"]) for item in json.loads(run(*at, "team").stdout)["items"]}
    assert teams["sales"] - 24 * 0.25 == pytest.approx(24 * sales, rel=0.01), "beside what its hosted target charged"
    assert teams["support"] == pytest.approx(24 * support, rel=0.01)
    routes = {(item["policy"], item["target"]): item for item in json.loads(run(*at, "route").stdout)["items"]}
    assert float(routes["support", "small"]["usd"]) == pytest.approx(24 * small, rel=0.01)
    assert float(routes["support", "small"]["wastedUsd"]) == pytest.approx(24 * wasted, rel=0.01)
    assert float(routes["__direct__", "small"]["usd"]) == pytest.approx(24 * direct, rel=0.01)


def test_the_table_has_a_total_and_the_cheapest_hosted_model(prometheus: Prometheus) -> None:
    lines = run("--prometheus", prometheus.url, "--since", "12h").stdout.splitlines()
    assert "the last 12h" in lines[0]
    small = next(line for line in lines if "shop/small" in line)
    assert GPT in small
    assert "25 %" in small
    assert "+3.6" in small
    assert lines[-1].startswith("total")


def test_focus_rows_carry_the_columns_of_the_specification(prometheus: Prometheus) -> None:
    done = run("--prometheus", prometheus.url, "--since", "30h", "--output", "focus", "--account", "finance")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    columns = [line.split() for line in (GOLDEN / "focus-1.2-columns.txt").read_text().splitlines()[1:]]
    assert len(columns) == 57
    head = list(rows[0])
    known = {name for name, *_ in columns}
    assert {name for name, level, *_ in columns if level == "Mandatory"} <= set(head)
    assert [name for name in head if name not in known] == [name for name in head if name.startswith("x_")]
    assert head[: len(focus.COLUMNS)] == sorted(focus.COLUMNS)
    for row in rows:
        for name, _, null, type_ in columns:
            if name in row:
                assert row[name] or null == "null", name
                if type_ == "Decimal" and row[name]:
                    assert Decimal(row[name]).is_finite()
                if type_ == "Date/Time":
                    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[name])
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        assert D(row["ListUnitPrice"]) * D(row["PricingQuantity"]) == pytest.approx(D(row["ListCost"]))
        assert all(row[name] in allowed for name, allowed in FOCUS_VALUES.items())
        assert (row["ConsumedQuantity"] == "") == (row["ConsumedUnit"] == "")
        assert all(isinstance(value, str) for value in json.loads(row["Tags"]).values())
    small = [row for row in rows if row["ResourceName"] == "small"]
    assert len(small) in (2, 3), "a row per UTC day"
    assert sum(float(row["EffectiveCost"]) for row in small) == pytest.approx(36.0, rel=0.01)


def test_totals_come_from_the_operator_where_there_is_no_prometheus(operator: Page) -> None:
    done = run("--metrics", f"http://{operator.address}", "--output", "json")
    (small,) = json.loads(done.stdout)["items"]
    assert small["usd"] == "4.000000"
    assert small["usdPerMillionTokens"] == "2.000000"


async def test_the_operator_is_found_through_the_apiserver(tmp_path: Path) -> None:
    asked: list[str] = []

    async def pods(request: web.Request) -> web.Response:
        asked.append(request.query["labelSelector"])
        containers = [{"name": "sidecar"}, {"name": "operator", "ports": [{"name": "metrics", "containerPort": 8080}]}]
        items = [
            {"metadata": {"name": name}, "spec": {"containers": [] if name == "other" else containers}}
            for name in ("other", "dead", "stand-by", "leader")
        ]
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})

    async def metrics(request: web.Request) -> web.Response:
        asked.append(request.match_info["pod"])
        texts = {"leader:8080": TOTALS, "stand-by:8080": TOTALS.replace("leader 1", "leader 0")}
        text = texts.get(request.match_info["pod"])
        return web.Response(status=503, text="no") if text is None else web.Response(text=text)

    server = web.Application()
    server.router.add_get("/api/v1/namespaces/flotilla-system/pods", pods)
    server.router.add_get("/api/v1/namespaces/flotilla-system/pods/{pod}/proxy/metrics", metrics)
    async with TestServer(server) as running:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(KUBECONFIG.format(url=f"http://127.0.0.1:{running.port}"))
        done = await asyncio.to_thread(run, "--kubeconfig", str(kubeconfig), "--output", "json")
    assert json.loads(done.stdout)["items"][0]["usd"] == "4.000000"
    assert asked == ["app.kubernetes.io/name=flotilla-operator", "dead:8080", "stand-by:8080", "leader:8080"]


def test_a_name_cannot_command_the_terminal(operator: Page) -> None:
    assert operator.text is not None
    operator.text = operator.text.replace('modeldeployment="small"', 'modeldeployment="[red]s\x1b]0;x\x07\u202e"')
    done = run("--metrics", f"http://{operator.address}")
    assert done.exit_code == 0, done.output
    assert "[red]s\\x1b]0;x\\x07\\u202e" in done.stdout
    assert plain("grün 模型") == "grün 模型"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--since", "7d"], 2, "--since needs the history of a Prometheus. Name one with --prometheus"),
        (["--by", "route"], 2, "--prometheus"),
        (["--output", "focus"], 2, "--prometheus"),
        (["--idle", "even"], 2, "use it with --by team or route, not model"),
        (["--metrics", "http://127.0.0.1:1"], 3, "does not answer"),
        (["--prometheus", "ftp://x"], 2, "--prometheus 'ftp://x' is not usable"),
        (["--prometheus", "http://127.0.0.1:1"], 3, "Prometheus does not answer"),
        (["--prometheus", "http://127.0.0.1:1", "--since", "yesterday"], 2, "is not a length of time, such as 90m"),
        (["--prometheus", "http://127.0.0.1:1", "--prometheus-token-file", "/none"], 2, "/none is not a file"),
    ],
)
def test_what_cannot_be_answered_says_why(arguments: list[str], code: int, message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())


def test_nothing_to_print_has_its_own_code_and_a_remedy(prometheus: Prometheus, operator: Page) -> None:
    assert operator.text is not None
    operator.text = "\n".join(operator.text.splitlines()[:4]) + "\n"
    done = run("--metrics", f"http://{operator.address}")
    assert (done.exit_code, "kubectl get mdep" in done.stderr) == (1, True)
    operator.text = operator.text.replace("flotilla_leader 1", "flotilla_leader 0")
    assert "does not hold the Lease" in run("--metrics", f"http://{operator.address}").stderr
    operator.text = "<html>"
    assert run("--metrics", f"http://{operator.address}").exit_code == 3


def test_periods_are_cut_at_midnight() -> None:
    start = datetime(2026, 2, 27, 18, tzinfo=UTC).timestamp()
    parts = list(utc_days(start, start + 2 * 86_400))
    assert [last - first for first, last in parts] == [6 * 3600, 86_400, 18 * 3600]
    assert parts[0][0] == start
    assert list(utc_days(start, start + 30)) == []
    with pytest.raises(InvalidSpec, match="between 1m and 366d"):
        duration_s("9999w", field="--since")


def test_a_group_compares_only_what_is_comparable() -> None:
    one = Spent("a", "x", usd_by_state={"serving": D(10)}, hosted_usd={"p/m": D(30)}, tokens={"output": D(10**6)})
    two = Spent("a", "y", usd_by_state={"idle": D(5)}, hosted_usd={"p/m": D(1), "p/n": D(2)})
    three = Spent("a", "z", hosted_usd={"p/m": D(7)})
    (group,) = grouped((one, two), "namespace")
    m, n = sorted(group.comparisons(), key=lambda c: c.comparator)
    assert (m.hosted_usd, m.own_usd, m.savings_usd, m.complete) == (D(31), D(15), D(16), True)
    assert (n.own_usd, n.complete) == (D(5), False)
    assert group.cheapest == m
    assert group.usd_per_million == 10
    (wider,) = grouped((one, two, three), "namespace")
    assert (wider.usd, wider.unpriced) == (D(15), 1)
    assert wider.cheapest is None


def test_a_deployment_without_a_price_is_in_no_focus_row() -> None:
    at = datetime(2026, 12, 5, tzinfo=UTC)
    priced = Spent("a", "x", usd_by_state={"serving": D(1)}, gpu_hours=D(3), team="t")
    text = focus.dump([focus.Charge(one, at, at) for one in (priced, Spent("a", "y", gpu_hours=D(1)))], account="me")
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z")
    assert json.loads(row["Tags"]) == {"flotilla.dev/team": "t"}
