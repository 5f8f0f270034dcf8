"""`flotilla estimate`: whether a model fits, on how many GPUs, with which context and at what price."""

import json
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from flotilla import validation
from flotilla.api.model_deployment import ArchitectureSpec, Embeddings, ModelDeploymentSpec
from flotilla.catalog import accelerators, names
from flotilla.catalog.accelerators import Accelerator
from flotilla.catalog.models import from_config
from flotilla.cli import manifests
from flotilla.cli.common import EXIT_NO, EXIT_OK, EXIT_USAGE, Json, command_app, fail
from flotilla.errors import InvalidSpec
from flotilla.planning.memory_fit import GIB, UNKNOWN, DoesNotFit, Fit
from flotilla.planning.resolve import Catalog, Resolved, load_catalog, resolve

app = command_app()
_COLUMNS = {
    "Weights": "quantization",
    "GPUs": "gpus",
    "GiB": "weights_gib",
    "Engine GiB": "working_gib",
    "Cache GiB": "kv_cache_gib",
    "Context": "context_length",
    "Longest": "longest_context_length",
    "Requests": "concurrent_requests",
    "$/h": "usd_per_hour",
}
"""Heading and key of an answer."""
_OPTIONS = {
    "model.contextLength": "--context",
    "quantization.method": "--quantization",
    "quantization.kvCache": "--kv-cache",
    "accelerator.count": "--count",
}
"""Option of a field of the spec."""
_FOR_WIDE_SCREENS = frozenset({"Engine GiB", "Cache GiB", "Longest"})
_WIDE, _FEW = 110, 5
_CENT = Decimal("0.01")
_USABLE = ("Fits", "Tight", UNKNOWN)


def described(config: Path, parameters: str | None) -> ArchitectureSpec:
    """spec.model.architecture of a config.json; raises InvalidSpec that names file and key."""
    try:
        content = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise InvalidSpec(f"{config}: {error}", field="--config") from error
    if not isinstance(content, dict):
        raise InvalidSpec(
            f"{config}: it must be a JSON object, as in the config.json next to a model's weights.", field="--config"
        )
    found = from_config(content, parameters=_count(parameters) if parameters else None)
    if not found.kv_known:
        raise InvalidSpec(
            f"{config}: how much cache a request takes is not known for layers of this kind, so there is nothing to "
            "estimate from. Leave spec.model.architecture and contextLength out.",
            field="--config",
        )
    return ArchitectureSpec(
        parameters_millions=max(1, round(found.parameters / 1_000_000)),
        layers=found.full_layers + found.sliding_layers,
        hidden_size=found.hidden_size,
        intermediate_size=found.intermediate_size,
        attention_heads=found.heads,
        kv_heads=found.kv_heads,
        head_dim=found.head_dim,
        vocab_size=found.vocab_size,
        embeddings=Embeddings.TIED
        if found.embedding_parameters == found.vocab_size * found.hidden_size
        else Embeddings.UNTIED,
        max_context_length=found.context_length or 4096,
        sliding_window=found.sliding_window,
        sliding_window_layers=found.sliding_layers,
        latent_width=found.latent_width,
        recurrent_layers=found.recurrent.layers if found.recurrent else 0,
        recurrent_state_bytes=found.recurrent.bytes_per_layer(1) if found.recurrent else 0,
    )


def _count(text: str) -> int:
    """`7.6B`, `494M` or a plain number."""
    factor = {"b": 10**9, "m": 10**6}.get(text[-1:].lower(), 1)
    try:
        return int(Decimal(text.rstrip("bBmM")) * factor)
    except InvalidOperation as error:
        raise InvalidSpec(f"{text!r} is not a number of parameters, such as 7.6B.", field="--parameters") from error


def estimates(
    model: str | None,
    architecture: ArchitectureSpec | None,
    *,
    class_names: list[str],
    engine: str,
    method: str,
    kv_cache: str,
    context: int | None,
    count: int | None,
    catalog: Catalog | None = None,
) -> list[dict[str, Any]]:
    """One answer per accelerator class, as plain data; all classes where none is named."""
    known = catalog or load_catalog()
    if engine not in known.profiles:
        remedy = validation.nearest(engine, known.profiles)
        raise InvalidSpec(f"There is no engine {engine!r}. {remedy}", field="--engine")
    chosen = [accelerators.find_loosely(known.accelerators, name) for name in class_names]
    source = _source(model, known) if model else "pvc://described/model"
    wishes = {"engine": {"name": engine}, "quantization": {"method": method, "kvCache": kv_cache}}
    model_part = {"source": source, "contextLength": context, "architecture": architecture}
    answers = [
        _answer({**wishes, "model": model_part, "accelerator": {"class": one.class_name, "count": count}}, one, known)
        for one in chosen or [a for a in known.accelerators.values() if a.vendor != "cpu"]
    ]
    return answers if chosen else sorted(answers, key=_rank)


def _source(model: str, catalog: Catalog) -> str:
    """A source for what was typed: a hub id, a link to the hub, an id without its owner, or a source as it is."""
    meant = catalog.models.match(model).id or names.hub_id(model)
    return meant if "://" in meant else f"hf://{meant}"


def _rank(answer: dict[str, Any]) -> tuple[int, Decimal]:
    """Sort key: classes that fit first, the cheapest first; classes without a price last."""
    verdict = _USABLE.index(answer["verdict"]) if answer["verdict"] in _USABLE else len(_USABLE)
    return verdict, Decimal(answer.get("usd_per_hour", "Infinity"))


def _answer(wanted: dict[str, Any], accelerator: Accelerator, catalog: Catalog) -> dict[str, Any]:
    spec = ModelDeploymentSpec.model_validate(wanted)
    answer: dict[str, Any] = {"accelerator": accelerator.class_name, "memory_gib": str(accelerator.memory_gib)}
    try:
        resolved = resolve("estimate", spec, catalog)
    except DoesNotFit as error:
        return answer | {"verdict": error.reason, "message": str(error), **_figures(error.fit)}
    except InvalidSpec as error:
        return answer | {"verdict": error.reason, "message": f"{error.field}: {error}"}
    return answer | _resolved(resolved)


def _resolved(resolved: Resolved) -> dict[str, Any]:
    fit, price = resolved.fit, resolved.accelerator.price
    return {
        "verdict": fit.verdict if fit else UNKNOWN,
        "engine": f"{resolved.profile.name} {resolved.engine_version}",
        "quantization": resolved.quantization.method,
        "gpus": resolved.gpus,
        **(_figures(fit) if fit else {}),
        **({"usd_per_hour": str((price.usd * resolved.gpus).quantize(_CENT))} if price else {}),
        "message": resolved.quantization.note
        if fit
        else f"The model is not in the catalogue. Use --config. {resolved.near}".strip(),
        "argv": list(resolved.argv),
    }


def _figures(fit: Fit) -> dict[str, Any]:
    def gib(size: int) -> float:
        return round(size / GIB, 2)

    figures = {
        "gpus": fit.gpus,
        "weights_gib": gib(fit.weights_bytes),
        "working_gib": gib(fit.working_bytes),
        "kv_cache_gib": gib(fit.kv_bytes),
    }
    if fit.verdict == UNKNOWN:
        return figures
    return figures | {
        "context_length": fit.context_length,
        "longest_context_length": fit.longest_context,
        "concurrent_requests": round(float(fit.concurrency), 2),
        "headroom_gib": gib(fit.headroom_bytes),
    }


def exit_code(answers: list[dict[str, Any]]) -> int:
    """EXIT_OK where a class fits or may fit, else EXIT_NO."""
    return EXIT_OK if any(answer["verdict"] in _USABLE for answer in answers) else EXIT_NO


def show(console: Console, title: str, answers: list[dict[str, Any]]) -> None:
    """A table, and below it the messages."""
    usable = [answer for answer in answers if answer["verdict"] in _USABLE]
    shown = usable if len(answers) > _FEW and usable else answers
    columns = [name for name in _COLUMNS if console.width >= _WIDE or name not in _FOR_WIDE_SCREENS]
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 1))
    table.add_column("Accelerator", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for answer in shown:
        verdict = answer["verdict"]
        colour = {"Fits": "green", "Tight": "yellow", UNKNOWN: "yellow"}.get(verdict, "red")
        cells = (_cell(answer.get(_COLUMNS[name])) for name in columns)
        table.add_row(answer["accelerator"], f"[{colour}]{verdict}[/]", *cells)
    console.print(table)
    if len(shown) < len(answers):
        console.print(
            f"\nIt does not fit the {len(answers) - len(shown)} other classes. --accelerator CLASS shows why."
        )
    notes = dict.fromkeys(answer["message"] for answer in answers if answer.get("message"))
    if len(answers) == 1:
        for note in notes:
            console.print(f"\n{note}")
        if "argv" in answers[0]:
            console.print(f"\n[dim]{answers[0]['engine']}:[/] {' '.join(answers[0]['argv'])}", soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def architecture_yaml(architecture: ArchitectureSpec) -> str:
    """The block to paste below spec.model."""
    facts = architecture.model_dump(by_alias=True, mode="json", exclude_defaults=True)
    return yaml.safe_dump({"architecture": {**facts, "embeddings": str(architecture.embeddings)}}, sort_keys=False)


@app.command()
def estimate(
    model: Annotated[
        str | None, typer.Argument(help="OWNER/NAME on the Hugging Face hub, or any spec.model.source.")
    ] = None,
    accelerator: Annotated[
        list[str] | None, typer.Option("--accelerator", "-a", help="L4 or nvidia-l4; repeatable. Default: all.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer. Default: the most that fits.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=16, help="Number of GPUs. Default: the fewest that fit.")
    ] = None,
    quantization: Annotated[str, typer.Option("--quantization", "-q", help="As spec.quantization.method.")] = "auto",
    kv_cache: Annotated[str, typer.Option(help="As spec.quantization.kvCache.")] = "auto",
    engine: Annotated[str, typer.Option(help="As spec.engine.name.")] = "vllm",
    config: Annotated[Path | None, typer.Option(help="config.json of a model that is not in the catalogue.")] = None,
    parameters: Annotated[
        str | None,
        typer.Option(help="With --config: number of parameters, such as 7.6B. Default: counted from the file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check whether a model fits an accelerator, with how many GPUs and at what price.

    Exit code 0: it fits, or may fit; 1: it does not.
    """
    try:
        if model is None and config is None:
            raise InvalidSpec("Name a model, or a config.json with --config.", field="MODEL")
        architecture = described(config, parameters) if config else None
        answers = estimates(
            model,
            architecture,
            class_names=accelerator or [],
            engine=engine,
            method=quantization,
            kv_cache=kv_cache,
            context=context,
            count=count,
        )
    except ValidationError as error:
        wrong = manifests.invalid(error)
        fail(InvalidSpec(str(wrong), field=_OPTIONS.get(wrong.field, wrong.field)), EXIT_USAGE)
    except InvalidSpec as error:
        fail(error, EXIT_USAGE)
    if as_json:
        typer.echo(json.dumps(answers, indent=2))
    else:
        console = Console()
        show(console, f"{model or config} on {engine}", answers)
        if architecture is not None:
            console.print(f"\n[bold]spec.model of a ModelDeployment:[/]\n{architecture_yaml(architecture)}")
    raise typer.Exit(exit_code(answers))
