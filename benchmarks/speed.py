"""Compares the speed model with public measurements: writes docs/reference/truth.md.

    python -m benchmarks.speed [--check]

Every prediction is computed again. With --check the exit code is 1 if the page differs from the predictions.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed_points import Point, points, predict

from flotilla.planning.speed import SPREAD_MEASURED

PAGE = Path(__file__).parents[1] / "docs/reference/truth.md"
_UNITS = {
    "output_tokens_per_s": "tokens/s",
    "token_interval_ms": "ms per token",
    "first_token_p99_ms": "ms to the first token, p99",
}
_HEAD = """# Predicted and published speed

`flotilla advise`, `estimate` and `simulate` compute how fast a model is on a GPU (`operator/flotilla/planning/speed.py`
describes how). This page compares that with {count} public measurements of throughput; `make bench` writes it, and a
test checks the limits of the errors. The settings and sources, and what was left out and why, are in
`benchmarks/speed_points.yaml`.

The factors were fitted on {fitted} of the points (marked *) by `hack/fit_speed.py`; the others only check them.
TensorRT-LLM, LMDeploy (turbomind) and vLLM before 0.8 (vllm-v0) have their own factor of compute and their own
overhead, so that their points can be used to determine what a GPU can do; Flotilla's predictions are for vLLM.

"""


def error(ratio: float) -> float:
    """Return the difference between predicted and published, as a share of published."""
    return abs(ratio - 1)


def distribution(ratios: Sequence[float]) -> str:
    """Return one row of the table of errors, without the first cell."""
    worst = max(ratios, key=lambda ratio: abs(math.log(ratio)))
    within = [sum(1 / factor <= ratio <= factor for ratio in ratios) / len(ratios) for factor in (1.2, SPREAD_MEASURED)]
    return (
        f"{len(ratios)} | {statistics.median(map(error, ratios)):.0%} | {within[0]:.0%} | {within[1]:.0%} | {worst:.2f}"
    )


def page() -> str:
    """Return the whole page."""
    pairs = [(point, predict(point) / point.value) for point in points()]
    speed = [(point, ratio) for point, ratio in pairs if point.measure != "first_token_p99_ms"]
    first = [(point, ratio) for point, ratio in pairs if point.measure == "first_token_p99_ms"]
    lines = [
        _HEAD.format(count=len(speed), fitted=sum(point.fit for point, _ in speed)),
        "## Distribution of the error\n\n",
        f"| Points | Number | Median error | Within 20 % | Within a factor of {SPREAD_MEASURED} "
        "| Worst, predicted / published |\n",
        "|---|---:|---:|---:|---:|---:|\n",
    ]
    rows: dict[str, list[float]] = {"all": [ratio for _, ratio in speed]}
    rows["fitted on"] = [ratio for point, ratio in speed if point.fit]
    rows["held out"] = [ratio for point, ratio in speed if not point.fit]
    rows["vLLM from 0.8 on"] = [ratio for point, ratio in speed if point.engine == "vllm"]
    for gpu in sorted({point.gpu for point, _ in speed}):
        rows[gpu] = [ratio for point, ratio in speed if point.gpu == gpu]
    lines += [f"| {name} | {distribution(ratios)} |\n" for name, ratios in rows.items()]
    lines += ["\n## Throughput\n\n", *_table(speed)]
    lines += [
        "\n## Time to the first token\n\n",
        "The model of this time is simple (prompts wait in a queue) and was not fitted; it is too low near saturation.",
        "\n\n",
        *_table(first),
    ]
    return "".join(lines)


def _table(pairs: Sequence[tuple[Point, float]]) -> list[str]:
    heading = "| Engine | Model, weights, GPU | In/out tokens | Load | Published | Predicted | Ratio | Source |\n"
    return [heading, "|---|---|---:|---:|---:|---:|---:|---|\n", *(_row(point, ratio) for point, ratio in pairs)]


def _row(point: Point, ratio: float) -> str:
    if point.load is None:
        load = "saturated"
    elif point.measure == "first_token_p99_ms":
        load = f"{point.load:g}/s"
    else:
        load = f"{point.load:g} in flight"
    unit = _UNITS[point.measure]
    return (
        f"| {point.engine}{'*' if point.fit else ''} | {point.what} | {point.input_tokens}/{point.output_tokens} "
        f"| {load} | {_three(point.value)} {unit} | {_three(point.value * ratio)} | {ratio:.2f} | {point.source} |\n"
    )


def _three(value: float) -> str:
    """Return the number with three significant digits."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    whole = 10 ** max(0, math.floor(math.log10(value)) - 2)
    return f"{round(value / whole) * whole:,.{digits}f}"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" in arguments:
        return 0 if PAGE.read_text() == text else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text)
    summary = [line for line in text.splitlines() if line.startswith(("| all ", "| held out ", "| vLLM "))]
    print("\n".join(["points | number | median | within 20 % | within 1.4 | worst", *summary]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
