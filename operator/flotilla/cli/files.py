"""The options of the verbs that need no cluster but files: `render`, `convert`, `estimate`, `crds`."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from flotilla.cli import exits
from flotilla.cli.endings import end
from flotilla.cli.options import Json
from flotilla.errors import InvalidSpec

app = typer.Typer()
Files = Annotated[list[Path], typer.Argument(help="Files, folders, or - for standard input.")]


@app.command()
def render(
    files: Files,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Where a file names none.")] = "default",
    engines: Annotated[Path | None, typer.Option(help="A folder of profiles, as the operator's setting.")] = None,
    accelerators: Annotated[Path | None, typer.Option(help="A file of classes, as the operator's setting.")] = None,
    as_json: Json = False,
) -> None:
    """Print what the operator would make of resources, without a cluster. Exit code 1: it would refuse one."""
    verb = import_module("flotilla.cli.render")
    try:
        documents = import_module("flotilla.cli.manifests").read(files)
        catalog = import_module("flotilla.planning.resolve").load_catalog(
            engines=engines, accelerator_table=accelerators
        )
        found = verb.outcomes(documents, catalog, namespace=namespace)
        if not found:
            raise InvalidSpec("No ModelDeployment or RoutingPolicy is in there.", field="FILE")
    except InvalidSpec as error:
        end(error, exits.WRONG_QUESTION)
    typer.echo(verb.as_json(found) if as_json else verb.as_yaml(found), nl=as_json)
    refused = [outcome for outcome in found if outcome.refusals]
    for outcome in refused:
        typer.echo("\n".join(f"{outcome.title}: {text}" for text in outcome.refusals), err=True)
    raise typer.Exit(exits.NO if refused else exits.OK)


@app.command()
def convert(
    files: Files,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", "-a", help="The class where a manifest says only nvidia.com/gpu.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn manifests of KubeAI, KServe and LLMKube into ModelDeployments. Exit code 1: not all of them could be."""
    verb = import_module("flotilla.cli.convert")
    try:
        documents = import_module("flotilla.cli.manifests").read(files)
        catalog = import_module("flotilla.planning.resolve").load_catalog()
        if accelerator is not None:
            find = import_module("flotilla.catalog.accelerators").find_loosely
            accelerator = find(catalog.accelerators, accelerator).class_name
        found = verb.convert(documents, catalog, accelerator=accelerator)
        if not found:
            raise InvalidSpec("Nothing of KubeAI, KServe or LLMKube is in there.", field="FILE")
    except InvalidSpec as error:
        end(error, exits.WRONG_QUESTION)
    typer.echo(verb.as_json(found) if as_json else verb.as_yaml(found), nl=as_json)
    open_ends = [one for one in found if one.refusal]
    for one in open_ends:
        typer.echo(f"{one.origin}: {one.refusal}", err=True)
    raise typer.Exit(exits.NO if open_ends else exits.OK)


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
    as_json: Json = False,
) -> None:
    """Say whether a model fits an accelerator. Exit code 0: it does, or may; 1: it does not; 2: a wrong question."""
    verb = import_module("flotilla.cli.estimate")
    try:
        if model is None and config is None:
            raise InvalidSpec("Name a model, or a config.json with --config.", field="MODEL")
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
    except (InvalidSpec, ValueError) as error:
        end(error, exits.WRONG_QUESTION)
    if as_json:
        typer.echo(import_module("json").dumps(answers, indent=2))
    else:
        console = import_module("rich.console").Console()
        verb.show(console, f"{model or config} on {engine}", answers)
        if described is not None:
            console.print(f"\n[bold]spec.model of a ModelDeployment:[/]\n{verb.architecture_yaml(described)}")
    raise typer.Exit(verb.exit_code(answers))
