"""`flotilla top`: queue, tokens and dollars of each model now, from the operator's own metrics."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flotilla.cli.common import (
    EXIT_NO,
    EXIT_OK,
    EXIT_UNREACHABLE,
    AllNamespaces,
    Context,
    Json,
    Kubeconfig,
    OperatorNamespace,
    command_app,
    exit_on_error,
    plain,
    watch,
)
from flotilla.cli.sources import Metrics, Place, current
from flotilla.cost.spending import Samples
from flotilla.errors import FlotillaError

app = command_app()
Name = tuple[str, str]
"""Namespace and name of a ModelDeployment."""

_TOKENS = "flotilla_deployment_tokens_total"
_RATES = {"input_tokens_per_second": ("input", "cached_input"), "output_tokens_per_second": ("output",)}
"""Name in a row, and the token types of the counter that it is computed from."""
_NUMBERS = {
    "ready_replicas": "flotilla_ready_replicas",
    "desired_replicas": "flotilla_desired_replicas",
    "waiting": "flotilla_requests_waiting",
    "running": "flotilla_requests_running",
    "held": "flotilla_demand_requests",
    "kv_cache_ratio": "flotilla_kv_cache_usage_ratio",
    "usd_per_hour": "flotilla_deployment_cost_usd_per_hour",
}
"""Name in a row, and its metric, which is summed over other labels."""
_WINDOW_S = 10.0
"""Rates are over at least this: the operator counts tokens every few seconds, so a shorter rate would jump."""
_LEAST_S = 1
_WATCH_S = 2.0
_RATE_S = 5.0
"""Between the two readings of one table: the operator counts tokens every two seconds, so a shorter rate would jump."""
_TENTH = Decimal("0.1")


@dataclass(frozen=True, slots=True)
class Reading:
    """The operator's metrics at one time, in seconds of any clock that does not go back."""

    at: float
    samples: Samples


@dataclass(frozen=True, slots=True)
class TopRow:
    """One model; what is unknown is absent from `numbers`."""

    name: Name
    numbers: Mapping[str, Decimal]


class Watched:
    """The fleet of one operator: it keeps the last readings of the metrics, from which rates are computed."""

    def __init__(self, place: Place, namespace: str | None) -> None:
        """`namespace` None means every namespace."""
        self._place = place
        self._namespace = namespace
        self._readings: list[Reading] = []

    def read(self) -> None:
        """Read the metrics. Raises the errors of `sources.current`."""
        samples = asyncio.run(current(self._place))
        self._readings = window([*self._readings, Reading(time.monotonic(), samples)])

    def rows(self) -> list[TopRow]:
        """The last read, with rates over the readings before it."""
        return rows(self._readings, self._namespace)

    def view(self) -> RenderableType:
        """A new table, or the last one with the reason why it is not new."""
        try:
            self.read()
        except FlotillaError as error:
            return view(self.rows(), plain(str(error)))
        return view(self.rows())


def window(readings: Sequence[Reading]) -> list[Reading]:
    """The last readings, so many that the first of them is old enough for a rate."""
    kept = list(readings)
    while len(kept) > 2 and kept[-1].at - kept[1].at >= _WINDOW_S:
        kept.pop(0)
    return kept


def rows(readings: Sequence[Reading], namespace: str | None) -> list[TopRow]:
    """The last read, with tokens per second since the first. `namespace` None means every namespace."""
    first, last = readings[0], readings[-1]
    numbers = {key: _by_model(last.samples, metric) for key, metric in _NUMBERS.items()}
    seconds = Decimal(str(last.at - first.at))
    for key, types in _RATES.items() if seconds >= _LEAST_S else ():
        before, now = (_by_model(each.samples, _TOKENS, types) for each in (first, last))
        # A counter that decreased is that of another operator, which started from zero.
        grown = {name: total - before[name] for name, total in now.items() if name in before}
        numbers[key] = {name: tokens / seconds for name, tokens in grown.items() if tokens >= 0}
    names = sorted(numbers["desired_replicas"])
    return [
        TopRow(name, {key: values[name] for key, values in numbers.items() if name in values})
        for name in names
        if namespace in (None, name[0])
    ]


def _by_model(samples: Samples, metric: str, token_types: Sequence[str] = ()) -> dict[Name, Decimal]:
    found: dict[Name, Decimal] = {}
    for labels, value in samples.get(metric, ()):
        if token_types and labels.get("token_type") not in token_types:
            continue
        name = (labels.get("namespace", ""), labels.get("modeldeployment", ""))
        found[name] = found.get(name, Decimal(0)) + value
    return found


def json_text(found: Sequence[TopRow]) -> str:
    """A list of models; money is decimal text, other numbers are numbers, what is unknown is absent."""
    return json.dumps(
        [
            {"namespace": row.name[0], "name": row.name[1], **{k: _plain(k, v) for k, v in row.numbers.items()}}
            for row in found
        ],
        indent=2,
    )


def _plain(key: str, value: Decimal) -> Any:
    if key == "usd_per_hour":
        return f"{value:.4f}"
    if key in _RATES:
        return float(value.quantize(_TENTH))
    return float(value) if value % 1 else int(value)


def view(found: Sequence[TopRow], trouble: str = "") -> RenderableType:
    """A table for a terminal, and below it why it is not up to date."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("NAMESPACE", no_wrap=True)
    table.add_column("MODEL", no_wrap=True)
    for name in ("READY", "WAITING", "RUNNING", "HELD", "KV CACHE", "IN TOK/S", "OUT TOK/S", "$/H"):
        table.add_column(name, no_wrap=True, justify="right")
    for row in found:
        table.add_row(*(Text(plain(part)) for part in row.name), *_cells(row.numbers))
    costs = [row.numbers["usd_per_hour"] for row in found if "usd_per_hour" in row.numbers]
    total = f"{len(found)} models" + (f", {sum(costs):.2f} $/h" if costs else "")
    return Group(table, Text(total, style="bold"), *([Text(trouble, style="red")] if trouble else ()))


def _cells(numbers: Mapping[str, Decimal]) -> list[Text]:
    def cell(key: str, places: int = 0) -> str:
        return f"{numbers[key]:,.{places}f}" if key in numbers else "-"

    waiting, cache = numbers.get("waiting"), numbers.get("kv_cache_ratio")
    return [
        Text(f"{cell('ready_replicas')}/{cell('desired_replicas')}"),
        Text(cell("waiting"), style="yellow" if waiting else ""),
        Text(cell("running")),
        Text(cell("held")),
        Text("-" if cache is None else f"{cache:.0%}", style="" if cache is None or cache < Decimal("0.9") else "red"),
        *(Text(cell(key)) for key in _RATES),
        Text(cell("usd_per_hour", 2)),
    ]


@app.command()
def top(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Models of one namespace. Default: of every namespace.")
    ] = None,
    all_namespaces: AllNamespaces = False,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(min=1, max=60, help="Seconds between two readings. Default: 2; with --once or --json 5."),
    ] = None,
    metrics: Metrics = None,
    operator_namespace: OperatorNamespace = "flotilla-system",
    as_json: Json = False,
) -> None:
    """Show what each model does now: queue, KV cache, tokens per second, dollars per hour.

    The table is refreshed until Ctrl-C. With --once or --json it is printed
    after two readings, which the rates need. Exit code 1: there is no model;
    3: the operator does not answer.
    """
    console = Console()
    with exit_on_error(not_ready=EXIT_UNREACHABLE):
        place = Place(metrics=metrics, kubeconfig=kubeconfig, context=context, operator_namespace=operator_namespace)
        watched = Watched(place, None if all_namespaces else namespace)
        watched.read()
        if not (once or as_json):
            watch(console, watched.view, interval or _WATCH_S)
        time.sleep(interval or _RATE_S)
        watched.read()
    found = watched.rows()
    if as_json:
        typer.echo(json_text(found))
    else:
        console.print(view(found))
    raise typer.Exit(EXIT_OK if found else EXIT_NO)
