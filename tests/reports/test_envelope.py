"""The envelope: figures with their evidence, nothing for what is unknown, winners by task, and bounds for CI."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.routing import SOUND
from tests.support.schema import put

from flotilla.api.routing_policy import ModelDeploymentRef
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.errors import InvalidSpec
from flotilla.evaluation.revision import self_hosted_revision
from flotilla.reports.envelope import Envelope, breaches, document, envelope, page, quantile, text, wilson

SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "envelope.schema.json"
END = datetime(2026, 1, 8, 12, tzinfo=UTC)
POLICY = {"metadata": {"name": "support", "namespace": "team", "uid": "u", "generation": 1}, "spec": SOUND}
MODEL: dict[str, Any] = {"metadata": {"name": "qwen-small", "namespace": "team"}, "spec": {}}
DEPLOYMENT: dict[str, Any] = {"metadata": {"name": "qwen-small", "annotations": {ANNOTATION_TEMPLATE_HASH: "t1"}}}
REVISION = self_hosted_revision(ModelDeploymentRef(name="qwen-small"), MODEL, DEPLOYMENT)


def rows(*pairs: tuple[Mapping[str, str], float]) -> tuple[tuple[Mapping[str, str], Decimal], ...]:
    return tuple(({"namespace": "team", "policy": "support", **labels}, Decimal(str(value))) for labels, value in pairs)


def histogram(target: str, *counts: tuple[str, float]) -> list[tuple[Mapping[str, str], float]]:
    return [({"target": target, "le": bound}, count) for bound, count in counts]


SAMPLES = {
    "flotilla_gateway_requests_total": rows(
        ({"target": "small", "class": "sovereign", "rule": "classify", "outcome": "ok"}, 900),
        ({"target": "frontier", "class": "public", "rule": "classify", "outcome": "ok"}, 100),
        ({"target": "", "class": "public", "rule": "classify", "outcome": "failed"}, 5),
    ),
    "flotilla_gateway_ttft_seconds_bucket": rows(
        *histogram("small", ("0.1", 800), ("0.25", 895), ("0.5", 900), ("+Inf", 900)),
        *histogram("frontier", ("0.1", 0), ("0.25", 10), ("0.5", 60), ("+Inf", 100)),
    ),
    "flotilla_gateway_upstream_attempts_total": rows(
        ({"target": "small", "outcome": "ok"}, 950), ({"target": "small", "outcome": "Timeout"}, 50)
    ),
    "flotilla_gateway_escalations_total": rows(({"rule": "classify", "signal": "EmptyAnswer"}, 50)),
    "flotilla_gateway_sovereignty_denied_total": rows(({"class": "sovereign"}, 3)),
    "flotilla_gateway_cost_usd_total": rows(({"target": "frontier", "answer": "first"}, 0.5)),
    "flotilla_gateway_tokens_total": rows(
        ({"target": "frontier", "answer": "first", "token_type": "input"}, 9000),
        ({"target": "small", "answer": "first", "token_type": "input"}, 9000),
    ),
}
RESULT: dict[str, Any] = {
    "target": "base",
    "revision": REVISION,
    "verdict": "Qualified",
    "cases": 1000,
    "qualityPermille": 960,
    "lowPermille": 946,
    "highPermille": 971,
    "malformedPermille": 2,
    "firstTokenP99Milliseconds": 210,
    "costPerThousandTasksUSD": "0.18",
    "finishedTime": "2026-01-05T12:00:00+00:00",
}
EVALUATION: dict[str, Any] = {
    "metadata": {"name": "triage"},
    "spec": {
        "task": "classification",
        "targets": [
            {"name": "base", "modelDeploymentRef": {"name": "qwen-small"}},
            {"name": "big", "external": SOUND["targets"][2]["external"]},
        ],
    },
    "status": {
        "results": [RESULT, {**RESULT, "target": "big", "qualityPermille": 970, "costPerThousandTasksUSD": "2.10"}]
    },
}


def made(samples: Any = SAMPLES, evaluations: Any = (EVALUATION,)) -> Envelope:
    return envelope(
        POLICY,
        samples,
        evaluations=evaluations,
        models=[MODEL],
        deployments=[DEPLOYMENT],
        start=datetime(2026, 1, 1, 12, tzinfo=UTC),
        end=END,
        source="Prometheus",
    )


def figures(found: Envelope, name: str) -> Mapping[str, Any]:
    return next(one.figures for one in found.targets if one.name == name)


def test_each_figure_has_its_number_of_requests_and_an_interval() -> None:
    small = figures(made(), "small")
    assert small["firstTokenP50"].n == 900
    assert 0 < small["firstTokenP50"].value < 0.1
    assert 0.1 < small["firstTokenP99"].value <= 0.25
    assert small["firstTokenP99"].low <= small["firstTokenP99"].value <= small["firstTokenP99"].high
    assert (small["errorRate"].value, small["errorRate"].n) == (0.05, 1000)
    assert small["errorRate"].low < 0.05 < small["errorRate"].high
    assert (small["quality"].value, small["quality"].low, small["quality"].high) == (0.96, 0.946, 0.971)
    assert small["malformed"].value == 0.002
    whole = figures(made(), "all")
    assert (whole["escalationRate"].value, whole["escalationRate"].n) == (0.05, 1000)


def test_what_is_unknown_is_left_out_and_not_zero() -> None:
    found = made()
    assert "costPerThousandTasks" not in figures(found, "small")  # nobody knows what its GPUs cost
    assert "costPerThousandTasks" not in figures(found, "all")
    assert figures(found, "frontier")["costPerThousandTasks"].value == pytest.approx(5.0)
    assert "firstTokenP99" not in figures(found, "frontier")  # beyond the last bucket
    assert figures(found, "medium") == {}
    nothing = made({}, ())
    assert all(not one.figures for one in nothing.targets)
    assert "0.0" not in "\n".join(text(nothing))


def test_requests_outside_of_their_class_are_counted_and_zero_is_bounded() -> None:
    sovereign = next(one for one in made().classes if one.name == "sovereign")
    assert (sovereign.requests, sovereign.outside, sovereign.refused) == (900, 0, 3)
    assert sovereign.most_outside == pytest.approx(3 / 900)
    leaked = put(SAMPLES, ("flotilla_gateway_requests_total",), rows(({"target": "frontier", "class": "sovereign"}, 2)))
    assert next(one for one in made(leaked).classes if one.name == "sovereign").outside == 2


def test_the_cheapest_qualified_target_wins_a_task() -> None:
    (winner,) = made().winners
    assert (winner.task, winner.target) == ("classification", "small")
    assert winner.why == "the cheapest that qualified: $0.18 for 1000 tasks, frontier costs $2.10"
    older = put(EVALUATION, ("status", "results", 0, "revision"), "old")
    assert made(evaluations=[older]).winners[0].target == "frontier"
    none = put(older, ("status", "results", 1, "verdict"), "Inconclusive")
    (nobody,) = made(evaluations=[none]).winners
    assert nobody.target is None
    assert nobody.why == "no target is qualified: small Qualified (older revision), frontier Inconclusive"


def test_a_bound_fails_when_it_holds_or_when_its_figure_is_unknown() -> None:
    found = made()
    assert breaches(found, ["small.firstTokenP99>1.5", "small.quality<0.95", "outsideClass>0"]) == []
    broken = breaches(found, ["small.firstTokenP99>0.1", "small.errorRate >= 0.05", "small.costPerThousandTasks>1"])
    assert [line.partition(":")[0] for line in broken] == [
        "small.firstTokenP99>0.1",
        "small.errorRate >= 0.05",
        "small.costPerThousandTasks>1",
    ]
    assert broken[2].endswith("nothing is known of costPerThousandTasks of small")


@pytest.mark.parametrize("bound", ["", "firstTokenP99", "speed>1", "nowhere.quality<1", "quality<-1"])
def test_a_bound_that_makes_no_sense_is_refused(bound: str) -> None:
    with pytest.raises(InvalidSpec):
        breaches(made(), [bound])


def test_the_text_fits_80_columns() -> None:
    lines = text(made())
    assert max(map(len, lines)) <= 80, [line for line in lines if len(line) > 80]
    assert "  small     right answers     96.0 % [94.6 % to 97.1 %], n 1,000, 3 d old" in lines
    assert "  sovereign  900 requests, none outside (at most 0.33%); 3 refused" in lines


def test_the_page_escapes_what_it_shows_and_asks_no_other_host() -> None:
    html = page(made())
    assert "classification" in html
    assert "96.0 % [94.6 % to 97.1 %], n 1,000" in html
    assert "http://" not in html
    assert "https://" not in html
    assert html.count("<svg") == 2
    hostile = put(EVALUATION, ("spec", "task"), "<script>")
    assert "<script>" not in page(made(evaluations=[hostile]))


def test_json_holds_the_same_without_what_is_unknown() -> None:
    content = json.loads(json.dumps(document(made())))
    small = next(one for one in content["targets"] if one["name"] == "small")
    assert small["figures"]["quality"]["at"] == "2026-01-05T12:00:00+00:00"
    assert "costPerThousandTasks" not in small["figures"]
    assert None not in small["figures"].values()
    schema = jsonschema_rs.validator_for(json.loads(SCHEMA.read_text()))
    for found in (content, json.loads(json.dumps(document(made({}, ()))))):
        assert [error.message for error in schema.iter_errors(found)] == []
    assert content["winners"] == [{"task": "classification", "target": "small", "why": made().winners[0].why}]


@given(
    values=st.lists(st.floats(0.001, 200), min_size=1, max_size=200),
    q=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_a_quantile_lies_within_its_interval_and_its_bucket(values: list[float], q: float) -> None:
    bounds = [0.01, 0.1, 1.0, 10.0, 100.0, float("inf")]
    buckets = [(bound, float(sum(value <= bound for value in values))) for bound in bounds]
    found = quantile(buckets, q)
    true = sorted(values)[max(0, -(-int(q * 1000) * len(values) // 1000) - 1)]
    if found is None:
        assert true > 100
        return
    assert found.n == len(values)
    assert found.low is not None
    assert found.low <= found.value
    assert found.high is None or found.value <= found.high


@given(n=st.integers(1, 10_000), data=st.data())
def test_the_interval_of_a_share_holds_the_share(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n + 1e-9
    assert hits / n - 1e-9 <= high <= 1
