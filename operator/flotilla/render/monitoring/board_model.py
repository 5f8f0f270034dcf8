"""One model: its load, latency, replicas and dollars."""

from collections.abc import Mapping

from flotilla.engines.profile import Profile
from flotilla.render.monitoring import engines
from flotilla.render.monitoring.board_fleet import NAMESPACES
from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.panels import Dashboard, Panel, Query, Row, Variable

_THIS = 'namespace=~"$namespace", modeldeployment=~"$modeldeployment"'
_MODEL = "{{namespace}}/{{modeldeployment}}"
_QUANTILES = (0.5, 0.95, 0.99)
_WINDOW = "$__rate_interval"


def board(profiles: Mapping[str, Profile]) -> Dashboard:
    """The page."""
    model = Variable(
        "modeldeployment", "Model", 'label_values(flotilla_desired_replicas{namespace=~"$namespace"}, modeldeployment)'
    )
    return Dashboard(
        uid="flotilla-model",
        title="Flotilla / Model",
        description="Queue, latency, replicas and cost of the chosen models.",
        variables=(NAMESPACES, model),
        rows=(_queue(profiles), _latency(), _cost()),
    )


def _queue(profiles: Mapping[str, Profile]) -> Row:
    return Row(
        "Load and replicas",
        (
            Panel(
                "Requests in the engines",
                "What the autoscaler looks at: running and waiting, as the operator read them.",
                "short",
                (
                    Query(f"max by ({BY}) (flotilla_requests_running{{{_THIS}}})", f"{_MODEL} running"),
                    Query(f"max by ({BY}) (flotilla_requests_waiting{{{_THIS}}})", f"{_MODEL} waiting"),
                ),
            ),
            Panel(
                "Replicas, wanted and ready",
                "A gap is a start-up, or a lack of GPUs.",
                "short",
                (
                    Query(f"max by ({BY}) (flotilla_desired_replicas{{{_THIS}}})", f"{_MODEL} wanted"),
                    Query(f"max by ({BY}) (flotilla_ready_replicas{{{_THIS}}})", f"{_MODEL} ready"),
                ),
            ),
            Panel(
                "Tokens",
                "Per second, read from the engines; input includes what the cache held.",
                "short",
                (
                    Query(engines.rate(profiles, "prompt_tokens", _WINDOW, matchers=_THIS), f"{_MODEL} input"),
                    Query(engines.rate(profiles, "generation_tokens", _WINDOW, matchers=_THIS), f"{_MODEL} output"),
                ),
            ),
            Panel(
                "KV cache in use",
                "Of the fullest replica. Near 1, requests wait or are computed twice.",
                "percentunit",
                (Query(engines.gauge(profiles, "kv_usage", operation="max", matchers=_THIS), _MODEL),),
            ),
        ),
    )


def _latency() -> Row:
    def panel(title: str, description: str, histograms: tuple[str, ...]) -> Panel:
        return Panel(
            title,
            description,
            "s",
            tuple(
                Query(engines.quantile(share, histograms, _WINDOW, matchers=_THIS), f"{_MODEL} p{100 * share:g}")
                for share in _QUANTILES
            ),
        )

    return Row(
        "Latency",
        (
            panel("Time to first token", "From arrival; vLLM and SGLang.", engines.FIRST_TOKEN),
            panel("Time between tokens", "While an answer streams; vLLM and SGLang.", engines.BETWEEN_TOKENS),
            panel("Whole request", "From arrival to the last token; not llama.cpp.", engines.WHOLE_REQUEST),
            panel("Wait in the queue", "Before the engine begins; not llama.cpp.", engines.QUEUE_WAIT),
        ),
    )


def _cost() -> Row:
    def by_window(metric: str) -> tuple[Query, ...]:
        return (Query(f"max by ({BY}, window) ({metric}{{{_THIS}}})", f"{_MODEL} {{{{window}}}}"),)

    return Row(
        "Cost",
        (
            Panel(
                "Spend by what the pods do",
                "US dollars per hour.",
                "currencyUSD",
                (
                    Query(
                        f"3600 * sum by (state) (modeldeployment_state:flotilla_deployment_cost_usd:rate5m{{{_THIS}}})",
                        "{{state}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Cost of a million tokens",
                "US dollars over the window, idle time included. No line where there was no traffic.",
                "currencyUSD",
                (
                    Query(
                        f"max by ({BY}, token_type, window) "
                        f"(flotilla_deployment_cost_usd_per_million_tokens{{{_THIS}}})",
                        f"{_MODEL} {{{{token_type}}}} {{{{window}}}}",
                    ),
                ),
            ),
            Panel(
                "Time with requests",
                "Share of the window in which a replica had a request.",
                "percentunit",
                by_window("flotilla_deployment_active_ratio"),
            ),
            Panel(
                "Cost of a request",
                "US dollars over the window, idle time included.",
                "currencyUSD",
                by_window("flotilla_deployment_cost_usd_per_request"),
            ),
        ),
    )
