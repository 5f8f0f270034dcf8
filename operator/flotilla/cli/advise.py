"""`flotilla advise`: hosted small, self-hosted small, frontier or a mix, for a workload, before anything is bought."""

import json
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flotilla.catalog import accelerators
from flotilla.catalog.accelerators import Accelerator
from flotilla.cost import hosted_prices
from flotilla.cost.gpu_prices import PriceSources, load_price_catalog, rate
from flotilla.cost.hosted_prices import HostedPrice, Tiers
from flotilla.errors import InvalidSpec
from flotilla.simulation.advice import Advice, Machine, Option, Terms, Workload, advise, assumptions, tasks_per_second

DEFAULT_CLASSES = ("nvidia-l4", "nvidia-h100-80gb")
QUALITIES = {"small": Decimal(0), "mixed": Decimal("0.2"), "frontier": Decimal(1)}
"""Share of the tasks that are beyond a small model."""
_CENT = Decimal("0.01")
_MILL = Decimal("0.001")


def decimal(text: str, field: str, *, least: Decimal = Decimal(0)) -> Decimal:
    """A number of the command line; raises InvalidSpec."""
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
) -> tuple[Workload, Terms, bool]:
    """The workload, how replicas are counted, and whether it may wait; raises InvalidSpec that names the option."""
    for value, known, field in (
        (quality, tuple(QUALITIES), "--quality"),
        (latency, ("interactive", "batch"), "--latency"),
        (sovereignty, ("any", "cluster"), "--sovereignty"),
    ):
        if value not in known:
            raise InvalidSpec(f"{value!r} is none of {', '.join(known)}.", field=field)
    batch = latency == "batch"
    work = Workload(
        tasks_per_day,
        input_tokens,
        output_tokens,
        cached_share=Decimal(str(cached)) / 100,
        escalation=QUALITIES[quality] if escalation is None else Decimal(str(escalation)) / 100,
        sovereign=sovereignty == "cluster",
    )
    terms = Terms(
        peak_factor=decimal(peak or ("1" if batch else "3"), "--peak", least=Decimal(1)),
        target_utilization=Decimal(str(utilization or (100 if batch else 70))) / 100,
        overhead_usd_per_day=decimal(overhead, "--overhead"),
        min_replicas=replicas[0],
        max_replicas=replicas[1],
    )
    return work, terms, batch


def machine(
    given: str, work: Workload, *, count: int, speed: Decimal | None, table: dict[str, Accelerator], own: PriceSources
) -> Machine:
    """Of `L4`, or `H100=2.69` with a price of one's own; raises InvalidSpec."""
    name, _, price = given.partition("=")
    found = accelerators.find_loosely(table, name)
    listed = rate(found, sources=own)
    if price:
        usd, source = decimal(price, "--accelerator", least=_MILL), "as given"
    elif listed is not None:
        usd, source = listed.gpu_usd_per_hour * found.share.numerator / found.share.denominator, str(listed)
    else:
        raise InvalidSpec(
            f"The price of {found.class_name} is not known. Give yours: -a {name}=USD_PER_HOUR.", field="--accelerator"
        )
    if speed is None:
        measured = tasks_per_second(found.class_name, input_tokens=work.input_tokens, output_tokens=work.output_tokens)
        speed = None if measured is None else measured * count
    title = f"{count} x {found.class_name}" if count > 1 else found.class_name
    return Machine(f"{title} at {usd.normalize():f}", usd * count, source, speed)


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
    work: Workload,
    terms: Terms,
    *,
    classes: list[str],
    count: int,
    speed: Decimal | None,
    small: str,
    frontier: str,
    others: list[str],
    batch: bool,
    accelerator_table: Path | None = None,
    price_catalog: Path | None = None,
) -> tuple[Advice, list[str]]:
    """The advice and what it stands on; raises InvalidSpec that names the option."""
    table, own = accelerators.load_accelerators(accelerator_table), PriceSources(load_price_catalog(price_catalog))
    machines = [
        machine(given, work, count=count, speed=speed, table=table, own=own) for given in classes or DEFAULT_CLASSES
    ]
    low, top = hosted(small, "--small", batch=batch), hosted(frontier, "--frontier", batch=batch)
    more = [hosted(given, "--compare", batch=batch) for given in others]
    advice = advise(work, terms, machines=machines, small=low, frontier=top, others=more)
    return advice, assumptions(work, terms, machines, [low, top, *more])


def as_json(advice: Advice, told: list[str]) -> str:
    """For programs; amounts are strings, as dollars are decimals. An infinite break-even is the string Infinity."""
    answer: dict[str, Any] = {
        "decision": None if advice.decision is None else _option(advice.decision),
        "options": [_option(option) for option in advice.options],
        "breakEven": [
            {
                "machine": row.machine,
                "comparator": row.comparator,
                "usdPerThousandTasks": str(row.usd_per_thousand_tasks),
                "tasksPerDay": _whole(row.tasks_per_day),
            }
            for row in advice.break_even
        ],
        "assumptions": told,
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
        **({"refused": option.refused} if option.refused else {}),
    }


def _whole(number: Decimal) -> str:
    """Without an exponent."""
    return f"{number:.0f}" if number.is_finite() else str(number)


def show(console: Console, work: Workload, advice: Advice, told: list[str]) -> None:
    """The decision, all options, the break-even table, and what they stand on."""
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
        console.print("\nTasks a day from which on self-hosting costs no more:")
        console.print(_break_even(advice))
    console.print("\n[bold]Assumptions[/]")
    for line in told:
        console.print(f"- {line}", soft_wrap=True, highlight=False)


def _options(work: Workload, advice: Advice) -> Table:
    table = _table("Option", "", "$/day", "$/1000 tasks", "replicas", "")
    for option in advice.options:
        per_thousand = 1000 * option.usd_per_day / work.tasks_per_day
        replicas = "-" if option.replicas is None else str(option.replicas)
        cells = (f"{option.usd_per_day:,.2f}", f"{per_thousand:,.3f}", replicas)
        table.add_row(option.kind, option.what, *cells, option.refused, style="dim" if option.refused else "")
    return table


def _break_even(advice: Advice) -> Table:
    table = _table("Against", "$/1000 tasks", *dict.fromkeys(row.machine for row in advice.break_even))
    rows: dict[str, list[str]] = {}
    for row in advice.break_even:
        cells = rows.setdefault(row.comparator, [f"{row.usd_per_thousand_tasks:,.3f}"])
        cells.append(f"{row.tasks_per_day:,.0f}" if row.tasks_per_day.is_finite() else "never")
    for comparator, cells in rows.items():
        table.add_row(Text(comparator, overflow="fold"), *cells)
    return table


def _small_price(work: Workload, advice: Advice) -> str:
    small = next((option for option in advice.options if option.kind == "hosted small"), None)
    return "" if small is None else f"; {small.what} costs {1000 * small.usd_per_day / work.tasks_per_day:,.3f}"


def _table(*headings: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for heading in headings:
        words = heading in ("Option", "Against", "")
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    return table
