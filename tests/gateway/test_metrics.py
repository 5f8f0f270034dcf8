"""Series begin with 0 when a policy is loaded, and are those that requests count in."""

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from prometheus_client.parser import text_string_to_metric_families
from tests.support.gateway import document_of, running_gateway
from tests.support.hosted import Whole, fault
from tests.support.hosted_answers import chat, hosted_api
from tests.support.routing import HOSTED, SOUND, compiled, policies

from flotilla.gateway.metrics import MAX_SERIES_PER_POLICY, Counter, GatewayMetrics, declare_series, policy_series

COUNTERS = (
    "requests",
    "tokens",
    "cost_usd",
    "team_tokens",
    "team_cost_usd",
    "counterfactual_cost_usd",
    "escalations",
    "fallbacks",
    "upstream_attempts",
)


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Counters by name and label values."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in {f"flotilla_gateway_{name}_total" for name in COUNTERS}
    }


async def test_all_that_requests_count_in_was_there_with_0_before_the_first(tmp_path: Path) -> None:
    tasks = [{"name": "classification", "description": "x"}, {"name": "drafting", "description": "y"}]
    async with hosted_api() as small, hosted_api() as medium, hosted_api() as frontier:
        external = {"name": "frontier", "external": {**HOSTED, "baseURL": f"{frontier.url}/v1"}}
        policy: dict[str, Any] = {
            **SOUND,
            "targets": [*SOUND["targets"][:2], external],
            "classifier": {"target": "medium", "tasks": tasks},
            "teams": ["blue"],
        }
        engines = {"qwen-small": [small], "qwen-medium": [medium]}
        async with running_gateway(tmp_path, document_of(policy), engines=engines) as gw:
            before = samples((await gw.admin("/metrics"))[1])
            assert set(before.values()) == {0.0}
            public = {"x-data-class": "public", "x-flotilla-team": "blue"}
            classify = {"x-flotilla-task": "classification"}
            medium.script(Whole(chat("classification")))
            await gw.chat()  # classified
            small.script(Whole(chat("")))
            await gw.chat(headers=public | classify)  # escalated
            small.script(fault(500))
            await gw.chat(headers=classify)  # fell back
            medium.script(fault(500))
            await gw.stream(headers={"x-flotilla-task": "drafting"})  # failed
            small.script(fault(400))
            await gw.chat(headers=classify)  # refused by the target
            after = samples((await gw.admin("/metrics"))[1])
            assert after.keys() == before.keys()
            assert {name for name, _ in after if after[name, _]} == {
                f"flotilla_gateway_{name}_total" for name in COUNTERS
            }


@settings(max_examples=15)
@given(policies())
def test_a_usual_policy_has_fewer_series_than_the_most(spec: dict[str, Any]) -> None:
    found = list(policy_series(compiled(spec)))
    assert len(set(found)) == len(found) < MAX_SERIES_PER_POLICY


def test_of_a_policy_with_very_many_the_first_are_declared() -> None:
    rules = [{"name": f"r{i}", "match": {}, "route": SOUND["rules"][0]["route"]} for i in range(64)]
    metrics = GatewayMetrics()
    declare_series(metrics, [compiled({**SOUND, "rules": rules, "teams": [f"team-{i}" for i in range(64)]})])
    declared = [
        labels for counter in vars(metrics).values() if isinstance(counter, Counter) for labels in counter.values
    ]
    assert len(declared) == MAX_SERIES_PER_POLICY
    assert metrics.cost.values == {("policy", "frontier", answer): 0 for answer in ("first", "escalation", "replaced")}
