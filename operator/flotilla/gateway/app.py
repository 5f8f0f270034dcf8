"""Wire the gateway: its parts, its start, its end."""

import asyncio
import contextlib
import gc
import logging
import signal
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client.registry import CollectorRegistry

from flotilla import __version__, logs
from flotilla.addresses import AddressMap
from flotilla.errors import FlotillaError
from flotilla.gateway.access_log import AccessLog
from flotilla.gateway.accounts import Accounts
from flotilla.gateway.addresses import SystemResolver
from flotilla.gateway.admin import AdminServer, Probes
from flotilla.gateway.api import Api
from flotilla.gateway.attempt import Clocks
from flotilla.gateway.config import Config, Setup
from flotilla.gateway.discovery import Discovery
from flotilla.gateway.endpoints import EndpointBook
from flotilla.gateway.hold import WaitingRoom
from flotilla.gateway.limits import store_from
from flotilla.gateway.metrics import Metrics
from flotilla.gateway.reader import ServerLimits
from flotilla.gateway.series import declare
from flotilla.gateway.server import Server
from flotilla.gateway.shared import Shared
from flotilla.gateway.store_accounts import StoreAccounts
from flotilla.gateway.tracing import tracing_from
from flotilla.gateway.upstream import Upstream
from flotilla.kube.client import KubeClient

log = logging.getLogger(__name__)

EXIT_OK, EXIT_CONFIG = 0, 2
_BEAT_S = 0.5
_STUCK_S = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Of `flotilla gateway`."""

    document: Path
    keys: Path
    state: Path | None = None
    host: str = "0.0.0.0"  # noqa: S104 - clients come from other hosts
    port: int = 8000
    admin_host: str = "0.0.0.0"  # noqa: S104 - probes and Prometheus come from other hosts
    admin_port: int = 9090
    kubeconfig: Path | None = None
    pod_address_map: AddressMap = field(default_factory=AddressMap)
    lame_duck_s: float = 3.0
    """After SIGTERM new connections are still taken for so long: load balancers learn of it late."""
    grace_s: float = 600.0
    """Then requests may end for so long."""
    access_log: bool = True
    limits: ServerLimits = field(default_factory=ServerLimits)


class Gateway:
    """A running gateway; `start` and `stop` are called from its loop."""

    def __init__(
        self, settings: Settings, *, accounts: Accounts | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._resolver = SystemResolver(allow_private=False)
        self._beat_s = self._loop.time()
        self._leaving = False
        self._tasks: list[asyncio.Task[None]] = []
        self._admin: AdminServer | None = None
        metrics = Metrics()
        self.config = Config(settings.document, settings.keys, settings.state)
        self.config.on_change = self._changed
        self.book = EndpointBook(settings.pod_address_map.translate)
        self.shared = Shared(
            self._loop,
            self.config,
            self.book,
            Upstream(resolver=self._resolver, tls=tls or ssl.create_default_context()),
            WaitingRoom(),
            Clocks(self._loop),
            metrics,
            AccessLog(sys.stdout.fileno() if settings.access_log else None, on_lost=self._lost),
            accounts=accounts,
        )
        self.book.on_ready = self.shared.room.ready
        self.server = Server(Api(self.shared).handle, settings.limits)
        self.endpoints_known: Callable[[], bool] = lambda: True
        self._gauges(metrics)

    @property
    def admin_port(self) -> int:
        """The admin port in use."""
        assert self._admin is not None
        return self._admin.port

    async def start(self) -> None:
        """Serve."""
        self.config.load()
        settings = self._settings
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self.shared.metrics)
        probes = Probes(self._live, self._ready, self._served, registry)
        self._admin = AdminServer(settings.admin_host, settings.admin_port, probes)
        self._tasks = [
            asyncio.create_task(self.config.follow(), name="config"),
            asyncio.create_task(self._beat(), name="beat"),
        ]
        await self.server.listen(settings.host, settings.port)

    async def stop(self) -> None:
        """Leave in order: not ready, still serving; then no new connection, and requests may end; then close."""
        self._leaving = True
        self.server.leave()
        await asyncio.sleep(self._settings.lame_duck_s)
        cut = await self.server.drain(self._settings.grace_s)
        if cut:
            log.warning("requests were cut off at the end of the grace period", extra={"requests": cut})
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.shared.room.close()
        self.shared.clocks.close()
        self.shared.upstream.close()
        self.shared.access_log.close()
        if self._admin is not None:
            await self._loop.run_in_executor(None, self._admin.close)

    def _changed(self, setup: Setup) -> None:
        self._resolver.allow_private = setup.document.allow_private_hosted_addresses
        live = {(policy.uid, target.name) for policy in setup.document.policies for target in policy.targets}
        for key in [key for key in self.shared.breakers if key not in live]:
            del self.shared.breakers[key]
        declare(self.shared.metrics, setup.document.policies)

    async def _beat(self) -> None:
        while True:
            self._beat_s = self._loop.time()
            await asyncio.sleep(_BEAT_S)

    def _live(self) -> dict[str, bool]:
        """A loop that is busy for seconds is no reason to kill its requests; one that never comes back is."""
        return {"event-loop": self._loop.time() - self._beat_s < _STUCK_S}

    def _ready(self) -> dict[str, bool]:
        return {
            "document": self.config.current is not None,
            "endpoints": self.endpoints_known(),
            "staying": not self._leaving,
        }

    def _served(self) -> dict[str, Any]:
        setup = self.config.current
        return {
            "hash": setup.document.hash if setup is not None else "",
            "problem": self.config.problem,
            "missingKeys": list(setup.missing_keys) if setup is not None else [],
        }

    def _lost(self, lines: int) -> None:
        self.shared.metrics.log_lost.add((), lines)

    def _gauges(self, metrics: Metrics) -> None:
        shared = self.shared
        model = ("modeldeployment",)
        metrics.gauge("demand_requests", "Requests for a model: held, in flight, sent elsewhere.", model, shared.demand)

        def held() -> dict[tuple[str, ...], float]:
            setup = self.config.current
            names = setup.document.model_deployments if setup is not None else ()
            return {(name,): float(shared.room.waiting(name)) for name in names}

        metrics.gauge("held_requests", "Requests that wait for a replica.", model, held)
        metrics.gauge("connections", "Open connections of clients.", (), lambda: {(): len(self.server.connections)})
        metrics.gauge("requests_in_flight", "Requests being answered.", (), lambda: {(): self.server.busy})
        metrics.gauge(
            "target_info", "What a target is.", ("policy", "target", "modeldeployment", "model"), self._targets
        )
        metrics.gauge("config_info", "The document in use.", ("hash",), lambda: {(self._served()["hash"],): 1.0})

    def _targets(self) -> dict[tuple[str, ...], float]:
        """The model is an adapter's name where the target is one; hosted targets have no ModelDeployment."""
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


def main(settings: Settings, *, log_level: str = "INFO", log_format: str = "json") -> int:
    """Run until SIGTERM; returns the exit code."""
    logs.configure(log_level, log_format)
    try:
        return uvloop.run(_run(settings))
    except (FlotillaError, OSError) as error:
        log.error("gateway ends", extra={"cause": str(error)})
        return EXIT_CONFIG


async def _run(settings: Settings) -> int:
    # Requests leave no cycles behind; full collections would only pause streams.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    accounts, tracing = StoreAccounts(store_from()), tracing_from()
    gateway = Gateway(settings, accounts=accounts)
    gateway.shared.tracing = tracing
    gateway.shared.metrics.gauge(
        "budget_reserved_usd", "Set aside for open requests.", (), lambda: {(): float(accounts.reserved_usd)}
    )
    gateway.shared.metrics.gauge(
        "limit_store_available", "Whether the store of limits answers.", (), lambda: {(): float(accounts.available)}
    )
    known = asyncio.Event()
    gateway.endpoints_known = known.is_set
    await gateway.start()
    following = asyncio.create_task(_follow(settings, gateway, known), name="endpoints")
    log.info("listening", extra={"port": gateway.server.port, "admin_port": gateway.admin_port})
    await stop.wait()
    log.info("leaving", extra={"in_flight": gateway.server.busy})
    await gateway.stop()
    await accounts.close()
    if tracing is not None:
        await tracing.close()
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    log.info("gateway stopped")
    return EXIT_OK


async def _follow(settings: Settings, gateway: Gateway, known: asyncio.Event) -> None:
    """Follow the EndpointSlices of the document's namespace, once there is a document."""
    while gateway.config.current is None:
        await asyncio.sleep(_BEAT_S)
    client = await KubeClient.connect(kubeconfig=settings.kubeconfig, user_agent=f"flotilla-gateway/{__version__}")
    try:
        discovery = Discovery(client, gateway.config.current.document.namespace, gateway.book, known)
        await discovery.run()
    finally:
        await client.close()
