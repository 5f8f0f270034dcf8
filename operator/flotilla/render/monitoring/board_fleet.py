"""Fleet: what runs, what it costs now, what stands idle, and how the operator does."""

from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.panels import Dashboard, Panel, Query, Row, Variable

NAMESPACES = Variable("namespace", "Namespace", "label_values(flotilla_desired_replicas, namespace)")
_IN = 'namespace=~"$namespace"'
_MODEL = "{{namespace}}/{{modeldeployment}}"
_RATE = f"flotilla_deployment_cost_usd_per_hour{{{_IN}}}"
_STATES = f"modeldeployment_state:flotilla_deployment_cost_usd:rate5m{{{_IN}}}"


def board() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="flotilla-fleet",
        title="Flotilla / Fleet",
        description="What the self-hosted models cost, how full they are, and how the operator does.",
        variables=(NAMESPACES,),
        rows=(_now(), _money(), _load(), _operator()),
    )


def _now() -> Row:
    return Row(
        "Now",
        (
            Panel(
                "Spend",
                "US dollars per hour of all pods that exist.",
                "currencyUSD",
                (Query(f"sum({_RATE})", "per hour"), Query(f"730 * sum({_RATE})", "per month")),
                kind="stat",
                width=6,
            ),
            Panel(
                "Models",
                "ModelDeployments, and those of them that serve.",
                "short",
                (
                    Query(f"count(max by ({BY}) (flotilla_desired_replicas{{{_IN}}}))", "resources"),
                    Query(f"count(max by ({BY}) (flotilla_ready_replicas{{{_IN}}}) > 0) or vector(0)", "serving"),
                ),
                kind="stat",
                width=6,
            ),
            Panel(
                "Requests in engines",
                "Running and waiting, over all replicas that answered the operator.",
                "short",
                (
                    Query(f"sum(flotilla_requests_running{{{_IN}}})", "running"),
                    Query(f"sum(flotilla_requests_waiting{{{_IN}}})", "waiting"),
                ),
                kind="stat",
                width=6,
            ),
            Panel(
                "Idle share",
                "Part of the last hour's cost that was spent on replicas without a request.",
                "percentunit",
                (
                    Query(
                        f'sum(modeldeployment_state:flotilla_deployment_cost_usd:increase1h{{{_IN}, state="idle"}})\n'
                        f"/ (sum(modeldeployment_state:flotilla_deployment_cost_usd:increase1h{{{_IN}}}) > 0)",
                        "idle",
                    ),
                ),
                kind="stat",
                width=6,
            ),
        ),
    )


def _money() -> Row:
    return Row(
        "Money",
        (
            Panel(
                "Spend by model",
                "US dollars per hour of the pods that exist, whatever they do.",
                "currencyUSD",
                (Query(f"sum by ({BY}) ({_RATE})", _MODEL),),
                stacked=True,
            ),
            Panel(
                "Spend by what the pods do",
                "US dollars per hour. Startup: holding a GPU, not ready. Idle: ready, without a request.",
                "currencyUSD",
                (Query(f"3600 * sum by (state) ({_STATES})", "{{state}}"),),
                stacked=True,
            ),
            Panel(
                "Spend by team",
                "US dollars per hour by the label flotilla.dev/team of the resources.",
                "currencyUSD",
                (Query("3600 * team:flotilla_deployment_cost_usd:rate5m", "{{team}}"),),
                stacked=True,
            ),
            Panel(
                "GPUs held",
                "Whole accelerators that pods hold, by type; a slice counts as its share.",
                "short",
                (
                    Query(
                        f"3600 * sum by (gpu_type) (rate(flotilla_deployment_gpu_hours_total{{{_IN}}}"
                        "[$__rate_interval]))",
                        "{{gpu_type}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Models by cost",
                "For each model now: US dollars per hour, and per million tokens over the last hour.",
                "currencyUSD",
                (
                    Query(f"sum by ({BY}) ({_RATE})", "USD per hour", instant=True),
                    Query(
                        f"max by ({BY}) (flotilla_deployment_cost_usd_per_million_tokens"
                        f'{{{_IN}, token_type="blended", window="1h"}})',
                        "USD per million tokens",
                        instant=True,
                    ),
                ),
                kind="table",
                width=24,
            ),
        ),
    )


def _load() -> Row:
    return Row(
        "Load",
        (
            Panel(
                "Tokens",
                "Per second, by kind; cached input was not computed again.",
                "short",
                (
                    Query(
                        f"sum by (token_type) (modeldeployment_token_type:flotilla_deployment_tokens:rate5m{{{_IN}}})",
                        "{{token_type}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Replicas, wanted and ready",
                "Sums over the models.",
                "short",
                (
                    Query(f"sum(flotilla_desired_replicas{{{_IN}}})", "wanted"),
                    Query(f"sum(flotilla_ready_replicas{{{_IN}}})", "ready"),
                ),
            ),
        ),
    )


def _operator() -> Row:
    return Row(
        "Operator",
        (
            Panel(
                "Reconcile passes",
                "Per second, by outcome.",
                "ops",
                (Query("sum by (outcome) (rate(flotilla_reconcile_total[$__rate_interval]))", "{{outcome}}"),),
                width=8,
            ),
            Panel(
                "Reconcile time, 95th percentile",
                "Of a pass, by kind.",
                "s",
                (
                    Query(
                        "histogram_quantile(0.95, sum by (kind, le) "
                        "(rate(flotilla_reconcile_duration_seconds_bucket[$__rate_interval])))",
                        "{{kind}}",
                    ),
                ),
                width=8,
            ),
            Panel(
                "Calls to the apiserver",
                "Per second, by code; 0 had no answer.",
                "reqps",
                (Query("sum by (code) (rate(flotilla_api_requests_total[$__rate_interval]))", "{{code}}"),),
                width=8,
            ),
        ),
    )
