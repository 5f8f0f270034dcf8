"""Commands of other distributions: entry points of the group `flotilla.commands`.

A distribution adds `flotilla NAME` with an entry point of that name whose object is a `typer.Typer`:

    [project.entry-points."flotilla.commands"]
    devcluster = "flotilla_devcluster.cli:app"

The installed distributions are searched only for a name that the CLI does not have itself, because reading them costs a
third of the time of `flotilla --help`. A command of the CLI itself always has precedence.
"""

from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from flotilla.cli import exits

GROUP: Final = "flotilla.commands"
KNOWN: Final = {
    "devcluster": (
        "flotilla-devcluster",
        "A real Kubernetes control plane as processes of yours, for development and tests.",
    ),
}
"""Name of a command of this project to its distribution and its line in `flotilla --help`, installed or not."""


class CommandGroup(TyperGroup):
    """The root command: its own commands, and for other names the entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help: plugins last."""
        return sorted(super().list_commands(ctx), key=KNOWN.__contains__)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the first argument names, as click asks for it before it runs or completes it."""
        name = args[0]
        own = name in self.commands and name not in KNOWN
        if not own and not name.startswith("-") and (plugin := find(name)) is not None:
            command = typer.main.get_command(plugin)
            command.name = name
            return name, command, args[1:]
        return super().resolve_command(ctx, args)


def find(name: str) -> typer.Typer | None:
    """The command of that name from an installed distribution."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=name):
        plugin: typer.Typer = entry.load()
        return plugin
    return None


def announce(app: typer.Typer) -> None:
    """List the known plugins in the help; run without its distribution, each names what to install."""
    for name, (distribution, line) in KNOWN.items():
        app.command(name, help=line, add_help_option=False, context_settings={"ignore_unknown_options": True})(
            _missing(name, distribution)
        )


def _missing(name: str, distribution: str) -> Any:
    def missing(_: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        typer.echo(
            f"`flotilla {name}` comes with the package {distribution}, which is not installed. "
            f"Install it with `pip install {distribution}`.",
            err=True,
        )
        raise typer.Exit(exits.NO)

    return missing
