"""`flotilla report`: what the fleet cost, as one HTML page."""

import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flotilla.cli.common import (
    EXIT_NO,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    Context,
    Kubeconfig,
    OperatorNamespace,
    command_app,
    duration_s,
    exit_on_error,
)
from flotilla.cli.sources import CaFile, Metrics, Place, Prometheus, TokenFile, client_of, current
from flotilla.cost import spending
from flotilla.errors import InvalidSpec
from flotilla.reports.cost_report import Report, Step, page

if TYPE_CHECKING:
    from flotilla.prometheus.client import RangeSeries

app = command_app()
_HOUR_S, _DAY_S = 3600, 86_400
_STEPS = ((6 * _HOUR_S, 900), (3 * _DAY_S, _HOUR_S), (14 * _DAY_S, 6 * _HOUR_S), (92 * _DAY_S, _DAY_S))
"""Longest period and the seconds of one column of its charts."""
_LONGEST_STEP_S = 7 * _DAY_S


def ask(place: Place, since: str | None) -> Report:
    """Raises InvalidSpec for a usage error, other FlotillaErrors where the source does not answer."""
    return asyncio.run(_ask(place, since))


async def _ask(place: Place, since: str | None) -> Report:
    from flotilla.cost.spending_client import History

    end = time.time()
    moment = datetime.fromtimestamp(end, UTC)
    if place.prometheus is None:
        if since is not None:
            raise InvalidSpec("--since needs the history of a Prometheus. Name one with --prometheus.", field="--since")
        found = spending.spent(await current(place))
        return Report(found, (), None, moment, "the operator's own metrics")
    start = end - duration_s(since or "7d", field="--since")
    step_s = next((step for longest, step in _STEPS if end - start <= longest), _LONGEST_STEP_S)
    client = client_of(place)
    try:
        history = History(client)
        found = spending.spent(await history.period(start, end))
        series = await history.steps(start, end, step_s=step_s)
    finally:
        await client.close()
    return Report(found, steps(series, step_s), datetime.fromtimestamp(start, UTC), moment, "Prometheus")


def steps(series: tuple["RangeSeries", ...], step_s: int) -> tuple[Step, ...]:
    """One column for each step that has any state, named by its beginning."""
    by_time: dict[float, dict[str, float]] = {}
    for one in series:
        for at, value in one.points:
            if value is not None:
                by_time.setdefault(at, {})[one.labels.get("state", "")] = value
    return tuple(Step(_label(at - step_s, step_s), by_time[at]) for at in sorted(by_time))


def _label(at: float, step_s: int) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    if step_s >= _DAY_S:
        return f"{moment:%b} {moment.day}"
    return f"{moment:%H:%M}" if step_s < _HOUR_S else f"{moment:%b} {moment.day} {moment:%H}h"


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="HTML file to write; - prints it.")] = Path("flotilla-report.html"),
    since: Annotated[
        str | None, typer.Option(help="Period: 90m, 24h, 7d, 4w. It needs --prometheus; default there: 7d.")
    ] = None,
    prometheus: Prometheus = None,
    prometheus_ca_file: CaFile = None,
    prometheus_token_file: TokenFile = None,
    metrics: Metrics = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    operator_namespace: OperatorNamespace = "flotilla-system",
) -> None:
    """Write the costs of the fleet as one HTML page: charts, savings, and what to change.

    Exit code 1: there is no data; 3: the source does not answer.
    """
    place = Place(
        prometheus=prometheus,
        metrics=metrics,
        kubeconfig=kubeconfig,
        context=context,
        operator_namespace=operator_namespace,
        ca_file=prometheus_ca_file,
        token_file=prometheus_token_file,
    )
    with exit_on_error(not_ready=EXIT_UNREACHABLE):
        found = ask(place, since)
    if not found.deployments:
        typer.echo("There is no data of ModelDeployments in that time. `flotilla cost` shows why.", err=True)
        raise typer.Exit(EXIT_NO)
    html = page(found)
    if str(file) == "-":
        sys.stdout.write(html)
        return
    try:
        file.write_text(html)
    except OSError as error:
        typer.echo(f"{file} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    typer.echo(f"Written to {file}.")
