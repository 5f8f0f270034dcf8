"""Savings: self-hosting against hosted models for the same tokens, with its sign."""

from flotilla.render.monitoring.board_fleet import NAMESPACES
from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.panels import Dashboard, Row, Variable
from flotilla.render.monitoring.shapes import DOLLARS, IN, MODEL, Line, bars, graph, row, table, totals

_IN = f'{IN}, comparator=~"$comparator"'
_WINDOW = 'window="$window"'


def board() -> Dashboard:
    """The page."""
    comparators = "label_values(flotilla_hosted_equivalent_cost_usd_total, comparator)"
    return Dashboard(
        uid="flotilla-savings",
        title="Flotilla / Savings",
        description="What the same tokens would have cost from a hosted model. Negative: hosting yourself costs more.",
        variables=(
            NAMESPACES,
            Variable("comparator", "Hosted model", comparators),
            Variable("window", "Window", "label_values(flotilla_savings_usd, window)", several=False),
        ),
        rows=(_totals(), _compared(), _break_even(), _prices()),
        since="now-7d",
    )


def _pairs(metric: str, *matchers: str, only: str = "") -> Line:
    """For each model and hosted model."""
    labels = ", ".join((_IN, *matchers))
    return f"max by ({BY}, comparator) ({metric}{{{labels}}}){only}", f"{MODEL} {{{{comparator}}}}"


def _totals() -> Row:
    own = f"sum(increase(flotilla_deployment_cost_usd_total{{{IN}}}[$__range]))"
    hosted = f"sum by (comparator) (increase(flotilla_hosted_equivalent_cost_usd_total{{{_IN}}}[$__range]))"
    about_hosted = "US dollars, for the models that are compared with it."
    return row(
        "Of the time shown",
        totals("Own cost", "US dollars of all models, idle time included.", (own, "own"), width=6),
        totals("Hosted cost for the same tokens", about_hosted, (hosted, "{{comparator}}"), width=18),
    )


def _compared() -> Row:
    hosted = f"modeldeployment_comparator:flotilla_hosted_equivalent_cost_usd:increase1h{{{_IN}}}"
    own = f"sum by ({BY}) (modeldeployment_state:flotilla_deployment_cost_usd:increase1h{{{IN}}})"
    saved, ratio = (_pairs(f"flotilla_{name}", _WINDOW) for name in ("savings_usd", "cost_ratio"))
    about_saved = "Hosted minus own cost over the chosen window, in US dollars; below zero, hosted would be cheaper."
    pair = f"{MODEL} {{{{comparator}}}}"
    return row(
        "Compared",
        graph("Savings", DOLLARS, about_saved, saved),
        graph("Hosted cost over own cost", "none", "Above 1, hosting yourself is cheaper.", ratio, decimals=2),
        graph("Hosted cost of the last hour", DOLLARS, "US dollars for the same tokens.", (hosted, pair)),
        graph("Own cost of the last hour", DOLLARS, "US dollars, idle time included.", (own, MODEL)),
    )


def _break_even() -> Row:
    tasks = _pairs("flotilla_break_even_tasks_per_day", only=" < +Inf")
    about_tasks = "From how many requests of the usual size a day on self-hosting costs less. No bar: never."
    served = f"modeldeployment:flotilla_deployment_requests:increase1d{{{IN}}}"
    about_served = "Served in the last 24 hours, to compare with the break-even beside it."
    needed = _pairs("flotilla_break_even_utilization_ratio")
    about_needed = "Share of the capacity that must be used. Above 1, the hosted model stays cheaper at full load."
    used = f"max by ({BY}, window) (flotilla_deployment_saturation_ratio{{{IN}, {_WINDOW}}})"
    about_used = "Served tokens over the capacity, where one is known."
    return row(
        "Break-even",
        bars("Tasks a day to be cheaper", "short", about_tasks, tasks),
        bars("Requests a day", "short", about_served, (served, MODEL)),
        bars("Utilization to be cheaper", "percentunit", about_needed, needed),
        graph("Utilization", "percentunit", about_used, (used, MODEL)),
    )


def _prices() -> Row:
    listed = 'flotilla_hosted_price_usd_per_million_tokens{comparator=~"$comparator"}'
    hosted = f"max by (comparator, token_type, mode) ({listed})"
    about_hosted = "US dollars for a million tokens, for a request of the usual size."
    age = "time() - max by (source, as_of) (flotilla_price_as_of_timestamp_seconds)"
    about_age = "Since the date of each price list in use."
    return row(
        "Prices",
        table("Hosted prices", DOLLARS, about_hosted, (hosted, "USD")),
        bars("Age of prices", "s", about_age, (age, "{{source}} {{as_of}}")),
    )
