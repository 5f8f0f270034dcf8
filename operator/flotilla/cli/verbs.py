"""The verbs that look at a fleet and at manifests. Each imports what it needs when it runs."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

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


def register(app: typer.Typer) -> None:
    """Add them to the command."""
    for verb in (render,):
        app.command()(verb)
