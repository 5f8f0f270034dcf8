"""Recording rules: what dashboards and alerts ask for again and again, and what is too wide to ask for raw."""

from collections.abc import Mapping

from flotilla.engines.profile import Profile
from flotilla.render.monitoring import engines, routing
from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.rules import Group, Recording

SLOW_WAIT_S = 5
"""A request that waited longer in an engine's queue than this many seconds missed its objective."""
SLO_WINDOWS = ("5m", "30m", "1h", "6h")
_WAITS = ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds")
"""Those that have a bucket at SLOW_WAIT_S."""
_DAY, _MONTH = "23h59m", "29d23h59m"
"""24 and 720 hourly steps, also where an evaluation falls on a full hour: ranges include both ends."""


def groups(profiles: Mapping[str, Profile]) -> tuple[Group, ...]:
    """All recording rules but those on months."""
    return (
        Group("flotilla.cost.rules", _cost()),
        Group("flotilla.engines.rules", _engines(profiles)),
        Group("flotilla.gateway.rules", _gateway()),
        routing.group(),
    )


def month_groups() -> tuple[Group, ...]:
    """Days and months, from the hourly increases: thirty days of raw samples would be millions per evaluation."""
    # Rarer than every five minutes, and the series would be stale between two evaluations.
    return (Group("flotilla.month.rules", _month(), interval="5m"),)


def _cost() -> tuple[Recording, ...]:
    cost, hosted = "flotilla_deployment_cost_usd_total", "flotilla_hosted_equivalent_cost_usd_total"
    own = "modeldeployment:flotilla_deployment_cost_usd:rate5m"
    requests = 'flotilla_deployment_requests_total{outcome="success"}'
    return (
        Recording(
            "modeldeployment_state:flotilla_deployment_cost_usd:rate5m", f"sum by ({BY}, state) (rate({cost}[5m]))"
        ),
        Recording(own, f"sum by ({BY}) (modeldeployment_state:flotilla_deployment_cost_usd:rate5m)"),
        Recording("namespace:flotilla_deployment_cost_usd:rate5m", f"sum by (namespace) ({own})"),
        Recording(
            "team:flotilla_deployment_cost_usd:rate5m",
            f"sum by (team) ({own} * on ({BY}) group_left (team) max by ({BY}, team) (flotilla_deployment_info))",
        ),
        Recording(
            "modeldeployment_state:flotilla_deployment_cost_usd:increase1h",
            f"sum by ({BY}, state) (increase({cost}[1h]))",
        ),
        Recording(
            "modeldeployment_comparator:flotilla_hosted_equivalent_cost_usd:increase1h",
            f"sum by ({BY}, comparator) (increase({hosted}[1h]))",
        ),
        Recording(
            "modeldeployment_token_type:flotilla_deployment_tokens:rate5m",
            f"sum by ({BY}, token_type) (rate(flotilla_deployment_tokens_total[5m]))",
        ),
        Recording(
            "modeldeployment:flotilla_deployment_requests:rate5m",
            f"sum by ({BY}) (rate({requests}[5m]))",
        ),
        Recording(
            "modeldeployment:flotilla_deployment_requests:increase1d",
            f"sum by ({BY}) (increase({requests}[1d]))",
        ),
        Recording(
            "modeldeployment:flotilla_idle_cost:ratio_increase6h",
            f'sum by ({BY}) (increase({cost}{{state="idle"}}[6h]))\n/\n(sum by ({BY}) (increase({cost}[6h])) > 0)',
        ),
    )


def _month() -> tuple[Recording, ...]:
    by_state = "modeldeployment_state:flotilla_deployment_cost_usd:increase1h"
    return (
        Recording(
            "modeldeployment:flotilla_deployment_cost_usd:increase1d",
            f"sum by ({BY}) (sum_over_time({by_state}[{_DAY}:1h]))",
        ),
        Recording(
            "modeldeployment:flotilla_deployment_cost_usd:increase30d",
            f"sum by ({BY}) (sum_over_time({by_state}[{_MONTH}:1h]))",
        ),
        Recording(
            "modeldeployment:flotilla_startup_cost:ratio_increase1d",
            f'sum by ({BY}) (sum_over_time({by_state}{{state="startup"}}[{_DAY}:1h]))\n'
            "/\n(modeldeployment:flotilla_deployment_cost_usd:increase1d > 0)",
        ),
    )


def _engines(profiles: Mapping[str, Profile]) -> tuple[Recording, ...]:
    return (
        Recording("modeldeployment:engine_requests_running:sum", engines.gauge(profiles, "running")),
        Recording("modeldeployment:engine_requests_waiting:sum", engines.gauge(profiles, "waiting")),
        Recording("modeldeployment:engine_kv_usage:max", engines.gauge(profiles, "kv_usage", operation="max")),
        Recording("modeldeployment:engine_prompt_tokens:rate5m", engines.rate(profiles, "prompt_tokens", "5m")),
        Recording("modeldeployment:engine_generation_tokens:rate5m", engines.rate(profiles, "generation_tokens", "5m")),
        Recording("modeldeployment:engine_requests_rejected:rate5m", engines.rate(profiles, "rejected", "5m")),
        *(Recording(f"modeldeployment:engine_slow_queue:ratio_rate{window}", _slow(window)) for window in SLO_WINDOWS),
    )


def _slow(window: str) -> str:
    def share(name: str) -> str:
        # The same bucket is 5 in some versions' text and 5.0 in others'.
        bucket = f'{name}_bucket{{le=~"{SLOW_WAIT_S}(\\\\.0)?"}}'
        within, all_ = f"sum by ({BY}) (rate({bucket}[{window}]))", f"sum by ({BY}) (rate({name}_count[{window}]))"
        return f"1 - {within} / ({all_} > 0)"

    return "\nor\n".join(map(share, _WAITS))


def _gateway() -> tuple[Recording, ...]:
    requests = "flotilla_gateway_requests_total"

    def share(name: str) -> str:
        # A policy that never escalated has no series of it, which is none of its requests, and not unknown.
        part = f"sum by ({routing.POLICY}) (rate({name}[1h])) or 0 * sum by ({routing.POLICY}) (rate({requests}[1h]))"
        return f"({part})\n/\n(sum by ({routing.POLICY}) (rate({requests}[1h])) > 0)"

    return (
        Recording(
            "policy_target:flotilla_gateway_requests:rate5m",
            f"sum by ({routing.POLICY}, target) (rate({requests}[5m]))",
        ),
        Recording("policy:flotilla_gateway_escalations:ratio_rate1h", share("flotilla_gateway_escalations_total")),
        Recording("policy:flotilla_gateway_fallbacks:ratio_rate1h", share("flotilla_gateway_fallbacks_total")),
        Recording(
            "policy_comparator:flotilla_gateway_counterfactual_cost_usd:increase1h",
            f"sum by ({routing.POLICY}, comparator) (increase(flotilla_gateway_counterfactual_cost_usd_total[1h]))",
        ),
    )
