"""The `flotilla` command. Verbs import what they need when they run, so that `flotilla --help` stays quick."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from flotilla import __version__
from flotilla.cli import money, verbs

app = typer.Typer(
    name="flotilla",
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


@app.command()
def estimate(
    model: Annotated[str | None, typer.Argument(help="OWNER/NAME of the hub, or any spec.model.source.")] = None,
    accelerator: Annotated[
        list[str] | None, typer.Option("--accelerator", "-a", help="L4 or nvidia-l4; repeatable. Default: all.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and answer. Default: what fits.")] = None,
    count: Annotated[int | None, typer.Option(min=1, max=16, help="GPUs. Default: the fewest that fit.")] = None,
    quantization: Annotated[str, typer.Option("--quantization", "-q", help="As spec.quantization.method.")] = "auto",
    kv_cache: Annotated[str, typer.Option(help="As spec.quantization.kvCache.")] = "auto",
    engine: Annotated[str, typer.Option(help="As spec.engine.name.")] = "vllm",
    config: Annotated[
        Path | None, typer.Option(help="A config.json, for a model that the catalogue does not know.")
    ] = None,
    parameters: Annotated[str | None, typer.Option(help="With --config: 7.6B; default: counted from it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a model fits an accelerator. Exit code 0: it does, or may; 1: it does not; 2: a wrong question."""
    verb = import_module("flotilla.cli.estimate")
    errors = import_module("flotilla.errors")
    try:
        if model is None and config is None:
            raise errors.InvalidSpec("Name a model, or a config.json with --config.", field="MODEL")
        described = verb.described(config, parameters) if config else None
        answers = verb.estimates(
            model,
            described,
            class_names=accelerator or [],
            engine=engine,
            method=quantization,
            kv_cache=kv_cache,
            context=context,
            count=count,
        )
    except (errors.InvalidSpec, ValueError) as error:
        typer.echo(f"{getattr(error, 'field', '')}: {error}".lstrip(": "), err=True)
        raise typer.Exit(verb.EXIT_INVALID) from error
    if as_json:
        typer.echo(import_module("json").dumps(answers, indent=2))
    else:
        console = import_module("rich.console").Console()
        verb.show(console, f"{model or config} on {engine}", answers)
        if described is not None:
            console.print(f"\n[bold]spec.model of a ModelDeployment:[/]\n{verb.architecture_yaml(described)}")
    raise typer.Exit(verb.exit_code(answers))


app.command()(money.advise)
app.command()(money.cost)
app.command()(money.report)
app.command("gateway")(import_module("flotilla.cli.gateway").gateway)

app.add_typer(import_module("flotilla.cli.route").app, name="route")
verbs.register(app)

app.add_typer(
    import_module("flotilla.cli.devcluster").app,
    name="devcluster",
    help="A local Kubernetes control plane without Docker, root or cloud.",
)


app.add_typer(import_module("flotilla.cli.simulate").app, name="simulate")


def main() -> None:
    """Entry point of `flotilla` and `kubectl flotilla`."""
    app()
