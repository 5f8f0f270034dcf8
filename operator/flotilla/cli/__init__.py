"""The `flotilla` command.

Each module of `_VERBS` and `_GROUPS` has an `app` with its verbs' options; a verb imports what it needs when it runs,
so that `flotilla --help` stays quick. `flotilla.cli.plugins` finds the commands of other distributions.
"""

from importlib import import_module
from typing import Annotated

import typer

from flotilla import __version__
from flotilla.cli import plugins

_VERBS = ("fleet", "money", "files", "processes")
_GROUPS = ("route", "simulate")

app = typer.Typer(
    name="flotilla",
    cls=plugins.CommandGroup,
    help="Self-hosted fleets of small language models on Kubernetes, priced against the hosted API.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its help costs more time than all the rest of the start
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


for _name in _VERBS:
    app.add_typer(import_module(f"flotilla.cli.{_name}").app)
for _name in _GROUPS:
    app.add_typer(import_module(f"flotilla.cli.{_name}").app, name=_name)
plugins.announce(app)


def main() -> None:
    """Entry point of `flotilla` and `kubectl flotilla`."""
    app()
