"""Fleet: what runs, what it costs now, what stands idle, and how the operator does."""

from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.panels import Dashboard, Row, Variable
from flotilla.render.monitoring.shapes import DOLLARS, IN, MODEL, dollars, graph, numbers, row, stack, table

NAMESPACES = Variable("namespace", "Namespace", "label_values(flotilla_desired_replicas, namespace)")
_RATE = f"flotilla_deployment_cost_usd_per_hour{{{IN}}}"
_STATES = f"modeldeployment_state:flotilla_deployment_cost_usd:rate5m{{{IN}}}"
_HOUR = "modeldeployment_state:flotilla_deployment_cost_usd:increase1h"
USE = "modeldeployment_use:flotilla_deployment_cost_usd:increase1h"
ABOUT_USE = "US dollars of the last hour: capacity that made tokens, that was busy without, and the rest."
_UNIT = f'flotilla_deployment_cost_usd_per_million_tokens{{{IN}, token_type="blended", window="1h"}}'
_TOKENS = f"modeldeployment_token_type:flotilla_deployment_tokens:rate5m{{{IN}}}"


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
    models, ready = (f"max by ({BY}) (flotilla_{name}_replicas{{{IN}}})" for name in ("desired", "ready"))
    running, waiting = (f"sum(flotilla_requests_{name}{{{IN}}})" for name in ("running", "waiting"))
    idle = f'sum({_HOUR}{{{IN}, state="idle"}})\n/ (sum({_HOUR}{{{IN}}}) > 0)'
    about_idle = "Part of the last hour's cost that was spent on replicas without a request."
    about_load = "Running and waiting, over all replicas that answered the operator."
    return row(
        "Now",
        numbers(
            "Spend",
            DOLLARS,
            "US dollars per hour of all pods that exist.",
            (f"sum({_RATE})", "per hour"),
            (f"730 * sum({_RATE})", "per month"),
        ),
        numbers(
            "Models",
            "short",
            "ModelDeployments, and those of them that serve.",
            (f"count({models})", "resources"),
            (f"count({ready} > 0) or vector(0)", "serving"),
        ),
        numbers("Requests in engines", "short", about_load, (running, "running"), (waiting, "waiting")),
        numbers("Idle share", "percentunit", about_idle, (idle, "idle")),
    )


def _money() -> Row:
    by_model = f"sum by ({BY}) ({_RATE})"
    held = f"sum by (gpu_type) (rate(flotilla_deployment_gpu_hours_total{{{IN}}}[$__rate_interval]))"
    about_states = "US dollars per hour. Startup: holding a GPU, not ready. Idle: ready, without a request."
    about_teams = "US dollars per hour by the label flotilla.dev/team of the resources."
    free = "flotilla_unallocated_gpu_cost_usd_per_hour"
    about_free = "US dollars per hour of the cluster's nodes, until an autoscaler takes them away."
    about_held = "Whole accelerators that pods hold, by type; a slice counts as its share."
    return row(
        "Money",
        dollars("Spend by model", "US dollars per hour of the pods that exist, whatever they do.", (by_model, MODEL)),
        dollars("Spend by what the pods do", about_states, (f"3600 * sum by (state) ({_STATES})", "{{state}}")),
        dollars("Spend by team", about_teams, ("3600 * team:flotilla_deployment_cost_usd:rate5m", "{{team}}")),
        stack("GPUs held", "short", about_held, (f"3600 * {held}", "{{gpu_type}}")),
        dollars("Used, headroom and idle", ABOUT_USE, (f"sum by (use) ({USE}{{{IN}}})", "{{use}}")),
        dollars("GPUs that nobody holds", about_free, (f"max by (gpu_type) ({free})", "{{gpu_type}}")),
        table(
            "Models by cost",
            DOLLARS,
            "For each model now: US dollars per hour, and per million tokens over the last hour.",
            (by_model, "USD per hour"),
            (f"max by ({BY}) ({_UNIT})", "USD per million tokens"),
            width=24,
        ),
    )


def _load() -> Row:
    tokens = f"sum by (token_type) ({_TOKENS})"
    wanted, ready = (f"sum(flotilla_{name}_replicas{{{IN}}})" for name in ("desired", "ready"))
    about = "Per second, by kind; cached input was not computed again."
    return row(
        "Load",
        stack("Tokens", "short", about, (tokens, "{{token_type}}")),
        graph("Replicas, wanted and ready", "short", "Sums over the models.", (wanted, "wanted"), (ready, "ready")),
    )


def _operator() -> Row:
    passes = "sum by (outcome) (rate(flotilla_reconcile_total[$__rate_interval]))"
    calls = "sum by (code) (rate(flotilla_api_requests_total[$__rate_interval]))"
    times = "sum by (kind, le) (rate(flotilla_reconcile_duration_seconds_bucket[$__rate_interval]))"
    slow = f"histogram_quantile(0.95, {times})"
    return row(
        "Operator",
        graph("Reconcile passes", "ops", "Per second, by outcome.", (passes, "{{outcome}}"), width=8),
        graph("Reconcile time, 95th percentile", "s", "Of a pass, by kind.", (slow, "{{kind}}"), width=8),
        graph("Calls to the apiserver", "reqps", "Per second, by code; 0 had no answer.", (calls, "{{code}}"), width=8),
    )
