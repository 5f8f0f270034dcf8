"""A Prometheus' memory of three deployments of one model: one that was saturated, one that never was, one at rest."""

from collections.abc import Iterator

MODEL = "hf://Qwen/Qwen2.5-7B-Instruct"
FULL, HALF, REST = (f'namespace="shop",modeldeployment="{name}"' for name in ("full", "half", "rest"))
PER_S = {"input": 1800.0, "cached_input": 200.0, "output": 600.0}
"""Tokens of `full`, which has two replicas; two requests a second of 1000 tokens in, a tenth cached, and 300 out."""


def history(start: float, end: float) -> str:
    """A sample a minute. In the first half of the time `full` has no queue, and makes a fifth."""
    times = [start + 60 * step for step in range(int((end - start) / 60) + 1)]
    middle = times[len(times) // 2]

    def work(at: float, labels: str) -> float:
        """Seconds of full work since the start."""
        if labels == REST:
            return 0.0
        if labels == HALF:
            return 0.1 * (at - start)
        return 0.2 * (min(at, middle) - start) + max(0.0, at - middle)

    def counter(name: str, rows: dict[str, tuple[str, float]]) -> Iterator[str]:
        yield f"# TYPE {name} counter"
        for more, (labels, per_s) in rows.items():
            for at in times:
                yield f"{name}_total{{{labels},{more.partition(' ')[0]}}} {per_s * work(at, labels):.3f} {at:.3f}"

    def gauge(name: str, rows: dict[str, float]) -> Iterator[str]:
        yield f"# TYPE {name} gauge"
        for labels, value in rows.items():
            for at in times:
                shown = 0.0 if name.endswith("waiting") and at < middle else value
                yield f"{name}{{{labels}}} {shown} {at:.3f}"

    tokens = {
        f'token_type="{kind}" {labels}': (labels, per_s)
        for labels in (FULL, HALF, REST)
        for kind, per_s in PER_S.items()
    }
    requests = {f'outcome="success" {labels}': (labels, 2.0) for labels in (FULL, HALF, REST)}
    info = {
        f'{labels},model="{MODEL}",engine="vllm",gpu_type="nvidia-l4",team=""': 1.0 for labels in (FULL, HALF, REST)
    }
    return "\n".join(
        [
            *counter("flotilla_deployment_tokens", tokens),
            *counter("flotilla_deployment_requests", requests),
            *gauge("flotilla_deployment_info", info),
            *gauge("flotilla_ready_replicas", {FULL: 2.0, HALF: 1.0, REST: 1.0}),
            *gauge("flotilla_requests_waiting", {FULL: 7.0, HALF: 0.0, REST: 0.0}),
        ]
    )
