"""The building blocks of Grafana dashboards: panels, rows, variables."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from flotilla.constants import LABEL_PART_OF, MANAGER

Kind = Literal["timeseries", "stat", "table", "bargauge"]
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA_VERSION = 39
_COLUMNS = 24
_TALL, _SHORT = 8, 4


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or one set of lines, of a panel. `legend` may name labels: `{{namespace}}`."""

    expr: str
    legend: str
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """`unit` is one of Grafana's. A width of 24 is the whole row."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 12
    stacked: bool = False
    decimals: int | None = None

    @property
    def height(self) -> int:
        return _SHORT if self.kind == "stat" else _TALL


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and its panels, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values that a label of a metric has."""

    name: str
    label: str
    query: str
    several: bool = True


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page; `uid` is fixed, so that links to it stay."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    since: str = "now-6h"

    def panels(self) -> Iterator[Panel]:
        """All panels."""
        for row in self.rows:
            yield from row.panels

    def model(self) -> dict[str, Any]:
        """Grafana's JSON."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [MANAGER],
            "schemaVersion": _SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "1m",
            "time": {"from": self.since, "to": "now"},
            "timezone": "",
            "links": [
                {
                    "title": "Flotilla",
                    "type": "dashboards",
                    "tags": [MANAGER],
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [_datasource(), *map(_variable, self.variables)]},
            "panels": list(_placed(self.rows)),
        }


def config_maps(dashboards: Iterable[Dashboard], text: dict[str, str]) -> list[dict[str, Any]]:
    """One ConfigMap each, with the label that Grafana's sidecar looks for. `text` is the JSON by uid."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": dashboard.uid,
                "labels": {LABEL_PART_OF: MANAGER, "grafana_dashboard": "1"},
                "annotations": {"grafana_folder": "Flotilla"},
            },
            "data": {f"{dashboard.uid}.json": text[dashboard.uid]},
        }
        for dashboard in dashboards
    ]


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    every = {"includeAll": True, "multi": True, "allValue": ".+", "current": {"text": ["All"], "value": ["$__all"]}}
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": variable.query, "refId": variable.name},
        "definition": variable.query,
        "refresh": 2,
        "sort": 1,
        **(every if variable.several else {}),
    }


def _placed(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1},
        }
        number, top, left, height = number + 1, top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > _COLUMNS:
                left, top, height = 0, top + height, 0
            grid = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            yield _panel(panel, number, grid)
            number, left, height = number + 1, left + panel.width, max(height, panel.height)
        top += height


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": _custom(panel)}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": grid,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": query.instant,
                "range": not query.instant,
                **({"format": "table"} if panel.kind == "table" else {}),
            }
            for index, query in enumerate(panel.queries)
        ],
        **({"transformations": _TABLE} if panel.kind == "table" else {}),
    }


_TABLE: list[dict[str, Any]] = [
    {"id": "merge", "options": {}},
    {"id": "organize", "options": {"excludeByName": {"Time": True}}},
]


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind != "timeseries":
        return {}
    stacking = {"mode": "normal", "group": "A"} if panel.stacked else {"mode": "none"}
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 25 if panel.stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": stacking,
    }


def _options(panel: Panel) -> dict[str, Any]:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "stat":
        return {"reduceOptions": reduce, "colorMode": "none", "graphMode": "area", "textMode": "value_and_name"}
    if panel.kind == "bargauge":
        return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True}
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max", "lastNotNull"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


Line = tuple[str, str]
DOLLARS = "currencyUSD"
MODEL, IN = "{{namespace}}/{{modeldeployment}}", 'namespace=~"$namespace"'


def row(title: str, *panels: Panel) -> Row:
    """From left to right."""
    return Row(title, panels)


def graph(title: str, unit: str, description: str, *lines: Line, width: int = 12, decimals: int | None = None) -> Panel:
    """Lines over time."""
    queries = tuple(Query(expr, legend) for expr, legend in lines)
    return Panel(title, description, unit, queries, width=width, decimals=decimals)


def stack(title: str, unit: str, description: str, *lines: Line) -> Panel:
    """Lines over time whose sum means something."""
    return replace(graph(title, unit, description, *lines), stacked=True)


def dollars(title: str, description: str, *lines: Line) -> Panel:
    """A stack of US dollars."""
    return stack(title, DOLLARS, description, *lines)


def numbers(title: str, unit: str, description: str, *lines: Line, width: int = 6) -> Panel:
    """The newest values, with what they were behind them."""
    return replace(graph(title, unit, description, *lines, width=width), kind="stat")


def bars(title: str, unit: str, description: str, *lines: Line) -> Panel:
    """The values of now beside each other."""
    return _now(replace(graph(title, unit, description, *lines), kind="bargauge"))


def totals(title: str, description: str, line: Line, *, width: int) -> Panel:
    """US dollars of the whole time shown."""
    return _now(numbers(title, DOLLARS, description, line, width=width))


def table(title: str, unit: str, description: str, *lines: Line, width: int = 12) -> Panel:
    """The values of now by their labels; a line is a column."""
    return _now(replace(graph(title, unit, description, *lines, width=width), kind="table"))


def _now(panel: Panel) -> Panel:
    return replace(panel, queries=tuple(replace(query, instant=True) for query in panel.queries))
