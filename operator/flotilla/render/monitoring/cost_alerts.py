"""Alerts on money: idle GPUs, hosted models that would be cheaper, budgets, and figures that are not to be trusted."""

from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.rules import Alert, Group

_WHERE = "{{ $labels.namespace }}/{{ $labels.modeldeployment }}"
_RATE = f"sum by ({BY}) (flotilla_deployment_cost_usd_per_hour)"
_BUDGET = f"(max by ({BY}) (flotilla_deployment_budget_usd_per_month) > 0)"
_BLENDED = 'flotilla_deployment_cost_usd_per_million_tokens{token_type="blended", window="1h"}'
_HOURS_OF_MONTH = 730


def groups() -> tuple[Group, ...]:
    """Alerts on what models cost, and on the figures behind it."""
    return (Group("flotilla.cost.alerts", (*_waste(), *_comparison(), *_budget())), Group("flotilla.prices", _trust()))


def _waste() -> tuple[Alert, ...]:
    return (
        Alert(
            "FlotillaIdleSpend",
            f"modeldeployment:flotilla_idle_cost:ratio_increase6h > 0.8 and {_RATE} > 0",
            "6h",
            "warning",
            "Most of what a model costs is spent on waiting for requests.",
            f"{_WHERE} was idle for {{{{ $value | humanizePercentage }}}} of what it cost in the last 6 hours.",
        ),
        Alert(
            "FlotillaGpuIdle",
            f"{_RATE} > 0 and max by ({BY}) (max_over_time(flotilla_queue_depth[1h])) == 0",
            "1h",
            "info",
            "A model holds GPUs and has had no request for an hour.",
            f'{_WHERE} costs {{{{ $value | printf "%.2f" }}}} USD an hour and has had nothing to do for an hour.',
        ),
        Alert(
            "FlotillaStartupWaste",
            "modeldeployment:flotilla_startup_cost:ratio_increase1d > 0.2",
            "1h",
            "warning",
            "Much of what a model costs is spent on starting.",
            f"{_WHERE} spent {{{{ $value | humanizePercentage }}}} of a day's cost on pods that were not ready yet.",
        ),
    )


def _comparison() -> tuple[Alert, ...]:
    return (
        Alert(
            "FlotillaCostlierThanHosted",
            f'max by ({BY}, comparator) (flotilla_cost_ratio{{window="24h"}}) < 1',
            "24h",
            "info",
            "A hosted model would cost less for the same tokens.",
            f"{{{{ $labels.comparator }}}} would have cost {{{{ $value | humanizePercentage }}}} of what {_WHERE} cost "
            "in the last 24 hours, for the same tokens.",
        ),
        Alert(
            "FlotillaBelowBreakEven",
            f"modeldeployment:flotilla_deployment_requests:increase1d\n< on ({BY}) group_right ()\n"
            f"(max by ({BY}, comparator) (flotilla_break_even_tasks_per_day) < +Inf)",
            "24h",
            "info",
            "A model has fewer requests a day than it needs to be cheaper than a hosted one.",
            f"{_WHERE} served {{{{ $value | humanize }}}} requests in a day, which is below its break-even with "
            "{{ $labels.comparator }}.",
        ),
        Alert(
            "FlotillaCostPerMillionSpike",
            f"max by ({BY}) ({_BLENDED}) > 2 * max by ({BY}) (quantile_over_time(0.5, {_BLENDED}[7d]))\n"
            "and modeldeployment:flotilla_deployment_requests:rate5m > 0",
            "2h",
            "warning",
            "Tokens of a model cost twice as much as they usually do.",
            f'A million tokens of {_WHERE} cost {{{{ $value | printf "%.2f" }}}} USD in the last hour, more than twice '
            "the median of seven days.",
        ),
    )


def _budget() -> tuple[Alert, ...]:
    spent = "modeldeployment:flotilla_deployment_cost_usd:increase30d"
    projected = f"{_HOURS_OF_MONTH} / 24 * modeldeployment:flotilla_deployment_cost_usd:increase1d"
    return (
        Alert(
            "FlotillaBudgetNearlySpent",
            f"{spent} / on ({BY}) {_BUDGET} > 0.8",
            "30m",
            "warning",
            "A model has cost more than 80 % of its monthly budget in 30 days.",
            f"{_WHERE} has cost {{{{ $value | humanizePercentage }}}} of spec.cost.monthlyBudgetUsd in 30 days.",
        ),
        Alert(
            "FlotillaBudgetExceeded",
            f"{spent} / on ({BY}) {_BUDGET} > 1",
            "30m",
            "critical",
            "A model has cost more than its monthly budget in 30 days.",
            f"{_WHERE} has cost {{{{ $value | humanizePercentage }}}} of spec.cost.monthlyBudgetUsd in 30 days.",
        ),
        Alert(
            "FlotillaBudgetBurn",
            f"{projected} / on ({BY}) {_BUDGET} > 1",
            "6h",
            "warning",
            "At this pace a model will exceed its monthly budget.",
            f"A month like the last day would cost {{{{ $value | humanizePercentage }}}} of spec.cost.monthlyBudgetUsd "
            f"of {_WHERE}.",
        ),
    )


def _trust() -> tuple[Alert, ...]:
    unpriced = "increase(flotilla_unpriced_total"
    return (
        Alert(
            "FlotillaPriceStale",
            "time() - max by (source, as_of) (flotilla_price_as_of_timestamp_seconds) > 60 * 86400",
            "1h",
            "info",
            "A price that costs are computed from is older than 60 days.",
            "Prices of {{ $labels.source }} are as of {{ $labels.as_of }}, {{ $value | humanizeDuration }} ago.",
        ),
        Alert(
            "FlotillaPriceUnknown",
            f'sum by (reason) ({unpriced}{{reason!="usage_missing"}}[1h])) > 0',
            "1h",
            "warning",
            "Something runs without a price, and is in no sum.",
            "Deployments could not be priced: {{ $labels.reason }}. Their CostKnown condition says which price is "
            "missing.",
        ),
        Alert(
            "FlotillaUsageMissing",
            f'sum ({unpriced}{{reason="usage_missing"}}[15m])) > 0',
            "30m",
            "warning",
            "Engines serve and their tokens are not counted.",
            "Costs of an engine are counted while its tokens are not, so that its cost per token and its savings are "
            "unknown.",
        ),
        Alert(
            "FlotillaCostEstimated",
            f"sum by ({BY}) (increase(flotilla_deployment_estimated_cost_usd_total[1d]))\n"
            "/ (modeldeployment:flotilla_deployment_cost_usd:increase1d > 0) > 0.05",
            "1h",
            "info",
            "A part of what a model cost was estimated, because no operator watched.",
            f"{{{{ $value | humanizePercentage }}}} of what {_WHERE} cost in a day was estimated.",
        ),
    )
