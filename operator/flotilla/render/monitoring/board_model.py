"""One model: its load, latency, replicas and dollars."""

from collections.abc import Mapping

from flotilla.engines.profile import Profile
from flotilla.render.monitoring import engines
from flotilla.render.monitoring.board_fleet import ABOUT_USE, NAMESPACES, USE
from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.panels import Dashboard, Panel, Row, Variable
from flotilla.render.monitoring.shapes import DOLLARS, IN, MODEL, Line, dollars, graph, row

_THIS = f'{IN}, modeldeployment=~"$modeldeployment"'
_QUANTILES = (0.5, 0.95, 0.99)
_WINDOW = "$__rate_interval"


def board(profiles: Mapping[str, Profile]) -> Dashboard:
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
        return engines.rate(profiles, field, _WINDOW, matchers=_THIS), f"{MODEL} {name}"

    requests = (_most(f"flotilla_requests_{name}", name) for name in ("running", "waiting"))
    replicas = (_most("flotilla_desired_replicas", "wanted"), _most("flotilla_ready_replicas", "ready"))
    about_tokens = "Per second, read from the engines; input includes what the cache held."
    kv_cache = engines.gauge(profiles, "kv_usage", operation="max", matchers=_THIS)
    about_kv_cache = "Of the fullest replica. Near 1, requests wait or are computed twice."
    return row(
        "Load and replicas",
        graph(
            "Requests in the engines",
            "short",
            "What the autoscaler looks at: running and waiting, as the operator read them.",
            *requests,
        ),
        graph("Replicas, wanted and ready", "short", "A gap is a start-up, or a lack of GPUs.", *replicas),
        graph("Tokens", "short", about_tokens, tokens("prompt_tokens", "input"), tokens("generation_tokens", "output")),
        graph("KV cache in use", "percentunit", about_kv_cache, (kv_cache, MODEL)),
    )


def _latency() -> Row:
    def times(title: str, description: str, histograms: tuple[str, ...]) -> Panel:
        lines = (
            (engines.quantile(share, histograms, _WINDOW, matchers=_THIS), f"{MODEL} p{100 * share:g}")
            for share in _QUANTILES
        )
        return graph(title, "s", description, *lines)

    return row(
        "Latency",
        times("Time to first token", "From arrival; vLLM and SGLang.", engines.FIRST_TOKEN),
        times("Time between tokens", "While an answer streams; vLLM and SGLang.", engines.BETWEEN_TOKENS),
        times("Whole request", "From arrival to the last token; not llama.cpp.", engines.WHOLE_REQUEST),
        times("Wait in the queue", "Before the engine begins; not llama.cpp.", engines.QUEUE_WAIT),
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
