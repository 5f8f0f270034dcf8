"""`flotilla envelope`: what a policy does in production, with its evidence, for people and for CI."""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flotilla.cli.common import (
    EXIT_NO,
    EXIT_OK,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    Context,
    Json,
    Kubeconfig,
    Namespace,
    command_app,
    duration_s,
    exit_on_error,
    plain,
)
from flotilla.cli.kubeconfig import Cluster
from flotilla.cli.sources import CaFile, Place, Prometheus, TokenFile, client_of
from flotilla.constants import GATEWAY_COMPONENT, LABEL_COMPONENT
from flotilla.cost.spending import Samples
from flotilla.errors import FlotillaError, NotReady, Transient
from flotilla.kube.kinds import DEPLOYMENT, EVALUATION, MODEL_DEPLOYMENT, POD, ROUTING_POLICY
from flotilla.reports.envelope import COUNTERS, Envelope, breaches, document, envelope, page, text

if TYPE_CHECKING:
    from flotilla.kube.client import KubeClient

app = command_app()
_GATEWAY_PORT = 9090


def ask(place: Place, name: str, namespace: str | None, since: str) -> Envelope:
    """Raises InvalidSpec for a usage error, other FlotillaErrors where something does not answer."""
    return asyncio.run(_ask(place, name, namespace, since))


async def _ask(place: Place, name: str, namespace: str | None, since: str) -> Envelope:
    cluster = Cluster.find(place.kubeconfig, place.context)
    where = namespace or cluster.namespace()
    client = await cluster.connect()
    try:
        policy = await client.get(ROUTING_POLICY, name, namespace=where)
        if policy is None:
            raise NotReady(f"There is no RoutingPolicy {name!r} in the namespace {where}.")
        kinds = (EVALUATION, MODEL_DEPLOYMENT, DEPLOYMENT)
        lists = [(await client.list(kind, namespace=where)).items for kind in kinds]
        end = time.time()
        if place.prometheus is None:
            samples, start, source = await _gateways(client, where), None, "the gateways' own metrics"
        else:
            start = end - duration_s(since, field="--since")
            samples, source = await _history(place, start, end), "Prometheus"
    finally:
        await client.close()
    return envelope(
        policy,
        samples,
        evaluations=lists[0],
        models=lists[1],
        deployments=lists[2],
        start=None if start is None else datetime.fromtimestamp(start, UTC),
        end=datetime.fromtimestamp(end, UTC),
        source=source,
    )


async def _history(place: Place, start: float, end: float) -> Samples:
    from flotilla.cost.spending_client import History

    client = client_of(place)
    try:
        history = History(client)
        return {**await history.routes(start, end), **await history.gateways(COUNTERS, start, end)}
    finally:
        await client.close()


async def _gateways(client: "KubeClient", namespace: str) -> Samples:
    """The counters of all gateway pods of a namespace, each since its start."""
    selector = f"{LABEL_COMPONENT}={GATEWAY_COMPONENT}"
    pods = [pod async for part in client.pages(POD, namespace=namespace, label_selector=selector) for pod in part.items]
    found: dict[str, list[tuple[Mapping[str, str], Decimal]]] = {}
    causes = []
    for pod in pods:
        name = pod["metadata"]["name"]
        try:
            body = await client.pod_text(namespace, name, _GATEWAY_PORT, "/metrics")
        except FlotillaError as error:
            causes.append(f"{name}: {error}")
            continue
        for metric, labels, value in parsed(body):
            found.setdefault(metric, []).append(({**labels, "namespace": namespace}, value))
    if not found or causes:
        why = "; ".join(causes) or "there is no gateway pod"
        raise NotReady(f"Not every gateway of the namespace {namespace} answers ({why}). Use --prometheus, or wait.")
    return {metric: tuple(rows) for metric, rows in found.items()}


def parsed(body: str) -> list[tuple[str, Mapping[str, str], Decimal]]:
    """The samples of a metric text; raises Transient."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        return [
            (sample.name, sample.labels, Decimal(str(sample.value)))
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if sample.name.startswith("flotilla_gateway_") and sample.value == sample.value
        ]
    except ValueError as error:
        raise Transient(f"The answer is no metric text: {error}") from error


@app.command("envelope")
def show(
    policy: Annotated[str, typer.Argument(help="RoutingPolicy.")],
    namespace: Namespace = None,
    since: Annotated[str, typer.Option(help="Period with --prometheus: 90m, 24h, 7d, 4w.")] = "7d",
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", help="Bound such as 'firstTokenP99>1.5' or 'small.quality<0.95'; repeatable."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
    as_json: Json = False,
    prometheus: Prometheus = None,
    prometheus_ca_file: CaFile = None,
    prometheus_token_file: TokenFile = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Print latency, cost, quality, sovereignty and tail of a policy.

    Each figure has its interval, its number of requests and its age. Without
    --prometheus the counters of the gateways since their start are read, and
    costs of self-hosted targets are unknown.

    Exit code 1: a bound of --fail-if holds, or its figure is unknown.
    """
    place = Place(
        prometheus=prometheus,
        kubeconfig=kubeconfig,
        context=context,
        ca_file=prometheus_ca_file,
        token_file=prometheus_token_file,
    )
    with exit_on_error(not_ready=EXIT_UNREACHABLE):
        found = ask(place, policy, namespace, since)
        broken = breaches(found, fail_if or ())
    show_all(found, html=html, as_json=as_json)
    for line in broken:
        typer.echo(f"Fails: {plain(line)}", err=True)
    raise typer.Exit(EXIT_NO if broken else EXIT_OK)


def show_all(found: Envelope, *, html: Path | None, as_json: bool) -> None:
    """Print the envelope, and write the page where it is asked for."""
    if as_json:
        content: dict[str, Any] = document(found)
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        typer.echo("\n".join(plain(line) for line in text(found)))
    if html is not None:
        try:
            html.write_text(page(found))
        except OSError as error:
            typer.echo(f"{html} cannot be written: {error.strerror}", err=True)
            raise typer.Exit(EXIT_USAGE) from error
