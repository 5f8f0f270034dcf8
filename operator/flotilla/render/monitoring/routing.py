"""What routes cost: own models by the work that they did for a route, hosted ones by what they charged.

A deployment's dollars, idle ones included, are divided by weighted tokens, as `domain.cost.comparison.attribute` does.
"""

from flotilla.domain.cost.tokens import MEASURED
from flotilla.render.monitoring.engines import BY
from flotilla.render.monitoring.rules import Group, Recording

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


def group() -> Group:
    """Each of the last hour."""
    return Group("flotilla.routing.rules", (*_work(), *_routes(), *_deployments()))


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
    told = f"max by ({_TYPED}) (flotilla_deployment_token_weight_ratio)"
    every = f"max by ({BY}) (flotilla_deployment_info)"
    measured = (
        f'label_replace({weight:f} * {every}, "token_type", "{token_type}", "", "")'
        for token_type, weight in MEASURED.by_token_type.items()
    )
    return "\nor\n".join((told, *measured))


def _routes() -> tuple[Recording, ...]:
    teams = _weighted("flotilla_gateway_team_tokens_total", "team")
    unknown = f"sum by ({_TARGET}) (increase({_TOKENS}[1h])) > 0\n  unless on ({_TARGET}) {_ANSWERS}"

    def part(answer: str) -> str:
        return f'sum by ({POLICY}) ({_ANSWERS}{{answer="{answer}"}}) and on ({POLICY}) {_POLICIES}\nor\n0 * {_POLICIES}'

    own = f'sum by ({POLICY}) ({_ANSWERS}{{answer!="escalation"}}) and on ({POLICY}) {_POLICIES}'
    return (
        Recording(_ANSWERS, _either(_ROUTED, "flotilla_gateway_cost_usd_total", "answer")),
        Recording(
            "policy_target_team:flotilla_route_cost_usd:increase1h",
            _either(f"({teams})", "flotilla_gateway_team_cost_usd_total", "team"),
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


def _either(work: str, charged: str, label: str) -> str:
    """A target's dollars: the work at its deployment's price, or what it charged."""
    return (
        f"sum by ({_TARGET}, {label}) ({work} * on ({BY}) group_left () {_UNIT})\n"
        f"or\nsum by ({_TARGET}, {label}) (increase({charged}[1h]))"
    )
