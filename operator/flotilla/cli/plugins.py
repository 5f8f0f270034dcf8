"""Commands of other distributions: entry points of the group `flotilla.commands`.

A distribution adds `flotilla NAME` with an entry point of that name whose object is a `typer.Typer`:

    [project.entry-points."flotilla.commands"]
    devcluster = "flotilla_devcluster.cli:app"

The installed distributions are searched only for a name that the CLI does not have itself, because reading them costs a
third of the time of `flotilla --help`. A command of the CLI itself always has precedence.
"""

from typing import Annotated, Any, Final

import typer

GROUP: Final = "flotilla.commands"
SUMMARIES: Final = {"devcluster": "Run a Kubernetes control plane on this machine."}
"""Lines of `flotilla --help` for commands of this project that come with another distribution, installed or not."""


def find(name: str) -> Any:
    """The command of that name from an installed distribution, or None."""
    if name.startswith("-"):
        return None
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=name):
        command = typer.main.get_command(entry.load())
        command.name = name
        return command
    return None


def missing(name: str) -> Any:
    """A command that says which package to install."""
    app, package = typer.Typer(rich_markup_mode=None), f"flotilla-{name}"

    @app.command(name, add_help_option=False, context_settings={"ignore_unknown_options": True})
    def tell(_: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        typer.echo(
            f"`flotilla {name}` comes with the package {package}, which is not installed. "
            f"Install it with `pip install {package}`.",
            err=True,
        )
        raise typer.Exit(1)

    return typer.main.get_command(app)
