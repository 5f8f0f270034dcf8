"""The report as one HTML text: no request to anywhere, no script, and a policy that forbids both."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from flotilla.domain.findings import BreakEven, break_evens, findings
from flotilla.domain.spending import Group, Spent, grouped
from flotilla.render.report import svg

STATES = ("serving", "idle", "startup", "draining")
_UNKNOWN = "-"
_FINDINGS = 25
_CHARTS = 8
"""Break-even charts of so many models, those that cost most."""


@dataclass(frozen=True, slots=True)
class Step:
    """US dollars by state, between the last step's end and this one's."""

    label: str
    usd: dict[str, float]


@dataclass(frozen=True, slots=True)
class Report:
    """What the page is about. `steps` is empty where the source has no history."""

    deployments: tuple[Spent, ...]
    steps: tuple[Step, ...]
    start: datetime | None
    """None: everything that the operator has counted."""
    end: datetime
    source: str

    @property
    def hours(self) -> Decimal | None:
        """Length of the period; None where it is not known."""
        return None if self.start is None else Decimal(round((self.end - self.start).total_seconds())) / 3600


def page(report: Report) -> str:
    """The HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files(__package__)
    style = (folder / "page.css").read_text()
    environment.filters.update(usd=_usd, count=_count, percent=_percent)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = environment.from_string((folder / "page.html.j2").read_text())
    return template.render(style=style, style_hash=f"sha256-{digest}", **_values(report))


def _values(report: Report) -> dict[str, Any]:
    whole = Group("all models", report.deployments)
    models = grouped(report.deployments, "model")
    hours = report.hours
    found = findings(report.deployments, hours or Decimal(0))
    return {
        "report": report,
        "whole": whole,
        "models": models,
        "states": STATES,
        "month": None if whole.usd is None or not hours else whole.usd / hours * 730,
        "findings": found[:_FINDINGS],
        "more_findings": len(found[_FINDINGS:]),
        "over_time": _over_time(report.steps),
        "by_model": _by_model(models),
        "savings": _savings(whole),
        "charts": _charts(models, hours),
    }


def _over_time(steps: Sequence[Step]) -> str:
    if not steps:
        return ""
    return svg.columns([(step.label, step.usd) for step in steps], STATES, title="US dollars by what the pods did")


def _by_model(models: Sequence[Group]) -> str:
    rows = [
        (group.title, {state: float(group.usd_in(state) or 0) for state in STATES})
        for group in models
        if group.usd is not None
    ]
    return svg.shares(rows, STATES, title="US dollars by model, divided by what its pods did") if rows else ""


def _savings(whole: Group) -> str:
    rows = [(one.comparator, float(one.savings_usd)) for one in whole.comparisons() if one.hosted_usd > 0]
    return svg.diverging(rows, title="US dollars saved against each hosted model") if rows else ""


def _charts(models: Sequence[Group], hours: Decimal | None) -> list[dict[str, Any]]:
    charts = []
    for group in models[:_CHARTS]:
        evens = break_evens(group.members[0], hours or Decimal(0))
        if evens:
            charts.append({"title": group.title, "evens": evens, "svg": _break_even(group.title, evens)})
    return charts


def _break_even(title: str, evens: Sequence[BreakEven]) -> str:
    served, own = float(evens[0].tasks_per_day), float(evens[0].own_usd_per_day)
    known = [float(even.at) for even in evens if even.at.is_finite()]
    # The nearest crossings are what one decides by; one a hundred times away would press the rest into a corner.
    reach = max([1.5 * served, *(1.25 * at for at in known if at <= 10 * max(served, min(known)))])
    reach = svg.ticks(reach)[-1]
    highest = 2.2 * max(own, served * float(evens[0].hosted_usd_per_task))
    capacity = None if evens[0].capacity_per_day is None else float(evens[0].capacity_per_day)
    curves = [svg.Curve("self-hosted", _steps(own, capacity, reach, highest), "own")]
    for index, even in enumerate(evens):
        price = float(even.hosted_usd_per_task)
        end = min(reach, highest / price)
        curves.append(svg.Curve(even.comparator, ((0.0, 0.0), (end, end * price)), f"hosted-{index}"))
    return svg.lines(
        curves,
        [(served, f"served: {svg.number(served)} a day")],
        title=f"US dollars a day by requests a day, {title}",
        x_name="requests a day",
    )


def _steps(own: float, capacity: float | None, reach: float, highest: float) -> tuple[tuple[float, float], ...]:
    """Flat to the capacity, then as much again for each further capacity."""
    if capacity is None or capacity <= 0:
        return ((0.0, own), (reach, own))
    points, at, usd = [(0.0, own)], capacity, own
    while at < reach and usd + own <= highest:
        points += [(at, usd), (at, usd + own)]
        at, usd = at + capacity, usd + own
    return (*points, (min(at, reach), usd))


def _usd(value: Decimal | None, places: int = 2) -> str:
    if value is None:
        return _UNKNOWN
    return f"-${-value:,.{places}f}" if value < 0 else f"${value:,.{places}f}"


def _count(value: Decimal | None) -> str:
    return _UNKNOWN if value is None else "never" if not value.is_finite() else f"{value:,.0f}"


def _percent(value: Decimal | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.0f} %"
