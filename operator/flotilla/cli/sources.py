"""Where `cost`, `report` and `top` read from: a Prometheus, the operator's /metrics, or that through the apiserver."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flotilla.addresses import base_url
from flotilla.cli.kubeconfig import Cluster
from flotilla.constants import LABEL_NAME
from flotilla.cost.spending import Samples
from flotilla.errors import FlotillaError, InvalidSpec, NotReady
from flotilla.kube.kinds import POD

if TYPE_CHECKING:
    from flotilla.prometheus.client import PrometheusClient

Prometheus = Annotated[
    str | None,
    typer.Option(envvar="FLOTILLA_PROMETHEUS_URL", help="Address of a Prometheus that scrapes Flotilla."),
]
CaFile = Annotated[Path | None, typer.Option(help="Certificate authorities for the Prometheus.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token for the Prometheus.")]
Metrics = Annotated[
    str | None,
    typer.Option(help="Address of the operator's /metrics. Default: it is reached through the apiserver."),
]

_TIMEOUT_S = 60.0
"""A query over a month of a large fleet takes a Prometheus some seconds."""
OPERATOR = "flotilla-operator"
PORT = "metrics"


@dataclass(frozen=True, slots=True)
class Place:
    """A Prometheus, or an address of the operator's metrics; with neither, the apiserver leads to the operator."""

    prometheus: str | None = None
    metrics: str | None = None
    kubeconfig: Path | None = None
    context: str | None = None
    operator_namespace: str = "flotilla-system"
    ca_file: Path | None = None
    token_file: Path | None = None


def client_of(place: Place) -> "PrometheusClient":
    """Raises InvalidSpec for an address or a file that is not valid. Nothing is sent yet."""
    from flotilla.prometheus.client import PrometheusClient

    url = base_url(place.prometheus or "", field="--prometheus")
    for file, option in ((place.ca_file, "--prometheus-ca-file"), (place.token_file, "--prometheus-token-file")):
        if file is not None and not file.is_file():
            raise InvalidSpec(f"{option}: {file} is not a file.", field=option)
    return PrometheusClient(url, ca_file=place.ca_file, bearer_token_file=place.token_file, timeout_s=_TIMEOUT_S)


async def current(place: Place) -> Samples:
    """The totals of the operator that holds the Lease; raises a FlotillaError with what else to try."""
    from flotilla.cost.spending_client import fetch, leads, totals

    if place.metrics is not None:
        samples = totals(await fetch(_metrics_url(place.metrics)))
        if not leads(samples):
            raise NotReady(
                "That operator does not hold the Lease, so it counts nothing. Use the address of the one that does."
            )
        return samples
    return await _through_apiserver(place)


def _metrics_url(text: str) -> str:
    url = base_url(text, field="--metrics")
    return url if url.endswith("/metrics") else f"{url}/metrics"


async def _through_apiserver(place: Place) -> Samples:
    from flotilla.cost.spending_client import leads, totals

    client = await Cluster.find(place.kubeconfig, place.context).connect()
    namespace = place.operator_namespace
    try:
        pods = [
            pod
            async for page in client.pages(POD, namespace=namespace, label_selector=f"{LABEL_NAME}={OPERATOR}")
            for pod in page.items
        ]
        causes = []
        for pod in pods:
            name = pod["metadata"]["name"]
            try:
                samples = totals(await client.pod_text(namespace, name, _port(pod), "/metrics"))
            except FlotillaError as error:
                causes.append(f"{name}: {error}")
                continue
            if leads(samples):
                return samples
            causes.append(f"{name}: does not hold the Lease")
    finally:
        await client.close()
    raise NotReady(
        f"No operator that holds the Lease answers in the namespace {namespace} "
        f"({'; '.join(causes) or 'there is no operator pod'}). "
        "Name another namespace with --operator-namespace, an address with --metrics, or a Prometheus with "
        "--prometheus."
    )


def _port(pod: Mapping[str, Any]) -> int:
    """The number of the metrics' port: the apiserver's proxy knows ports of pods by number only."""
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            if port.get("name") == PORT:
                return int(port["containerPort"])
    raise NotReady(f"no container has a port with the name {PORT!r}")
