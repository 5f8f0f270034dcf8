"""The verbs that look at a fleet and at manifests. Each imports what it needs when it runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flotilla.cli import exits

Files = Annotated[list[Path], typer.Argument(help="Files, folders, or - for standard input.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _end(error: Exception, code: int) -> NoReturn:
    """Say what is wrong, with the field where there is one."""
    typer.echo(f"{getattr(error, 'field', '')}: {error}".lstrip(": "), err=True)
    raise typer.Exit(code) from error


def render(
    files: Files,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Where a file names none.")] = "default",
    engines: Annotated[Path | None, typer.Option(help="A folder of profiles, as the operator's setting.")] = None,
    accelerators: Annotated[Path | None, typer.Option(help="A file of classes, as the operator's setting.")] = None,
    as_json: Json = False,
) -> None:
    """Print what the operator would make of resources, without a cluster. Exit code 1: it would refuse one."""
    verb, errors = import_module("flotilla.cli.render"), import_module("flotilla.errors")
    try:
        documents = import_module("flotilla.cli.manifests").read(files)
        catalog = import_module("flotilla.domain.resolve").load_catalog(engines=engines, accelerator_table=accelerators)
        found = verb.outcomes(documents, catalog, namespace=namespace)
        if not found:
            raise errors.InvalidSpec("No ModelDeployment or RoutingPolicy is in there.", field="FILE")
    except errors.InvalidSpec as error:
        _end(error, exits.WRONG_QUESTION)
    typer.echo(verb.as_json(found) if as_json else verb.as_yaml(found), nl=as_json)
    refused = [outcome for outcome in found if outcome.refusals]
    for outcome in refused:
        typer.echo("\n".join(f"{outcome.title}: {text}" for text in outcome.refusals), err=True)
    raise typer.Exit(exits.NO if refused else exits.OK)


def convert(
    files: Files,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", "-a", help="The class where a manifest says only nvidia.com/gpu.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn manifests of KubeAI, KServe and LLMKube into ModelDeployments. Exit code 1: not all of them could be."""
    verb, errors = import_module("flotilla.cli.convert"), import_module("flotilla.errors")
    try:
        documents = import_module("flotilla.cli.manifests").read(files)
        catalog = import_module("flotilla.domain.resolve").load_catalog()
        if accelerator is not None:
            find = import_module("flotilla.domain.accelerators").find_loosely
            accelerator = find(catalog.accelerators, accelerator).class_name
        found = verb.convert(documents, catalog, accelerator=accelerator)
        if not found:
            raise errors.InvalidSpec("Nothing of KubeAI, KServe or LLMKube is in there.", field="FILE")
    except errors.InvalidSpec as error:
        _end(error, exits.WRONG_QUESTION)
    typer.echo(verb.as_json(found) if as_json else verb.as_yaml(found), nl=as_json)
    open_ends = [one for one in found if one.refusal]
    for one in open_ends:
        typer.echo(f"{one.origin}: {one.refusal}", err=True)
    raise typer.Exit(exits.NO if open_ends else exits.OK)


Kubeconfig = Annotated[Path | None, typer.Option(help="Default: KUBECONFIG, else ~/.kube/config.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: the context's.")]
_WATCH_S = 2.0


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
    with _reachable():
        path = reach.kubeconfig(kubeconfig)
        where = None if everywhere else namespace or reach.namespace_of(path)

        def look() -> Any:
            return reach.ask(path, lambda client: verb.fleet(client, where))

        found = look()
        if watch:
            _watch(console, lambda: verb.view(look(), everywhere=everywhere))
            raise typer.Exit(exits.OK)
    if as_json:
        typer.echo(verb.as_json(found))
    else:
        verb.show(console, found, everywhere=everywhere)
    raise typer.Exit(exits.OK if found.all_ready else exits.NO)


def _watch(console: Any, view: Callable[[], Any]) -> None:
    live = import_module("rich.live").Live(console=console, auto_refresh=False)
    with live, suppress(KeyboardInterrupt):
        while True:
            live.update(view(), refresh=True)
            time.sleep(_WATCH_S)


def describe(
    name: Annotated[str, typer.Argument(help="Of a ModelDeployment.")],
    kubeconfig: Kubeconfig = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Show one model: what was decided and why, its pods, its events. Exit code 1: there is none of that name."""
    verb, reach = import_module("flotilla.cli.describe"), import_module("flotilla.cli.reach")
    with _reachable():
        path = reach.kubeconfig(kubeconfig)
        where = namespace or reach.namespace_of(path)
        found = reach.ask(path, lambda client: verb.model(client, where, name))
    if as_json:
        typer.echo(verb.as_json(found))
    else:
        verb.show(import_module("rich.console").Console(), found)


def doctor(
    kubeconfig: Kubeconfig = None,
    operator_namespace: Annotated[str, typer.Option(help="Where to look for its Lease.")] = "flotilla-system",
    as_json: Json = False,
) -> None:
    """Look for what a cluster lacks, and say what helps. Exit code 1: a check failed; 3: it does not answer."""
    verb, reach = import_module("flotilla.cli.doctor"), import_module("flotilla.cli.reach")
    with _reachable():
        facts = reach.ask(reach.kubeconfig(kubeconfig), lambda client: verb.facts(client, operator_namespace))
    found = import_module("flotilla.cli.doctor_checks").examine(facts)
    if as_json:
        typer.echo(verb.as_json(found))
    else:
        verb.show(import_module("rich.console").Console(), found)
    raise typer.Exit(exits.OK if verb.healthy(found) else exits.NO)


@contextmanager
def _reachable() -> Iterator[None]:
    """Errors of the way to the cluster become exit codes."""
    errors = import_module("flotilla.errors")
    try:
        yield
    except errors.NotReady as error:
        _end(error, exits.NO)
    except errors.InvalidSpec as error:
        _end(error, exits.UNREACHABLE if error.field == "kubeconfig" else exits.WRONG_QUESTION)
    except errors.FlotillaError as error:
        _end(error, exits.UNREACHABLE)


def register(app: typer.Typer) -> None:
    """Add them to the command."""
    for verb in (status, describe, render, doctor, convert):
        app.command()(verb)
