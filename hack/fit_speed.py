"""Fit the factors of the speed model on the measurements of benchmarks/speed_points.yaml that say `fit: true`.

    python -m hack.fit_speed

The program prints the rounded factors and their errors, on the points that they were fitted on and on the others. Copy
the
factors into planning/speed.py and benchmarks/speed_points.py by hand. A factor on which no fitted point depends keeps
its value. The loss is the mean absolute logarithm of predicted over published, where all points of a source together
weigh as the square root of their number, plus a small term for the distance from the present factors, so that a few
points do not change a factor much.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from benchmarks.speed_points import OTHER_ENGINES, OtherEngine, Point, predict, throughput_points

from flotilla.planning.speed import FACTORS, Factors

FAMILIES = ("volta", "ampere", "ada", "blackwell", "blackwell-rtx")
"""hopper is the reference; families with too few points are set by hand."""
_STIFFNESS = 0.02

Values = dict[str, float]


def start() -> Values:
    """Return the values that are fitted, by name."""
    values = {
        name: getattr(FACTORS, name)
        for name in (
            "weights_bandwidth",
            "kv_bandwidth",
            "experts",
            "attention",
            "step_s",
            "layer_s",
            "token_s",
            "reduce_s",
        )
    }
    values |= {f"compute:{name}": FACTORS.compute[name] for name in ("bf16", "fp8", "fp4")}
    values |= {f"family:{name}": FACTORS.family.get(name, 1.0) for name in FAMILIES}
    for engine, other in OTHER_ENGINES.items():
        if engine != "vllm":
            values |= {f"{engine}:compute": other.compute, f"{engine}:step_s": max(other.step_s, 0.0001)}
    values["trtllm:experts"] = OTHER_ENGINES["trtllm"].experts
    return values


def factors(values: Values) -> tuple[Factors, dict[str, OtherEngine]]:
    """Convert the values to the factors that the model takes."""
    plain = {name: value for name, value in values.items() if ":" not in name}
    compute = dict(FACTORS.compute) | _of(values, "compute")
    compute["int8"] = compute["fp8"]
    fitted = replace(FACTORS, **plain, compute=compute, family=dict(FACTORS.family) | _of(values, "family"))
    others = {engine: replace(other, **_of(values, engine)) for engine, other in OTHER_ENGINES.items()}
    return fitted, others


def _of(values: Values, group: str) -> Values:
    return {name.partition(":")[2]: value for name, value in values.items() if name.startswith(group + ":")}


def loss_on(points: list[Point], origin: Values) -> Callable[[Values], float]:
    """Return the loss function that is minimized."""
    sources = Counter(point.source for point in points)
    weights = [1 / math.sqrt(sources[point.source]) for point in points]

    def loss(values: Values) -> float:
        fitted, others = factors(values)
        errors = (abs(math.log(predict(point, fitted, others) / point.value)) for point in points)
        missed = sum(weight * error for weight, error in zip(weights, errors, strict=True)) / sum(weights)
        moved = sum(math.log(value / origin[name]) ** 2 for name, value in values.items())
        return missed + _STIFFNESS * moved / len(values)

    return loss


def minimize(loss: Callable[[Values], float], values: Values) -> Values:
    """Minimize by coordinate descent on the logarithms, with decreasing steps."""
    best, least = dict(values), loss(values)
    step = 0.3
    while step > 0.01:
        improved = False
        for name in values:
            for factor in (math.exp(step), math.exp(-step)):
                tried = best | {name: best[name] * factor}
                if name.endswith("bandwidth") and tried[name] > 0.95:
                    continue
                found = loss(tried)
                if found < least - 1e-6:
                    best, least, improved = tried, found, True
        if not improved:
            step /= 2
    return best


def report(name: str, points: list[Point], values: Values) -> str:
    """Return the median and the worst error, and the case with the worst error."""
    fitted, others = factors(values)
    ratios = [(predict(point, fitted, others) / point.value, point) for point in points]
    worst = max(ratios, key=lambda pair: abs(math.log(pair[0])))
    median = statistics.median(abs(ratio - 1) for ratio, _ in ratios)
    within = sum(1 / 1.3 <= ratio <= 1.3 for ratio, _ in ratios) / len(ratios)
    case = f"{worst[1].what}, {worst[1].input_tokens}/{worst[1].output_tokens}"
    return f"{name}: {len(ratios)} points, median {median:.1%}, within 1.3: {within:.0%}, worst {worst[0]:.2f} ({case})"


def main() -> None:
    """Fit and print."""
    every = throughput_points()
    part = [point for point in every if point.fit]
    origin = start()
    values = minimize(loss_on(part, origin), origin)
    for name, value in values.items():
        print(f"{name:24} {origin[name]:.3g} -> {value:.2g}")
    print(report("fitted on", part, values))
    print(report("held out", [point for point in every if not point.fit], values))
    print(report("all", every, values))


if __name__ == "__main__":
    main()
