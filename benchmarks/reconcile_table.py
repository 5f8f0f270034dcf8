"""Computes rows, medians, ratios and printed tables from the samples of benchmarks/reconcile.py. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

_LABELS = {"flotilla": "Flotilla", "peer": "Go peer"}


@dataclass(frozen=True)
class Row:
    """One operator with one number of objects; the unit is in the name (ms, s, MiB, % of a core)."""

    operator: str
    count: int
    cpu_ms_per_object: float
    calls_per_object: float
    writes_per_object: float
    created_s: float
    """From the first create to the last."""
    converged_s: float
    """From the first create to the last status."""
    answered_at_half_percent: float
    """Of all objects, at half of the time from the first create to the last status."""
    rest_at_half_percent: float
    """Of the objects that had no status when the last one was created, at half of the time from then on."""
    newcomer_s: float
    longest_wait_s: float
    healthz_longest_ms: float
    """While all are created and get their status."""
    metrics_stall_ms: float
    """The same while /metrics is read, at rest."""
    rss_mib: float
    idle_cpu_percent: float
    idle_calls: float
    start_ready_s: float
    restart_ready_s: float
    restart_cpu_s: float
    restart_writes: float
    restart_rss_mib: float


@dataclass(frozen=True)
class Figure:
    """A line of the table; `ratio` says whether Flotilla's value divided by the peer's is meaningful."""

    field: str
    label: str
    goal: str = ""
    ratio: bool = False


FIGURES = (
    Figure("cpu_ms_per_object", "CPU per object (ms)", "<= 2 x", ratio=True),
    Figure("calls_per_object", "calls per object", "<= 5"),
    Figure("writes_per_object", "of these writes"),
    Figure("created_s", "all created after (s)"),
    Figure("converged_s", "all have a status after (s)", ratio=True),
    Figure("answered_at_half_percent", "have a status at half of that (%)", ">= 50"),
    Figure("rest_at_half_percent", "the same from the last create on (%)", ">= 50"),
    Figure("newcomer_s", "one more at half: to its status (s)", "<= 5"),
    Figure("longest_wait_s", "longest from created to status (s)"),
    Figure("healthz_longest_ms", "longest answer of /healthz (ms)"),
    Figure("metrics_stall_ms", "the same while /metrics is read (ms)"),
    Figure("rss_mib", "resident memory (MiB)", "<= 250", ratio=True),
    Figure("idle_cpu_percent", "idle CPU (% of a core)", "<= 2"),
    Figure("idle_calls", "idle calls in 20 s"),
    Figure("start_ready_s", "start to ready, empty cluster (s)"),
    Figure("restart_ready_s", "restart to ready (s)", "<= 5", ratio=True),
    Figure("restart_cpu_s", "restart, CPU until settled (s)", ratio=True),
    Figure("restart_writes", "writes at restart", "0"),
    Figure("restart_rss_mib", "restart, resident memory (MiB)", ratio=True),
)


def answered_at_half_percent(start: float, answered: Iterable[float]) -> float:
    """Of the objects that got a status after `start`, the share that had one after half of the time, in percent."""
    times = [time for time in answered if time > start]
    half = start + (max(times) - start) / 2
    return 100 * sum(time <= half for time in times) / len(times)


def waits_s(created: Mapping[str, float], answered: Mapping[str, float]) -> list[float]:
    """Seconds from creation to status, in the order of creation; at least 0, as events may precede a create answer."""
    return [max(0.0, answered[name] - at) for name, at in sorted(created.items(), key=lambda item: item[1])]


def medians(rows: Iterable[Row]) -> list[Row]:
    """One row for each operator and count: the median of each figure over the rounds."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.count, row.operator), []).append(row)
    numbers = [field.name for field in fields(Row) if field.name not in ("operator", "count")]
    return [
        Row(operator, count, **{name: statistics.median(getattr(row, name) for row in group) for name in numbers})
        for (count, operator), group in groups.items()
    ]


def tables(rows: Iterable[Row]) -> str:
    """A Markdown table for each count, at most 80 columns wide, and how the CPU per object grows with the count."""
    merged = medians(rows)
    counts = sorted({row.count for row in merged})
    parts = [_table(count, {row.operator: row for row in merged if row.count == count}) for count in counts]
    growths = [line for operator in _LABELS if (line := _growth([row for row in merged if row.operator == operator]))]
    return "\n\n".join([*parts, *(["\n".join(growths)] if growths else [])])


def _table(count: int, rows: Mapping[str, Row]) -> str:
    operators = [name for name in _LABELS if name in rows]
    lines = [
        _line(f"{count} objects", [*(_LABELS[name] for name in operators), "ratio", "goal"]),
        "|---" * (len(operators) + 3) + "|",
    ]
    for figure in FIGURES:
        values = [getattr(rows[name], figure.field) for name in operators]
        has_ratio = figure.ratio and len(values) == 2 and values[1] > 0
        ratio = f"{values[0] / values[1]:.1f}" if has_ratio else ""
        lines.append(_line(figure.label, [*map(_number, values), ratio, figure.goal]))
    return "\n".join(lines)


def _line(label: str, cells: Sequence[str]) -> str:
    *numbers, ratio, goal = cells
    return (
        f"| {label:36} | " + " | ".join([*(f"{number:>8}" for number in numbers), f"{ratio:>5}", f"{goal:>6}"]) + " |"
    )


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _growth(rows: Sequence[Row]) -> str:
    """The change from the smallest to the largest count; empty without two counts and a cost to compare with."""
    ordered = sorted(rows, key=lambda row: row.count)
    if len(ordered) < 2 or not ordered[0].cpu_ms_per_object:
        return ""
    first, last = ordered[0], ordered[-1]
    percent = 100 * (last.cpu_ms_per_object / first.cpu_ms_per_object - 1)
    return f"CPU per object from {first.count} to {last.count} objects, {_LABELS[first.operator]}: {percent:+.0f} %" + (
        " (goal <= +20 %)" if first.operator == "flotilla" else ""
    )
