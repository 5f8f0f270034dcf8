"""The few kinds of panels that the dashboards have, each by one call; a line is a query and its legend."""

from dataclasses import replace

from flotilla.render.monitoring.panels import Panel, Query, Row

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
