"""`flotilla simulate`: what a load would do to a ModelDeployment, before there is a cluster or a bill."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flotilla.cli import exits
from flotilla.cli.endings import end
from flotilla.errors import InvalidSpec

if TYPE_CHECKING:
    from flotilla.simulation.fleet import Deployment, Figures, Row, Run
    from flotilla.simulation.trace import Trace

app = typer.Typer(help="Replay a load against the operator's own decisions, without a cluster.", no_args_is_help=True)
_CENT = Decimal("0.01")


@app.command()
def traces() -> None:
    """List the traces that come with Flotilla."""
    shapes = import_module("flotilla.simulation.trace")
    for name in shapes.NAMES:
        typer.echo(f"{name:20} {shapes.about(name)}")


@app.command()
def scaling(
    trace: Annotated[str, typer.Option(help="A CSV file, or the name of a trace of `flotilla simulate traces`.")],
    spec: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A ModelDeployment in YAML.")],
    rate: Annotated[float, typer.Option(min=0.001, max=1000, help="So many times the trace's requests.")] = 1.0,
    startup_seconds: Annotated[float, typer.Option(min=0, help="Of a replica, until it serves.")] = 120.0,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two looks at the queues.")] = 2.0,
    initial_replicas: Annotated[int | None, typer.Option(min=0, help="Default: spec.scaling.minReplicas.")] = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds after which a waiting client leaves.")] = 60.0,
    decode_tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="Of a replica with a full batch. Default: a 7B model in FP8 on an L4.")
    ] = None,
    prefill_tokens_per_second: Annotated[float | None, typer.Option(min=1, help="Of a replica.")] = None,
    step_seconds: Annotated[float | None, typer.Option(min=0.0001, help="One token of a lone request.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(min=16, help="Of the KV cache. Default: the memory fit.")] = None,
    max_sequences: Annotated[int | None, typer.Option(min=1, help="Of a batch. Default: the engine's.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the fleet's state every 5 s.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write an HTML page with the curves.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a load trace through the operator's scaling and a model of the engine. Exit code 2: a wrong question."""
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
            plot.write_text(import_module("flotilla.cli.simulation_plot").page(simulated), encoding="utf-8")
    except (InvalidSpec, OSError) as error:
        end(error, exits.WRONG_QUESTION)
    if as_json:
        typer.echo(json.dumps(simulated.answer(), indent=2))
    else:
        simulated.show()


def load_trace(name: str) -> "Trace":
    """A file where there is one of that name, else a trace of ours; raises InvalidSpec."""
    path = Path(name)
    if path.suffix or path.exists():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSpec(f"{name}: {error}", field="--trace") from error
        trace: Trace = import_module("flotilla.simulation.trace").parse_csv(text, name)
        return trace
    made: Trace = import_module("flotilla.simulation.trace").make(name)
    return made


def load_deployment(path: Path, **options: Any) -> "Deployment":
    """The ModelDeployment of a manifest; raises InvalidSpec."""
    import yaml
    from pydantic import ValidationError

    from flotilla.api.model_deployment import ModelDeploymentSpec
    from flotilla.planning.resolve import load_catalog, resolve
    from flotilla.simulation.fleet import deployment

    try:
        documents = [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{path}: {error}", field="--spec") from error
    found = [one for one in documents if isinstance(one, dict) and one.get("kind") == "ModelDeployment"]
    if len(found) != 1:
        raise InvalidSpec(f"{path}: one ModelDeployment is wanted; there are {len(found)}.", field="--spec")
    name = str((found[0].get("metadata") or {}).get("name") or path.stem)
    try:
        spec = ModelDeploymentSpec.model_validate(found[0].get("spec"))
    except ValidationError as error:
        lines = (f"spec.{'.'.join(map(str, e['loc']))}: {e['msg']} (value: {e['input']!r})" for e in error.errors())
        raise InvalidSpec(f"{path}: {'; '.join(lines)}", field="--spec") from error
    return deployment(name, spec, resolve(name, spec, load_catalog()), **options)


@dataclass(frozen=True)
class Simulated:
    """A run and what it was run with."""

    deployment: "Deployment"
    run: "Run"
    figures: "Figures"
    interval_s: float

    @classmethod
    def make(
        cls,
        trace: "Trace",
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
        from flotilla.simulation.engine import Speed
        from flotilla.simulation.fleet import L4_SPEED, Flotilla, figures, simulate

        decode, prefill, step = speed
        deployment = load_deployment(
            spec,
            speed=Speed(
                decode or L4_SPEED.decode_tokens_per_s,
                prefill or L4_SPEED.prefill_tokens_per_s,
                step or L4_SPEED.overhead_s,
            ),
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
        """None: the GPU has no price."""
        price = self.deployment.gpu_usd_per_hour
        return None if price is None else self.gpu_hours * price

    def answer(self) -> dict[str, Any]:
        """Plain data; what is not known is absent."""
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
        """Name and value, for people."""
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
        from rich.console import Console
        from rich.table import Table

        title = f"{self.deployment.name} under {self.run.trace.name}, {self.run.horizon_s / 60:.0f} minutes"
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False, padding=(0, 2))
        for name, value in self.lines():
            table.add_row(name, value)
        Console().print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def write_csv(path: Path, rows: Sequence["Row"]) -> None:
    """A line per row, with a heading."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0]._fields)
        writer.writerows(rows)
