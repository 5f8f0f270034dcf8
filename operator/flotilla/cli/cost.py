"""`flotilla cost`: what models cost and served, compared with hosted ones.

The data is from a Prometheus, or from the operator's own /metrics.
"""

import asyncio
import csv
import io
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flotilla.cli.common import (
    EXIT_NO,
    EXIT_UNREACHABLE,
    Context,
    Kubeconfig,
    OperatorNamespace,
    command_app,
    duration_s,
    exit_on_error,
    plain,
    utc_days,
)
from flotilla.cli.sources import CaFile, Metrics, Place, Prometheus, TokenFile, client_of, current
from flotilla.cost import route_spending, spending
from flotilla.cost.comparison import IdleRule
from flotilla.cost.route_spending import RouteSpending
from flotilla.cost.spending import SpendingGroup
from flotilla.errors import InvalidSpec
from flotilla.reports import focus

if TYPE_CHECKING:
    from flotilla.cost.spending_client import History

app = command_app()
By = Literal["model", "namespace", "team", "route"]
Output = Literal["table", "json", "csv", "focus"]
_CENTS = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class SpendingQuery:
    """The options. `since` None means all that the operator has counted, which only its own /metrics has."""

    by: By
    output: Output
    since: str | None
    place: Place
    account: str
    idle: IdleRule | None = None
    """None means in proportion to the work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The text to print, and its number of lines of data."""

    text: str
    lines: int
    period: str


def ask(question: SpendingQuery, console: Console) -> Answer:
    """Raises InvalidSpec for a usage error, other FlotillaErrors where the source does not answer."""
    return asyncio.run(_ask(question, console))


async def _ask(question: SpendingQuery, console: Console) -> Answer:
    from flotilla.cost.spending_client import History

    place = question.place
    if question.idle is not None and question.by not in ("team", "route"):
        raise InvalidSpec(
            f"--idle divides deployments: use it with --by team or route, not {question.by}.", field="--idle"
        )
    idle = question.idle or IdleRule.PROPORTIONAL
    if place.prometheus is None:
        return await _now(question, console)
    end = time.time()
    seconds = duration_s(question.since or "24h", field="--since")
    client = client_of(place)
    try:
        history = History(client)
        if question.output == "focus":
            return await _focus(history, end - seconds, end, question.account)
        label = f"the last {question.since or '24h'}"
        if question.by == "route":
            found = route_spending.routes(await history.routes(end - seconds, end), idle)
            return Answer(_routes(found, question.output, label, console), len(found), label)
        if question.by == "team":
            deployments = route_spending.teams(await history.teams(end - seconds, end), idle)
        else:
            deployments = spending.spent(await history.period(end - seconds, end))
        return _groups(spending.grouped(deployments, question.by), question, label, console)
    finally:
        await client.close()


async def _now(question: SpendingQuery, console: Console) -> Answer:
    if question.since is not None:
        raise InvalidSpec("--since needs the history of a Prometheus. Name one with --prometheus.", field="--since")
    if question.by == "route":
        raise InvalidSpec(
            "--by route needs the gateways' metrics in a Prometheus. Name one with --prometheus.", field="--by"
        )
    if question.output == "focus":
        raise InvalidSpec(
            "FOCUS has a row per day, which needs the history of a Prometheus. Name one with --prometheus.",
            field="--output",
        )
    deployments = spending.spent(await current(question.place))
    label = "all time since the operator counts"
    return _groups(spending.grouped(deployments, question.by), question, label, console)


async def _focus(history: "History", start: float, end: float, account: str) -> Answer:
    charges = []
    for first, last in utc_days(start, end):
        between = (datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC))
        charges += [focus.Charge(one, *between) for one in spending.spent(await history.period(first, last))]
    text = focus.dump(charges, account=account)
    return Answer(text, text.count("\r\n") - 1, "")


def _groups(groups: Sequence[SpendingGroup], question: SpendingQuery, label: str, console: Console) -> Answer:
    if question.output == "json":
        text = json.dumps({"period": label, "by": question.by, "items": list(map(record, groups))}, indent=2) + "\n"
    elif question.output == "csv":
        text = _csv(map(_flat, groups))
    else:
        text = _rendered(console, _table(groups, question.by, label))
    return Answer(text, len(groups), label)


def record(group: SpendingGroup) -> dict[str, Any]:
    """A group as data: money is decimal text, and what is unknown is null."""
    return {
        "name": group.title,
        "models": sorted({member.model for member in group.members if member.model}),
        "usd": _money(group.usd),
        "idleUsd": _money(group.usd_in("idle")),
        "startupUsd": _money(group.usd_in("startup")),
        "estimatedUsd": _money(group.total(lambda member: member.estimated_usd)),
        "usdPerHour": _money(group.total(lambda member: member.usd_per_hour)),
        "usdPerMillionTokens": _money(group.usd_per_million),
        "usdPerRequest": _money(group.usd_per_request),
        "gpuHours": _money(group.total(lambda member: member.gpu_hours)),
        "inputTokens": _count(group.tokens("input")),
        "cachedInputTokens": _count(group.tokens("cached_input")),
        "outputTokens": _count(group.tokens("output")),
        "requests": _count(group.total(lambda member: member.requests)),
        "withoutPrice": group.unpriced,
        "hosted": [
            {
                "model": one.comparator,
                "usd": _money(one.hosted_usd),
                "ownUsd": _money(one.own_usd),
                "savingsUsd": _money(one.savings_usd),
            }
            for one in group.comparisons()
        ],
    }


def _flat(group: SpendingGroup) -> dict[str, Any]:
    whole = record(group)
    hosted = whole.pop("hosted")
    return {
        **whole,
        "models": " ".join(whole["models"]),
        **{f"hostedUsd {one['model']}": one["usd"] for one in hosted},
        **{f"savingsUsd {one['model']}": one["savingsUsd"] for one in hosted},
    }


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    written = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for one in written for name in one)), restval="")
    writer.writeheader()
    writer.writerows(written)
    return text.getvalue()


def _table(groups: Sequence[SpendingGroup], by: By, label: str) -> Table:
    table = Table(box=None, pad_edge=False, title=f"Cost of {label}, in US dollars", title_justify="left")
    table.add_column({"model": "Model", "namespace": "Namespace", "team": "Team"}[by], overflow="fold")
    for name in ("Cost", "Idle", "GPU-hours", "Tokens", "Requests", "$/1M", "Cheapest hosted", "Savings"):
        table.add_column(name, justify="right", overflow="fold")
    whole = SpendingGroup("total", tuple(member for group in groups for member in group.members))
    for group in (*groups, *((whole,) if len(groups) > 1 else ())):
        table.add_row(*_row(group, last=group is whole))
    if whole.unpriced:
        table.caption = f"{whole.unpriced} without a price: see CostKnown in `kubectl describe mdep`."
        table.caption_justify = "left"
    return table


def _row(group: SpendingGroup, *, last: bool) -> list[Text]:
    cheapest, idle = group.cheapest, group.idle_share
    cells = [
        plain(group.title) or "(none)",
        _shown(group.usd, 2),
        "-" if idle is None else f"{100 * idle:.0f} %",
        _shown(group.total(lambda member: member.gpu_hours), 1),
        _shown(group.tokens(), 0),
        _shown(group.total(lambda member: member.requests), 0),
        _shown(group.usd_per_million, 3),
        "-" if cheapest is None else f"{plain(cheapest.comparator)} {cheapest.hosted_usd:,.2f}",
        "-" if cheapest is None else f"{cheapest.savings_usd:+,.2f}",
    ]
    style = "bold" if last else ""
    return [Text(cell, style) for cell in cells]


def _routes(found: Sequence[RouteSpending], output: Output, label: str, console: Console) -> str:
    rows = [
        {
            "namespace": route.namespace,
            "policy": route.policy,
            "target": route.target,
            "requests": _count(route.requests),
            "tokens": _count(route.tokens),
            "usd": _money(route.usd),
            "escalationUsd": _money(route.escalation_usd),
            "wastedUsd": _money(route.wasted_usd),
        }
        for route in found
    ]
    if output == "json":
        return json.dumps({"period": label, "by": "route", "items": rows}, indent=2) + "\n"
    if output == "csv":
        return _csv(rows)
    table = Table(box=None, pad_edge=False, title=f"Routes of {label}, in US dollars", title_justify="left")
    table.add_column("Policy", overflow="fold")
    table.add_column("Target", overflow="fold")
    for name in ("Requests", "Tokens", "Cost", "Escalations", "Wasted"):
        table.add_column(name, justify="right")
    for route in found:
        table.add_row(
            Text(plain(f"{route.namespace}/{route.policy}")),
            Text(plain(route.target)),
            *(
                Text(_shown(value, places))
                for value, places in (
                    (route.requests, 0),
                    (route.tokens, 0),
                    (route.usd, 4),
                    (route.escalation_usd, 4),
                    (route.wasted_usd, 4),
                )
            ),
        )
    return _rendered(console, table)


def _rendered(console: Console, table: Table) -> str:
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _shown(value: Decimal | None, places: int) -> str:
    return "-" if value is None else f"{value:,.{places}f}"


def _money(value: Decimal | None) -> str | None:
    return None if value is None else f"{value.quantize(_CENTS):f}"


def _count(value: Decimal | None) -> int | None:
    return None if value is None else int(value.to_integral_value())


def nothing(question: SpendingQuery) -> str:
    """Why there may be no data, and what to do."""
    if question.by == "route":
        return (
            "This Prometheus has no data of gateways in that time. Check that there is a RoutingPolicy, and that it "
            "scrapes the gateways (manifests/monitoring/podmonitors.yaml)."
        )
    if question.place.prometheus is not None:
        return (
            "This Prometheus has no data of ModelDeployments in that time. Check on its Targets page that it scrapes "
            "the operator (manifests/monitoring/podmonitors.yaml)."
        )
    return "The operator has no data of ModelDeployments yet. `kubectl get mdep -A` lists them."


@app.command()
def cost(
    by: Annotated[By, typer.Option(help="What a line stands for.")] = "model",
    since: Annotated[
        str | None, typer.Option(help="Period: 90m, 24h, 7d, 4w. It needs --prometheus; default there: 24h.")
    ] = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="focus is FOCUS 1.2 CSV, a row per model and day.")
    ] = "table",
    prometheus: Prometheus = None,
    prometheus_ca_file: CaFile = None,
    prometheus_token_file: TokenFile = None,
    metrics: Metrics = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    operator_namespace: OperatorNamespace = "flotilla-system",
    idle: Annotated[
        Literal["proportional", "even", "owner"] | None,
        typer.Option(help="Who pays for idle time, by team or route: by work (default), all equally, or the owner."),
    ] = None,
    account: Annotated[str, typer.Option(help="In FOCUS: the owner of the accelerators.")] = "self-hosted",
) -> None:
    """Print what models cost and served, compared with hosted models.

    Exit code 1: there is no data; 3: the source does not answer.
    """
    place = Place(
        prometheus=prometheus,
        metrics=metrics,
        kubeconfig=kubeconfig,
        context=context,
        operator_namespace=operator_namespace,
        ca_file=prometheus_ca_file,
        token_file=prometheus_token_file,
    )
    rule = None if idle is None else IdleRule(idle)
    question = SpendingQuery(by=by, output=output, since=since, place=place, account=account, idle=rule)
    with exit_on_error(not_ready=EXIT_UNREACHABLE):
        answer = ask(question, Console())
    sys.stdout.write(answer.text)
    if not answer.lines:
        typer.echo(nothing(question), err=True)
        raise typer.Exit(EXIT_NO)
