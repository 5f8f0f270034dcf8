"""Alerting rules over the operator, the models, the gateways and their cost."""

from flotilla.reports.monitoring.recording import BY
from flotilla.reports.monitoring.rules import Alert, RuleGroup, Severity

_SLOW = "modeldeployment:engine_slow_queue:ratio_rate"
OBJECTIVE_PERCENT = 99
"""Of the requests of a model begin to be worked on within recording.SLOW_WAIT_S seconds."""
_BUDGET = (100 - OBJECTIVE_PERCENT) / 100


def fleet_groups() -> tuple[RuleGroup, ...]:
    """All alerts but those on money."""
    return (
        RuleGroup("flotilla.operator.alerts", _operator()),
        RuleGroup("flotilla.models.alerts", _models()),
        RuleGroup("flotilla.gateway.alerts", _gateway()),
    )


def _operator() -> tuple[Alert, ...]:
    errors = 'flotilla_reconcile_total{outcome=~"error|panic"}'
    return (
        Alert(
            "FlotillaOperatorDown",
            "absent(flotilla_build_info)",
            "5m",
            "critical",
            "No Flotilla operator answers Prometheus.",
            "No operator has been scraped, so nothing is scaled, repaired or accounted. Running models keep serving.",
        ),
        Alert(
            "FlotillaNoLeader",
            "max(flotilla_leader) == 0",
            "5m",
            "critical",
            "Flotilla operators run, but none of them leads.",
            "Each operator waits for the Lease, and none reconciles. Running models keep serving.",
        ),
        Alert(
            "FlotillaReconcileErrors",
            f"sum by (kind) (rate({errors}[10m])) > 0",
            "15m",
            "warning",
            "The operator fails to reconcile resources.",
            "{{ $value | humanize }} passes a second over {{ $labels.kind }} end in an error.",
        ),
        Alert(
            "FlotillaQueueStuck",
            "max(flotilla_workqueue_oldest_age_seconds) > 120",
            "10m",
            "warning",
            "Changes wait long before the operator reconciles them.",
            "The first resource in line has waited for {{ $value | humanizeDuration }}.",
        ),
        Alert(
            "FlotillaWatchSilent",
            "max(flotilla_watch_silent_seconds and on (instance) flotilla_leader == 1) > 60",
            "5m",
            "warning",
            "The operator hears nothing from the apiserver.",
            "A watch has been silent for {{ $value | humanizeDuration }}; each is renewed every 20 seconds.",
        ),
        Alert(
            "FlotillaApiErrors",
            'sum(rate(flotilla_api_requests_total{code=~"0|429|5.."}[10m]))\n'
            "/\n(sum(rate(flotilla_api_requests_total[10m])) > 0) > 0.05",
            "15m",
            "warning",
            "The apiserver refuses or drops calls of the operator.",
            "{{ $value | humanizePercentage }} of the operator's calls get no answer, 429 or an error of the server.",
        ),
    )


def _models() -> tuple[Alert, ...]:
    return (
        Alert(
            "FlotillaModelUnavailable",
            f"max by ({BY}) (flotilla_desired_replicas) > 0 unless max by ({BY}) (flotilla_ready_replicas) > 0",
            "15m",
            "critical",
            "A model that should serve has no ready replica.",
            "{{ $labels.namespace }}/{{ $labels.modeldeployment }} wants {{ $value }} replicas and none is ready.",
        ),
        Alert(
            "FlotillaReplicasMissing",
            f"max by ({BY}) (flotilla_desired_replicas) - max by ({BY}) (flotilla_ready_replicas) > 0",
            "30m",
            "warning",
            "A model has fewer ready replicas than it should.",
            "{{ $labels.namespace }}/{{ $labels.modeldeployment }} lacks {{ $value }} replicas.",
        ),
        Alert(
            "FlotillaModelStalled",
            f"max by ({BY}) (flotilla_stalled) == 1",
            "15m",
            "warning",
            "A resource waits for its owner to change something.",
            "The Stalled condition of {{ $labels.namespace }}/{{ $labels.modeldeployment }} is true: waiting does not "
            "help. Its message names the remedy.",
        ),
        Alert(
            "FlotillaPinnedAtMaximum",
            f"max by ({BY}) (flotilla_requests_waiting) > 0\n"
            f"and max by ({BY}) (flotilla_desired_replicas) >= max by ({BY}) (flotilla_max_replicas)",
            "15m",
            "warning",
            "Requests wait, and the model has as many replicas as it may.",
            "{{ $value | humanize }} requests wait in {{ $labels.namespace }}/{{ $labels.modeldeployment }}, which is "
            "at its spec.scaling.maxReplicas.",
        ),
        _burn("FlotillaQueueSloFastBurn", factor=14.4, long="1h", short="5m", after="2m", severity="critical"),
        _burn("FlotillaQueueSloSlowBurn", factor=6, long="6h", short="30m", after="15m", severity="warning"),
        Alert(
            "FlotillaCacheFull",
            "modeldeployment:engine_kv_usage:max > 0.95",
            "15m",
            "warning",
            "An engine's KV cache is full.",
            "A replica of {{ $labels.namespace }}/{{ $labels.modeldeployment }} uses {{ $value | humanizePercentage }} "
            "of its KV cache: requests wait or are computed twice.",
        ),
        Alert(
            "FlotillaRequestsRejected",
            "modeldeployment:engine_requests_rejected:rate5m > 0",
            "10m",
            "warning",
            "An engine turns requests away.",
            "{{ $labels.namespace }}/{{ $labels.modeldeployment }} rejects "
            '{{ $value | printf "%.2f" }} requests a second.',
        ),
        Alert(
            "FlotillaEngineScrapeDown",
            f'count by ({BY}) (up{{modeldeployment!=""}} == 0)',
            "10m",
            "warning",
            "Prometheus cannot read the metrics of an engine.",
            "{{ $value }} pods of {{ $labels.namespace }}/{{ $labels.modeldeployment }} do not answer on /metrics.",
        ),
        Alert(
            "FlotillaScalingBlind",
            f"max by ({BY}) (flotilla_ready_replicas) > 0 unless max by ({BY}) (flotilla_queue_depth)",
            "10m",
            "warning",
            "A model scales on nothing, because no replica reports its queue.",
            "None of the {{ $value }} ready replicas of {{ $labels.namespace }}/{{ $labels.modeldeployment }} answers "
            "the operator, which holds their number as it is.",
        ),
    )


def _burn(name: str, *, factor: float, long: str, short: str, after: str, severity: Severity) -> Alert:
    """Two windows: the long one shows that it matters, the short one that it still lasts."""
    limit = f"{factor * _BUDGET:g}"
    return Alert(
        name,
        f"{_SLOW}{long} > {limit} and {_SLOW}{short} > {limit}",
        after,
        severity,
        f"Too many requests wait longer than 5 seconds in an engine's queue, over {long}.",
        f"{{{{ $value | humanizePercentage }}}} of the requests to {{{{ $labels.namespace }}}}/"
        f"{{{{ $labels.modeldeployment }}}} waited longer than 5 seconds in the last {long}; the objective allows "
        f"{100 - OBJECTIVE_PERCENT} %.",
    )


def _gateway() -> tuple[Alert, ...]:
    requests = "flotilla_gateway_requests_total"
    return (
        Alert(
            "FlotillaGatewayErrors",
            f'sum by (namespace, policy) (rate({requests}{{outcome="failed"}}[10m]))\n'
            f"/\n(sum by (namespace, policy) (rate({requests}[10m])) > 0) > 0.05",
            "10m",
            "critical",
            "A gateway answers many requests with an error.",
            "{{ $value | humanizePercentage }} of the requests of the policy {{ $labels.namespace }}/"
            "{{ $labels.policy }} failed, after all retries and fallbacks.",
        ),
        Alert(
            "FlotillaFallbackRateHigh",
            "policy:flotilla_gateway_fallbacks:ratio_rate1h > 0.1",
            "30m",
            "warning",
            "A gateway often falls back to another target.",
            "{{ $value | humanizePercentage }} of the requests of the policy {{ $labels.namespace }}/"
            "{{ $labels.policy }} were not served by the target that its rules chose first.",
        ),
        Alert(
            "FlotillaEscalationRateHigh",
            "policy:flotilla_gateway_escalations:ratio_rate1h > 0.3",
            "1h",
            "warning",
            "Many answers of the small model are thrown away and asked for again.",
            "{{ $value | humanizePercentage }} of the requests of the policy {{ $labels.namespace }}/"
            "{{ $labels.policy }} are escalated, and are paid for twice.",
        ),
        Alert(
            "FlotillaSovereigntyDenied",
            "sum by (namespace, policy) (increase(flotilla_gateway_sovereignty_denied_total[15m])) > 0",
            "5m",
            "warning",
            "Requests are refused because no allowed target serves them.",
            "{{ $value | humanize }} requests of the policy {{ $labels.namespace }}/{{ $labels.policy }} had no target "
            "that their data class allows, in 15 minutes. Nothing left the boundary.",
        ),
        Alert(
            "FlotillaTrafficTakenBack",
            "sum by (namespace, policy, rule, reason) "
            '(increase(flotilla_traffic_moves_total{reason=~"GuardBreached|VerdictLost"}[15m])) > 0',
            "1m",
            "warning",
            "A model lost the traffic that evidence had given it.",
            "The rule {{ $labels.rule }} of the policy {{ $labels.namespace }}/{{ $labels.policy }} went back to "
            "another target: {{ $labels.reason }}. Clients are served.",
        ),
        Alert(
            "FlotillaGatewayConfigDiffers",
            "count by (namespace) (count by (namespace, hash) (flotilla_gateway_config_info)) > 1",
            "10m",
            "warning",
            "Replicas of a gateway route by different configurations.",
            "The gateway of {{ $labels.namespace }} runs {{ $value }} different configurations.",
        ),
    )


_WHERE = "{{ $labels.namespace }}/{{ $labels.modeldeployment }}"
_RATE = f"sum by ({BY}) (flotilla_deployment_cost_usd_per_hour)"
_MONTHLY_BUDGET = f"(max by ({BY}) (flotilla_deployment_budget_usd_per_month) > 0)"
_BLENDED = 'flotilla_deployment_cost_usd_per_million_tokens{token_type="blended", window="1h"}'
_HOURS_OF_MONTH = 730


def cost_groups() -> tuple[RuleGroup, ...]:
    """Alerts on what models cost, and on the figures behind it."""
    return (
        RuleGroup("flotilla.cost.alerts", (*_waste(), *_comparison(), *_budget())),
        RuleGroup("flotilla.prices", _trust()),
    )


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
            f"{spent} / on ({BY}) {_MONTHLY_BUDGET} > 0.8",
            "30m",
            "warning",
            "A model has cost more than 80 % of its monthly budget in 30 days.",
            f"{_WHERE} has cost {{{{ $value | humanizePercentage }}}} of spec.cost.monthlyBudgetUsd in 30 days.",
        ),
        Alert(
            "FlotillaBudgetExceeded",
            f"{spent} / on ({BY}) {_MONTHLY_BUDGET} > 1",
            "30m",
            "critical",
            "A model has cost more than its monthly budget in 30 days.",
            f"{_WHERE} has cost {{{{ $value | humanizePercentage }}}} of spec.cost.monthlyBudgetUsd in 30 days.",
        ),
        Alert(
            "FlotillaBudgetBurn",
            f"{projected} / on ({BY}) {_MONTHLY_BUDGET} > 1",
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
