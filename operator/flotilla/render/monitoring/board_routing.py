"""Routing: where requests go, what falls back or escalates, and what that costs."""

from flotilla.render.monitoring.panels import Dashboard, Panel, Query, Row, Variable

_IN = 'namespace=~"$namespace", policy=~"$policy"'
_POLICY = "{{namespace}}/{{policy}}"
_BY = "namespace, policy"


def board() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="flotilla-routing",
        title="Flotilla / Routing",
        description="Requests of the gateways by policy, rule and target, and what routing saves.",
        variables=(
            Variable("namespace", "Namespace", "label_values(flotilla_gateway_requests_total, namespace)"),
            Variable(
                "policy", "Policy", 'label_values(flotilla_gateway_requests_total{namespace=~"$namespace"}, policy)'
            ),
        ),
        rows=(_requests(), _latency(), _money()),
    )


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}{{{_IN}}}[$__rate_interval]))"


def _requests() -> Row:
    return Row(
        "Requests",
        (
            Panel(
                "By target",
                "Requests per second, by the target that served them.",
                "reqps",
                (Query(_rate("flotilla_gateway_requests_total", f"{_BY}, target"), f"{_POLICY} {{{{target}}}}"),),
                stacked=True,
            ),
            Panel(
                "By rule",
                "Requests per second, by the rule that chose.",
                "reqps",
                (Query(_rate("flotilla_gateway_requests_total", f"{_BY}, rule"), f"{_POLICY} {{{{rule}}}}"),),
                stacked=True,
            ),
            Panel(
                "By outcome",
                "Requests per second.",
                "reqps",
                (Query(_rate("flotilla_gateway_requests_total", "outcome"), "{{outcome}}"),),
                stacked=True,
            ),
            Panel(
                "Escalations and fallbacks",
                "Share of the last hour's requests. An escalated request is paid for twice.",
                "percentunit",
                (
                    Query(f"policy:flotilla_gateway_escalations:ratio_rate1h{{{_IN}}}", f"{_POLICY} escalated"),
                    Query(f"policy:flotilla_gateway_fallbacks:ratio_rate1h{{{_IN}}}", f"{_POLICY} fell back"),
                ),
            ),
            Panel(
                "Refused for sovereignty",
                "Requests per second whose data class allows no target that serves.",
                "reqps",
                (Query(_rate("flotilla_gateway_sovereignty_denied_total", _BY), _POLICY),),
            ),
            Panel(
                "Held for a model at zero",
                "Requests that wait until a replica is ready.",
                "short",
                (
                    Query(
                        'sum by (namespace, modeldeployment) (flotilla_gateway_held_requests{namespace=~"$namespace"})',
                        "{{namespace}}/{{modeldeployment}}",
                    ),
                ),
            ),
        ),
    )


def _latency() -> Row:
    def panel(title: str, description: str, name: str, by: str, legend: str) -> Panel:
        bucket = f'rate({name}_bucket{{namespace=~"$namespace"}}[$__rate_interval])'
        return Panel(
            title,
            description,
            "s",
            tuple(
                Query(f"histogram_quantile({share:g}, sum by ({by}) ({bucket}))", f"{legend} p{100 * share:g}")
                for share in (0.5, 0.95)
            ),
            width=8,
        )

    return Row(
        "Latency",
        (
            panel(
                "Time to first token",
                "As clients see it.",
                "flotilla_gateway_ttft_seconds",
                "namespace, le",
                "{{namespace}}",
            ),
            panel(
                "Whole request",
                "As clients see it.",
                "flotilla_gateway_duration_seconds",
                "namespace, le",
                "{{namespace}}",
            ),
            panel(
                "The gateway's own time",
                "Added by deciding and relaying, without the engines' time.",
                "flotilla_gateway_overhead_seconds",
                "namespace, le",
                "{{namespace}}",
            ),
        ),
    )


def _money() -> Row:
    return Row(
        "Money",
        (
            Panel(
                "Cost by target",
                "US dollars of the last hour: what hosted targets charged, and own models by the work that they did.",
                "currencyUSD",
                (
                    Query(
                        f"sum by ({_BY}, target) (policy_target_answer:flotilla_route_cost_usd:increase1h{{{_IN}}})",
                        f"{_POLICY} {{{{target}}}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Savings against one model for all",
                "US dollars of the last hour; negative where that hosted target alone would have been cheaper.",
                "currencyUSD",
                (
                    Query(
                        f"policy_comparator:flotilla_routing_savings_usd:increase1h{{{_IN}}}",
                        f"{_POLICY} {{{{comparator}}}}",
                    ),
                ),
            ),
            Panel(
                "Escalations",
                "US dollars of the last hour: better answers, and the ones that they replaced.",
                "currencyUSD",
                (
                    Query(f"policy:flotilla_escalation_cost_usd:increase1h{{{_IN}}}", f"{_POLICY} better"),
                    Query(f"policy:flotilla_wasted_cost_usd:increase1h{{{_IN}}}", f"{_POLICY} wasted"),
                ),
            ),
            Panel(
                "Cost by team",
                "US dollars of the last hour, by the header x-flotilla-team or the client.",
                "currencyUSD",
                (Query(f"sum by (team) (policy_target_team:flotilla_route_cost_usd:increase1h{{{_IN}}})", "{{team}}"),),
                stacked=True,
            ),
            Panel(
                "What one model for all would have cost",
                "US dollars of the last hour, had this hosted target answered every request.",
                "currencyUSD",
                (
                    Query(
                        f"policy_comparator:flotilla_gateway_counterfactual_cost_usd:increase1h{{{_IN}}}",
                        f"{_POLICY} {{{{comparator}}}}",
                    ),
                ),
            ),
            Panel(
                "Tokens by target",
                "Per second.",
                "short",
                (
                    Query(
                        _rate("flotilla_gateway_tokens_total", f"{_BY}, target, token_type"),
                        f"{_POLICY} {{{{target}}}} {{{{token_type}}}}",
                    ),
                ),
            ),
            Panel(
                "Escalations by signal",
                "Per second: why answers were not good enough.",
                "reqps",
                (Query(_rate("flotilla_gateway_escalations_total", f"{_BY}, signal"), f"{_POLICY} {{{{signal}}}}"),),
            ),
        ),
    )
