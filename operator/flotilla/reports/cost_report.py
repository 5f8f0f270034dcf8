"""The cost report: one HTML page with charts, without scripts and without requests to other hosts."""

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from jinja2 import Environment, StrictUndefined

from flotilla.cost.spending import SpendingGroup, Spent, grouped
from flotilla.reports.findings import BreakEvenFinding, break_evens, findings

WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 40
_ROW, _BAR = 34, 22
_NAMES = 230
"""Room for the names of bars."""
_NOTHING = 1e-9
"""US dollars and requests below it count as 0."""
_BESIDE = 230
"""Room for the names of curves."""
_LETTER, _BOLD = 7.0, 8.2
"""Width of a letter; longer labels are cut."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points of (x, y); `style` is a class of the stylesheet: own, hosted-0, hosted-1, ..."""

    label: str
    points: tuple[tuple[float, float], ...]
    style: str


def ticks(top: float, count: int = 4) -> tuple[float, ...]:
    """Round values from 0 to at least `top`."""
    if not top > _NOTHING:
        return (0.0, 1.0)
    rough = top / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return tuple(index * step for index in range(math.ceil(top / step - 1e-9) + 1))


def number(value: float) -> str:
    """As short as it can be read: 0, 0.25, 12, 3,400, 34k, 1.2M."""
    for limit, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def columns(parts: Sequence[tuple[str, Mapping[str, float]]], kinds: Sequence[str], *, title: str) -> str:
    """Stacked columns over time: (label, value by kind) from left to right."""
    root, low = _root(280, title), 280 - _BOTTOM
    scale = ticks(max((sum(values.values()) for _, values in parts), default=0.0))
    slot = (WIDTH - _LEFT - _RIGHT) / max(1, len(parts))
    every = max(1, math.ceil(len(parts) / 9))

    def y(value: float) -> float:
        return low - (low - _TOP) * value / scale[-1]

    _grid(root, scale, y, right=WIDTH - _RIGHT)
    for index, (label, values) in enumerate(parts):
        x, below = _LEFT + slot * index, 0.0
        for kind in kinds:
            value = values.get(kind, 0.0)
            if value > 0:
                _rect(root, kind, x + slot * 0.1, y(below + value), slot * 0.8, y(below) - y(below + value))
                below += value
        if index % every == 0:
            _text(root, x + slot / 2, low + 20, label, anchor="middle")
    return _dump(root)


def shares(rows: Sequence[tuple[str, Mapping[str, float]]], kinds: Sequence[str], *, title: str) -> str:
    """A bar for each row, as long as its sum, divided by kind."""
    root = _root(len(rows) * _ROW + 8, title)
    longest = max((sum(values.values()) for _, values in rows), default=0.0) or 1.0
    for index, (label, values) in enumerate(rows):
        y, x = index * _ROW + 6, float(_NAMES)
        _text(root, 0, y + 15, _cut(label, _NAMES - 10))
        for kind in kinds:
            width = (WIDTH - _NAMES - 90) * values.get(kind, 0.0) / longest
            if width > 0:
                _rect(root, kind, x, y, width, _BAR)
            x += width
        _text(root, x + 6, y + 15, f"{sum(values.values()):,.2f}")
    return _dump(root)


def diverging(rows: Sequence[tuple[str, float]], *, title: str) -> str:
    """Bars to the right of a zero line for gains, to the left for losses, each with its figure."""
    root = _root(len(rows) * _ROW + 8, title)
    room = 84
    left, right = _NAMES + room, WIDTH - room
    gains, losses = max([0.0, *(v for _, v in rows)]), max([0.0, *(-v for _, v in rows)])
    scale = (right - left) / ((gains + losses) or 1.0)
    zero = left + losses * scale
    _line(root, "axis", zero, zero, 0, len(rows) * _ROW)
    for index, (label, value) in enumerate(rows):
        y, width = index * _ROW + 6, abs(value) * scale
        _text(root, 0, y + 15, _cut(label, _NAMES - 10))
        if value >= 0:
            _rect(root, "gain", zero, y, width, _BAR)
            _text(root, zero + width + 6, y + 15, f"{value:+,.2f}")
        else:
            _rect(root, "loss", zero - width, y, width, _BAR)
            _text(root, zero - width - 6, y + 15, f"{value:+,.2f}", anchor="end")
    return _dump(root)


def lines(curves: Sequence[Curve], marks: Iterable[tuple[float, str]], *, title: str, x_name: str) -> str:
    """Curves over one axis from 0, each with its name at its end, and marks as upright lines."""
    height, top = 310, 30
    root = _root(height, title)
    across = ticks(max((x for curve in curves for x, _ in curve.points), default=1.0))
    up = ticks(max((y for curve in curves for _, y in curve.points), default=1.0))
    low, right = height - _BOTTOM - 8, WIDTH - _BESIDE

    def x(value: float) -> float:
        return _LEFT + (right - _LEFT) * value / across[-1]

    def y(value: float) -> float:
        return low - (low - top) * value / up[-1]

    _grid(root, up, y, right=right)
    for value in across:
        _text(root, x(value), low + 18, number(value), anchor="middle")
    _text(root, (_LEFT + right) / 2, height - 6, x_name, anchor="middle")
    for value, label in marks:
        _line(root, "mark", x(value), x(value), top - 8, low)
        _text(root, x(value), top - 14, label, anchor="start" if x(value) < _LEFT + 60 else "middle")
    for curve in curves:
        points = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in curve.points)
        ElementTree.SubElement(root, "polyline", {"class": f"line {curve.style}", "points": points})
    ends = [(x(curve.points[-1][0]), y(curve.points[-1][1])) for curve in curves]
    for curve, (left, end) in zip(curves, _apart(ends), strict=True):
        _text(root, left + 8, end + 4, _cut(curve.label, _BESIDE - 10, _BOLD), style=f"name {curve.style}")
    return _dump(root)


def _apart(places: Sequence[tuple[float, float]], *, distance: float = 17) -> list[tuple[float, float]]:
    """Move names down so that none covers one that begins within its width."""
    found: list[tuple[float, float]] = []
    order = sorted(range(len(places)), key=lambda index: places[index][1])
    moved: dict[int, tuple[float, float]] = {}
    for index in order:
        left, y = places[index]
        near = [below for x, below in found if abs(x - left) < _BESIDE]
        while any(abs(y - other) < distance for other in near):
            y += 1
        found.append((left, y))
        moved[index] = (left, y)
    return [moved[index] for index in range(len(places))]


def _grid(root: Element, scale: Sequence[float], y: Callable[[float], float], *, right: float) -> None:
    for value in scale:
        _line(root, "grid", _LEFT, right, y(value), y(value))
        _text(root, _LEFT - 8, y(value) + 4, f"${number(value)}", anchor="end")


def _root(height: float, title: str) -> Element:
    return Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-label": title})


def _rect(root: Element, style: str, x: float, y: float, width: float, height: float) -> None:
    values = {"x": x, "y": y, "width": width, "height": height}
    ElementTree.SubElement(root, "rect", {"class": style, **{name: f"{value:.1f}" for name, value in values.items()}})


def _line(root: Element, style: str, x1: float, x2: float, y1: float, y2: float) -> None:
    values = {"x1": x1, "x2": x2, "y1": y1, "y2": y2}
    ElementTree.SubElement(root, "line", {"class": style, **{name: f"{value:.1f}" for name, value in values.items()}})


def _text(root: Element, x: float, y: float, label: str, *, anchor: str = "start", style: str = "") -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, **({"class": style} if style else {})}
    ElementTree.SubElement(root, "text", attributes).text = label


def _cut(label: str, width: float, letter: float = _LETTER) -> str:
    """Shortened in its middle: the ends of a name are what differs."""
    most = int(width / letter)
    if len(label) <= most:
        return label
    half = (most - 1) // 2
    return f"{label[: most - 1 - half]}…{label[-half:]}"


def _dump(root: Element) -> str:
    return ElementTree.tostring(root, encoding="unicode")


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
    whole = SpendingGroup("all models", report.deployments)
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
    return columns([(step.label, step.usd) for step in steps], STATES, title="US dollars by what the pods did")


def _by_model(models: Sequence[SpendingGroup]) -> str:
    rows = [
        (group.title, {state: float(group.usd_in(state) or 0) for state in STATES})
        for group in models
        if group.usd is not None
    ]
    return shares(rows, STATES, title="US dollars by model, divided by what its pods did") if rows else ""


def _savings(whole: SpendingGroup) -> str:
    rows = [(one.comparator, float(one.savings_usd)) for one in whole.comparisons() if one.hosted_usd > 0]
    return diverging(rows, title="US dollars saved against each hosted model") if rows else ""


def _charts(models: Sequence[SpendingGroup], hours: Decimal | None) -> list[dict[str, Any]]:
    charts = []
    for group in models[:_CHARTS]:
        evens = break_evens(group.members[0], hours or Decimal(0))
        if evens:
            charts.append({"title": group.title, "evens": evens, "svg": _break_even(group.title, evens)})
    return charts


def _break_even(title: str, evens: Sequence[BreakEvenFinding]) -> str:
    served, own = float(evens[0].tasks_per_day), float(evens[0].own_usd_per_day)
    known = [float(even.at) for even in evens if even.at.is_finite()]
    # The nearest crossings are what one decides by; one a hundred times away would press the rest into a corner.
    reach = max([1.5 * served, *(1.25 * at for at in known if at <= 10 * max(served, min(known)))])
    reach = ticks(reach)[-1]
    highest = 2.2 * max(own, served * float(evens[0].hosted_usd_per_task))
    capacity = None if evens[0].capacity_per_day is None else float(evens[0].capacity_per_day)
    curves = [Curve("self-hosted", _steps(own, capacity, reach, highest), "own")]
    for index, even in enumerate(evens):
        price = float(even.hosted_usd_per_task)
        end = min(reach, highest / price)
        curves.append(Curve(even.comparator, ((0.0, 0.0), (end, end * price)), f"hosted-{index}"))
    return lines(
        curves,
        [(served, f"served: {number(served)} a day")],
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
