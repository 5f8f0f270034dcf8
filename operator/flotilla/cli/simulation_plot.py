"""One HTML page with the curves of a simulation: inline SVG, no script, nothing loaded, light and dark."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from flotilla.cli.simulate import Simulated
from flotilla.simulation.fleet import Row

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 900, 220, 48, 24, 12
_COLOURS = ("a", "b", "c")
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #667085; --line: #d0d5dd; --paper: #ffffff;
        --a: #1d5fd1; --b: #b54708; --c: #027a48; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #3b4252; --paper: #14171f;
          --a: #7fb0ff; --b: #fdb022; --c: #4cd39b; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
table { border-collapse: collapse; } td { padding: .15rem 1.5rem .15rem 0; vertical-align: top; }
svg { width: 100%; height: auto; } text { fill: var(--soft); font-size: 12px; }
.axis { stroke: var(--line); } .curve { fill: none; stroke-width: 1.8; }
.a { stroke: var(--a); } .b { stroke: var(--b); } .c { stroke: var(--c); stroke-dasharray: 5 4; }
.key { display: inline-block; margin-right: 1.2rem; } .key i { display: inline-block; width: 1.2rem; height: .2rem;
       margin-right: .4rem; vertical-align: middle; }
i.a { background: var(--a); } i.b { background: var(--b); } i.c { background: var(--c); }
footer { color: var(--soft); margin-top: 2rem; font-size: .85rem; }
"""


@dataclass(frozen=True)
class _Curve:
    name: str
    read: Callable[[Row], float]


_CHARTS: Sequence[tuple[str, Sequence[_Curve]]] = (
    (
        "Replicas",
        (
            _Curve("paid for (ready, starting, draining)", lambda row: row.ready + row.starting + row.draining),
            _Curve("ready", lambda row: row.ready),
            _Curve("wanted", lambda row: row.wanted),
        ),
    ),
    (
        "Requests in the fleet",
        (
            _Curve("running", lambda row: row.running),
            _Curve("waiting or held", lambda row: row.waiting + row.held),
        ),
    ),
)


def page(simulated: Simulated) -> str:
    """The whole document."""
    rows, trace = simulated.run.rows, simulated.run.trace
    title = f"{simulated.deployment.name} under {trace.name}"
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in simulated.lines())
    charts = [_arrivals(rows), *(_chart(name, curves, rows) for name, curves in _CHARTS)]
    engine = simulated.deployment.engine
    basis = (
        f"flotilla simulate scaling: a look every {simulated.interval_s:g} s, {engine.startup_s:g} s to start a "
        f"replica, {engine.limits.max_running} sequences and {engine.limits.kv_blocks * engine.limits.block_size:,} "
        f"tokens of KV cache per replica. A model of the engine, not a measurement."
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n<table>{table}</table>\n{''.join(charts)}"
        f"<footer>{escape(basis)}</footer></body></html>\n"
    )


def _arrivals(rows: Sequence[Row]) -> str:
    """Requests per second, over half a minute each: single intervals would only show their noise."""
    step = max(1, len(rows) // 240)
    picked = rows[::step]
    rates = [
        (later.arrived - earlier.arrived) / (later.at_s - earlier.at_s) for earlier, later in itertools.pairwise(picked)
    ]
    return _svg("Arrivals per second", [("arrivals", list(zip((row.at_s for row in picked[1:]), rates, strict=True)))])


def _chart(name: str, curves: Sequence[_Curve], rows: Sequence[Row]) -> str:
    return _svg(name, [(curve.name, [(row.at_s, float(curve.read(row))) for row in rows]) for curve in curves])


def _svg(title: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    last_s = max((at_s for _, points in curves for at_s, _ in points), default=1.0) or 1.0
    most = max((value for _, points in curves for _, value in points), default=1.0) or 1.0
    step = _round_step(most / 5)
    ticks = math.ceil(most / step - 1e-9)
    top = step * ticks

    def x(at_s: float) -> float:
        return _LEFT + (_WIDTH - _LEFT) * at_s / last_s

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    parts = []
    for tick in range(ticks + 1):
        value = tick * step
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    minutes = _round_step(last_s / 60 / 6)
    for tick in range(1, int(last_s / 60 / minutes) + 1):
        at = x(tick * minutes * 60)
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{tick * minutes:g} min</text>')
    for (_, points), colour in zip(curves, _COLOURS, strict=False):
        path = "".join(f"{'L' if index else 'M'}{x(at_s):.1f} {y(v):.1f}" for index, (at_s, v) in enumerate(points))
        parts.append(f'<path class="curve {colour}" d="{path}"/>')
    keys = "".join(
        f'<span class="key"><i class="{colour}"></i>{escape(name)}</span>'
        for (name, _), colour in zip(curves, _COLOURS, strict=False)
    )
    return (
        f"<h2>{escape(title)}</h2><div>{keys}</div>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>\n'
    )


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, and at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
