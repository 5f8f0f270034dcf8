"""Compares four autoscalers, and Flotilla's with one field changed, on the included traces.

    uv run python -m benchmarks.scaling [--traces burst ...] [--seeds 6] [--target 8] [--startup 120] [--json FILE]
    uv run python -m benchmarks.scaling --foresight 0.9 0.8 0.7 0.6 0.5 [--traces diurnal ...]

All use the same engine model, target and limits. For each trace the table has the p99 of waiting (from the arrival to a
place in a batch; a client that gives up after 60 s has waited 60 s), the share of dropped requests, and GPU-hours, as
means over the seeds. The goal compared with another policy is a lower p99 at no more than 1.05 times its GPU-hours, or
at least 15 % fewer GPU-hours at a p99 that is no worse.

With --foresight: the same for policies that know the future requests, at the given requests per second and replica.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.scaling_policies import Foresight, HorizontalPodAutoscaler, Keda, KubeAI

from flotilla.api import model_deployment as api
from flotilla.scaling.autoscaler import ScalingParameters
from flotilla.simulation.engine import Limits
from flotilla.simulation.fleet import L4_SPEED, EngineModel, Flotilla, ScalingPolicy, figures, simulate
from flotilla.simulation.trace import NAMES, make

_LEAST, _MOST = 1, 12
_PATIENCE_S = 60.0
_WARM: Mapping[str, int] = {"azure-conversation": 6}
"""Replicas at the start of a trace that begins at its full load: else all that is measured is that start."""
_SAME_WAIT = 0.03
"""Waits that differ by a smaller share are equal."""


@dataclass(frozen=True)
class Question:
    """The settings of one run."""

    policy: str
    trace: str
    seed: int
    target: int
    startup_s: float
    per_replica: float | None = None
    """Requests per second and replica of a policy with foresight."""


@dataclass(frozen=True)
class Answer:
    """The figures of one run."""

    wait_p99_s: float
    wait_p50_s: float
    first_token_p99_s: float
    dropped: int
    arrived: int
    gpu_hours: float
    changes: int


def _flotilla(question: Question, initial: int, **fields: int) -> ScalingPolicy:
    """Return the operator's policy with the defaults of the resource, except for the given fields."""
    wanted = api.ScalingSpec(min_replicas=_LEAST, max_replicas=_MOST, queue_depth_per_replica=question.target, **fields)
    return Flotilla(ScalingParameters.of(wanted, stale_after_s=15.0), initial=initial)


_FASTER_IN = "Flotilla, 100 %/min in"
"""With scaleDownPercentPerMinute: 100."""
POLICIES: Mapping[str, Callable[[Question, int], ScalingPolicy]] = {
    "Flotilla": _flotilla,
    _FASTER_IN: lambda q, initial: _flotilla(q, initial, scale_down_percent_per_minute=100),
    "HPA": lambda q, _: HorizontalPodAutoscaler(target=q.target, least=_LEAST, most=_MOST),
    "KEDA": lambda q, _: Keda(target=q.target, least=_LEAST, most=_MOST),
    "KubeAI": lambda q, initial: KubeAI(
        target=q.target, least=_LEAST, most=_MOST, before=0 if initial == _LEAST else initial * q.target
    ),
}


def run(question: Question) -> Answer:
    """Run one policy on one trace."""
    initial = _WARM.get(question.trace, _LEAST)
    engine = EngineModel(
        limits=Limits(max_running=32, kv_blocks=12_500),
        speed=L4_SPEED,
        context_tokens=16_384,
        startup_s=question.startup_s,
        drain_s=45.0,
    )
    trace = make(question.trace, seed=question.seed)
    if question.per_replica is None:
        policy = POLICIES[question.policy](question, initial)
    else:
        policy = Foresight(
            [request.at_s for request in trace.requests],
            per_replica=question.per_replica,
            least=_LEAST,
            most=_MOST,
            startup_s=question.startup_s,
        )
    found = figures(simulate(trace, policy, engine, initial=initial, patience_s=_PATIENCE_S))
    return Answer(
        wait_p99_s=found.wait_p99_s or 0.0,
        wait_p50_s=found.wait_p50_s or 0.0,
        first_token_p99_s=found.first_token_p99_s or 0.0,
        dropped=found.dropped,
        arrived=found.arrived,
        gpu_hours=float(found.replica_hours),
        changes=found.changes,
    )


def mean(answers: list[Answer]) -> Answer:
    """Return the means over the seeds."""
    values = {name: sum(getattr(a, name) for a in answers) / len(answers) for name in asdict(answers[0])}
    return Answer(**values)


def verdict(ours: Answer, theirs: Answer) -> str:
    """Return whether the goal is met compared with one other policy, and which half of it."""
    hours, waits = ours.gpu_hours / theirs.gpu_hours, ours.wait_p99_s / max(theirs.wait_p99_s, 0.001)
    at = f"at {hours:.2f} x the GPU-hours"
    if waits < 1 - _SAME_WAIT:
        return f"won: shorter wait {at}" if hours <= 1.05 else f"not met: shorter wait, but {at}"
    if waits <= 1 + _SAME_WAIT:
        if theirs.wait_p99_s > 0.99 * _PATIENCE_S:
            fewer = ours.dropped <= theirs.dropped
            same = f"dropped {_percent(ours)} against {_percent(theirs)} %"
            return f"{'not met' if fewer and hours > 0.85 else 'won' if fewer else 'lost'}: {same} {at}"
        return f"won: the same wait {at}" if hours <= 0.85 else f"not met: the same wait {at}"
    return f"lost: longer wait {at}"


def _percent(answer: Answer) -> str:
    return f"{100 * answer.dropped / answer.arrived:.1f}"


def table(traces: list[str], answers: Mapping[tuple[str, str], Answer]) -> Iterator[str]:
    """Return a Markdown table of the policies."""
    names = ("trace", "policy", "p99 wait (s)", "p99 first token (s)", "dropped (%)", "GPU-hours", "changes")
    yield f"| {' | '.join(names)} | Flotilla against it |"
    yield "|---" * (len(names) + 1) + "|"
    for trace in traces:
        ours = answers[trace, "Flotilla"]
        for policy in POLICIES:
            a = answers[trace, policy]
            against = "" if policy.startswith("Flotilla") else verdict(ours, a)
            yield (
                f"| {trace} | {policy} | {a.wait_p99_s:.2f} | {a.first_token_p99_s:.2f} | "
                f"{_percent(a)} | {a.gpu_hours:.2f} | {a.changes:.0f} | {against} |"
            )


def bound(traces: list[str], answers: Mapping[tuple[str, str], Answer]) -> Iterator[str]:
    """Return a Markdown table of the policies with foresight."""
    yield "| trace | requests/s per replica | p99 wait (s) | dropped (%) | GPU-hours |"
    yield "|---" * 5 + "|"
    for trace, policy in sorted(answers, key=lambda asked: traces.index(asked[0])):
        a = answers[trace, policy]
        yield f"| {trace} | {policy} | {a.wait_p99_s:.2f} | {_percent(a)} | {a.gpu_hours:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--target", type=int, default=8)
    parser.add_argument("--startup", type=float, default=120.0)
    parser.add_argument("--foresight", nargs="+", type=float, metavar="REQUESTS_PER_S")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    policies: Mapping[str, float | None] = (
        {f"{rate:g}": rate for rate in options.foresight} if options.foresight else dict.fromkeys(POLICIES)
    )
    questions = [
        Question(policy, trace, seed, options.target, options.startup, per_replica)
        for trace in options.traces
        for policy, per_replica in policies.items()
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor() as pool:
        found = dict(zip(questions, pool.map(run, questions), strict=True))
    answers = {
        (trace, policy): mean([a for q, a in found.items() if (q.trace, q.policy) == (trace, policy)])
        for trace in options.traces
        for policy in policies
    }
    lines = (bound if options.foresight else table)(options.traces, answers)
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json:
        rows = [{**asdict(question), **asdict(answer)} for question, answer in found.items()]
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
