"""Rules, dashboards and scrape configuration: what they ask for exists, parses and fires."""

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import monitoring
from prometheus_client.metrics_core import Metric
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.promql import metric_names
from tests.support.scraping import of_pods

from flotilla.catalog.engines import load_profiles, metric_name
from flotilla.console.metrics import Metrics
from flotilla.cost.metrics import FleetFamilies
from flotilla.gateway.app import Gateway, GatewayOptions
from flotilla.reports.monitoring import dashboards, monitors
from flotilla.reports.monitoring.panels import Dashboard, Panel
from flotilla.reports.monitoring.rules import RUNBOOKS, Alert, Recording
from flotilla_devcluster import programs

ROOT = Path(__file__).parents[2]
PROMTOOL = sorted((ROOT / "tests/promtool").glob("*.yaml"))
RULES = [rule for groups in monitoring.rule_files().values() for group in groups for rule in group.rules]
ALERTS = [rule for rule in RULES if isinstance(rule, Alert)]
RECORDINGS = [rule for rule in RULES if isinstance(rule, Recording)]
BOARDS = dashboards.boards(load_profiles())
PANELS = [(board, panel) for board in BOARDS for panel in board.panels()]
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$namespace": ".+", "$modeldeployment": ".+"}
VARIABLES |= {"$policy": ".+", "$comparator": ".+", "$window": "1h"}
ENGINE_FAMILIES = ROOT / "devcluster/src/flotilla_devcluster/engine/data"


def filled(expr: str) -> str:
    """A panel's query as Grafana would send it."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def promtool(*arguments: object) -> str:
    """What it said, when it found nothing wrong."""
    done = subprocess.run(
        [programs.find_debian("promtool"), *map(str, arguments)],
        env=programs.debian_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    files = sorted((ROOT / monitoring.FOLDER / "rules").glob("*.yaml"))
    found = re.findall(r"SUCCESS: (\d+) rules found", promtool("check", "rules", *files))
    assert (len(found), sum(map(int, found))) == (len(files), len(RULES))


@pytest.mark.parametrize("file", PROMTOOL, ids=lambda file: file.stem)
def test_the_rules_do_what_their_unit_tests_say(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", file)


def test_every_alert_is_seen_to_fire_and_to_be_quiet_and_every_recording_to_have_a_value() -> None:
    tests = [test for file in PROMTOOL for test in yaml.safe_load(file.read_text())["tests"]]
    alerts = [case for test in tests for case in test.get("alert_rule_test", ())]
    assert {case["alertname"] for case in alerts if case["exp_alerts"]} == {alert.name for alert in ALERTS}
    assert {case["alertname"] for case in alerts if not case["exp_alerts"]} == {alert.name for alert in ALERTS}
    asked = " ".join(case["expr"] for test in tests for case in test.get("promql_expr_test", ()))
    assert {rule.name for rule in RECORDINGS} <= metric_names(asked)


def test_rules_keep_the_conventions() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RECORDINGS:
        assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", rule.name), rule.name
    for alert in ALERTS:
        assert re.fullmatch(r"Flotilla([A-Z][a-z]+)+", alert.name)
        assert re.fullmatch(r"\d+[mh]", alert.after)
        assert alert.after[0] != "0"
        assert "{{" not in alert.summary, alert.name


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {path.stem for path in (ROOT / RUNBOOKS).glob("*.md")} == {alert.name for alert in ALERTS}


async def of_a_gateway(folder: Path) -> list[Metric]:
    """The families of one that serves nothing."""
    absent = folder / "absent"
    gateway = Gateway(GatewayOptions(document=absent, keys=absent, state=absent, access_log=False))
    return list(gateway.state.metrics.collect())


def emitted(folder: Path) -> set[str]:
    """The names of all samples that our processes and the engines can put out."""
    metrics = Metrics(version="test")
    metrics.observe(
        depth=lambda: 0,
        oldest_age_s=lambda: 0.0,
        watch_restarts=lambda: 0,
        watch_silent_s=lambda: 0.0,
        objects=dict,
        kinds=(),
    )
    families = [*FleetFamilies().all(), *metrics.registry.collect(), *asyncio.run(of_a_gateway(folder))]
    found = {"up"}
    for family in families:
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
        found |= {f"{family.name}{suffix}" for suffix in suffixes}
    for profile in load_profiles().values():
        found |= {metric_name(name).family for names in profile.metrics.names.values() for name in names}
    for file in ENGINE_FAMILIES.glob("*.metrics"):
        for kind, name in re.findall(r"^(counter|gauge|histogram) (\S+)", file.read_text(), re.MULTILINE):
            found |= {f"{name}{suffix}" for suffix in (("_bucket", "_count", "_sum") if kind == "histogram" else ("",))}
    return found


def test_every_metric_that_is_asked_for_is_emitted_by_somebody(tmp_path: Path) -> None:
    known = emitted(tmp_path) | {rule.name for rule in RECORDINGS}
    asked = [(rule.name, rule.expr) for rule in RULES]
    asked += [(f"{board.uid}: {panel.title}", query.expr) for board, panel in PANELS for query in panel.queries]
    asked += [
        (f"{board.uid}: {variable.name}", re.sub(r"label_values\((.*), \w+\)", r"\1", variable.query))
        for board in BOARDS
        for variable in board.variables
    ]
    for where, expr in asked:
        names = metric_names(filled(expr))
        assert names, where
        assert names <= known, f"{where}: {names - known}"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(
        tmp_path_factory.mktemp("prometheus"), rules=sorted((ROOT / monitoring.FOLDER / "rules").glob("*.yaml"))
    ) as running:
        yield running


def test_a_real_prometheus_loads_the_rules(prometheus: Prometheus) -> None:
    loaded = prometheus.get("/api/v1/rules")["groups"]
    assert {rule["name"] for group in loaded for rule in group["rules"]} == {rule.name for rule in RULES}


def test_a_real_prometheus_understands_every_panel(prometheus: Prometheus) -> None:
    kinds = {
        (board.uid, panel.title, query.legend): prometheus.kind(filled(query.expr))
        for board, panel in PANELS
        for query in panel.queries
    }
    assert set(kinds.values()) == {"vector"}
    assert len(kinds) == sum(len(panel.queries) for _, panel in PANELS), "no two lines of a panel are called the same"


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{board.uid}:{panel.title}" for board, panel in PANELS])
def test_a_panel_explains_itself(board: Dashboard, panel: Panel) -> None:
    assert panel.title
    assert panel.description.endswith(".")
    assert panel.unit
    assert panel.queries
    assert all(query.legend for query in panel.queries)
    names = {variable.name for variable in board.variables} | {"__rate_interval", "__range"}
    used = {name for query in panel.queries for name in re.findall(r"\$(\w+)", query.expr)}
    assert used <= names


def test_dashboards_have_fixed_names_one_datasource_and_no_overlap() -> None:
    assert len({board.uid for board in BOARDS}) == len(BOARDS) == 4
    for board in BOARDS:
        model = board.model()
        assert next(v["name"] for v in model["templating"]["list"]) == "datasource"
        assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])
        cells = [cell for panel in model["panels"] for cell in _cells(panel["gridPos"])]
        assert len(cells) == len(set(cells))
        assert all(x < 24 for x, _ in cells)
        for panel in (panel for panel in model["panels"] if panel["type"] != "row"):
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def _cells(grid: dict[str, int]) -> list[tuple[int, int]]:
    return [(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])]


def test_config_maps_hold_the_dashboards_for_the_sidecar() -> None:
    maps = list(yaml.safe_load_all((ROOT / monitoring.FOLDER / "dashboards.yaml").read_text()))
    assert [m["metadata"]["labels"]["grafana_dashboard"] for m in maps] == ["1"] * 4
    for m, board in zip(maps, BOARDS, strict=True):
        ((name, text),) = m["data"].items()
        assert text == (ROOT / monitoring.FOLDER / "dashboards" / name).read_text()
        assert name == f"{board.uid}.json"


def test_the_guide_scrapes_by_hand_as_the_pod_monitors_do(tmp_path: Path) -> None:
    text = (ROOT / "docs/guides/monitoring.md").read_text()
    by_hand = yaml.safe_load(re.findall(r"```yaml\n(scrape_configs:.*?)```", text, re.DOTALL)[0])["scrape_configs"]
    made = {job["job_name"]: job for job in (of_pods(monitor, tmp_path) for monitor in monitors.manifests())}
    for job in by_hand:
        theirs = made[job["job_name"]]
        assert job.get("honor_labels", False) == theirs["honor_labels"]
        for rule in job["relabel_configs"]:
            assert rule in theirs["relabel_configs"], rule
        kept = [rule for rule in theirs["relabel_configs"] if rule.get("action") == "keep"]
        assert all(rule in job["relabel_configs"] for rule in kept)


def test_pod_monitors_find_the_pods_that_are_rendered() -> None:
    engines: dict[str, Any] = monitors.manifests()[0]["spec"]
    for golden in sorted((ROOT / "tests/golden/manifests").glob("*.yaml")):
        deployment = next(d for d in yaml.safe_load_all(golden.read_text()) if d["kind"] == "Deployment")
        template = deployment["spec"]["template"]
        assert engines["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        (endpoint,) = engines["podMetricsEndpoints"]
        ports = [port["name"] for c in template["spec"]["containers"] for port in c.get("ports", ())]
        assert endpoint["port"] in ports
        assert monitors.MODEL_META_LABEL == "__meta_kubernetes_pod_label_flotilla_dev_model"
        assert "flotilla.dev/model" in template["metadata"]["labels"]
    assert {profile.metrics.path for profile in load_profiles().values()} == {endpoint["path"]}
