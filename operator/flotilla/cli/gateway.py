"""`flotilla gateway`: the process that serves requests. The operator runs it in pods that it creates."""

from pathlib import Path
from typing import Annotated

import typer

from flotilla.addresses import AddressMap
from flotilla.cli.common import Context, Kubeconfig, command_app, fail
from flotilla.cli.kubeconfig import Cluster
from flotilla.errors import InvalidSpec
from flotilla.gateway import app as serving
from flotilla.gateway.http.server import ServerLimits

app = command_app()


@app.command()
def gateway(
    document: Annotated[Path, typer.Option(envvar="FLOTILLA_DOCUMENT", help="The routing document.")] = Path(
        "/etc/flotilla/document.json"
    ),
    keys: Annotated[Path, typer.Option(envvar="FLOTILLA_KEYS", help="Folder with the mounted keys of Secrets.")] = Path(
        "/etc/flotilla/keys"
    ),
    state: Annotated[
        Path | None, typer.Option(envvar="FLOTILLA_STATE", help="Folder in which the last valid document is kept.")
    ] = None,
    listen: Annotated[str, typer.Option(envvar="FLOTILLA_LISTEN", help="[HOST]:PORT for clients.")] = ":8000",
    admin_listen: Annotated[
        str, typer.Option(envvar="FLOTILLA_ADMIN_LISTEN", help="[HOST]:PORT of /healthz, /readyz, /metrics, /config.")
    ] = ":9090",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    pod_address_map: Annotated[
        str, typer.Option(envvar="FLOTILLA_POD_ADDRESS_MAP", help="CIDR=CIDR pairs, as in the operator's setting.")
    ] = "",
    lame_duck: Annotated[
        float,
        typer.Option(
            envvar="FLOTILLA_LAME_DUCK_SECONDS", help="Seconds after SIGTERM in which new connections are accepted."
        ),
    ] = 3,
    grace: Annotated[
        float, typer.Option(envvar="FLOTILLA_GRACE_SECONDS", help="Seconds after that in which requests may complete.")
    ] = 600,
    tls: Annotated[
        Path | None,
        typer.Option(envvar="FLOTILLA_TLS", help="Folder with tls.crt and tls.key: clients then connect by https."),
    ] = None,
    memory: Annotated[
        int,
        typer.Option(
            envvar="FLOTILLA_MEMORY_BYTES",
            min=0,
            help="Bytes that open requests may hold together; 0: by the container's limit.",
        ),
    ] = 0,
    cors_origins: Annotated[
        str,
        typer.Option(
            envvar="FLOTILLA_CORS_ORIGINS", help="Origins whose pages may call the gateway, with commas; * for all."
        ),
    ] = "",
    access_log: Annotated[
        bool, typer.Option(envvar="FLOTILLA_ACCESS_LOG", help="Log one line for each request.")
    ] = True,
    capture_claim: Annotated[
        list[str] | None,
        typer.Option(help="CLAIM=FOLDER of captured examples; may be given several times."),
    ] = None,
    log_level: Annotated[
        str, typer.Option(envvar="FLOTILLA_LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
    ] = "INFO",
    log_format: Annotated[str, typer.Option(envvar="FLOTILLA_LOG_FORMAT", help="json or text.")] = "json",
) -> None:
    """Run the gateway of one namespace until SIGTERM. The operator runs this command in pods."""
    try:
        host, port = _address(listen, "--listen")
        admin_host, admin_port = _address(admin_listen, "--admin-listen")
        cluster = Cluster.find(kubeconfig, context)
        settings = serving.GatewayOptions(
            document=document,
            keys=keys,
            state=state,
            host=host,
            port=port,
            admin_host=admin_host,
            admin_port=admin_port,
            kubeconfig=cluster.files,
            context=cluster.context,
            pod_address_map=AddressMap.parse(pod_address_map),
            lame_duck_s=lame_duck,
            grace_s=grace,
            access_log=access_log,
            capture_claims=dict(_claim(text) for text in capture_claim or ()),
            tls=tls,
            limits=ServerLimits(memory_bytes=memory or None),
            cors_origins=tuple(origin.strip() for origin in cors_origins.split(",") if origin.strip()),
        )
    except InvalidSpec as error:
        fail(error, serving.EXIT_CONFIG)
    raise typer.Exit(serving.main(settings, log_level=log_level, log_format=log_format))


def _claim(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise InvalidSpec(f"{text!r} is not CLAIM=FOLDER, such as examples=/data.", field="--capture-claim")
    return name, Path(folder)


def _address(text: str, option: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        why = f"{text!r} is not [HOST]:PORT. :8000 means all addresses, [::1]:8000 only that one."
        raise InvalidSpec(why, field=option)
    return host.strip("[]"), int(port)
