"""The gateway process: makes its parts, starts and stops them, and keeps the endpoints up to date.

`main` runs until SIGTERM. Tests use `Gateway` alone and set its endpoints themselves.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client.registry import CollectorRegistry

from flotilla import __version__, logs
from flotilla.addresses import AddressMap
from flotilla.api.preference import RouteStatus
from flotilla.errors import FlotillaError, InvalidSpec
from flotilla.gateway.admin import AdminServer, Probes
from flotilla.gateway.api import Api, protocol_error_body
from flotilla.gateway.attempt import Deadlines
from flotilla.gateway.capture import Capture
from flotilla.gateway.config import Config, Setup
from flotilla.gateway.endpoints import EndpointRegistry
from flotilla.gateway.http.client import SystemResolver, UpstreamPool
from flotilla.gateway.http.message import MemoryBudget
from flotilla.gateway.http.server import HttpServer, ServerLimits
from flotilla.gateway.limits.accounts import Accounts, StoreAccounts, store_from_environment
from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.gateway.limits.store import LimitStore
from flotilla.gateway.metrics import GatewayMetrics, declare_series
from flotilla.gateway.pending import HeldCounter, PendingQueue
from flotilla.gateway.record import AccessLog
from flotilla.gateway.shadow import Shadow
from flotilla.gateway.state import GatewayState
from flotilla.gateway.token_loop import follow_tokens
from flotilla.gateway.tracing import tracing_from_environment
from flotilla.kube.client import KubeClient
from flotilla.kube.informer import Informer, Object
from flotilla.kube.kinds import ENDPOINT_SLICE, Kind
from flotilla.routing.document import GatewayDocument

log = logging.getLogger(__name__)

EXIT_OK, EXIT_CONFIG = 0, 2
_HEARTBEAT_S = 0.5
_CERTIFICATE_S = 10.0
_MEMORY_BYTES = 256 * 2**20
_OWN_BYTES = 96 * 2**20
_LEAST_MEMORY_BYTES = 32 * 2**20
_STUCK_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Settings of `flotilla gateway`."""

    document: Path
    keys: Path
    state: Path | None = None
    host: str = ""
    """Empty for all addresses of both families: clients come from other hosts."""
    port: int = 8000
    admin_host: str = ""
    admin_port: int = 9090
    kubeconfig: Path | None = None
    context: str | None = None
    pod_address_map: AddressMap = field(default_factory=AddressMap)
    lame_duck_s: float = 3.0
    """How long new connections are still accepted after SIGTERM, because load balancers notice it late."""
    grace_s: float = 600.0
    """How long running requests may then take to end."""
    access_log: bool = True
    tls: Path | None = None
    """Folder with tls.crt and tls.key, as a Secret of type kubernetes.io/tls is mounted; clients then need https."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the gateway from a browser; `*` for all."""
    limits: ServerLimits = field(default_factory=ServerLimits)
    capture_claims: Mapping[str, Path] = field(default_factory=dict)
    """Folders of captured examples by the name of their claim."""


class Certificate:
    """The certificate of the listener, read again when its files change. Raises InvalidSpec if it cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._files = (folder / "tls.crt", folder / "tls.key")
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._seen = self._times()
        try:
            self.context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:
            why = f"{self._files[0]} and {self._files[1]} are not a certificate and its key: {error}."
            raise InvalidSpec(f"{why} Mount a Secret of type kubernetes.io/tls there.", field="--tls") from error

    async def follow(self) -> None:
        """Load new files every ten seconds until cancelled. Connections that are open keep their certificate."""
        while True:
            await asyncio.sleep(_CERTIFICATE_S)
            seen = self._times()
            if seen != self._seen:
                self._seen = seen
                try:
                    self.context.load_cert_chain(*self._files)
                    log.info("serving a new certificate", extra={"file": str(self._files[0])})
                except (OSError, ssl.SSLError) as error:
                    log.error("the new certificate is not served", extra={"cause": str(error)})

    def _times(self) -> list[float]:
        return [file.stat().st_mtime for file in self._files if file.exists()]


class Gateway:
    """A gateway. Make it, start it and stop it on its event loop."""

    def __init__(
        self,
        settings: GatewayOptions,
        *,
        accounts: Accounts | None = None,
        store: LimitStore | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`store` counts what shadow copies cost; by default one in this process."""
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._resolver = SystemResolver(allow_private=False)
        self._heartbeat_s = self._loop.time()
        self._leaving = False
        self._tasks: list[asyncio.Task[None]] = []
        self._admin: AdminServer | None = None
        self._shares: Mapping[tuple[str, str], RouteStatus] = {}
        """Where the traffic of routes with a preference went by the document before, by policy and rule."""
        metrics = GatewayMetrics()
        self.config = Config(settings.document, settings.keys, settings.state)
        self.config.on_change = self._apply_setup
        self.endpoints = EndpointRegistry(settings.pod_address_map.translate)
        self.state = GatewayState(
            self._loop,
            self.config,
            self.endpoints,
            UpstreamPool(resolver=self._resolver, tls=tls or ssl.create_default_context()),
            PendingQueue(),
            Deadlines(self._loop),
            metrics,
            AccessLog(sys.stdout.fileno() if settings.access_log else None, on_lost=self._count_lost_lines),
            MemoryBudget(settings.limits.memory_bytes or memory_for_requests()),
            accounts=accounts,
        )
        writer = f"{socket.gethostname()}-{time.time_ns():x}-{os.getpid()}"
        self.state.capture = Capture(settings.capture_claims, writer, metrics)
        self.endpoints.on_ready = self.state.pending.notify_ready
        self.held = HeldCounter()
        self.state.pending.on_wait = self.held.increment
        self._api = api = Api(self.state, settings.cors_origins)
        self._certificate = None if settings.tls is None else Certificate(settings.tls)
        self.server = HttpServer(
            api.handle,
            settings.limits,
            protocol_error_body,
            memory=self.state.memory,
            client_of_head=api.client_of_head,
        )
        self.shadow = Shadow(self.state, store or LocalLimitStore(), lambda: self.server.in_flight)
        self.state.on_answered = self.shadow.offer
        self.endpoints_known: Callable[[], bool] = lambda: True
        self._register_gauges(metrics)

    @property
    def admin_port(self) -> int:
        """The admin port in use."""
        assert self._admin is not None
        return self._admin.port

    async def start(self) -> None:
        """Load the document and serve."""
        self.config.load()
        settings = self._settings
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self.state.metrics)
        probes = Probes(
            self._liveness,
            self._readiness,
            self._config_status,
            registry,
            self.held.poll,
            self.state.guard.report,
        )
        self._admin = AdminServer(settings.admin_host, settings.admin_port, probes)
        self._tasks = [
            asyncio.create_task(self.config.follow(), name="config"),
            asyncio.create_task(follow_tokens(self.config.tokens), name="tokens"),
            asyncio.create_task(self._heartbeat(), name="heartbeat"),
        ]
        if self._certificate is not None:
            self._tasks.append(asyncio.create_task(self._certificate.follow(), name="certificate"))
        tls = None if self._certificate is None else self._certificate.context
        await self.server.listen(settings.host, settings.port, tls=tls)

    async def stop(self) -> None:
        """Stop in order: report not ready but still serve; then accept no connection and let requests end; then
        close."""
        self._leaving = True
        self.server.announce_close()
        await asyncio.sleep(self._settings.lame_duck_s)
        cut = await self.server.drain(self._settings.grace_s)
        if cut:
            log.warning("requests were aborted at the end of the grace period", extra={"requests": cut})
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.shadow.close()
        self._api.close()
        self.state.pending.close()
        self.state.deadlines.close()
        self.state.upstream.close()
        self.state.access_log.close()
        if self.state.capture is not None:
            await self._loop.run_in_executor(None, self.state.capture.close)
        self.held.close()
        if self._admin is not None:
            await self._loop.run_in_executor(None, self._admin.close)

    def _apply_setup(self, setup: Setup) -> None:
        self._resolver.allow_private = setup.document.allow_private_hosted_addresses
        live = {(policy.uid, target.name) for policy in setup.document.policies for target in policy.targets}
        self.state.breakers.keep(live)
        self.state.guard.serve(setup.document.policies)
        if self.state.capture is not None:
            self.state.capture.serve(setup.document.policies)
        declare_series(self.state.metrics, setup.document.policies)
        shares = _shares(setup.document)
        for entry in moves(self._shares, shares):
            self.state.access_log.write({"time": round(time.time(), 3), **entry})
        self._shares = shares

    async def _heartbeat(self) -> None:
        while True:
            self._heartbeat_s = self._loop.time()
            await asyncio.sleep(_HEARTBEAT_S)

    def _liveness(self) -> dict[str, bool]:
        """False if the event loop has been stuck for 30 s. A loop that is busy for seconds must not be killed."""
        return {"event-loop": self._loop.time() - self._heartbeat_s < _STUCK_AFTER_S}

    def _readiness(self) -> dict[str, bool]:
        return {
            "document": self.config.current is not None,
            "endpoints": self.endpoints_known(),
            "staying": not self._leaving,
        }

    def _config_status(self) -> dict[str, Any]:
        setup = self.config.current
        return {
            "hash": setup.document.hash if setup is not None else "",
            "problem": self.config.problem,
            "missingKeys": list(setup.missing_keys) if setup is not None else [],
        }

    def _count_lost_lines(self, lines: int) -> None:
        self.state.metrics.log_lost.add((), lines)

    def _register_gauges(self, metrics: GatewayMetrics) -> None:
        state = self.state
        model = ("modeldeployment",)
        metrics.gauge("demand_requests", "Requests for a model: held, in flight, sent elsewhere.", model, state.demand)

        def held() -> dict[tuple[str, ...], float]:
            setup = self.config.current
            names = setup.document.model_deployments if setup is not None else ()
            return {(name,): float(state.pending.count(name)) for name in names}

        metrics.gauge("held_requests", "Requests that wait for a replica.", model, held)
        metrics.gauge(
            "memory_held_bytes", "What open requests hold of the budget.", (), lambda: {(): state.memory.used_bytes}
        )
        metrics.gauge("connections", "Open connections of clients.", (), lambda: {(): len(self.server.connections)})
        metrics.gauge("requests_in_flight", "Requests being answered.", (), lambda: {(): self.server.in_flight})
        metrics.gauge(
            "target_info", "What a target is.", ("policy", "target", "modeldeployment", "model"), self._target_info
        )
        metrics.gauge(
            "route_share_percent",
            "Share of a target in the traffic of a route with a preference.",
            ("policy", "rule", "target"),
            lambda: {
                (policy, rule, share.target): float(share.percent)
                for (policy, rule), status in self._shares.items()
                for share in status.shares
            },
        )
        metrics.gauge("config_info", "The document in use.", ("hash",), lambda: {(self._config_status()["hash"],): 1.0})

    def _target_info(self) -> dict[tuple[str, ...], float]:
        """Labels of `target_info`.

        The model of an adapter target is the adapter; hosted targets have no ModelDeployment.
        """
        setup = self.config.current
        return {
            (
                policy.name,
                target.name,
                target.cluster.model_deployment if target.cluster else "",
                target.served_model,
            ): 1.0
            for policy in (setup.document.policies if setup is not None else ())
            for target in policy.targets
        }


def _shares(document: GatewayDocument) -> dict[tuple[str, str], RouteStatus]:
    return {(policy.name, status.name): status for policy in document.policies for status in policy.routes}


def moves(
    before: Mapping[tuple[str, str], RouteStatus], after: Mapping[tuple[str, str], RouteStatus]
) -> Iterator[dict[str, Any]]:
    """A line of the access log for each route whose traffic another document moved."""
    for (policy, rule), status in after.items():
        old = before.get((policy, rule))
        if old is not None and old.shares == status.shares:
            continue
        yield {
            "event": "traffic_moved",
            "policy": policy,
            "rule": rule,
            "before": {share.target: share.percent for share in old.shares} if old is not None else {},
            "shares": {share.target: share.percent for share in status.shares},
            "reason": str(status.reason),
            "detail": status.message,
        }


def memory_for_requests(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """The bytes that requests may hold: half of the container's limit beyond what the process itself takes.

    The other half is for what is not counted, such as heads, small bodies and the allocator's gaps. Without a limit it
    is 256 MiB.
    """
    try:
        total = int(limit.read_text())
    except (OSError, ValueError):
        return _MEMORY_BYTES
    return max((total - _OWN_BYTES) // 2, _LEAST_MEMORY_BYTES)


def main(settings: GatewayOptions, *, log_level: str = "INFO", log_format: str = "json") -> int:
    """Run until SIGTERM. Returns the exit code."""
    logs.configure(log_level, log_format)
    try:
        return uvloop.run(_run(settings))
    except (FlotillaError, OSError) as error:
        log.error("gateway cannot run", extra={"cause": str(error)})
        return EXIT_CONFIG


async def _run(settings: GatewayOptions) -> int:
    # Requests leave no reference cycles behind, so that full collections would only pause streams.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = store_from_environment()
    accounts, tracing = StoreAccounts(store), tracing_from_environment()
    gateway = Gateway(settings, accounts=accounts, store=store)
    gateway.state.tracing = tracing
    gateway.state.metrics.gauge(
        "budget_reserved_usd", "Set aside for open requests.", (), lambda: {(): float(accounts.reserved_usd)}
    )
    gateway.state.metrics.gauge(
        "limit_store_available", "Whether the store of limits answers.", (), lambda: {(): float(accounts.available)}
    )
    known = asyncio.Event()
    gateway.endpoints_known = known.is_set
    await gateway.start()
    watching = asyncio.create_task(_watch_endpoints(settings, gateway, known), name="endpoints")
    log.info("listening", extra={"port": gateway.server.port, "admin_port": gateway.admin_port})
    await stop.wait()
    log.info("shutting down", extra={"in_flight": gateway.server.in_flight})
    await gateway.stop()
    await accounts.close()
    if tracing is not None:
        await tracing.close()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    log.info("gateway stopped")
    return EXIT_OK


async def _watch_endpoints(settings: GatewayOptions, gateway: Gateway, known: asyncio.Event) -> None:
    """Keep the endpoints equal to the EndpointSlices of the document's namespace, as soon as there is a document.

    `known` is set after the first complete list. While the API server is away, the last known endpoints are used.
    """
    while gateway.config.current is None:
        await asyncio.sleep(_HEARTBEAT_S)
    namespace = gateway.config.current.document.namespace
    client = await KubeClient.connect(
        kubeconfig=settings.kubeconfig, context=settings.context, user_agent=f"flotilla-gateway/{__version__}"
    )
    informer = Informer(client, EndpointSliceCache(gateway.endpoints), ENDPOINT_SLICE, namespace=namespace)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(informer.run())
            await informer.synced.wait()
            known.set()
    finally:
        await client.close()


class EndpointSliceCache:
    """The cache of the informer of EndpointSlices; it updates an EndpointRegistry. See `kube.informer.Cache`."""

    def __init__(self, endpoints: EndpointRegistry) -> None:
        self._endpoints = endpoints
        self._slices: dict[str, Object] = {}

    def put(self, kind: Kind, obj: Object) -> None:
        """Add or replace an EndpointSlice."""
        self._slices[obj["metadata"]["name"]] = obj
        self._endpoints.put(obj)

    def drop(self, kind: Kind, obj: Object, *, resource_version: str = "") -> None:
        """Remove an EndpointSlice."""
        self._slices.pop(obj["metadata"]["name"], None)
        self._endpoints.remove(obj["metadata"]["name"])

    def objects(self, kind: Kind, namespace: str | None = None) -> Sequence[Object]:
        """All EndpointSlices."""
        return list(self._slices.values())
