"""A Prometheus' memory of two days of a small fleet, as OpenMetrics text."""

from collections.abc import Iterable

MINUTE = 60.0
SMALL = 'namespace="shop",modeldeployment="small"'
IDLE = 'namespace="lab",modeldeployment="idle"'
SUPPORT = 'namespace="shop",policy="support"'
TOKENS = {"input": 3_000_000, "cached_input": 600_000, "output": 360_000}
GPT, HAIKU = "openai/gpt-5-mini", "anthropic/claude-haiku-4-5"


def history(start: float, end: float, *, step_s: float = 5 * MINUTE) -> str:
    """From `start` to `end`, both Unix times.

    `small` costs 1.2 USD an hour, a quarter of it idle; in the middle another operator takes over and counts on. Each
    hour it serves 3600 requests of 1000 tokens in and 100 out. `idle` costs 0.8 USD an hour and serves nothing.
    Three quarters of the tokens of `small` go through a gateway, a quarter is thrown away, a quarter is for sales.
    """
    families = [
        _counter("flotilla_deployment_cost_usd", _cost(start, end, step_s)),
        _counter("flotilla_deployment_gpu_hours", _rates(start, end, step_s, {SMALL: 1.5, IDLE: 1.0})),
        _counter(
            "flotilla_deployment_tokens",
            _rates(
                start,
                end,
                step_s,
                {f'{SMALL},token_type="{kind}"': tokens for kind, tokens in TOKENS.items()},
            ),
        ),
        _counter("flotilla_deployment_requests", _rates(start, end, step_s, {f'{SMALL},outcome="success"': 3600})),
        _counter(
            "flotilla_hosted_equivalent_cost_usd",
            _rates(
                start,
                end,
                step_s,
                {
                    f'{SMALL},comparator="{GPT}"': 1.5,
                    f'{SMALL},comparator="{HAIKU}"': 4.8,
                    f'{IDLE},comparator="{GPT}"': 0.0,
                },
            ),
        ),
        _counter(
            "flotilla_gateway_requests",
            _rates(
                start,
                end,
                step_s,
                {
                    'namespace="shop",policy="support",rule="tasks",target="small",outcome="served"': 3600,
                    'namespace="shop",policy="support",rule="tasks",target="frontier",outcome="served"': 60,
                },
            ),
        ),
        _counter(
            "flotilla_gateway_cost_usd",
            _rates(start, end, step_s, {f'{SUPPORT},target="frontier",answer="escalation"': 0.25}),
        ),
        _counter(
            "flotilla_gateway_tokens",
            _rates(
                start,
                end,
                step_s,
                {
                    f'{SUPPORT},target="small",answer="{answer}",token_type="{kind}"': tokens * part
                    for answer, part in (("first", 0.5), ("replaced", 0.25))
                    for kind, tokens in TOKENS.items()
                },
            ),
        ),
        _counter(
            "flotilla_gateway_team_tokens",
            _rates(
                start,
                end,
                step_s,
                {
                    f'{SUPPORT},target="small",team="{team}",token_type="{kind}"': tokens * part
                    for team, part in (("sales", 0.25), ("other", 0.5))
                    for kind, tokens in TOKENS.items()
                },
            ),
        ),
        _counter(
            "flotilla_gateway_team_cost_usd",
            _rates(start, end, step_s, {f'{SUPPORT},target="frontier",team="sales"': 0.25}),
        ),
        _gauge(
            "flotilla_gateway_target_info",
            start,
            end,
            step_s,
            {
                f'{SUPPORT},target="small",modeldeployment="small",model="qwen"': 1,
                f'{SUPPORT},target="frontier",modeldeployment="",model="gpt-5"': 1,
            },
        ),
        _gauge(
            "flotilla_deployment_token_weight_ratio",
            start,
            end,
            step_s,
            {f'{SMALL},token_type="{kind}"': w for kind, w in (("input", 1), ("cached_input", 0.05), ("output", 2.8))},
        ),
        _gauge(
            "flotilla_deployment_info",
            start,
            end,
            step_s,
            {
                f'{SMALL},model="hf://Qwen/Qwen2.5-7B",engine="vllm",gpu_type="nvidia-l4",team="support"': 1,
                f'{IDLE},model="hf://Qwen/Qwen3-14B",engine="vllm",gpu_type="nvidia-l4",team=""': 1,
            },
        ),
        _gauge(
            "flotilla_deployment_cost_usd_per_hour",
            start,
            end,
            step_s,
            {f'{SMALL},gpu_type="nvidia-l4"': 1.2, f'{IDLE},gpu_type="nvidia-l4"': 0.8},
        ),
        _gauge("flotilla_deployment_saturation_ratio", start, end, step_s, {f'{SMALL},window="24h"': 0.4}),
        _gauge("flotilla_min_replicas", start, end, step_s, {SMALL: 1, IDLE: 1}),
        _gauge("flotilla_max_replicas", start, end, step_s, {SMALL: 4, IDLE: 1}),
    ]
    return "\n".join(families)


def _times(start: float, end: float, step_s: float) -> Iterable[float]:
    at = start
    while at <= end:
        yield at
        at += step_s


def _cost(start: float, end: float, step_s: float) -> Iterable[str]:
    middle = (start + end) / 2
    states = {(SMALL, "serving"): 0.9, (SMALL, "idle"): 0.3, (IDLE, "idle"): 0.8}
    for pod, first, last in (("a", start, middle), ("b", middle, end)):
        for (labels, state), per_hour in states.items():
            for at in _times(first, last, step_s):
                usd = per_hour * (at - start) / 3600
                yield f'flotilla_deployment_cost_usd_total{{{labels},state="{state}",pod="{pod}"}} {usd:.9f} {at:.3f}'


def _rates(start: float, end: float, step_s: float, per_hour: dict[str, float]) -> Iterable[str]:
    for labels, rate in per_hour.items():
        for at in _times(start, end, step_s):
            yield f"{{{labels}}} {rate * (at - start) / 3600:.9f} {at:.3f}"


def _counter(name: str, lines: Iterable[str]) -> str:
    body = "\n".join(line if line.startswith(name) else f"{name}_total{line}" for line in lines)
    return f"# TYPE {name} counter\n{body}"


def _gauge(name: str, start: float, end: float, step_s: float, values: dict[str, float]) -> str:
    lines = [
        f"{name}{{{labels}}} {value} {at:.3f}" for labels, value in values.items() for at in _times(start, end, step_s)
    ]
    return f"# TYPE {name} gauge\n" + "\n".join(lines)
