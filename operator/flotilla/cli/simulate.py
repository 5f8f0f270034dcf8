"""`flotilla simulate`: a load against the scaling of a ModelDeployment and a model of its engine, without a cluster.

The result is a table, JSON, a CSV file, or an HTML page with curves (inline SVG, no script, light and dark).
"""

import csv
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from flotilla.api.model_deployment import ModelDeployment
from flotilla.cli import manifests
from flotilla.cli.common import EXIT_USAGE, Json, command_app, fail
from flotilla.errors import InvalidSpec
from flotilla.planning.resolve import Resolved, load_catalog, resolve
from flotilla.planning.speed import RequestShape
from flotilla.simulation import trace as packaged
from flotilla.simulation.engine import Speed
from flotilla.simulation.fleet import (
    Deployment,
    Figures,
    FleetRow,
    Flotilla,
    Run,
    deployment,
    engine_speed,
    figures,
    simulate,
)
from flotilla.simulation.trace import Trace, parse_csv

app = command_app(help="Replay a load through the operator's scaling, without a cluster.", no_args_is_help=True)
_CENT = Decimal("0.01")


@app.command()
def traces() -> None:
    """List the traces that come with Flotilla."""
    for name in packaged.NAMES:
        typer.echo(f"{name:20} {packaged.about(name)}")


@app.command()
def scaling(
    trace: Annotated[str, typer.Option(help="CSV file, or the name of a trace of `flotilla simulate traces`.")],
    spec: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="YAML file with a ModelDeployment.")],
    rate: Annotated[float, typer.Option(min=0.001, max=1000, help="Multiply the trace's requests by this.")] = 1.0,
    startup_seconds: Annotated[float, typer.Option(min=0, help="Seconds until a new replica serves.")] = 120.0,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two reads of the queues.")] = 2.0,
    initial_replicas: Annotated[
        int | None, typer.Option(min=0, help="Replicas at the start. Default: spec.scaling.minReplicas.")
    ] = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds after which a waiting client gives up.")] = 60.0,
    decode_tokens_per_second: Annotated[
        float | None,
        typer.Option(min=1, help="Speed of a replica with a full batch. Default: computed for the model and its GPU."),
    ] = None,
    prefill_tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="Prompt tokens per second of a replica.")
    ] = None,
    step_seconds: Annotated[
        float | None, typer.Option(min=0.0001, help="Seconds for one token of a single request.")
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens that the KV cache holds. Default: by the memory fit.")
    ] = None,
    max_sequences: Annotated[
        int | None, typer.Option(min=1, help="Most sequences in a batch. Default: the engine's.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="CSV file for the state of the fleet every 5 s.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="HTML file for a page with the curves.")] = None,
    as_json: Json = False,
) -> None:
    """Replay a load trace through the operator's scaling and a model of the engine."""
    try:
        simulated = Simulated.make(
            load_trace(trace).scaled(rate),
            spec,
            speed=(decode_tokens_per_second, prefill_tokens_per_second, step_seconds),
            startup_s=startup_seconds,
            interval_s=interval,
            initial=initial_replicas,
            patience_s=patience,
            kv_tokens=kv_tokens,
            max_sequences=max_sequences,
        )
        if csv_file is not None:
            write_csv(csv_file, simulated.run.rows)
        if plot is not None:
            plot.write_text(page(simulated), encoding="utf-8")
    except (InvalidSpec, OSError) as error:
        fail(error, EXIT_USAGE)
    if as_json:
        typer.echo(json.dumps(simulated.answer(), indent=2))
    else:
        simulated.show()


def load_trace(name: str) -> Trace:
    """The file of that name, or else a packaged trace; raises InvalidSpec."""
    path = Path(name)
    if path.suffix or path.exists():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSpec(f"{name}: {error}", field="--trace") from error
        return parse_csv(text, name)
    return packaged.make(name)


def load_deployment(
    path: Path, *, shape: RequestShape, speed: tuple[float | None, float | None, float | None], **options: Any
) -> Deployment:
    """The ModelDeployment of a manifest, as fast as `speed` says or is computed; raises InvalidSpec.

    `speed` has tokens per second of a full batch, of prompts, and the seconds of one step.
    """
    try:
        documents = [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{path}: {error}", field="--spec") from error
    found = [one for one in documents if isinstance(one, dict) and one.get("kind") == "ModelDeployment"]
    if len(found) != 1:
        raise InvalidSpec(f"{path}: it must contain exactly one ModelDeployment, not {len(found)}.", field="--spec")
    try:
        model = manifests.parse(found[0], namespace="default")
    except InvalidSpec as error:
        raise InvalidSpec(f"{path}: {error.field}: {error}", field="--spec") from error
    assert isinstance(model, ModelDeployment)
    name, spec = model.metadata.name, model.spec
    resolved = resolve(name, spec, load_catalog())
    return deployment(name, spec, resolved, speed=_speed(resolved, shape, speed), **options)


def _speed(resolved: Resolved, shape: RequestShape, given: tuple[float | None, float | None, float | None]) -> Speed:
    """Raises InvalidSpec with the options where the speed is not known."""
    decode, prefill, step = given
    if decode is not None and prefill is not None and step is not None:
        return Speed(decode, prefill, step)
    try:
        computed = engine_speed(resolved, shape)
    except InvalidSpec as error:
        also = ", and --kv-tokens, as its KV cache is not known either" if resolved.fit is None else ""
        raise InvalidSpec(
            f"How fast {resolved.accelerator.class_name} is with this model is not known. Give "
            f"--decode-tokens-per-second, --prefill-tokens-per-second and --step-seconds{also}.",
            field="--spec",
            reason=error.reason,
        ) from error
    return Speed(
        decode or computed.decode_tokens_per_s,
        prefill or computed.prefill_tokens_per_s,
        step or computed.overhead_s,
    )


@dataclass(frozen=True)
class Simulated:
    """A run and its parameters."""

    deployment: Deployment
    run: Run
    figures: Figures
    interval_s: float

    @classmethod
    def make(
        cls,
        trace: Trace,
        spec: Path,
        *,
        speed: tuple[float | None, float | None, float | None],
        startup_s: float,
        interval_s: float,
        initial: int | None,
        patience_s: float,
        kv_tokens: int | None,
        max_sequences: int | None,
    ) -> "Simulated":
        """Run it. Raises InvalidSpec."""
        deployment = load_deployment(
            spec,
            shape=trace.mean_shape(),
            speed=speed,
            startup_s=startup_s,
            kv_tokens=kv_tokens,
            max_sequences=max_sequences,
            stale_after_s=max(15.0, 3 * interval_s),
        )
        begin = deployment.scaling.min_replicas if initial is None else initial
        policy = Flotilla(deployment.scaling, initial=begin, interval_s=interval_s)
        run = simulate(trace, policy, deployment.engine, initial=begin, patience_s=patience_s)
        return cls(deployment, run, figures(run), interval_s)

    @property
    def gpu_hours(self) -> Decimal:
        return self.figures.replica_hours * self.deployment.gpus

    @property
    def usd(self) -> Decimal | None:
        """None where the GPU has no price."""
        price = self.deployment.gpu_usd_per_hour
        return None if price is None else self.gpu_hours * price

    def answer(self) -> dict[str, Any]:
        """Plain data; what is unknown is absent."""
        values: dict[str, Any] = asdict(self.figures)
        values.pop("replica_hours")
        known = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in values.items()
            if value is not None
        }
        return {
            "trace": self.run.trace.name,
            "deployment": self.deployment.name,
            "seconds": self.run.horizon_s,
            **known,
            "gpu_hours": str(self.gpu_hours.quantize(_CENT)),
            **({} if self.usd is None else {"usd": str(self.usd.quantize(_CENT))}),
        }

    def lines(self) -> list[tuple[str, str]]:
        """Name and value of each row of the table."""
        f = self.figures
        lost = f"{f.dropped:,} dropped, {f.rejected:,} refused, {f.in_flight:,} unfinished"
        return [
            ("Requests", f"{f.arrived:,}: {f.served:,} served, {lost}"),
            ("Waiting p50, p99", f"{_seconds(f.wait_p50_s)}, {_seconds(f.wait_p99_s)}"),
            ("First token p50, p99", f"{_seconds(f.first_token_p50_s)}, {_seconds(f.first_token_p99_s)}"),
            ("Whole answer p50", _seconds(f.end_p50_s)),
            ("Replicas mean, most", f"{f.replicas_mean:.2f}, {f.replicas_most}; {f.changes} changes"),
            ("GPU-hours", f"{self.gpu_hours.quantize(_CENT)}"),
            ("Cost", "unknown: set spec.cost.gpuHourlyPrice" if self.usd is None else f"{self.usd.quantize(_CENT)} $"),
        ]

    def show(self) -> None:
        """Print the table."""
        title = f"{self.deployment.name} under {self.run.trace.name}, {self.run.horizon_s / 60:.0f} minutes"
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False, padding=(0, 2))
        for name, value in self.lines():
            table.add_row(name, value)
        Console().print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def write_csv(path: Path, rows: Sequence[FleetRow]) -> None:
    """A line per row, with a heading."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0]._fields)
        writer.writerows(rows)


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
    read: Callable[[FleetRow], float]


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
    kv_tokens = engine.limits.kv_blocks * engine.limits.block_size
    basis = (
        f"flotilla simulate scaling: the queues are read every {simulated.interval_s:g} s, {engine.startup_s:g} s to "
        f"start a replica, {engine.limits.max_running} sequences and {kv_tokens:,} "
        f"tokens of KV cache per replica. A model of the engine, not a measurement."
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n<table>{table}</table>\n{''.join(charts)}"
        f"<footer>{escape(basis)}</footer></body></html>\n"
    )


def _arrivals(rows: Sequence[FleetRow]) -> str:
    """Requests per second, each over half a minute, because single intervals are noisy."""
    step = max(1, len(rows) // 240)
    picked = rows[::step]
    rates = [
        (later.arrived - earlier.arrived) / (later.at_s - earlier.at_s) for earlier, later in itertools.pairwise(picked)
    ]
    return _svg("Arrivals per second", [("arrivals", list(zip((row.at_s for row in picked[1:]), rates, strict=True)))])


def _chart(name: str, curves: Sequence[_Curve], rows: Sequence[FleetRow]) -> str:
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
