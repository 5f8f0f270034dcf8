"""The options of the verbs about money: `cost`, `report`, `advise`."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from flotilla.cli import exits
from flotilla.cli.endings import end, told
from flotilla.cli.options import Json, OperatorKubeconfig, OperatorNamespace, own_kubeconfig
from flotilla.errors import InvalidSpec

app = typer.Typer()
Prometheus = Annotated[
    str | None, typer.Option(envvar="FLOTILLA_PROMETHEUS_URL", help="Address of a Prometheus that scrapes Flotilla.")
]
CaFile = Annotated[Path | None, typer.Option(help="Certificates that the Prometheus' own is checked by.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token for the Prometheus.")]
Metrics = Annotated[str | None, typer.Option(help="Address of the operator's /metrics, for the totals so far.")]


@app.command()
def cost(
    by: Annotated[Literal["model", "namespace", "team", "route"], typer.Option(help="One line for each.")] = "model",
    since: Annotated[
        str | None, typer.Option(help="90m, 24h, 7d, 4w; needs --prometheus, where it is 24h by default.")
    ] = None,
    output: Annotated[
        Literal["table", "json", "csv", "focus"],
        typer.Option("--output", "-o", help="focus is FOCUS 1.2 CSV, a row per model and day."),
    ] = "table",
    prometheus: Prometheus = None,
    prometheus_ca_file: CaFile = None,
    prometheus_token_file: TokenFile = None,
    metrics: Metrics = None,
    kubeconfig: OperatorKubeconfig = None,
    operator_namespace: OperatorNamespace = "flotilla-system",
    idle: Annotated[
        Literal["proportional", "even", "owner"] | None,
        typer.Option(help="Who carries idle time, by team or route: by work (default), all alike, or the owner."),
    ] = None,
    account: Annotated[str, typer.Option(help="In FOCUS: who owns the accelerators.")] = "self-hosted",
) -> None:
    """Print what models cost and served, against hosted ones.

    Exit code 0: printed; 1: there is nothing to print; 2: a wrong question; 3: the source does not answer.
    """
    verb, sources = import_module("flotilla.cli.cost"), import_module("flotilla.cli.sources")
    place = sources.Place(
        prometheus=prometheus,
        metrics=metrics,
        kubeconfig=kubeconfig or own_kubeconfig(),
        operator_namespace=operator_namespace,
        ca_file=prometheus_ca_file,
        token_file=prometheus_token_file,
    )
    rule = None if idle is None else verb.IdleRule(idle)
    question = verb.Question(by=by, output=output, since=since, place=place, account=account, idle=rule)
    with told(not_ready=exits.UNREACHABLE):
        answer = verb.ask(question, import_module("rich.console").Console())
    sys.stdout.write(answer.text)
    if not answer.lines:
        typer.echo(verb.nothing(question), err=True)
        raise typer.Exit(exits.NO)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="The HTML file to write; - prints it.")] = Path("flotilla-report.html"),
    since: Annotated[
        str | None, typer.Option(help="90m, 24h, 7d, 4w; needs --prometheus, where it is 7d by default.")
    ] = None,
    prometheus: Prometheus = None,
    prometheus_ca_file: CaFile = None,
    prometheus_token_file: TokenFile = None,
    metrics: Metrics = None,
    kubeconfig: OperatorKubeconfig = None,
    operator_namespace: OperatorNamespace = "flotilla-system",
) -> None:
    """Write what the fleet cost as one HTML page that needs nothing else: charts, savings, and what to change.

    Exit code 0: written; 1: there is nothing to write about; 2: a wrong question; 3: the source does not answer.
    """
    verb, sources = import_module("flotilla.cli.report"), import_module("flotilla.cli.sources")
    place = sources.Place(
        prometheus=prometheus,
        metrics=metrics,
        kubeconfig=kubeconfig or own_kubeconfig(),
        operator_namespace=operator_namespace,
        ca_file=prometheus_ca_file,
        token_file=prometheus_token_file,
    )
    with told(not_ready=exits.UNREACHABLE):
        found = verb.ask(place, since)
    if not found.deployments:
        typer.echo("There is no ModelDeployment to report on in that time: try `flotilla cost` for why.", err=True)
        raise typer.Exit(exits.NO)
    html = verb.html(found)
    if str(file) == "-":
        sys.stdout.write(html)
        return
    try:
        file.write_text(html)
    except OSError as error:
        typer.echo(f"{file}: {error.strerror}", err=True)
        raise typer.Exit(exits.WRONG_QUESTION) from error
    typer.echo(f"Written to {file}.")


@app.command()
def advise(
    tasks_per_day: Annotated[int, typer.Option("--tasks-per-day", "-n", help="Requests of an average day.")],
    input_tokens: Annotated[int, typer.Option(help="Of a mean task.")] = 1000,
    output_tokens: Annotated[int, typer.Option(help="Of a mean task.")] = 150,
    cached: Annotated[float, typer.Option(min=0, max=100, help="Percent of the input that repeats.")] = 0,
    quality: Annotated[str, typer.Option(help="What is good enough: small, mixed or frontier.")] = "small",
    escalation: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Percent beyond a small model. Default: 0, 20, 100 by --quality."),
    ] = None,
    latency: Annotated[str, typer.Option(help="interactive, or batch: hours are fine.")] = "interactive",
    sovereignty: Annotated[str, typer.Option(help="any, or cluster: data must stay in it.")] = "any",
    accelerator: Annotated[
        list[str] | None, typer.Option("--accelerator", "-a", help="L4, or H100=2.69 at your price; repeatable.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=16, help="GPUs of a replica.")] = 1,
    tasks_per_second: Annotated[
        str | None, typer.Option(help="Of one replica at saturation. Default: of an 8B model where measured.")
    ] = None,
    small: Annotated[str, typer.Option(help="Hosted small model: PROVIDER/MODEL[=IN/OUT].")] = "openai/gpt-6-luna",
    frontier: Annotated[str, typer.Option(help="Frontier model, likewise.")] = "anthropic/claude-sonnet-5-5",
    compare: Annotated[list[str] | None, typer.Option(help="More hosted models for the break-even table.")] = None,
    peak: Annotated[str | None, typer.Option(help="Busiest time over the mean. Default: 3, in batch 1.")] = None,
    utilization: Annotated[
        float | None,
        typer.Option(min=1, max=100, help="Percent of a replica's speed used then. Default: 70, in batch 100."),
    ] = None,
    overhead: Annotated[str, typer.Option(help="USD a day beside the GPUs, such as people.")] = "0",
    min_replicas: Annotated[int, typer.Option(min=1)] = 1,
    max_replicas: Annotated[int, typer.Option(min=1)] = 1000,
    price_catalog: Annotated[Path | None, typer.Option(help="Your own GPU prices, as the operator's.")] = None,
    as_json: Json = False,
) -> None:
    """Say what serves a workload for least: hosted small, self-hosted small, frontier, or a mix.

    Exit code 0: there is an answer; 1: nothing is allowed; 2: a wrong question.
    """
    verb = import_module("flotilla.cli.advise")
    try:
        work, terms, batch = verb.question(
            tasks_per_day, input_tokens, output_tokens, cached=cached, quality=quality, escalation=escalation,
            latency=latency, sovereignty=sovereignty, peak=peak, utilization=utilization, overhead=overhead,
            replicas=(min_replicas, max_replicas),
        )  # fmt: skip
        speed = None if tasks_per_second is None else verb.decimal(tasks_per_second, "--tasks-per-second")
        advice, told = verb.ask(
            work, terms, classes=accelerator or [], count=count, speed=speed, small=small, frontier=frontier,
            others=compare or [], batch=batch, price_catalog=price_catalog,
        )  # fmt: skip
    except InvalidSpec as error:
        end(error, exits.WRONG_QUESTION)
    if as_json:
        typer.echo(verb.as_json(advice, told))
    else:
        verb.show(import_module("rich.console").Console(), work, advice, told)
    raise typer.Exit(exits.NO if advice.decision is None else exits.OK)
