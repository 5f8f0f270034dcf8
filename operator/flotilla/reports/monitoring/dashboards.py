"""The four Grafana dashboards: fleet, one model, routing, savings."""

from collections.abc import Mapping

from flotilla.catalog.engines import Profile
from flotilla.reports.monitoring import recording
from flotilla.reports.monitoring.panels import (
    DOLLARS,
    IN,
    MODEL,
    Dashboard,
    Line,
    Panel,
    Row,
    Variable,
    bars,
    dollars,
    graph,
    numbers,
    row,
    stack,
    table,
    totals,
)
from flotilla.reports.monitoring.recording import BY

NAMESPACES = Variable("namespace", "Namespace", "label_values(flotilla_desired_replicas, namespace)")
_RATE = f"flotilla_deployment_cost_usd_per_hour{{{IN}}}"
_STATES = f"modeldeployment_state:flotilla_deployment_cost_usd:rate5m{{{IN}}}"
_HOUR = "modeldeployment_state:flotilla_deployment_cost_usd:increase1h"
USE = "modeldeployment_use:flotilla_deployment_cost_usd:increase1h"
ABOUT_USE = "US dollars of the last hour: capacity that made tokens, that was busy without, and the rest."
_UNIT = f'flotilla_deployment_cost_usd_per_million_tokens{{{IN}, token_type="blended", window="1h"}}'
_TOKENS = f"modeldeployment_token_type:flotilla_deployment_tokens:rate5m{{{IN}}}"


def fleet_board() -> Dashboard:
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
        dollars("GPUs that no pod holds", about_free, (f"max by (gpu_type) ({free})", "{{gpu_type}}")),
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


_THIS = f'{IN}, modeldeployment=~"$modeldeployment"'
_QUANTILES = (0.5, 0.95, 0.99)
_WINDOW = "$__rate_interval"


def model_board(profiles: Mapping[str, Profile]) -> Dashboard:
    """The page."""
    model = Variable("modeldeployment", "Model", f"label_values(flotilla_desired_replicas{{{IN}}}, modeldeployment)")
    return Dashboard(
        uid="flotilla-model",
        title="Flotilla / Model",
        description="Queue, latency, replicas and cost of the chosen models.",
        variables=(NAMESPACES, model),
        rows=(_queue(profiles), _latency(), _cost()),
    )


def _most(metric: str, name: str) -> Line:
    return f"max by ({BY}) ({metric}{{{_THIS}}})", f"{MODEL} {name}"


def _queue(profiles: Mapping[str, Profile]) -> Row:
    def tokens(field: str, name: str) -> Line:
        return recording.rate(profiles, field, _WINDOW, matchers=_THIS), f"{MODEL} {name}"

    requests = (_most(f"flotilla_requests_{name}", name) for name in ("running", "waiting"))
    replicas = (_most("flotilla_desired_replicas", "wanted"), _most("flotilla_ready_replicas", "ready"))
    about_tokens = "Per second, read from the engines; input includes what the cache held."
    kv_cache = recording.gauge(profiles, "kv_usage", operation="max", matchers=_THIS)
    about_kv_cache = "Of the fullest replica. Near 1, requests wait or are computed twice."
    return row(
        "Load and replicas",
        graph(
            "Requests in the engines",
            "short",
            "What the autoscaler reads: running and waiting, as the operator read them.",
            *requests,
        ),
        graph("Replicas, wanted and ready", "short", "A gap is a start-up, or a lack of GPUs.", *replicas),
        graph("Tokens", "short", about_tokens, tokens("prompt_tokens", "input"), tokens("generation_tokens", "output")),
        graph("KV cache in use", "percentunit", about_kv_cache, (kv_cache, MODEL)),
    )


def _latency() -> Row:
    def times(title: str, description: str, histograms: tuple[str, ...]) -> Panel:
        lines = (
            (recording.quantile(share, histograms, _WINDOW, matchers=_THIS), f"{MODEL} p{100 * share:g}")
            for share in _QUANTILES
        )
        return graph(title, "s", description, *lines)

    return row(
        "Latency",
        times("Time to first token", "From arrival; vLLM and SGLang.", recording.FIRST_TOKEN),
        times("Time between tokens", "While an answer streams; vLLM and SGLang.", recording.BETWEEN_TOKENS),
        times("Whole request", "From arrival to the last token; not llama.cpp.", recording.WHOLE_REQUEST),
        times("Wait in the queue", "Before the engine begins; not llama.cpp.", recording.QUEUE_WAIT),
    )


def _cost() -> Row:
    def by_window(metric: str, *labels: str) -> Line:
        keys = (*labels, "window")
        legend = " ".join((MODEL, *(f"{{{{{key}}}}}" for key in keys)))
        return f"max by ({', '.join((BY, *keys))}) ({metric}{{{_THIS}}})", legend

    states = f"3600 * sum by (state) (modeldeployment_state:flotilla_deployment_cost_usd:rate5m{{{_THIS}}})"
    unit = by_window("flotilla_deployment_cost_usd_per_million_tokens", "token_type")
    about_unit = "US dollars over the window, idle time included. No line where there was no traffic."
    active = by_window("flotilla_deployment_active_ratio")
    about_active = "Share of the window in which a replica had a request."
    request = by_window("flotilla_deployment_cost_usd_per_request")
    return row(
        "Cost",
        dollars("Spend by what the pods do", "US dollars per hour.", (states, "{{state}}")),
        graph("Cost of a million tokens", DOLLARS, about_unit, unit),
        dollars("Used, headroom and idle", ABOUT_USE, (f"sum by (use) ({USE}{{{_THIS}}})", "{{use}}")),
        dollars(
            "Cost by adapter",
            "US dollars of the last hour, idle time included, by what gateways were asked for; the rest past them.",
            (f"sum by (model) (modeldeployment_model:flotilla_deployment_cost_usd:increase1h{{{_THIS}}})", "{{model}}"),
            (f"sum(modeldeployment:flotilla_unrouted_cost_usd:increase1h{{{_THIS}}})", "past the gateways"),
        ),
        graph("Time with requests", "percentunit", about_active, active),
        graph("Cost of a request", DOLLARS, "US dollars over the window, idle time included.", request),
    )


_IN = f'{IN}, policy=~"$policy"'
_POLICY = "{{namespace}}/{{policy}}"
_BY = "namespace, policy"
_REQUESTS = "flotilla_gateway_requests_total"


def routing_board() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="flotilla-routing",
        title="Flotilla / Routing",
        description="Requests of the gateways by policy, rule and target, and what routing saves.",
        variables=(
            Variable("namespace", "Namespace", f"label_values({_REQUESTS}, namespace)"),
            Variable("policy", "Policy", f"label_values({_REQUESTS}{{{IN}}}, policy)"),
        ),
        rows=(_requests(), _route_latency(), _route_cost()),
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


def _route_latency() -> Row:
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


def _route_cost() -> Row:
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
    percent = f"max by ({_BY}, rule, target) (flotilla_gateway_route_share_percent{{{_IN}}})"
    agreement = _rate("flotilla_gateway_shadow_agreement_total", "target", "result")
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
        graph(
            "Shares by evidence",
            "percent",
            "Of routes with a preference: which target has which share of the traffic.",
            (percent, f"{_POLICY} {{{{rule}}}} {{{{target}}}}"),
        ),
        graph("Shadow copies by agreement", "reqps", "Per second: whether both answers were the same.", agreement),
        graph("Escalations by signal", "reqps", "Per second: why answers were not good enough.", signals),
    )


_COMPARED = f'{IN}, comparator=~"$comparator"'
_OVER = 'window="$window"'


def savings_board() -> Dashboard:
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
    labels = ", ".join((_COMPARED, *matchers))
    return f"max by ({BY}, comparator) ({metric}{{{labels}}}){only}", f"{MODEL} {{{{comparator}}}}"


def _totals() -> Row:
    own = f"sum(increase(flotilla_deployment_cost_usd_total{{{IN}}}[$__range]))"
    hosted = f"sum by (comparator) (increase(flotilla_hosted_equivalent_cost_usd_total{{{_COMPARED}}}[$__range]))"
    about_hosted = "US dollars, for the models that are compared with it."
    return row(
        "Of the time shown",
        totals("Own cost", "US dollars of all models, idle time included.", (own, "own"), width=6),
        totals("Hosted cost for the same tokens", about_hosted, (hosted, "{{comparator}}"), width=18),
    )


def _compared() -> Row:
    hosted = f"modeldeployment_comparator:flotilla_hosted_equivalent_cost_usd:increase1h{{{_COMPARED}}}"
    own = f"sum by ({BY}) (modeldeployment_state:flotilla_deployment_cost_usd:increase1h{{{IN}}})"
    saved, ratio = (_pairs(f"flotilla_{name}", _OVER) for name in ("savings_usd", "cost_ratio"))
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
    used = f"max by ({BY}, window) (flotilla_deployment_saturation_ratio{{{IN}, {_OVER}}})"
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


def boards(profiles: Mapping[str, Profile]) -> tuple[Dashboard, ...]:
    """All of them."""
    return (
        fleet_board(),
        model_board(profiles),
        routing_board(),
        savings_board(),
    )
