"""`flotilla devcluster`: a Kubernetes control plane on this machine, without root and without containers."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flotilla import __version__
from flotilla.errors import FlotillaError, InvalidSpec

if TYPE_CHECKING:
    from flotilla_devcluster.named_cluster import NamedCluster

app = typer.Typer(
    help="A real Kubernetes control plane as processes of yours, for development and tests.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # as in the operator's CLI
)

Name = Annotated[str, typer.Option("--name", help="Which cluster; several can run at once.")]
_DEFAULT = "default"
_CHECKOUT_CRDS = Path(__file__).resolve().parents[3] / "crds"


@app.command()
def up(
    name: Name = _DEFAULT,
    crds: Annotated[
        Path | None,
        typer.Option(help="Folder of CustomResourceDefinitions. Default: the checkout's crds/.", exists=True),
    ] = None,
    controllers: Annotated[bool, typer.Option(help="Also run kube-controller-manager and kube-scheduler.")] = True,
    operator: Annotated[
        bool, typer.Option("--operator", help="Also run the operator and simulated GPU nodes: models serve.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when ready; end with `down`.")] = False,
) -> None:
    """Start a cluster, run it until Ctrl-C, remove it. The first start builds the programs (minutes)."""
    with _reported():
        from flotilla_devcluster import named_cluster, programs

        if operator and not controllers:
            raise InvalidSpec("--operator needs the controllers: leave --no-controllers out.", field="--operator")
        cluster = _named(name)
        if detach and cluster.supervisor() is not None:
            typer.echo(f"The cluster {name!r} runs already: {cluster.kubeconfig}")
            return
        programs.find_control_plane(controllers=controllers)
        folder = crds or (_CHECKOUT_CRDS if any(_CHECKOUT_CRDS.glob("*.yaml")) else None)
        if detach:
            arguments = ["--name", name, "--controllers" if controllers else "--no-controllers"]
            arguments += ["--operator"] if operator else []
            named_cluster.background(cluster, arguments + (["--crds", str(folder)] if folder else []))
            typer.echo(f"The cluster {name!r} is ready: export KUBECONFIG={cluster.kubeconfig}")
            _print_operator_urls(cluster.state())
            return
        began = time.monotonic()

        def ready(state: Mapping[str, Any]) -> None:
            seconds = time.monotonic() - began
            typer.echo(f"The cluster {name!r} is ready after {seconds:.1f} s. Ctrl-C removes it.")
            typer.echo(f"export KUBECONFIG={state['kubeconfig']}")
            _print_operator_urls(state)

        named_cluster.foreground(cluster, crds=folder, controllers=controllers, operator=operator, ready=ready)


def _print_operator_urls(state: Mapping[str, Any]) -> None:
    if url := state.get("operator"):
        typer.echo(f"The operator: {url}/metrics, and {url}/console/ for a look at the fleet.")


@app.command()
def down(name: Name = _DEFAULT) -> None:
    """Stop a cluster and remove all that it stored."""
    with _reported():
        stopped = _named(name).stop()
    typer.echo(f"The cluster {name!r} is removed." if stopped else f"There is no cluster {name!r}.")


@app.command()
def status(name: Name = _DEFAULT) -> None:
    """Show the processes, ports, versions and health. The exit status is 1 when something is not healthy."""
    with _reported():
        from rich.console import Console
        from rich.table import Table

        from flotilla_devcluster import named_cluster

        cluster = _named(name)
        table = Table("component", "pid", "port", "version", "health", box=None)
        all_healthy = True
        for component, process in cluster.state()["processes"].items():
            healthy = named_cluster.healthy(cluster, process["health"])
            all_healthy = all_healthy and healthy
            port = process["health"].rpartition("/")[0].rpartition(":")[2]
            version = _version(process["program"]) if "program" in process else __version__
            table.add_row(component, str(process["pid"]), port, version, "ok" if healthy else "FAILS")
    Console().print(table)
    if not all_healthy:
        raise typer.Exit(1)


@app.command()
def kubeconfig(
    name: Name = _DEFAULT,
    raw: Annotated[bool, typer.Option("--raw", help="Print the content instead of the path.")] = False,
) -> None:
    """Print the path of the administrator's kubeconfig."""
    with _reported():
        path = Path(_named(name).state()["kubeconfig"])
    typer.echo(path.read_text() if raw else path, nl=not raw)


def _named(name: str) -> "NamedCluster":
    from flotilla_devcluster.named_cluster import NamedCluster

    return NamedCluster(name)


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    words = done.stdout.partition("\n")[0].split()
    return words[-1].removeprefix("v") if words else "?"


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except FlotillaError as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error
