"""Where the cost verbs read from: a Prometheus, the operator's /metrics, or that through the apiserver."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flotilla.addresses import base_url
from flotilla.constants import LABEL_NAME
from flotilla.cost.spending import Samples
from flotilla.cost.spending_client import fetch, leads, totals
from flotilla.errors import FlotillaError, InvalidSpec, NotReady
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import POD
from flotilla.prometheus.client import PrometheusClient

_TIMEOUT_S = 60.0
"""A month of a large fleet takes a Prometheus some seconds."""
OPERATOR = "flotilla-operator"
PORT = "metrics"


@dataclass(frozen=True, slots=True)
class Place:
    """One of the first two, or else the operator is found through the apiserver."""

    prometheus: str | None = None
    metrics: str | None = None
    kubeconfig: Path | None = None
    operator_namespace: str = "flotilla-system"
    ca_file: Path | None = None
    token_file: Path | None = None


def client_of(place: Place) -> PrometheusClient:
    """Raises InvalidSpec for an address or file that is none. Nothing is sent yet."""
    url = base_url(place.prometheus or "", field="--prometheus")
    for file, option in ((place.ca_file, "--prometheus-ca-file"), (place.token_file, "--prometheus-token-file")):
        if file is not None and not file.is_file():
            raise InvalidSpec(f"{option}: {file} is no file.", field=option)
    return PrometheusClient(url, ca_file=place.ca_file, bearer_token_file=place.token_file, timeout_s=_TIMEOUT_S)


async def current(place: Place) -> Samples:
    """The totals of the operator that leads; raises a FlotillaError that says what else to try."""
    if place.metrics is not None:
        samples = totals(await fetch(_metrics_url(place.metrics)))
        if not leads(samples):
            raise NotReady("That operator stands by and counts nothing; ask the one that leads.")
        return samples
    return await _through_apiserver(place)


def _metrics_url(text: str) -> str:
    url = base_url(text, field="--metrics")
    return url if url.endswith("/metrics") else f"{url}/metrics"


async def _through_apiserver(place: Place) -> Samples:
    client = await KubeClient.connect(kubeconfig=place.kubeconfig, user_agent="flotilla-cost")
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
            causes.append(f"{name}: stands by")
    finally:
        await client.close()
    raise NotReady(
        f"No leading operator answers in the namespace {namespace} ({'; '.join(causes) or 'there is no such pod'}). "
        "Name another namespace with --operator-namespace, an address with --metrics, or a Prometheus with "
        "--prometheus."
    )


def _port(pod: Mapping[str, Any]) -> int:
    """Of the metrics, as a number: the apiserver knows ports of Services by name, and of pods by number only."""
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            if port.get("name") == PORT:
                return int(port["containerPort"])
    raise NotReady(f"no container has a port with the name {PORT!r}")
