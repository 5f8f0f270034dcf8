"""The operator's process: what is started and stopped in which order, and what ends it."""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from flotilla import __version__, logs
from flotilla.config import OperatorConfig
from flotilla.console.metrics import Metrics
from flotilla.console.server import console_routes, start_server
from flotilla.controller.control_loop import ControlLoop
from flotilla.cost.gpu_prices import PriceCatalog, load_price_catalog
from flotilla.errors import FlotillaError, InvalidSpec
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import SELF_SUBJECT_ACCESS_REVIEW
from flotilla.kube.lease import Lease
from flotilla.planning.resolve import Catalog, load_catalog
from flotilla.render.rbac import Rule, attributes, needed

log = logging.getLogger(__name__)

EXIT_OK, EXIT_CONFIG, EXIT_ACCESS, EXIT_LOST_LEASE = 0, 2, 3, 4


def main(config: OperatorConfig) -> int:
    """Run until SIGTERM; returns the exit code."""
    try:
        catalog = load_catalog(engines=config.engines, accelerator_table=config.accelerators)
        prices = load_price_catalog(config.price_catalog)
    except (OSError, InvalidSpec) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    logs.configure(config.log_level, config.log_format)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(config, catalog, prices))
    except FlotillaError as error:
        log.error("the operator stops", extra={"cause": str(error)})
        return EXIT_ACCESS


async def _run(config: OperatorConfig, catalog: Catalog, prices: PriceCatalog) -> int:
    # Python's default thresholds traverse the whole store at each burst: a sixth of the CPU at 1000 objects. Reference
    # counts free nearly everything; the collector only has to find cycles, which tracebacks make.
    gc.set_threshold(10_000, 20, 50)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics(version=__version__)
    client = await KubeClient.connect(
        kubeconfig=config.kubeconfig,
        context=config.context,
        user_agent=f"flotilla-operator/{__version__}",
        timeout_s=config.request_timeout_s,
        on_call=metrics.api_call,
    )
    lease = _lease(config, client)
    acting = client if lease is None else client.guarded(lease.check)
    control = ControlLoop(config, catalog, prices, acting, metrics)
    server = await start_server(
        host=config.listen_host,
        port=config.listen_port,
        families=control.families,
        live=control.live_checks(),
        ready=control.ready_checks(),
        more=console_routes(control.fleet) if config.console == "Enabled" else (),
    )
    log.info("listening", extra={"host": config.listen_host, "port": server.port})
    try:
        return await _lead(config, client, lease, control, stop)
    finally:
        await server.stop()
        await client.close()
        log.info("operator stopped")


def _lease(config: OperatorConfig, client: KubeClient) -> Lease | None:
    election = config.leader_election
    if not election.enabled:
        return None
    return Lease(
        client,
        namespace=election.namespace,
        name=election.name,
        identity=f"{os.uname().nodename}-{os.getpid()}",
        duration_s=election.duration_s,
        renew_deadline_s=election.renew_deadline_s,
        retry_s=election.retry_s,
    )


async def _lead(
    config: OperatorConfig, client: KubeClient, lease: Lease | None, control: ControlLoop, stop: asyncio.Event
) -> int:
    election = config.leader_election
    missing = await _missing_permissions(
        client,
        namespaces=config.namespaces,
        own_namespace=election.namespace,
        leader_election=election.enabled,
    )
    if missing:
        log.error(
            "permissions are missing; apply manifests/base/rbac.yaml or the chart's role",
            extra={"missing": missing},
        )
        return EXIT_ACCESS
    if lease is None:
        return await _serve(control, stop)
    lost = asyncio.Event()
    elector = asyncio.create_task(lease.run(on_lost=lost.set), name="lease")
    try:
        control.standing_by()
        if await _first(lease.acquired(), stop.wait()) == 1:
            return EXIT_OK
        code = await _serve(control, stop, lost)
        return EXIT_LOST_LEASE if lost.is_set() else code
    finally:
        elector.cancel()
        await asyncio.gather(elector, return_exceptions=True)
        if not lost.is_set():
            await lease.release()


async def _missing_permissions(
    client: KubeClient, *, namespaces: Sequence[str], own_namespace: str, leader_election: bool
) -> list[str]:
    """Ask the apiserver for each right that the operator will need; returns one line per verb that is missing.

    Without this a missing verb looks like a hang: lists and watches retry HTTP 403 for as long as it takes.
    """

    async def ask(rule: Rule, resource: str, verb: str, namespace: str) -> str | None:
        review = {
            "apiVersion": SELF_SUBJECT_ACCESS_REVIEW.api_version,
            "kind": SELF_SUBJECT_ACCESS_REVIEW.kind,
            "metadata": {},
            "spec": {"resourceAttributes": attributes(rule, resource, verb, namespace)},
        }
        answer = await client.create(SELF_SUBJECT_ACCESS_REVIEW, review)
        if answer["status"].get("allowed"):
            return None
        where = f"in namespace {namespace}" if namespace else "in all namespaces"
        group = f" of {rule.group}" if rule.group else ""
        return f"cannot {verb} {resource}{group} {where} (needed for: {rule.why})"

    questions = [
        ask(*question)
        for question in needed(namespaces=namespaces, own_namespace=own_namespace)
        if leader_election or question[1] != "leases"
    ]
    return [line for line in await asyncio.gather(*questions) if line]


async def _serve(control: ControlLoop, stop: asyncio.Event, lost: asyncio.Event | None = None) -> int:
    started = time.monotonic()
    running = asyncio.create_task(control.run(), name="control-loop")
    try:
        ends = [running, asyncio.create_task(stop.wait())]
        if lost is not None:
            ends.append(asyncio.create_task(lost.wait()))
        await asyncio.wait([*ends, asyncio.create_task(control.synced.wait())], return_when=asyncio.FIRST_COMPLETED)
        if control.synced.is_set():
            log.info("ready", extra={"after_s": round(time.monotonic() - started, 3)})
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return EXIT_OK
    finally:
        # First of all, so that no loop finds its connections closed, or opens new ones.
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await control.stop(leading=lost is None or not lost.is_set())


async def _first(*awaitables: Any) -> int:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return tasks.index(next(iter(done)))
