"""`flotilla advise`: which of hosted small, self-hosted small, frontier or a mix is cheapest for a workload."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flotilla.catalog import accelerators
from flotilla.cli import estimate
from flotilla.cli.common import EXIT_NO, EXIT_OK, EXIT_USAGE, Json, command_app, fail
from flotilla.cost import hosted_prices
from flotilla.cost.gpu_prices import PriceSources, load_price_catalog, rate
from flotilla.cost.hosted_prices import HostedPrice, Tiers
from flotilla.errors import InvalidSpec
from flotilla.planning.resolve import Catalog, Resolved, load_catalog
from flotilla.planning.speed import Estimate, Range, RequestShape, planned_speed
from flotilla.simulation.advice import (
    Advice,
    AdviceTerms,
    Machine,
    Option,
    OptionComparison,
    TaskLoad,
    advise,
    assumptions,
)

app = command_app()
DEFAULT_CLASSES = ("nvidia-l4", "nvidia-h100-80gb")
DEFAULT_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_SHOWN_BANDS = 20
QUALITIES = {"small": Decimal(0), "mixed": Decimal("0.2"), "frontier": Decimal(1)}
"""Share of the tasks that are beyond a small model."""
_CENT = Decimal("0.01")
_MILL = Decimal("0.001")
_SHORTEST_CONTEXT = 256


def decimal(text: str, field: str, *, least: Decimal = Decimal(0)) -> Decimal:
    """A number from the command line; raises InvalidSpec."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number < least:
        raise InvalidSpec(f"{text!r} is not a number of at least {least}.", field=field)
    return number


def question(
    tasks_per_day: int,
    input_tokens: int,
    output_tokens: int,
    *,
    cached: float,
    quality: str,
    escalation: float | None,
    latency: str,
    sovereignty: str,
    peak: str | None,
    utilization: float | None,
    overhead: str,
    replicas: tuple[int, int],
) -> tuple[TaskLoad, AdviceTerms, bool]:
    """The workload, how replicas are counted, and whether it may wait; raises InvalidSpec that names the option."""
    for value, known, field in (
        (quality, tuple(QUALITIES), "--quality"),
        (latency, ("interactive", "batch"), "--latency"),
        (sovereignty, ("any", "cluster"), "--sovereignty"),
    ):
        if value not in known:
            raise InvalidSpec(f"{value!r} must be one of {', '.join(known)}.", field=field)
    batch = latency == "batch"
    work = TaskLoad(
        tasks_per_day,
        input_tokens,
        output_tokens,
        cached_share=Decimal(str(cached)) / 100,
        escalation=QUALITIES[quality] if escalation is None else Decimal(str(escalation)) / 100,
        sovereign=sovereignty == "cluster",
    )
    terms = AdviceTerms(
        peak_factor=decimal(peak or ("1" if batch else "3"), "--peak", least=Decimal(1)),
        target_utilization=Decimal(str(utilization or (100 if batch else 70))) / 100,
        overhead_usd_per_day=decimal(overhead, "--overhead"),
        min_replicas=replicas[0],
        max_replicas=replicas[1],
    )
    return work, terms, batch


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a replica is to be."""

    model: str
    """OWNER/NAME of the catalogue, or the path of a config.json."""
    quantization: str = "auto"
    context: int | None = None
    """Tokens of the longest request; None: a prompt and an answer of mean length."""
    gpus: int | None = None
    """None: the fewest on which the model fits."""
    tasks_per_second: Decimal | None = None
    """None: computed."""
    first_token_s: Decimal | None = None
    """The 99th percentile that must be kept to; None: any."""


def machine(given: str, work: TaskLoad, wishes: Wishes, *, catalog: Catalog, own: PriceSources) -> Machine:
    """Of `L4`, or `H100=2.69` with a price of one's own; raises InvalidSpec."""
    name, _, price = given.partition("=")
    found = accelerators.find_loosely(catalog.accelerators, name)
    listed = rate(found, sources=own)
    if price:
        usd, source = decimal(price, "--accelerator", least=_MILL), "price as given"
    elif listed is not None:
        usd = listed.gpu_usd_per_hour * found.share.numerator / found.share.denominator
        source = f"{listed}, as of {listed.as_of}" if listed.as_of else str(listed)
    else:
        raise InvalidSpec(
            f"The price of {found.class_name} is not known. Give yours: -a {name}=USD_PER_HOUR.", field="--accelerator"
        )
    if wishes.tasks_per_second is not None:
        speed, gpus = wishes.tasks_per_second, wishes.gpus or 1
        title, basis = _title(found.class_name, gpus, usd), f"Its speed was given: {speed} tasks/s at saturation."
        return Machine(title, usd * gpus, source, speed, speed, speed, basis)
    resolved = estimate.planned(
        wishes.model,
        class_name=found.class_name,
        method=wishes.quantization,
        context=wishes.context or max(_SHORTEST_CONTEXT, work.input_tokens + work.output_tokens),
        gpus=wishes.gpus,
        catalog=catalog,
    )
    shape = RequestShape(work.input_tokens, work.output_tokens, float(work.cached_share))
    model, limits = planned_speed(resolved, shape)
    computed, first, allowed = model.estimate(shape, limits), wishes.first_token_s, None
    if first is not None:
        allowed = model.tasks_per_s_within(shape, limits, float(first))
        if allowed is None:
            raise InvalidSpec(
                f"On {found.class_name} the first token takes longer than {first} s even for a request that is alone.",
                field="--ttft-p99",
            )
    expected, slowest, fastest = (_exact(speed) for speed in _three(computed.tasks_per_s))
    return Machine(
        _title(found.class_name, resolved.gpus, usd),
        usd * resolved.gpus,
        source,
        expected,
        slowest,
        fastest,
        _basis(wishes, resolved, computed, allowed),
        None if allowed is None else _exact(allowed),
    )


def _title(class_name: str, gpus: int, usd: Decimal) -> str:
    return f"{f'{gpus} x ' if gpus > 1 else ''}{class_name} at {usd.normalize():f}"


def _three(speed: Range) -> tuple[float, float, float]:
    return speed.expected, speed.low, speed.high


def _exact(speed: float) -> Decimal:
    return Decimal(f"{speed:.6g}")


def _basis(wishes: Wishes, resolved: Resolved, computed: Estimate, allowed: float | None) -> str:
    """How the speed is known, with as many digits as it deserves."""
    expected, low, high = (estimate.two_digits(speed) for speed in _three(computed.tasks_per_s))
    weights = "16-bit weights" if resolved.quantization.method == "none" else f"{resolved.quantization.method} weights"
    compared = (
        "compared with public measurements on this class"
        if computed.measured
        else "not compared with any measurement on this class"
    )
    assumed = ", which is assumed to be 1 ms" if computed.bound == "the overhead per request" else ""
    text = (
        f"{wishes.model} with {weights}: {expected} tasks/s at saturation, {low} to {high}, computed and {compared} "
        f"(docs/reference/truth.md); most of the time goes into {computed.bound}{assumed}."
    )
    if allowed is None:
        return text
    return (
        f"{text} With the first token within {wishes.first_token_s} s (p99) it may be given "
        f"{estimate.two_digits(allowed)} tasks/s."
    )


def hosted(given: str, field: str, *, batch: bool) -> HostedPrice:
    """Of `openai/gpt-6-luna`, or `acme/small=0.10/0.40` with prices in and out per million tokens."""
    name, _, price = given.partition("=")
    provider, slash, model = name.partition("/")
    if not slash or not model:
        raise InvalidSpec(f"{given!r} is not PROVIDER/MODEL or PROVIDER/MODEL=IN/OUT.", field=field)
    if price:
        inward, slash, outward = price.partition("/")
        if not slash:
            raise InvalidSpec(f"{price!r} is not IN/OUT, US dollars per million tokens.", field=field)
        return HostedPrice(
            provider, model, "as given", Tiers(decimal(inward, field)), Tiers(decimal(outward, field)), None
        )
    return hosted_prices.find(provider, model, field=field, at=datetime.now(UTC), batch=batch)


def ask(
    work: TaskLoad,
    terms: AdviceTerms,
    *,
    wishes: Wishes,
    classes: list[str],
    small: str,
    frontier: str,
    others: list[str],
    batch: bool,
    accelerator_table: Path | None = None,
    price_catalog: Path | None = None,
) -> tuple[Advice, list[str]]:
    """The advice and its assumptions; raises InvalidSpec that names the option."""
    catalog, own = load_catalog(accelerator_table=accelerator_table), PriceSources(load_price_catalog(price_catalog))
    machines = [machine(given, work, wishes, catalog=catalog, own=own) for given in classes or DEFAULT_CLASSES]
    low, top = hosted(small, "--small", batch=batch), hosted(frontier, "--frontier", batch=batch)
    more = [hosted(given, "--compare", batch=batch) for given in others]
    advice = advise(work, terms, machines=machines, small=low, frontier=top, others=more)
    basis = assumptions(work, terms, machines, [low, top, *more])
    published = hosted_prices.catalogue_date()
    basis.append(
        f"Hosted prices of genai-prices, which was published on {published or 'an unknown day'}, are those for "
        f"{datetime.now(UTC):%Y-%m-%d}."
    )
    if wishes.first_token_s is not None:
        basis.append("How soon hosted models send the first token is not known here.")
    return advice, basis


def json_text(advice: Advice, basis: list[str]) -> str:
    """For programs; amounts are strings, as dollars are decimals. An infinite break-even is the string Infinity."""
    answer: dict[str, Any] = {
        "decision": None if advice.decision is None else _option(advice.decision),
        "options": [_option(option) for option in advice.options],
        "breakEven": [
            {
                "machine": row.machine,
                "comparator": row.comparator,
                "usdPerThousandTasks": str(row.usd_per_thousand_tasks),
                "tasksPerDay": _whole(row.even.first),
                "forGoodTasksPerDay": _whole(row.even.for_good),
                "hostedCheaperAgainBetween": [[_whole(edge) for edge in band] for band in _bands(row)],
            }
            for row in advice.break_even
        ],
        "assumptions": basis,
    }
    if advice.turning_usd_per_thousand is not None:
        answer["selfHostingPaysAboveUsdPerThousandTasks"] = str(advice.turning_usd_per_thousand.quantize(_MILL))
    return json.dumps(answer, indent=2)


def _option(option: Option) -> dict[str, Any]:
    return {
        "kind": option.kind,
        "what": option.what,
        "usdPerDay": str(option.usd_per_day.quantize(_CENT)),
        **({"replicas": option.replicas} if option.replicas is not None else {}),
        **({"fewestReplicas": option.fewest, "mostReplicas": option.most} if option.most is not None else {}),
        **({"refused": option.refused} if option.refused else {}),
    }


def _bands(row: OptionComparison) -> list[tuple[Decimal, Decimal]]:
    return list(row.even.dearer[:_SHOWN_BANDS])


def _whole(number: Decimal) -> str:
    """Without an exponent."""
    return f"{number:.0f}" if number.is_finite() else str(number)


def show(console: Console, work: TaskLoad, advice: Advice, basis: list[str]) -> None:
    """The decision, all options, the break-even table, and the assumptions."""
    decision = advice.decision
    if decision is None:
        console.print("[red]No option is allowed:[/] a small model is not enough, and data must stay in the cluster.")
    else:
        console.print(f"[bold green]{decision.kind}[/]: {decision.what}, {decision.usd_per_day:,.2f} USD/day")
    if advice.turning_usd_per_thousand is not None:
        now = _small_price(work, advice)
        console.print(
            f"Self-hosting costs {advice.turning_usd_per_thousand:,.3f} USD per 1000 tasks at this load and pays "
            f"against a hosted model that costs more{now}."
        )
    console.print(_options(work, advice))
    if advice.break_even:
        console.print("\nTasks per day from which self-hosting costs no more:")
        console.print(_break_even(advice))
        if any(row.even.dearer for row in advice.break_even):
            console.print(
                "Replicas are whole: where two loads are shown, the hosted model is cheaper again just above what some "
                "number of replicas can do, and self-hosting costs no more at every load only from the second on."
            )
    console.print("\n[bold]Assumptions[/]")
    for line in basis:
        console.print(f"- {line}", soft_wrap=True, highlight=False)


def _options(work: TaskLoad, advice: Advice) -> Table:
    table = _table("Option", "", "$/day", "$/1000 tasks", "replicas", "")
    for option in advice.options:
        per_thousand = 1000 * option.usd_per_day / work.tasks_per_day
        replicas = "-" if option.replicas is None else _replicas(option)
        cells = (f"{option.usd_per_day:,.2f}", f"{per_thousand:,.3f}", replicas)
        table.add_row(option.kind, option.what, *cells, option.refused, style="dim" if option.refused else "")
    return table


def _break_even(advice: Advice) -> Table:
    table = _table("Against", "$/1000 tasks", *dict.fromkeys(row.machine for row in advice.break_even))
    rows: dict[str, list[str]] = {}
    for row in advice.break_even:
        cells = rows.setdefault(row.comparator, [f"{row.usd_per_thousand_tasks:,.3f}"])
        cells.append(_load(row))
    for comparator, cells in rows.items():
        table.add_row(Text(comparator, overflow="fold"), *cells)
    return table


def _load(row: OptionComparison) -> str:
    """The first load, and the one from which it stays true."""
    even = row.even
    if not even.first.is_finite():
        return "never"
    if not even.dearer:
        return f"{even.first:,.0f}"
    return f"{even.first:,.0f}; {f'{even.for_good:,.0f}' if even.for_good.is_finite() else 'not for good'}"


def _replicas(option: Option) -> str:
    """With what the uncertainty of the speed makes of it."""
    if option.fewest == option.most:
        return str(option.replicas)
    return f"{option.replicas} ({option.fewest} to {option.most})"


def _small_price(work: TaskLoad, advice: Advice) -> str:
    small = next((option for option in advice.options if option.kind == "hosted small"), None)
    return "" if small is None else f"; {small.what} costs {1000 * small.usd_per_day / work.tasks_per_day:,.3f}"


def _table(*headings: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for heading in headings:
        text = heading in ("Option", "Against", "")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    return table


@app.command()
def command(
    tasks_per_day: Annotated[int, typer.Option("--tasks-per-day", "-n", help="Requests on an average day.")],
    input_tokens: Annotated[int, typer.Option(help="Tokens of an average task.")] = 1000,
    output_tokens: Annotated[int, typer.Option(help="Tokens of an average task.")] = 150,
    cached: Annotated[float, typer.Option(min=0, max=100, help="Percent of the input tokens that repeat.")] = 0,
    quality: Annotated[str, typer.Option(help="Quality that is needed: small, mixed or frontier.")] = "small",
    escalation: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Percent of tasks beyond a small model. Default by --quality: 0, 20, 100."),
    ] = None,
    latency: Annotated[str, typer.Option(help="interactive, or batch (within hours).")] = "interactive",
    sovereignty: Annotated[str, typer.Option(help="any, or cluster (data must not leave it).")] = "any",
    accelerator: Annotated[
        list[str] | None,
        typer.Option("--accelerator", "-a", help="L4, or H100=2.69 with your price per hour; repeatable."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Self-hosted small model: OWNER/NAME of the catalogue, or a config.json.")
    ] = DEFAULT_MODEL,
    quantization: Annotated[str, typer.Option("--quantization", "-q", help="As spec.quantization.method.")] = "auto",
    context: Annotated[
        int | None, typer.Option(min=256, help="Tokens of the longest request. Default: input and output.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=16, help="GPUs of a replica. Default: the fewest that fit.")
    ] = None,
    ttft_p99: Annotated[
        str | None, typer.Option(help="Seconds within which 99 of 100 requests must get their first token.")
    ] = None,
    tasks_per_second: Annotated[
        str | None,
        typer.Option(help="Tasks per second of a saturated replica. Default: computed for model and GPU."),
    ] = None,
    small: Annotated[
        str, typer.Option(help="Hosted small model: PROVIDER/MODEL[=IN/OUT], prices in USD per million tokens.")
    ] = "openai/gpt-6-luna",
    frontier: Annotated[str, typer.Option(help="Frontier model, in the same form.")] = "anthropic/claude-sonnet-5-5",
    compare: Annotated[list[str] | None, typer.Option(help="More hosted models for the break-even table.")] = None,
    peak: Annotated[
        str | None, typer.Option(help="Busiest time divided by the mean. Default: 3; with batch 1.")
    ] = None,
    utilization: Annotated[
        float | None,
        typer.Option(
            min=1, max=100, help="Percent of a replica's speed used at that time. Default: 70; with batch 100."
        ),
    ] = None,
    overhead: Annotated[str, typer.Option(help="USD per day besides the GPUs, such as staff.")] = "0",
    min_replicas: Annotated[int, typer.Option(min=1, help="Fewest replicas to plan with.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Most replicas to plan with.")] = 1000,
    price_catalog: Annotated[
        Path | None, typer.Option(help="File with your own prices, as the operator's setting price_catalog.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare hosted and self-hosted models for a workload, and name the cheapest.

    Hosted small, self-hosted small, frontier, or a mix of them. Exit code 1: no
    option is allowed.
    """
    try:
        work, terms, batch = question(
            tasks_per_day, input_tokens, output_tokens, cached=cached, quality=quality, escalation=escalation,
            latency=latency, sovereignty=sovereignty, peak=peak, utilization=utilization, overhead=overhead,
            replicas=(min_replicas, max_replicas),
        )  # fmt: skip
        speed = None if tasks_per_second is None else decimal(tasks_per_second, "--tasks-per-second", least=_MILL)
        first_token_s = None if ttft_p99 is None else decimal(ttft_p99, "--ttft-p99", least=_MILL)
        if speed is not None and first_token_s is not None:
            raise InvalidSpec("It needs a speed that is computed: leave --tasks-per-second out.", field="--ttft-p99")
        advice, basis = ask(
            work, terms, wishes=Wishes(model, quantization, context, count, speed, first_token_s),
            classes=accelerator or [], small=small, frontier=frontier, others=compare or [], batch=batch,
            price_catalog=price_catalog,
        )  # fmt: skip
    except InvalidSpec as error:
        fail(error, EXIT_USAGE)
    if as_json:
        typer.echo(json_text(advice, basis))
    else:
        show(Console(), work, advice, basis)
    raise typer.Exit(EXIT_NO if advice.decision is None else EXIT_OK)
