"""The `flotilla` command. Verbs import what they need when they run, so that `flotilla --help` stays quick."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from flotilla import __version__

app = typer.Typer(
    name="flotilla",
    help="Self-hosted fleets of small language models on Kubernetes, priced against the hosted API.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def operator(
    config: Annotated[
        Path | None, typer.Option(envvar="FLOTILLA_CONFIG", help="YAML file with any of the settings.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(envvar="KUBECONFIG", help="Default: the pod's ServiceAccount.")
    ] = None,
    namespace: Annotated[
        list[str] | None, typer.Option(envvar="FLOTILLA_NAMESPACES", help="Watch only these; repeatable.")
    ] = None,
    listen_port: Annotated[
        int | None, typer.Option(envvar="FLOTILLA_LISTEN_PORT", help="/healthz, /readyz, /metrics.")
    ] = None,
    leader_election: Annotated[
        bool | None, typer.Option(envvar="FLOTILLA_LEADER_ELECTION", help="Take a Lease before acting.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(envvar="FLOTILLA_LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
    ] = None,
    log_format: Annotated[str | None, typer.Option(envvar="FLOTILLA_LOG_FORMAT", help="json or text.")] = None,
) -> None:
    """Run the operator until SIGTERM. Options win over environment variables, these over the file."""
    run = import_module("flotilla.app").main
    settings: dict[str, Any] = {
        "kubeconfig": kubeconfig,
        "namespaces": namespace or None,
        "listen_port": listen_port,
        "log_level": log_level,
        "log_format": log_format,
    }
    overrides = {name: value for name, value in settings.items() if value is not None}
    raise typer.Exit(run(config, overrides, leader_election=leader_election))


@app.command()
def crds() -> None:
    """Print the CustomResourceDefinitions, for `flotilla crds | kubectl apply --server-side -f -`."""
    typer.echo(import_module("flotilla.api.crd").dump(), nl=False)


app.add_typer(
    import_module("flotilla.cli.devcluster").app,
    name="devcluster",
    help="A local Kubernetes control plane without Docker, root or cloud.",
)


def main() -> None:
    """Entry point of `flotilla` and `kubectl flotilla`."""
    app()
