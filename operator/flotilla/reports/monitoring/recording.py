"""Recording rules: cost, engine and gateway series that dashboards and alerts share."""

from collections.abc import Iterable, Mapping
from typing import Final

from flotilla.catalog.engines import Profile
from flotilla.cost.hosted_prices import MEASURED
from flotilla.reports.monitoring.rules import Recording, RuleGroup

BY: Final = "namespace, modeldeployment"
FIRST_TOKEN: Final = ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds")
BETWEEN_TOKENS: Final = ("vllm:inter_token_latency_seconds", "sglang:inter_token_latency_seconds")
WHOLE_REQUEST: Final = (
    "vllm:e2e_request_latency_seconds",
    "sglang:e2e_request_latency_seconds",
    "tgi_request_duration",
)
QUEUE_WAIT: Final = ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds", "tgi_request_queue_duration")
"""Histograms; engines that are not here have none of the kind."""


def gauge(profiles: Mapping[str, Profile], field: str, *, operation: str = "sum", matchers: str = "") -> str:
    """An EngineSample's field over a deployment's pods."""
    return _either(f"{operation} by ({BY}) ({_select(name, matchers)})" for name in _names(profiles, field))


def rate(profiles: Mapping[str, Profile], field: str, window: str, *, matchers: str = "") -> str:
    """A counter's growth per second over a deployment's pods; resets and pods that come and go are safe."""
    return _either(f"sum by ({BY}) (rate({_select(name, matchers)}[{window}]))" for name in _names(profiles, field))


def quantile(share: float, histograms: Iterable[str], window: str, *, matchers: str = "") -> str:
    """A quantile over a deployment's pods."""
    return _either(
        f"histogram_quantile({share:g}, sum by ({BY}, le) (rate({name}_bucket{_braces(matchers)}[{window}])))"
        for name in histograms
    )


def _names(profiles: Mapping[str, Profile], field: str) -> Iterable[str]:
    names = (name for profile in profiles.values() for name in profile.metrics.names.get(field, ()))
    return dict.fromkeys(names)


def _either(parts: Iterable[str]) -> str:
    return "\nor\n".join(parts)


def _select(name: str, matchers: str) -> str:
    """A profile's name may have a matcher of its own."""
    if matchers and name.endswith("}"):
        return f"{name[:-1]},{matchers}}}"
    return f"{name}{_braces(matchers)}"


def _braces(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""


POLICY = "namespace, policy"
_TARGET = f"{POLICY}, target"
_TYPED = f"{BY}, token_type"
_TOKENS = "flotilla_gateway_tokens_total"
_WEIGHTS = "modeldeployment_token_type:flotilla_deployment_token_weight:ratio"
_COST = f"sum by ({BY}) (modeldeployment_state:flotilla_deployment_cost_usd:increase1h)"
_WORK, _ROUTED = (
    "modeldeployment:flotilla_deployment_work:increase1h",
    "policy_target_answer:flotilla_gateway_work:increase1h",
)
_UNIT = "modeldeployment:flotilla_work_cost_usd:ratio_increase1h"
_ANSWERS, _POLICIES = (
    "policy_target_answer:flotilla_route_cost_usd:increase1h",
    "policy:flotilla_route_cost_usd:increase1h",
)
_MODELS = "modeldeployment_model:flotilla_deployment_cost_usd:increase1h"
_BASELINE = "policy_comparator:flotilla_gateway_counterfactual_cost_usd:increase1h"


def group() -> RuleGroup:
    """Each of the last hour."""
    return RuleGroup("flotilla.routing.rules", (*_work(), *_routes(), *_deployments()))


def _work() -> tuple[Recording, ...]:
    engines = f"sum by ({_TYPED}) (increase(flotilla_deployment_tokens_total[1h]))"
    routed = f"sum by ({BY}) ({_ROUTED})"
    # The gateway is scraped at other times than the engines: the shares must not exceed the whole.
    greatest = f"{_WORK} > {routed}\n  or {routed}\n  or {_WORK}"
    return (
        Recording(_WEIGHTS, _all_weights()),
        Recording(_WORK, f"sum by ({BY}) (\n  {engines}\n  * on ({_TYPED}) {_WEIGHTS}\n)"),
        Recording(_ROUTED, _weighted(_TOKENS, "answer")),
        Recording(_UNIT, f"{_COST}\n/\n(({greatest}) > 0)"),
    )


def _all_weights() -> str:
    """Those of the resource, or the measured ones of a resource that sets none."""
    configured = f"max by ({_TYPED}) (flotilla_deployment_token_weight_ratio)"
    every = f"max by ({BY}) (flotilla_deployment_info)"
    measured = (
        f'label_replace({weight:f} * {every}, "token_type", "{token_type}", "", "")'
        for token_type, weight in MEASURED.by_token_type.items()
    )
    return "\nor\n".join((configured, *measured))


def _routes() -> tuple[Recording, ...]:
    teams = _weighted("flotilla_gateway_team_tokens_total", "team")
    unknown = f"sum by ({_TARGET}) (increase({_TOKENS}[1h])) > 0\n  unless on ({_TARGET}) {_ANSWERS}"

    def part(answer: str) -> str:
        return f'sum by ({POLICY}) ({_ANSWERS}{{answer="{answer}"}}) and on ({POLICY}) {_POLICIES}\nor\n0 * {_POLICIES}'

    own = f'sum by ({POLICY}) ({_ANSWERS}{{answer!="escalation"}}) and on ({POLICY}) {_POLICIES}'
    return (
        Recording(_ANSWERS, _routing_either(_ROUTED, "flotilla_gateway_cost_usd_total", "answer")),
        Recording(
            "policy_target_team:flotilla_route_cost_usd:increase1h",
            _routing_either(f"({teams})", "flotilla_gateway_team_cost_usd_total", "team"),
        ),
        # The cost of a policy is unknown while that of any of its targets is.
        Recording(_POLICIES, f"sum by ({POLICY}) ({_ANSWERS})\nunless on ({POLICY}) (\n  {unknown}\n)"),
        Recording("policy:flotilla_escalation_cost_usd:increase1h", part("escalation")),
        Recording("policy:flotilla_wasted_cost_usd:increase1h", part("replaced")),
        Recording(
            "policy_comparator:flotilla_routing_savings_usd:increase1h",
            f"{_BASELINE}\n- on ({POLICY}) group_left ()\n{_POLICIES}",
        ),
        Recording(
            "policy_comparator:flotilla_break_even_escalation:ratio_increase1h",
            f"1 - ({own})\n/ on ({POLICY}) group_right ()\n({_BASELINE} > 0)",
        ),
    )


def _deployments() -> tuple[Recording, ...]:
    by_state = "modeldeployment_state:flotilla_deployment_cost_usd:increase1h"
    active, saturation = (
        f'max by ({BY}) (flotilla_deployment_{name}_ratio{{window="1h"}})' for name in ("active", "saturation")
    )
    ready = f'sum by ({BY}) ({by_state}{{state=~"serving|idle"}})'
    served = f"({saturation} < {active}\n    or {active} and {saturation})"
    used, headroom = f"{ready} * {served}", f"{ready} * ({active} - {served})"
    rest = f"({_COST} - {ready} * {active})\n  and {saturation}"
    return (
        Recording(_MODELS, f"sum by ({BY}, model) ({_ROUTED} * on ({BY}) group_left () {_UNIT})"),
        Recording(
            "modeldeployment:flotilla_unrouted_cost_usd:increase1h",
            f"clamp_min({_COST} - sum by ({BY}) ({_MODELS}), 0)\nor\n{_COST}",
        ),
        Recording(
            "modeldeployment_use:flotilla_deployment_cost_usd:increase1h",
            "\nor\n".join(
                f'label_replace(\n  {expr},\n  "use", "{use}", "", ""\n)'
                for use, expr in (("used", used), ("headroom", headroom), ("idle", rest))
            ),
        ),
    )


def _weighted(metric: str, label: str) -> str:
    """The tokens of routes to own models in tokens of uncached input; `model` may be an adapter."""
    place = f"{_TARGET}, modeldeployment, model"
    # Replicas of a gateway may show two documents for a moment: one of two models is taken.
    what = f'topk by ({_TARGET}) (1, max by ({place}) (flotilla_gateway_target_info{{modeldeployment!=""}}))'
    return (
        f"sum by ({place}, {label}) (\n"
        f"  sum by ({_TARGET}, {label}, token_type) (increase({metric}[1h]))\n"
        f"  * on ({_TARGET}) group_left (modeldeployment, model) {what}\n"
        f"  * on ({_TYPED}) group_left () {_WEIGHTS}\n)"
    )


def _routing_either(work: str, charged: str, label: str) -> str:
    """A target's dollars: the work at its deployment's price, or what it charged."""
    return (
        f"sum by ({_TARGET}, {label}) ({work} * on ({BY}) group_left () {_UNIT})\n"
        f"or\nsum by ({_TARGET}, {label}) (increase({charged}[1h]))"
    )


SLOW_WAIT_S = 5
"""A request that waited longer in an engine's queue than this many seconds missed its objective."""
SLO_WINDOWS = ("5m", "30m", "1h", "6h")
_WAITS = ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds")
"""Those that have a bucket at SLOW_WAIT_S."""
_DAY, _MONTH = "23h59m", "29d23h59m"
"""24 and 720 hourly steps, also where an evaluation falls on a full hour: ranges include both ends."""


def groups(profiles: Mapping[str, Profile]) -> tuple[RuleGroup, ...]:
    """All recording rules but those on months."""
    return (
        RuleGroup("flotilla.cost.rules", _cost()),
        RuleGroup("flotilla.engines.rules", _engines(profiles)),
        RuleGroup("flotilla.gateway.rules", _gateway()),
        group(),
    )


def month_groups() -> tuple[RuleGroup, ...]:
    """Days and months, from the hourly increases: thirty days of raw samples would be millions per evaluation."""
    # Rarer than every five minutes, and the series would be stale between two evaluations.
    return (RuleGroup("flotilla.month.rules", _month(), interval="5m"),)


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
        Recording("modeldeployment:engine_requests_running:sum", gauge(profiles, "running")),
        Recording("modeldeployment:engine_requests_waiting:sum", gauge(profiles, "waiting")),
        Recording("modeldeployment:engine_kv_usage:max", gauge(profiles, "kv_usage", operation="max")),
        Recording("modeldeployment:engine_prompt_tokens:rate5m", rate(profiles, "prompt_tokens", "5m")),
        Recording("modeldeployment:engine_generation_tokens:rate5m", rate(profiles, "generation_tokens", "5m")),
        Recording("modeldeployment:engine_requests_rejected:rate5m", rate(profiles, "rejected", "5m")),
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
        # A policy that never escalated has no series of it, which means 0 and not unknown.
        part = f"sum by ({POLICY}) (rate({name}[1h])) or 0 * sum by ({POLICY}) (rate({requests}[1h]))"
        return f"({part})\n/\n(sum by ({POLICY}) (rate({requests}[1h])) > 0)"

    return (
        Recording(
            "policy_target:flotilla_gateway_requests:rate5m",
            f"sum by ({POLICY}, target) (rate({requests}[5m]))",
        ),
        Recording("policy:flotilla_gateway_escalations:ratio_rate1h", share("flotilla_gateway_escalations_total")),
        Recording("policy:flotilla_gateway_fallbacks:ratio_rate1h", share("flotilla_gateway_fallbacks_total")),
        Recording(
            "policy_comparator:flotilla_gateway_counterfactual_cost_usd:increase1h",
            f"sum by ({POLICY}, comparator) (increase(flotilla_gateway_counterfactual_cost_usd_total[1h]))",
        ),
    )
