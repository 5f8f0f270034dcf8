"""Metric text in the dialects of the engines.

Compared with the real `prometheus_client` and with a capture in `tests/unit/test_engine_sim_metrics.py`.
"""

from __future__ import annotations

import math

from flotilla_devcluster.engine.metrics import Distribution, Family, Metrics, Value


def python_text(metrics: Metrics, *, prefix: str = "") -> str:
    """As Python's prometheus_client writes it: a `_created` gauge follows each family that has one."""
    lines: list[str] = []
    for family in (family for name, family in metrics.families.items() if name.startswith(prefix)):
        lines.append(f"# HELP {family.name} {_escape_help(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for key, value in family.values.items():
            lines.append(f"{family.name}{_braces(family, key)} {python_number(value.value)}")
        for key, distribution in family.distributions.items():
            lines += _python_distribution(family, key, distribution)
        lines += _python_created(family)
    return "\n".join(lines) + "\n"


def _python_distribution(family: Family, key: tuple[str, ...], distribution: Distribution) -> list[str]:
    lines, running = [], 0
    if family.kind == "histogram":
        for bound, count in zip((*distribution.bounds, math.inf), distribution.counts, strict=True):
            running += count
            braces = _braces(family, key, le=python_number(bound))
            lines.append(f"{family.name}_bucket{braces} {python_number(running)}")
    braces = _braces(family, key)
    lines.append(f"{family.name}_count{braces} {python_number(distribution.count)}")
    lines.append(f"{family.name}_sum{braces} {python_number(distribution.total)}")
    return lines


def _python_created(family: Family) -> list[str]:
    children: dict[tuple[str, ...], Value | Distribution] = {**family.values, **family.distributions}
    if family.kind == "gauge" or not children:
        return []
    # iteration_tokens_total is a histogram: only a counter's own suffix goes away
    name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
    lines = [f"# HELP {name}_created {_escape_help(family.help)}", f"# TYPE {name}_created gauge"]
    for key, child in children.items():
        lines.append(f"{name}_created{_braces(family, key)} {python_number(child.created_s)}")
    return lines


def python_number(value: float) -> str:
    """As prometheus_client writes it: always a float, with an exponent from a million on."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    text = repr(float(value))
    point = text.find(".")
    if value > 0 and point > 6:
        mantissa = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{point - 1:02d}"
    return text


def multiprocess_text(metrics: Metrics) -> str:
    """As prometheus_client writes what several processes count: no `_created`, untouched: absent, the sum first."""
    lines: list[str] = []
    for family in metrics.families.values():
        if not family.values and not family.distributions:
            continue
        lines.append(f"# HELP {family.name} {_escape_help(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for key, value in family.values.items():
            lines.append(f"{family.name}{_braces(family, key)} {python_number(value.value)}")
        for key, distribution in family.distributions.items():
            *buckets, count, total = _python_distribution(family, key, distribution)
            lines += [total, *buckets, count]
    return "\n".join(lines) + "\n"


def stream_text(metrics: Metrics) -> str:
    """As a C++ stream writes doubles: six significant digits."""
    lines: list[str] = []
    for family in metrics.families.values():
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [f"{family.name}{_braces(family, key)} {value.value:g}" for key, value in family.values.items()]
    return "\n".join(lines) + "\n"


def rust_text(metrics: Metrics) -> str:
    """As Rust's metrics-exporter-prometheus writes it: counters, gauges, histograms; untouched: absent."""
    lines: list[str] = []
    for kind in ("counter", "gauge", "histogram"):
        for family in metrics.families.values():
            if family.kind == kind and (family.values or family.distributions):
                lines += _rust_family(family)
                lines.append("")
    return "\n".join(lines) + "\n"


def _rust_family(family: Family) -> list[str]:
    lines = [f"# HELP {family.name} {family.help}"] if family.help else []
    lines.append(f"# TYPE {family.name} {family.kind}")
    for key, value in family.values.items():
        lines.append(f"{family.name}{_braces(family, key)} {rust_number(value.value)}")
    for key, distribution in family.distributions.items():
        running = 0
        for bound, count in zip((*distribution.bounds, math.inf), distribution.counts, strict=True):
            running += count
            braces = _braces(family, key, le=rust_number(bound))
            lines.append(f"{family.name}_bucket{braces} {running}")
        lines.append(f"{family.name}_sum{_braces(family, key)} {rust_number(distribution.total)}")
        lines.append(f"{family.name}_count{_braces(family, key)} {running}")
    return lines


def rust_number(value: float) -> str:
    """As Rust displays an f64: no exponent, and no fraction where there is none."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)


def _braces(family: Family, key: tuple[str, ...], **extra: str) -> str:
    labels = dict(zip(family.labels, key, strict=True)) | extra
    if not labels:
        return ""
    inner = ",".join(f'{label}="{_escape(labels[label])}"' for label in sorted(labels))
    return f"{{{inner}}}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
