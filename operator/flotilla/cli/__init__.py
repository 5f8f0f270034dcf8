"""The `flotilla` command: one module per command, imported when the command runs.

`flotilla --help` and completion read the table below; `Commands` then imports `flotilla.cli.NAME`, whose `app` is the
command with its options. What several commands share: `common` (options, exit codes, errors, output), `kubeconfig`
(finds and connects to the cluster), `sources` (finds Prometheus or the operator's metrics), `manifests` (resources
from files). `plugins` finds the commands of other distributions.

The clients of the apiserver and of Prometheus are imported in the functions that use them, because they take longer to
load than everything else that a command's --help needs.
"""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from flotilla import __version__
from flotilla.cli import plugins

COMMANDS = {
    "status": "Show the fleet: replicas, state, dollars.",
    "top": "Show what each model does now: queue, tokens, dollars.",
    "describe": "Show one model: decisions, conditions, pods, events.",
    "logs": "Print the logs of all pods of a model or gateway.",
    "doctor": "Check what a cluster lacks, with a remedy for each.",
    "cost": "Print what models cost, compared with hosted ones.",
    "report": "Write the costs of the fleet as one HTML page.",
    "envelope": "Print a policy's latency, cost, quality and sovereignty.",
    "advise": "Compare hosted and self-hosted models for a workload.",
    "render": "Print the manifests the operator would apply.",
    "convert": "Convert manifests of KubeAI, KServe and LLMKube.",
    "crds": "Print the CustomResourceDefinitions.",
    "estimate": "Check whether a model fits an accelerator.",
    "operator": "Run the operator until SIGTERM.",
    "gateway": "Run the gateway of one namespace until SIGTERM.",
    "evaluate": "Ask models the cases of a task and judge the answers.",
    "route": "Show what a RoutingPolicy does with a request.",
    "captures": "List, sample, export and delete captured examples.",
    "tune": "Train a LoRA adapter from captured examples.",
    "simulate": "Replay a load through the operator's scaling.",
}
"""The summaries leave out details, so that each fits on a line of 80 columns."""


class Commands(TyperGroup):
    """The commands by name, as placeholders until one of them is to run or to be completed."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, summary in (*COMMANDS.items(), *plugins.SUMMARIES.items()):
            self.add_command(TyperCommand(name, help=summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the first argument names, imported from this package or from another distribution."""
        name: str | None = args[0]
        if name not in COMMANDS and (plugin := plugins.find(args[0])) is not None:
            return name, plugin, args[1:]
        name, command, rest = super().resolve_command(ctx, args)
        if name in plugins.SUMMARIES:
            command = plugins.missing(name)
        elif name in COMMANDS:
            command = typer.main.get_command(import_module(f"flotilla.cli.{name}").app)
        return name, command, rest


app = typer.Typer(
    name="flotilla",
    cls=Commands,
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


def main() -> None:
    """Entry point of `flotilla` and `kubectl flotilla`."""
    app()
