"""A real Prometheus beside the cluster: every panel has data, and its sums are the ledger's."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import monitoring
from openai import APIStatusError, OpenAI
from tests.reports.test_monitoring import BOARDS, filled
from tests.support.doc_commands import in_shell, own, reader, typed
from tests.support.hosted import HostedApi
from tests.support.models import Models
from tests.support.prometheus import Prometheus, running_prometheus, serving
from tests.support.scraping import Discovery, of_pods, of_process, point

from flotilla.constants import GATEWAY
from flotilla.reports.monitoring import monitors
from flotilla.reports.monitoring.rules import plain
from flotilla_devcluster import traffic
from flotilla_devcluster.stack import samples, value

pytestmark = pytest.mark.cluster

SCRAPE_S = 0.5
BURST_S = 5.0
IN_CLUSTER = "http://prometheus.monitoring:9090"
"""Where the pages have theirs."""
HOSTED = [{"provider": "openai", "model": "gpt-5-mini"}, {"provider": "anthropic", "model": "claude-haiku-4-5"}]


def rules(folder: Path) -> list[Path]:
    """The rules as shipped, but evaluated with each scrape."""
    found = []
    for name, groups in monitoring.rule_files().items():
        file = folder / name
        content = plain(groups)
        for group in content["groups"]:
            group.pop("interval", None)
        file.write_text(yaml.safe_dump(content))
        found.append(file)
    return found


class Watched:
    """The operator's address changes with each start, and Prometheus must follow."""

    def __init__(self, models: Models, prometheus: Prometheus, targets: Path) -> None:
        self.models, self.prometheus, self._targets = models, prometheus, targets
        self._starts = 0
        self.follow()

    def follow(self) -> None:
        self._starts += 1
        address = self.models.stack.operator.url.removeprefix("http://")
        point(self._targets, address, namespace="flotilla-system", pod=f"flotilla-operator-{self._starts}")

    def ask(self, query: str) -> float | None:
        """The only value of a query; None without one."""
        found = self.prometheus.ask(query)
        return float(found[0]["value"][1]) if found else None

    def wait(self, query: str) -> float:
        self.models.wait(lambda: self.ask(query) is not None, f"a value of {query}")
        return self.ask(query) or 0.0


@pytest.fixture
def watched(models: Models, tmp_path: Path) -> Iterator[Watched]:
    engines, gateways, operator = monitors.manifests()
    pods, process = tmp_path / "pods.json", tmp_path / "operator.json"
    jobs = [of_pods(engines, pods), of_pods(gateways, pods), of_process(operator, process)]
    with serving() as state:
        jobs.append({"job_name": "pods", "honor_labels": True, "static_configs": [{"targets": [state.address]}]})
        discovery = Discovery(pods, lambda: models.list("Pod"), state=state)
        try:
            with running_prometheus(
                tmp_path, scrape_configs=jobs, rules=rules(tmp_path), interval_s=SCRAPE_S
            ) as running:
                yield Watched(models, running, process)
        finally:
            discovery.stop()


def policy(hosted_url: str) -> dict[str, Any]:
    """A model, its adapter, and a hosted one for what is too long for them, or as much as asked for."""
    own = {"modelDeploymentRef": {"name": "seen"}}
    price = {"inputPerMTok": "3", "outputPerMTok": "15"}
    key = {"name": "provider", "key": "api-key"}
    hosted = {"baseURL": f"{hosted_url}/v1", "model": "big-1", "secretRef": key, "price": price}
    return {
        "hostModels": ["support"],
        "teams": ["support"],
        "targets": [
            {"name": "small", **own},
            {"name": "triage", "modelDeploymentRef": {"name": "seen", "adapter": "triage"}},
            {"name": "frontier", "external": hosted},
        ],
        "dataPolicy": {
            "unknownClass": "sovereign",
            "classes": [
                {"name": "sovereign", "allowBoundaries": ["Cluster"]},
                {"name": "public", "allowBoundaries": ["Cluster", "External"]},
            ],
        },
        "rules": [
            {"name": "hard", "match": {"tasks": ["hard"]}, "route": {"split": [{"target": "frontier"}]}},
            {
                "name": "short",
                "match": {"tasks": ["short"]},
                "route": {
                    "split": [{"target": "small"}],
                    "escalation": {"target": "frontier", "signals": ["FinishReasonLength"], "maxRatePercent": 100},
                },
            },
        ],
        "defaultRoute": {"split": [{"target": "small", "weight": 3}, {"target": "triage"}]},
    }


def asked(models: Models, tally: traffic.Tally) -> None:
    """Requests of every kind that the dashboard of routes tells apart: streamed, escalated, hosted and refused."""
    url = models.wait(lambda: models.stack.service_url(GATEWAY, models.namespace), "the gateway's Service")
    client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30)
    tally.output_tokens += traffic.stream(url, "support", lambda _: None, prompt="Hello", max_tokens=24).tokens

    def ask(task: str, data_class: str) -> str:
        headers = {"x-flotilla-task": task, "x-data-class": data_class, "x-flotilla-team": "support"}
        answer = client.chat.completions.create(
            model="support", messages=[{"role": "user", "content": "Hello"}], max_tokens=2, extra_headers=headers
        )
        return answer.choices[0].message.content or ""

    assert ask("hard", "public") == "from the hosted model"
    assert ask("short", "public") == "from the hosted model"
    tally.output_tokens += 2  # of the answer that was escalated
    with pytest.raises(APIStatusError):
        ask("hard", "sovereign")


def busy(watched: Watched, name: str, tally: traffic.Tally, *, until_replicas: int) -> None:
    """Clients of the model and of its route for some seconds, until so many replicas are ready and the operator that
    runs has seen tokens."""
    models = watched.models
    seen = f'flotilla_savings_usd{{namespace="{models.namespace}", window="24h"}}'
    url, routes = (models.stack.service_url(service, models.namespace) for service in (name, GATEWAY))
    assert url is not None
    assert routes is not None
    least, latest, ready = time.monotonic() + BURST_S, time.monotonic() + 60, 0

    def enough() -> bool:
        nonlocal ready
        ready = max(ready, (models.get("ModelDeployment", name) or {})["status"]["readyReplicas"])
        if time.monotonic() < least:
            return False
        return (ready >= until_replicas and watched.ask(seen) is not None) or time.monotonic() > latest

    crowds = [traffic.Crowd(url, name, 6), traffic.Crowd(routes, "support", 6)]
    asyncio.run(traffic.burst(crowds, until=enough, tally=tally))


def test_panels_have_data_and_sums_agree_over_a_restart_and_scaling(
    watched: Watched, spec: dict[str, Any], hosted: HostedApi, tmp_path: Path
) -> None:
    models, ns = watched.models, f'namespace="{watched.models.namespace}"'
    secret = {"metadata": {"name": "provider"}, "stringData": {"api-key": "sk-of-the-provider"}}
    models.stack.plane.api.request("POST", models.path("Secret"), secret)
    scaling = {
        "maxReplicas": 3,
        "queueDepthPerReplica": 2,
        "scaleDownDelaySeconds": 2,
        "scaleDownPercentPerMinute": 100,
    }
    cost = {"compareWith": HOSTED, "monthlyBudgetUsd": "100", "maxTokensPerSecond": 4000}
    model = {**spec["model"], "adapters": [{"name": "triage", "source": "hf://acme/triage-lora"}]}
    models.apply("seen", {**spec, "model": model, "scaling": scaling, "cost": cost})
    models.apply("routes", policy(hosted.url), kind="RoutingPolicy")
    models.patch("ModelDeployment", "seen", {"metadata": {"labels": {"flotilla.dev/team": "support"}}})
    models.wait_ready("seen")
    models.wait_condition("routes", "Ready", "True", kind="RoutingPolicy")
    watched.wait(f'vllm:generation_tokens_total{{{ns}, modeldeployment="seen"}}')
    price = watched.wait(f"sum(flotilla_deployment_cost_usd_per_hour{{{ns}}})")
    tally = traffic.Tally()
    asked(models, tally)
    busy(watched, "seen", tally, until_replicas=3)
    models.stack.restart_operator(kill=True)
    watched.follow()
    busy(watched, "seen", tally, until_replicas=3)
    _assert_panels_have_data(watched)
    _follow_the_pages(watched, tmp_path)
    models.delete("RoutingPolicy", "routes")
    models.wait(lambda: (models.get("Deployment", "seen") or {})["spec"]["replicas"] == 1, "the scale-in")
    models.wait(lambda: watched.ask(f"count(up{{{ns}}} == 1)") == 1, "the pods to be gone from discovery")
    _assert_tokens_agree(watched, tally, ns)
    _assert_dollars_agree(watched, ns, price)


def _follow_the_pages(watched: Watched, folder: Path) -> None:
    """Every line of ours in the documentation that asks a Prometheus, as its reader types it."""
    environ = {**reader(folder, {}), "HOME": str(folder)}
    for line in own("prometheus"):
        assert IN_CLUSTER in line.command
        assert typed(line.command.replace(IN_CLUSTER, watched.prometheus.url), folder, environ).stdout, line
    assert "seen" in (folder / "fleet.html").read_text()
    environ |= {"KUBECONFIG": str(watched.models.stack.plane.kubeconfig), "PROMETHEUS": watched.prometheus.url}
    for line in own("policy"):
        here = line.command.replace("support -n team", f"routes -n {watched.models.namespace}")
        done = in_shell(here.replace(IN_CLUSTER, watched.prometheus.url), folder, environ)
        # With --fail-if it also answers 1, where this policy is not within the pages' bounds.
        assert done.returncode in ((0, 1) if "--fail-if" in here else (0,)), done.stdout + done.stderr


def _assert_dollars_agree(watched: Watched, ns: str, price: float) -> None:
    """Once nothing runs any more: the ledger's total, and the lives of the pods that the apiserver had at one's price.

    Not by the operator's own rate, which ends with it. Both begin a pod at the second that its condition names.
    """
    models = watched.models
    models.patch("ModelDeployment", "seen", {"spec": {"scaling": {"mode": "None"}, "replicas": 0}})
    models.wait(lambda: not models.list("Pod"), "the last pod to be gone")
    models.wait(lambda: watched.ask(f"count(up{{{ns}}} == 1)") is None, "Prometheus to see no pod")
    begun = f'kube_pod_status_scheduled_time{{{ns}, pod=~"seen-.+"}}'
    seen = f"max_over_time(timestamp({begun})[10m:{round(1000 * SCRAPE_S / 5)}ms])"
    lived_s = watched.wait(f"sum({seen} - max_over_time({begun}[10m]))")
    spent = watched.wait(f"sum(flotilla_deployment_cost_usd_total{{{ns}}})")
    assert spent == pytest.approx(lived_s * price / 3600, rel=0.01)


def _assert_tokens_agree(watched: Watched, tally: traffic.Tally, ns: str) -> None:
    """What clients were told, what the engines counted and Prometheus added up, and what the ledger has."""
    assert tally.failed == 0
    engines = watched.ask(f"sum(max_over_time(vllm:generation_tokens_total{{{ns}}}[10m]))")
    ledger = value(
        samples(watched.models.stack.operator.metrics()),
        "flotilla_deployment_tokens_total",
        token_type="output",
        namespace=watched.models.namespace,
    )
    assert engines == pytest.approx(tally.output_tokens, rel=0.01)
    assert float(ledger or 0) == pytest.approx(tally.output_tokens, rel=0.01)


BY_EVIDENCE = {"Shares by evidence", "Shadow copies by agreement"}
"""Panels of routes with a preference or a shadow, which these models have not; promtool judges their queries."""


def _assert_panels_have_data(watched: Watched) -> None:
    queries = {
        f"{board.title}, {panel.title}: {query.legend}": filled(query.expr)
        for board in BOARDS
        for panel in board.panels()
        for query in panel.queries
        if panel.title not in BY_EVIDENCE
    }
    empty: list[str] = []

    def none_is_empty() -> bool:
        empty[:] = [name for name, query in queries.items() if not watched.prometheus.ask(query)]
        return not empty

    try:
        watched.models.wait(none_is_empty, "data in every panel", timeout_s=20)
    except AssertionError as error:
        raise AssertionError(f"no data: {empty}") from error
