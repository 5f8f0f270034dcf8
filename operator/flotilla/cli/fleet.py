"""The options of the verbs that look at a fleet: `status`, `top`, `describe`, `logs`, `doctor`."""

import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer

from flotilla.cli import exits
from flotilla.cli.endings import told
from flotilla.cli.options import Json, Kubeconfig, Namespace, OperatorKubeconfig, OperatorNamespace, own_kubeconfig
from flotilla.errors import InvalidSpec

app = typer.Typer()
_WATCH_S = 2.0
_RATE_S = 5.0
"""The operator counts tokens every two seconds: over less than this a rate would jump."""


@app.command()
def status(
    kubeconfig: Kubeconfig = None,
    namespace: Namespace = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show the fleet: replicas, state, dollars. Exit code 1: something is not ready; 3: the cluster does not answer."""
    verb, reach = import_module("flotilla.cli.status"), import_module("flotilla.cli.reach")
    console = import_module("rich.console").Console()
    with told():
        path = reach.kubeconfig(kubeconfig)
        where = None if everywhere else namespace or reach.namespace_of(path)

        def look() -> Any:
            return reach.ask(path, lambda client: verb.fleet(client, where))

        found = look()
        if watch:
            _watch(console, lambda: verb.view(look(), everywhere=everywhere), _WATCH_S)
            raise typer.Exit(exits.OK)
    if as_json:
        typer.echo(verb.as_json(found))
    else:
        verb.show(console, found, everywhere=everywhere)
    raise typer.Exit(exits.OK if found.all_ready else exits.NO)


def _watch(console: Any, view: Callable[[], Any], interval_s: float) -> None:
    live = import_module("rich.live").Live(console=console, auto_refresh=False)
    with live, suppress(KeyboardInterrupt):
        while True:
            live.update(view(), refresh=True)
            time.sleep(interval_s)


@app.command()
def top(
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Default: every one.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
    interval: Annotated[
        float | None, typer.Option(min=1, max=60, help="Seconds between two looks. Default: 2; of one table 5.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Address of the operator's /metrics.")] = None,
    kubeconfig: OperatorKubeconfig = None,
    operator_namespace: OperatorNamespace = "flotilla-system",
    as_json: Json = False,
) -> None:
    """Show what each model does now, until Ctrl-C: queue, KV cache, tokens per second, dollars per hour.

    One table, and JSON, take two looks for the rates. Exit code 1: there is no model;
    3: the operator does not answer.
    """
    verb, sources = import_module("flotilla.cli.top"), import_module("flotilla.cli.sources")
    place = sources.Place(
        metrics=metrics, kubeconfig=kubeconfig or own_kubeconfig(), operator_namespace=operator_namespace
    )
    console = import_module("rich.console").Console()
    with told(not_ready=exits.UNREACHABLE):
        watched = verb.Watched(place, namespace)
        watched.look()
        if not (once or as_json):
            _watch(console, watched.view, interval or _WATCH_S)
            raise typer.Exit(exits.OK)
        time.sleep(interval or _RATE_S)
        watched.look()
    found = watched.rows()
    if as_json:
        typer.echo(verb.as_json(found))
    else:
        console.print(verb.view(found))
    raise typer.Exit(exits.OK if found else exits.NO)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="Of a ModelDeployment.")],
    kubeconfig: Kubeconfig = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Show one model: what was decided and why, its pods, its events. Exit code 1: there is none of that name."""
    verb, reach = import_module("flotilla.cli.describe"), import_module("flotilla.cli.reach")
    with told():
        path = reach.kubeconfig(kubeconfig)
        where = namespace or reach.namespace_of(path)
        found = reach.ask(path, lambda client: verb.model(client, where, name))
    if as_json:
        typer.echo(verb.as_json(found))
    else:
        verb.show(import_module("rich.console").Console(), found)


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="Of a ModelDeployment.")] = None,
    gateway: Annotated[bool, typer.Option("--gateway", help="Of the namespace's gateway instead.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, with new pods too, until Ctrl-C.")] = False,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of before the last restart.")] = False,
    since: Annotated[str | None, typer.Option(help="Not older than 90s, 10m, 2h.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="So many last lines of each pod. Default: all.")] = None,
    prefix: Annotated[bool, typer.Option(help="Begin each line with its pod's name.")] = True,
    kubeconfig: Kubeconfig = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Print what all pods of a model write, without tokens. Exit code 1: no such model, pod or log."""
    verb, reach = import_module("flotilla.cli.logs"), import_module("flotilla.cli.reach")

    def line(pod: str, text: str) -> None:
        said = verb.text_of(text)
        typer.echo(verb.json_of(pod, text) if as_json else f"{pod} | {said}" if prefix else said)

    with told():
        since_s = None
        if since is not None:
            since_s = import_module("flotilla.cli.periods").seconds(since, field="--since", shortest="1s")
        if (name is None) != gateway:
            raise InvalidSpec("Give the NAME of a ModelDeployment, or --gateway.", field="NAME")
        path = reach.kubeconfig(kubeconfig)
        where = namespace or reach.namespace_of(path)
        question = verb.Question(where, name, follow=follow, previous=previous, since_s=since_s, tail_lines=tail)
        out = verb.Out(line, lambda text: typer.echo(text, err=True))
        with suppress(KeyboardInterrupt):
            reach.ask(path, lambda client: verb.show(client, question, out))


@app.command()
def doctor(
    kubeconfig: Kubeconfig = None,
    operator_namespace: Annotated[str, typer.Option(help="Where to look for its Lease.")] = "flotilla-system",
    as_json: Json = False,
) -> None:
    """Look for what a cluster lacks, and say what helps. Exit code 1: a check failed; 3: it does not answer."""
    verb, reach = import_module("flotilla.cli.doctor"), import_module("flotilla.cli.reach")
    with told():
        facts = reach.ask(reach.kubeconfig(kubeconfig), lambda client: verb.facts(client, operator_namespace))
    found = import_module("flotilla.cli.doctor_checks").examine(facts)
    if as_json:
        typer.echo(verb.as_json(found))
    else:
        verb.show(import_module("rich.console").Console(), found)
    raise typer.Exit(exits.OK if verb.healthy(found) else exits.NO)
