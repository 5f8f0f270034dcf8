"""The recording rules of routes are the functions of the cost module: promtool's expected values are computed here."""

from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from flotilla.cost.comparison import attribute
from flotilla.cost.hosted_prices import TokenUsage, TokenWeights

FILE = Path(__file__).parents[1] / "promtool" / "recording-routing.yaml"
MINUTES = 60
DIRECT = "direct"
WEIGHTS = TokenWeights(output=Decimal(2), cached=Decimal("0.0625"))
"""Binary fractions: promtool compares to the last bit."""


@pytest.fixture(scope="module")
def scenario() -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(FILE.read_text())["tests"][0]
    return found


def given(scenario: dict[str, object], name: str, *labels: str) -> Decimal:
    """What a series of the scenario grows by in an hour; labels as `name="value"`."""
    (values,) = [
        row["values"]
        for row in scenario["input_series"]  # type: ignore[attr-defined]
        if row["series"].startswith(f"{name}{{") and all(label in row["series"] for label in labels)
    ]
    return Decimal(values.split("+")[1].split("x")[0]) * MINUTES


def expected(scenario: dict[str, object], name: str) -> dict[frozenset[str], float]:
    """What promtool is told to expect of a rule, by the values of its labels."""
    (case,) = [case for case in scenario["promql_expr_test"] if case["expr"].startswith(name)]  # type: ignore[attr-defined]
    return {frozenset(sample["labels"].split('"')[1::2]): sample["value"] for sample in case["exp_samples"]}


def usage(scenario: dict[str, object], metric: str, *labels: str) -> TokenUsage:
    fresh, cached, output = (
        given(scenario, metric, *labels, f'token_type="{kind}"') for kind in ("input", "cached_input", "output")
    )
    return TokenUsage(fresh + cached, output, cached)


def shares(scenario: dict[str, object]) -> dict[str, Decimal]:
    """The deployment's dollars by who caused them."""
    routed = {
        name: usage(scenario, "flotilla_gateway_tokens_total", *(f'"{part}"' for part in name.split()))
        for name in ("small first", "small replaced", "triage first")
    }
    whole = usage(scenario, "flotilla_deployment_tokens_total", '"small"')
    mine = sum(routed.values(), TokenUsage())
    direct = TokenUsage(whole.prompt - mine.prompt, whole.generated - mine.generated, whole.cached - mine.cached)
    states = [
        given(scenario, "flotilla_deployment_cost_usd_total", '"small"', f'state="{state}"')
        for state in ("serving", "idle", "startup")
    ]
    return attribute(sum(states, Decimal(0)), {**routed, DIRECT: direct}, WEIGHTS)


def test_shares_of_routes_and_of_the_rest_are_those_of_attribute(scenario: dict[str, object]) -> None:
    rule = expected(scenario, "policy_target_answer:flotilla_route_cost_usd")
    for name, usd in shares(scenario).items():
        if name != DIRECT:
            assert rule[frozenset({"shop", "support", *name.split()})] == pytest.approx(float(usd))
    rest = expected(scenario, "modeldeployment:flotilla_unrouted_cost_usd")[frozenset({"shop", "small"})]
    assert rest == pytest.approx(float(shares(scenario)[DIRECT]))


def test_shares_of_adapters_are_those_of_attribute(scenario: dict[str, object]) -> None:
    rule, share = expected(scenario, "modeldeployment_model:flotilla_deployment_cost_usd"), shares(scenario)
    assert rule[frozenset({"shop", "small", "triage-lora"})] == pytest.approx(float(share["triage first"]))
    whole = float(share["small first"] + share["small replaced"])
    assert rule[frozenset({"shop", "small", "qwen"})] == pytest.approx(whole)


def test_savings_waste_and_break_even_of_escalation(scenario: dict[str, object]) -> None:
    own = {name: usd for name, usd in shares(scenario).items() if name != DIRECT}
    # Each task of the scenario is of one size, and one in seven is asked again.
    tasks, escalated = Decimal(7 * MINUTES), Decimal(MINUTES)
    own_usd = sum(own.values(), Decimal(0))
    escalation_usd = given(scenario, "flotilla_gateway_cost_usd_total", '"support"')
    baseline_usd = given(scenario, "flotilla_gateway_counterfactual_cost_usd_total")
    policy, compared = frozenset({"shop", "support"}), frozenset({"shop", "support", "frontier"})
    for rule, key, value in (
        ("policy:flotilla_route_cost_usd", policy, own_usd + escalation_usd),
        ("policy:flotilla_escalation_cost_usd", policy, escalation_usd),
        ("policy:flotilla_wasted_cost_usd", policy, own_usd * escalated / tasks),
        ("policy_comparator:flotilla_routing_savings_usd", compared, baseline_usd - own_usd - escalation_usd),
        ("policy_comparator:flotilla_break_even_escalation", compared, 1 - own_usd / baseline_usd),
    ):
        assert expected(scenario, rule) == {key: pytest.approx(float(value))}, rule


def test_used_headroom_and_idle_add_up_and_start_up_is_idle(scenario: dict[str, object]) -> None:
    serving, idle, startup = (
        given(scenario, "flotilla_deployment_cost_usd_total", '"small"', f'state="{state}"')
        for state in ("serving", "idle", "startup")
    )
    usd, active, saturation = serving + idle, Decimal("0.75"), Decimal("0.25")
    uses = {"used": usd * saturation, "headroom": usd * (active - saturation), "idle": usd * (1 - active) + startup}
    rule = expected(scenario, "modeldeployment_use:flotilla_deployment_cost_usd")
    for use, usd in uses.items():
        assert rule[frozenset({"shop", "small", use})] == pytest.approx(float(usd))
