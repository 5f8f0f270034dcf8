"""Savings: self-hosting against hosted models for the same tokens, with its sign."""

from flotilla.render.monitoring.board_fleet import NAMESPACES
from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.panels import Dashboard, Panel, Query, Row, Variable

_IN = 'namespace=~"$namespace", comparator=~"$comparator"'
_PAIR = "{{namespace}}/{{modeldeployment}} {{comparator}}"
_KEY = f"{BY}, comparator"


def board() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="flotilla-savings",
        title="Flotilla / Savings",
        description="What the same tokens would have cost from a hosted model. Negative: hosting yourself costs more.",
        variables=(
            NAMESPACES,
            Variable(
                "comparator", "Hosted model", "label_values(flotilla_hosted_equivalent_cost_usd_total, comparator)"
            ),
            Variable("window", "Window", "label_values(flotilla_savings_usd, window)", several=False),
        ),
        rows=(_totals(), _compared(), _break_even(), _prices()),
        since="now-7d",
    )


def _totals() -> Row:
    own = 'sum(increase(flotilla_deployment_cost_usd_total{namespace=~"$namespace"}[$__range]))'
    hosted = f"sum by (comparator) (increase(flotilla_hosted_equivalent_cost_usd_total{{{_IN}}}[$__range]))"
    return Row(
        "Of the time shown",
        (
            Panel(
                "Own cost",
                "US dollars of all models, idle time included.",
                "currencyUSD",
                (Query(own, "own", instant=True),),
                kind="stat",
                width=6,
            ),
            Panel(
                "Hosted cost for the same tokens",
                "US dollars, for the models that are compared with it.",
                "currencyUSD",
                (Query(hosted, "{{comparator}}", instant=True),),
                kind="stat",
                width=18,
            ),
        ),
    )


def _compared() -> Row:
    return Row(
        "Compared",
        (
            Panel(
                "Savings",
                "Hosted minus own cost over the chosen window, in US dollars; below zero, hosted would be cheaper.",
                "currencyUSD",
                (Query(f'max by ({_KEY}) (flotilla_savings_usd{{{_IN}, window="$window"}})', _PAIR),),
            ),
            Panel(
                "Hosted cost over own cost",
                "Above 1, hosting yourself is cheaper.",
                "none",
                (Query(f'max by ({_KEY}) (flotilla_cost_ratio{{{_IN}, window="$window"}})', _PAIR),),
                decimals=2,
            ),
            Panel(
                "Hosted cost of the last hour",
                "US dollars for the same tokens.",
                "currencyUSD",
                (
                    Query(
                        f"modeldeployment_comparator:flotilla_hosted_equivalent_cost_usd:increase1h{{{_IN}}}",
                        _PAIR,
                    ),
                ),
            ),
            Panel(
                "Own cost of the last hour",
                "US dollars, idle time included.",
                "currencyUSD",
                (
                    Query(
                        f"sum by ({BY}) (modeldeployment_state:flotilla_deployment_cost_usd:increase1h"
                        '{namespace=~"$namespace"})',
                        "{{namespace}}/{{modeldeployment}}",
                    ),
                ),
            ),
        ),
    )


def _break_even() -> Row:
    return Row(
        "Break-even",
        (
            Panel(
                "Tasks a day to be cheaper",
                "From how many requests of the usual size a day on self-hosting costs less. No bar: never.",
                "short",
                (Query(f"max by ({_KEY}) (flotilla_break_even_tasks_per_day{{{_IN}}}) < +Inf", _PAIR, instant=True),),
                kind="bargauge",
            ),
            Panel(
                "Requests a day",
                "Served in the last 24 hours, to compare with the break-even beside it.",
                "short",
                (
                    Query(
                        'modeldeployment:flotilla_deployment_requests:increase1d{namespace=~"$namespace"}',
                        "{{namespace}}/{{modeldeployment}}",
                        instant=True,
                    ),
                ),
                kind="bargauge",
            ),
            Panel(
                "Utilization to be cheaper",
                "Share of the capacity that must be used. Above 1, the hosted model stays cheaper at full load.",
                "percentunit",
                (Query(f"max by ({_KEY}) (flotilla_break_even_utilization_ratio{{{_IN}}})", _PAIR, instant=True),),
                kind="bargauge",
            ),
            Panel(
                "Utilization",
                "Served tokens over the capacity, where one is known.",
                "percentunit",
                (
                    Query(
                        f"max by ({BY}, window) "
                        '(flotilla_deployment_saturation_ratio{namespace=~"$namespace", window="$window"})',
                        "{{namespace}}/{{modeldeployment}}",
                    ),
                ),
            ),
        ),
    )


def _prices() -> Row:
    return Row(
        "Prices",
        (
            Panel(
                "Hosted prices",
                "US dollars for a million tokens, for a request of the usual size.",
                "currencyUSD",
                (
                    Query(
                        "max by (comparator, token_type, mode) "
                        '(flotilla_hosted_price_usd_per_million_tokens{comparator=~"$comparator"})',
                        "USD",
                        instant=True,
                    ),
                ),
                kind="table",
            ),
            Panel(
                "Age of prices",
                "Since the date of each price list in use.",
                "s",
                (
                    Query(
                        "time() - max by (source, as_of) (flotilla_price_as_of_timestamp_seconds)",
                        "{{source}} {{as_of}}",
                        instant=True,
                    ),
                ),
                kind="bargauge",
            ),
        ),
    )
