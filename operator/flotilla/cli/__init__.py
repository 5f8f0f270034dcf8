"""The `flotilla` command. Verbs import what they need when they run, so that `flotilla --help` stays quick."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from flotilla import __version__
from flotilla.cli import money

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what serves a workload for least: hosted small, self-hosted small, frontier, or a mix.

    Exit code 0: there is an answer; 1: nothing is allowed; 2: a wrong question.
    """
    verb = import_module("flotilla.cli.advise")
    errors = import_module("flotilla.errors")
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
    except errors.InvalidSpec as error:
        typer.echo(f"{error.field}: {error}".lstrip(": "), err=True)
        raise typer.Exit(verb.EXIT_INVALID) from error
    if as_json:
        typer.echo(verb.as_json(advice, told))
    else:
        verb.show(import_module("rich.console").Console(), work, advice, told)
    raise typer.Exit(verb.EXIT_NOTHING_ALLOWED if advice.decision is None else verb.EXIT_DECIDED)


app.command()(money.cost)
app.command()(money.report)

app.add_typer(
    import_module("flotilla.cli.devcluster").app,
    name="devcluster",
    help="A local Kubernetes control plane without Docker, root or cloud.",
)


app.add_typer(import_module("flotilla.cli.simulate").app, name="simulate")


def main() -> None:
    """Entry point of `flotilla` and `kubectl flotilla`."""
    app()
