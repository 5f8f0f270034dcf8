"""Routing: where requests go, what falls back or escalates, and what that costs."""

from flotilla.render.monitoring.panels import Dashboard, Panel, Row, Variable
from flotilla.render.monitoring.shapes import DOLLARS, IN, MODEL, Line, dollars, graph, row, stack

_IN = f'{IN}, policy=~"$policy"'
_POLICY = "{{namespace}}/{{policy}}"
_BY = "namespace, policy"
_REQUESTS = "flotilla_gateway_requests_total"


def board() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="flotilla-routing",
        title="Flotilla / Routing",
        description="Requests of the gateways by policy, rule and target, and what routing saves.",
        variables=(
            Variable("namespace", "Namespace", f"label_values({_REQUESTS}, namespace)"),
            Variable("policy", "Policy", f"label_values({_REQUESTS}{{{IN}}}, policy)"),
        ),
        rows=(_requests(), _latency(), _money()),
    )


def _rate(name: str, *labels: str) -> Line:
    """Of each policy, by more labels."""
    legend = " ".join((_POLICY, *(f"{{{{{label}}}}}" for label in labels)))
    return f"sum by ({', '.join((_BY, *labels))}) (rate({name}{{{_IN}}}[$__rate_interval]))", legend


def _hour(rule: str, name: str) -> Line:
    """A rule's value for each policy."""
    return f"{rule}{{{_IN}}}", f"{_POLICY} {name}"


def _requests() -> Row:
    outcomes = f"sum by (outcome) (rate({_REQUESTS}{{{_IN}}}[$__rate_interval]))"
    held = f"sum by (namespace, modeldeployment) (flotilla_gateway_held_requests{{{IN}}})"
    denied = _rate("flotilla_gateway_sovereignty_denied_total")
    about_denied = "Requests per second whose data class allows no target that serves."
    served, ruled = _rate(_REQUESTS, "target"), _rate(_REQUESTS, "rule")
    return row(
        "Requests",
        stack("By target", "reqps", "Requests per second, by the target that served them.", served),
        stack("By rule", "reqps", "Requests per second, by the rule that chose.", ruled),
        stack("By outcome", "reqps", "Requests per second.", (outcomes, "{{outcome}}")),
        graph(
            "Escalations and fallbacks",
            "percentunit",
            "Share of the last hour's requests. An escalated request is paid for twice.",
            _hour("policy:flotilla_gateway_escalations:ratio_rate1h", "escalated"),
            _hour("policy:flotilla_gateway_fallbacks:ratio_rate1h", "fell back"),
        ),
        graph("Refused for sovereignty", "reqps", about_denied, denied),
        graph("Held for a model at zero", "short", "Requests that wait until a replica is ready.", (held, MODEL)),
    )


def _latency() -> Row:
    def times(title: str, description: str, name: str) -> Panel:
        buckets = f"sum by (namespace, le) (rate({name}_bucket{{{IN}}}[$__rate_interval]))"
        lines = (
            (f"histogram_quantile({share:g}, {buckets})", f"{{{{namespace}}}} p{100 * share:g}")
            for share in (0.5, 0.95)
        )
        return graph(title, "s", description, *lines, width=8)

    about_overhead = "Added by deciding and relaying, without the engines' time."
    return row(
        "Latency",
        times("Time to first token", "As clients see it.", "flotilla_gateway_ttft_seconds"),
        times("Whole request", "As clients see it.", "flotilla_gateway_duration_seconds"),
        times("The gateway's own time", about_overhead, "flotilla_gateway_overhead_seconds"),
    )


def _money() -> Row:
    targets = f"sum by ({_BY}, target) (policy_target_answer:flotilla_route_cost_usd:increase1h{{{_IN}}})"
    teams = f"sum by (team) (policy_target_team:flotilla_route_cost_usd:increase1h{{{_IN}}})"
    saved = _hour("policy_comparator:flotilla_routing_savings_usd:increase1h", "{{comparator}}")
    baseline = _hour("policy_comparator:flotilla_gateway_counterfactual_cost_usd:increase1h", "{{comparator}}")
    about_targets = "what hosted targets charged, and own models by the work that they did."
    about_saved = "negative where that hosted target alone would have been cheaper."
    about_baseline = "US dollars of the last hour, had this hosted target answered every request."
    about_teams = "US dollars of the last hour, by the header x-flotilla-team or the client."
    tokens = _rate("flotilla_gateway_tokens_total", "target", "token_type")
    signals = _rate("flotilla_gateway_escalations_total", "signal")
    return row(
        "Money",
        dollars(
            "Cost by target", f"US dollars of the last hour: {about_targets}", (targets, f"{_POLICY} {{{{target}}}}")
        ),
        graph("Savings against one model for all", DOLLARS, f"US dollars of the last hour; {about_saved}", saved),
        graph(
            "Escalations",
            DOLLARS,
            "US dollars of the last hour: better answers, and the ones that they replaced.",
            _hour("policy:flotilla_escalation_cost_usd:increase1h", "better"),
            _hour("policy:flotilla_wasted_cost_usd:increase1h", "wasted"),
        ),
        dollars("Cost by team", about_teams, (teams, "{{team}}")),
        graph("What one model for all would have cost", DOLLARS, about_baseline, baseline),
        graph("Tokens by target", "short", "Per second.", tokens),
        graph("Escalations by signal", "reqps", "Per second: why answers were not good enough.", signals),
    )
