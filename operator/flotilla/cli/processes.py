"""The options of the two processes of production: `flotilla operator` and `flotilla gateway`."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from flotilla.cli.endings import end
from flotilla.errors import InvalidSpec

app = typer.Typer()


@app.command()
def operator(
    config: Annotated[
        Path | None, typer.Option(envvar="FLOTILLA_CONFIG", help="YAML file with any of the settings.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(envvar="KUBECONFIG", help="Default: the pod's ServiceAccount.")
    ] = None,
    namespace: Annotated[
        list[str] | None, typer.Option(envvar="FLOTILLA_NAMESPACES", help="Watch only these; repeatable.")
    ] = None,
    listen_host: Annotated[
        str | None, typer.Option(envvar="FLOTILLA_LISTEN_HOST", help="Address to listen on. Default: every one.")
    ] = None,
    listen_port: Annotated[
        int | None, typer.Option(envvar="FLOTILLA_LISTEN_PORT", help="/healthz, /readyz, /metrics.")
    ] = None,
    pod_address_map: Annotated[
        str | None, typer.Option(envvar="FLOTILLA_POD_ADDRESS_MAP", help="CIDR=CIDR pairs: where pods are reached.")
    ] = None,
    leader_election: Annotated[
        bool | None, typer.Option(envvar="FLOTILLA_LEADER_ELECTION", help="Take a Lease before acting.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(envvar="FLOTILLA_LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
    ] = None,
    log_format: Annotated[str | None, typer.Option(envvar="FLOTILLA_LOG_FORMAT", help="json or text.")] = None,
) -> None:
    """Run the operator until SIGTERM. Options win over environment variables, these over the file."""
    run = import_module("flotilla.app").main
    settings: dict[str, Any] = {
        "kubeconfig": kubeconfig,
        "namespaces": namespace or None,
        "listen_host": listen_host,
        "listen_port": listen_port,
        "pod_address_map": pod_address_map,
        "log_level": log_level,
        "log_format": log_format,
    }
    overrides = {name: value for name, value in settings.items() if value is not None}
    raise typer.Exit(run(config, overrides, leader_election=leader_election))


@app.command()
def gateway(
    document: Annotated[Path, typer.Option(envvar="FLOTILLA_DOCUMENT", help="The routing document.")] = Path(
        "/etc/flotilla/document.json"
    ),
    keys: Annotated[Path, typer.Option(envvar="FLOTILLA_KEYS", help="Folder of the mounted keys of Secrets.")] = Path(
        "/etc/flotilla/keys"
    ),
    state: Annotated[
        Path | None, typer.Option(envvar="FLOTILLA_STATE", help="Folder in which the last good document is kept.")
    ] = None,
    listen: Annotated[str, typer.Option(envvar="FLOTILLA_LISTEN", help="HOST:PORT for clients.")] = "0.0.0.0:8000",
    admin_listen: Annotated[
        str, typer.Option(envvar="FLOTILLA_ADMIN_LISTEN", help="HOST:PORT of /healthz, /readyz, /metrics, /config.")
    ] = "0.0.0.0:9090",
    kubeconfig: Annotated[
        Path | None, typer.Option(envvar="KUBECONFIG", help="Default: the pod's ServiceAccount.")
    ] = None,
    pod_address_map: Annotated[
        str, typer.Option(envvar="FLOTILLA_POD_ADDRESS_MAP", help="CIDR=CIDR pairs, as of the operator.")
    ] = "",
    lame_duck: Annotated[
        float,
        typer.Option(envvar="FLOTILLA_LAME_DUCK_SECONDS", help="Seconds in which new connections come after SIGTERM."),
    ] = 3,
    grace: Annotated[
        float, typer.Option(envvar="FLOTILLA_GRACE_SECONDS", help="Seconds that requests then have to end.")
    ] = 600,
    access_log: Annotated[bool, typer.Option(envvar="FLOTILLA_ACCESS_LOG", help="One line for each request.")] = True,
    log_level: Annotated[
        str, typer.Option(envvar="FLOTILLA_LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
    ] = "INFO",
    log_format: Annotated[str, typer.Option(envvar="FLOTILLA_LOG_FORMAT", help="json or text.")] = "json",
) -> None:
    """Serve the RoutingPolicies of one namespace until SIGTERM. The operator runs this in pods of its own making."""
    serving = import_module("flotilla.gateway.app")
    try:
        host, port = _address(listen, "--listen")
        admin_host, admin_port = _address(admin_listen, "--admin-listen")
        settings = serving.Settings(
            document=document,
            keys=keys,
            state=state,
            host=host,
            port=port,
            admin_host=admin_host,
            admin_port=admin_port,
            kubeconfig=kubeconfig,
            pod_address_map=import_module("flotilla.telemetry.addresses").AddressMap.parse(pod_address_map),
            lame_duck_s=lame_duck,
            grace_s=grace,
            access_log=access_log,
        )
    except InvalidSpec as error:
        end(error, serving.EXIT_CONFIG)
    raise typer.Exit(serving.main(settings, log_level=log_level, log_format=log_format))


def _address(text: str, option: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidSpec(f"{text!r} is not HOST:PORT. An example is 0.0.0.0:8000.", field=option)
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - as asked
