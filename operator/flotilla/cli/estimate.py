"""`flotilla estimate`: whether a model fits, on how many GPUs, with which context and at what price."""

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
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
from flotilla.catalog.models import Architecture, KnownModel, known_from_config
from flotilla.cli.common import (
    EXIT_NO,
    EXIT_OK,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    Json,
    command_app,
    duration_s,
    fail,
    plain,
)
from flotilla.cli.sources import CaFile, Place, Prometheus, TokenFile, client_of
from flotilla.cost.speed_client import MeasuredSpeed, measured_speeds
from flotilla.errors import FlotillaError, InvalidSpec
from flotilla.planning.memory_fit import GIB, UNKNOWN, DoesNotFit, Fit
from flotilla.planning.resolve import Catalog, Resolved, load_catalog, resolve
from flotilla.planning.speed import Range, RequestShape, observed_range, planned_speed

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
    "tok/s": "output_tokens_per_second",
    "$/h": "usd_per_hour",
}
"""Heading and key of an answer."""
_OPTIONS = {
    "model.contextLength": "--context",
    "quantization.method": "--quantization",
    "quantization.kvCache": "--kv-cache",
    "accelerator.class": "--accelerator",
    "accelerator.count": "--count",
    "engine.args": "--engine-arg",
    "model.source": "--model",
}
"""Option of a field of the spec."""
_FOR_WIDE_SCREENS = frozenset({"Engine GiB", "Cache GiB", "Longest"})
_WIDE, _FEW = 110, 5
_CENT = Decimal("0.01")
_USABLE = ("Fits", "Tight", UNKNOWN)
DEFAULT_SHAPE = RequestShape(1000, 150)
"""Of the request for which the speed is shown."""


DESCRIBED = "described/model"
"""Hub id under which a model counts that was described by a config.json."""


def described(file: Path, parameters: str | None = None, name: str = DESCRIBED) -> KnownModel:
    """A model by its config.json, or by the folder that has one; raises InvalidSpec that names file and key."""
    config = file / "config.json" if file.is_dir() else file
    try:
        content = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise InvalidSpec(f"{config}: {error}", field="--config") from error
    if not isinstance(content, dict):
        raise InvalidSpec(
            f"{config}: it must be a JSON object, as in the config.json next to a model's weights.", field="--config"
        )
    return known_from_config(name, content, parameters=_count(parameters) if parameters else None)


def as_spec(found: Architecture) -> ArchitectureSpec | None:
    """spec.model.architecture of what a config.json says; None where the spec has no words for layers of its kind."""
    if not found.kv_known or found.encoder or found.chunked or found.full_head_dim:
        return None
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
        experts=found.experts,
        experts_per_token=found.experts_per_token,
        expert_width=found.expert_width,
        expert_layers=found.expert_parameters // (3 * found.hidden_size * found.expert_width * found.experts)
        if found.experts
        else 0,
    )


def planned(
    model: str, *, class_name: str, method: str, context: int | None, gpus: int | None, catalog: Catalog
) -> Resolved:
    """What vLLM would run of a model of the catalogue, or of a config.json; raises InvalidSpec with the option."""
    source, catalog = _understood(model, catalog)
    wanted = {
        "engine": {"name": "vllm"},
        "quantization": {"method": method},
        "model": {"source": source, "contextLength": context},
        "accelerator": {"class": class_name, "count": gpus},
    }
    try:
        return resolve("planned", ModelDeploymentSpec.model_validate(wanted), catalog)
    except ValidationError as error:
        wrong = validation.refused(error)
        raise InvalidSpec(str(wrong), field=_OPTIONS.get(wrong.field, wrong.field)) from error
    except InvalidSpec as error:
        field = error.field.removeprefix("spec.")
        raise InvalidSpec(str(error), field=_OPTIONS.get(field, field), reason=error.reason) from error


def two_digits(value: float) -> str:
    """As many as a speed that is known within a third deserves."""
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def _count(text: str) -> int:
    """`7.6B`, `494M` or a plain number."""
    factor = {"b": 10**9, "m": 10**6}.get(text[-1:].lower(), 1)
    try:
        return int(Decimal(text.rstrip("bBmM")) * factor)
    except InvalidOperation as error:
        raise InvalidSpec(f"{text!r} is not a number of parameters, such as 7.6B.", field="--parameters") from error


def estimates(
    model: str | None,
    own: KnownModel | None,
    *,
    class_names: list[str],
    engine: str,
    method: str,
    kv_cache: str,
    context: int | None,
    count: int | None,
    args: Sequence[str] = (),
    shape: RequestShape = DEFAULT_SHAPE,
    catalog: Catalog | None = None,
) -> list[dict[str, Any]]:
    """One answer per accelerator class, as plain data; all classes where none is named."""
    known = catalog or load_catalog()
    if engine not in known.profiles:
        remedy = validation.nearest(engine, known.profiles)
        raise InvalidSpec(f"There is no engine {engine!r}. {remedy}", field="--engine")
    chosen = [accelerators.find_loosely(known.accelerators, name) for name in class_names]
    if own is not None:
        source, known = f"hf://{own.id}", replace(known, models=known.models.with_own(own))
    else:
        source = _source(model or "", known)
    wishes = {"engine": {"name": engine, "args": list(args)}, "quantization": {"method": method, "kvCache": kv_cache}}
    model_part = {"source": source, "contextLength": context}
    answers = [
        _answer(
            {**wishes, "model": model_part, "accelerator": {"class": one.class_name, "count": count}}, one, known, shape
        )
        for one in chosen or [a for a in known.accelerators.values() if a.vendor != "cpu"]
    ]
    return answers if chosen else sorted(answers, key=_rank)


def _understood(model: str, catalog: Catalog) -> tuple[str, Catalog]:
    """A source for what was typed, and the catalogue that knows it: for a folder or a config.json one with it."""
    if not _is_described(model):
        return _source(model, catalog), catalog
    return f"hf://{DESCRIBED}", replace(catalog, models=catalog.models.with_own(described(Path(model))))


def _is_described(model: str) -> bool:
    """Whether it is a config.json, or a folder that has one."""
    file = Path(model)
    return file.suffix == ".json" or (file / "config.json").is_file()


def _source(model: str, catalog: Catalog) -> str:
    """For a hub id, a link to the hub, or an id without its owner; a source stays as it is."""
    meant = catalog.models.match(model).id or names.hub_id(model)
    return meant if "://" in meant else f"hf://{meant}"


def _rank(answer: dict[str, Any]) -> tuple[int, Decimal]:
    """Sort key: classes that fit first, the cheapest first; classes without a price last."""
    verdict = _USABLE.index(answer["verdict"]) if answer["verdict"] in _USABLE else len(_USABLE)
    return verdict, Decimal(answer.get("usd_per_hour", "Infinity"))


def _answer(wanted: dict[str, Any], accelerator: Accelerator, catalog: Catalog, shape: RequestShape) -> dict[str, Any]:
    spec = ModelDeploymentSpec.model_validate(wanted)
    answer: dict[str, Any] = {"accelerator": accelerator.class_name, "memory_gib": str(accelerator.memory_gib)}
    try:
        resolved = resolve("estimate", spec, catalog)
    except DoesNotFit as error:
        return answer | {"verdict": error.reason, "message": str(error), **_figures(error.fit)}
    except InvalidSpec as error:
        return answer | {"verdict": error.reason, "message": f"{error.field}: {error}"}
    return answer | _resolved(resolved) | _speed(resolved, shape)


def _resolved(resolved: Resolved) -> dict[str, Any]:
    fit, price = resolved.fit, resolved.accelerator.price
    return {
        "verdict": fit.verdict if fit else UNKNOWN,
        "engine": f"{resolved.profile.name} {resolved.engine_version}",
        "quantization": resolved.quantization.method,
        "gpus": resolved.gpus,
        **(_figures(fit) if fit else {}),
        **({"usd_per_hour": str((price.usd * resolved.gpus).quantize(_CENT))} if price else {}),
        **({"price_source": price.source, "price_as_of": price.as_of.isoformat()} if price else {}),
        "message": _message(resolved),
        "argv": list(resolved.argv),
    }


def _message(resolved: Resolved) -> str:
    fit = resolved.fit
    if fit is None:
        return f"The model is not in the catalogue. Use --config. {resolved.near}".strip()
    why = f"Which context fits is not known: {fit.why_unknown}." if fit.verdict == UNKNOWN else ""
    return " ".join(part for part in (why, resolved.quantization.note) if part)


def _speed(resolved: Resolved, shape: RequestShape) -> dict[str, Any]:
    """What is computed for requests of one shape; nothing where no speed is known. What runs is measured elsewhere."""
    try:
        model, limits = planned_speed(resolved, shape)
        computed = model.estimate(shape, limits)
    except InvalidSpec:
        return {}
    return {
        "output_tokens_per_second": int(float(two_digits(computed.output_tokens_per_s.expected).replace(",", ""))),
        "speed": {
            "input_tokens": shape.input_tokens,
            "output_tokens": shape.output_tokens,
            "basis": "computed",
            "compared_with_measurements": computed.measured,
            "tasks_per_second": _range(computed.tasks_per_s),
            "output_tokens_per_second": _range(computed.output_tokens_per_s),
            "single_request_tokens_per_second": _range(computed.single_tokens_per_s),
            "requests_in_flight": computed.in_flight,
            "bound": computed.bound,
        },
    }


def measured(
    answers: list[dict[str, Any]],
    model: str,
    place: Place,
    *,
    since: str,
    catalog: Catalog | None = None,
    **wishes: Any,
) -> None:
    """Add to the answers how fast deployments of the model on those classes are, beside what is computed for their
    requests. Raises a FlotillaError where the Prometheus does not answer."""
    seconds, known = duration_s(since, field="--since"), catalog or load_catalog()
    source = _source(model, known)
    for one in asyncio.run(_ask(place, seconds)):
        for answer in answers:
            if (one.model, one.gpu_type) == (source, answer["accelerator"]) and "speed" in answer:
                row = _compared(one, planned(model, class_name=one.gpu_type, catalog=known, **wishes))
                answer["speed"].setdefault("measured", []).append(row)


async def _ask(place: Place, seconds: int) -> tuple[MeasuredSpeed, ...]:
    client = client_of(place)
    try:
        return await measured_speeds(client, period_s=seconds)
    finally:
        await client.close()


def _compared(one: MeasuredSpeed, resolved: Resolved) -> dict[str, Any]:
    """One deployment, with what is computed for the mean of its requests."""
    shape = RequestShape(max(1, round(one.input_tokens)), max(1, round(one.output_tokens)), min(1.0, one.cached_share))
    model, limits = planned_speed(resolved, shape)
    expected = model.estimate(shape, limits).output_tokens_per_s
    return {
        "deployment": f"{one.namespace}/{one.name}",
        "engine": one.engine,
        "input_tokens": shape.input_tokens,
        "cached_percent": round(100 * shape.cached_share),
        "output_tokens": shape.output_tokens,
        "output_tokens_per_second": float(two_digits(one.tokens_per_s).replace(",", "")),
        "saturated": one.saturated,
        "computed_output_tokens_per_second": _range(expected),
        **({"measured_over_computed": round(one.tokens_per_s / expected.expected, 2)} if one.saturated else {}),
        **_last_hour(one, expected),
    }


def _last_hour(one: MeasuredSpeed, expected: Range) -> dict[str, Any]:
    """What the operator observed, and what it makes of the computed speed; nothing before it has seen enough."""
    if one.ratio is None or one.token_interval_s is None:
        return {}
    first = {} if one.first_token_s is None else {"first_token_milliseconds": round(1000 * one.first_token_s)}
    corrected = observed_range(expected, one.ratio)
    return {
        "last_hour": {
            "observed_over_computed": round(one.ratio, 2),
            "observations": one.observations,
            "age_seconds": round(one.age_s),
            "token_interval_milliseconds": round(1000 * one.token_interval_s, 1),
            **first,
            "corrected_output_tokens_per_second": _range(corrected),
        }
    }


def _range(value: Range) -> dict[str, float]:
    return {
        name: float(two_digits(number).replace(",", ""))
        for name, number in (("low", value.low), ("expected", value.expected), ("high", value.high))
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
        for note in (*notes, *_said(answers[0])):
            console.print(f"\n{note}", highlight=False, markup=False)
        if "argv" in answers[0]:
            console.print(f"\n[dim]{answers[0]['engine']}:[/] {' '.join(answers[0]['argv'])}", soft_wrap=True)


def _said(answer: dict[str, Any]) -> list[str]:
    """Speed and price in sentences, with what they rest on."""
    lines = []
    if speed := answer.get("speed"):
        tasks, alone = speed["tasks_per_second"], speed["single_request_tokens_per_second"]
        compared = "compared with" if speed["compared_with_measurements"] else "not compared with any"
        lines.append(
            f"Speed with {speed['input_tokens']} tokens in and {speed['output_tokens']} out: {tasks['expected']:g} "
            f"requests/s at saturation ({tasks['low']:g} to {tasks['high']:g}), {alone['expected']:g} tokens/s for a "
            f"request that is alone. Computed, and {compared} public measurements on this class "
            "(docs/reference/truth.md); with --prometheus it is shown beside what runs."
        )
    for row in answer.get("speed", {}).get("measured", ()):
        did = "makes" if row["saturated"] else "was never saturated and made at most"
        over = f": {row['measured_over_computed']:g} times that" if row["saturated"] else ""
        computed = row["computed_output_tokens_per_second"]
        requests = f"{row['input_tokens']} tokens in ({row['cached_percent']} % cached) and {row['output_tokens']} out"
        lines.append(
            f"Measured: {plain(row['deployment'])} {did} {row['output_tokens_per_second']:g} output tokens/s per "
            f"replica with {requests}. "
            f"Computed at saturation: {computed['expected']:g} ({computed['low']:g} to {computed['high']:g}){over}."
        )
        if hour := row.get("last_hour"):
            first_ms = hour.get("first_token_milliseconds")
            first = "" if first_ms is None else f" and {first_ms} ms to the first"
            right = hour["corrected_output_tokens_per_second"]
            lines.append(
                f"Its engines' own histograms of the last hour: {hour['token_interval_milliseconds']:g} ms between "
                f"tokens{first}; {hour['observed_over_computed']:g} times the speed that is computed for the same "
                f"load, by {hour['observations']:,} intervals, the last {hour['age_seconds']} s ago. Corrected so, "
                f"it makes {right['expected']:g} ({right['low']:g} to {right['high']:g}) at saturation."
            )
    if "price_as_of" in answer:
        lines.append(f"Price: {answer['price_source']}, as of {answer['price_as_of']}.")
    return lines


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
        str | None,
        typer.Argument(
            help="OWNER/NAME on the Hugging Face hub, any spec.model.source, or a folder with a config.json."
        ),
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
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(help="As spec.engine.args, for instance --engine-arg=--gpu-memory-utilization=0.95; repeatable."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="config.json of a model that is not in the catalogue.")] = None,
    parameters: Annotated[
        str | None,
        typer.Option(help="With --config: number of parameters, such as 7.6B. Default: counted from the file."),
    ] = None,
    input_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt for which the speed is shown.")] = 1000,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer for which the speed is shown.")] = 150,
    prometheus: Prometheus = None,
    prometheus_ca_file: CaFile = None,
    prometheus_token_file: TokenFile = None,
    since: Annotated[str, typer.Option(help="With --prometheus: period over which speeds were measured.")] = "7d",
    as_json: Json = False,
) -> None:
    """Check whether a model fits an accelerator, with how many GPUs and at what price.

    Exit code 0: it fits, or may fit; 1: it does not.
    """
    try:
        if model is None and config is None:
            raise InvalidSpec("Name a model, or a config.json with --config.", field="MODEL")
        own = None
        if config is not None:
            own = described(config, parameters, names.hub_id(model) if model and "://" not in model else DESCRIBED)
        elif model is not None and _is_described(model):
            own = described(Path(model), parameters)
        answers = estimates(
            model,
            own,
            class_names=accelerator or [],
            engine=engine,
            method=quantization,
            kv_cache=kv_cache,
            context=context,
            count=count,
            args=engine_arg or (),
            shape=RequestShape(input_tokens, output_tokens),
        )
        if prometheus is not None and model is not None:
            place = Place(prometheus=prometheus, ca_file=prometheus_ca_file, token_file=prometheus_token_file)
            measured(answers, model, place, since=since, method=quantization, context=context, gpus=count)
    except ValidationError as error:
        wrong = validation.refused(error)
        fail(InvalidSpec(str(wrong), field=_OPTIONS.get(wrong.field, wrong.field)), EXIT_USAGE)
    except InvalidSpec as error:
        fail(error, EXIT_USAGE)
    except FlotillaError as error:
        fail(error, EXIT_UNREACHABLE)
    if as_json:
        typer.echo(json.dumps(answers, indent=2))
    else:
        console = Console()
        show(console, f"{model or config} on {engine}", answers)
        if own is not None and (architecture := as_spec(own.architecture)) is not None:
            console.print(f"\n[bold]spec.model of a ModelDeployment:[/]\n{architecture_yaml(architecture)}")
    raise typer.Exit(exit_code(answers))
