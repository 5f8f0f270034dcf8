"""The cost table at the end, read from where a Prometheus would read it: the operator's /metrics."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.box import SIMPLE_HEAD
from rich.table import Table

Samples = dict[str, list[tuple[dict[str, str], Decimal]]]


def samples(text: str) -> Samples:
    """Group the samples of a /metrics text by name."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, Decimal(str(sample.value))))
    return found


def value(of: Samples, name: str, **labels: str) -> Decimal | None:
    """The sum of the samples that carry `labels`; None when there is none, which is not 0."""
    matching = [v for have, v in of.get(name, ()) if labels.items() <= have.items()]
    return sum(matching, Decimal(0)) if matching else None


def table(models: Iterable[Mapping[str, Any]], metrics: Samples, peaks: Mapping[str, int]) -> Table:
    """One row per ModelDeployment, in the order given."""
    grid = Table(title="What the fleet costs, against the hosted API", title_justify="left", box=SIMPLE_HEAD)
    for name in ("model", "engine", "quanti-\nzation", "GPUs"):
        grid.add_column(name, no_wrap=name == "model", min_width=16 if name == "model" else None)
    for name in ("replicas\n(peak)", "tokens", "$/h", "$/1M\ntokens", "hosted\n$/1M", "savings"):
        grid.add_column(name, justify="right")
    for model in models:
        grid.add_row(*_row(model, metrics, peaks))
    return grid


def _row(model: Mapping[str, Any], metrics: Samples, peaks: Mapping[str, int]) -> list[str]:
    name, status = model["metadata"]["name"], model["status"]
    labels = {"modeldeployment": name, "namespace": model["metadata"]["namespace"]}
    tokens = value(metrics, "flotilla_deployment_tokens_total", **labels)
    rate = value(metrics, "flotilla_deployment_cost_usd_per_hour", **labels)
    hour = {"window": "1h", **labels}
    blended = {"token_type": "blended", **hour}
    unit = value(metrics, "flotilla_deployment_cost_usd_per_million_tokens", **blended)
    comparators = status.get("cost", {}).get("comparators") or [{}]
    comparator = f"{comparators[0].get('provider')}/{comparators[0].get('model')}"
    ratio = value(metrics, "flotilla_cost_ratio", comparator=comparator, **hour)
    savings = value(metrics, "flotilla_savings_usd", comparator=comparator, **hour)
    hosted = unit * ratio if unit is not None and ratio is not None else None
    accelerator, engine = status["accelerator"], status["engine"]
    return [
        name,
        f"{engine['name']}\n{engine['version']}",
        status["quantization"]["method"],
        f"{accelerator['count']} x {accelerator['class']}",
        f"{status.get('replicas', 0)} ({peaks.get(name, 0)})",
        "-" if tokens is None else f"{tokens:,.0f}",
        _dollars(rate, 2),
        _dollars(unit, 3),
        "-" if hosted is None else f"{_dollars(hosted, 3)}\n{comparators[0].get('model')}",
        _savings(savings, ratio),
    ]


def _dollars(amount: Decimal | None, places: int) -> str:
    return "-" if amount is None else f"{amount:,.{places}f}"


def _savings(savings: Decimal | None, ratio: Decimal | None) -> str:
    if savings is None or not ratio:
        return "-"
    share = 100 * (1 - 1 / ratio)
    colour = "green" if savings >= 0 else "red"
    return f"[{colour}]{savings:+.4f} $\n({share:+,.0f} %)[/]"
