"""kube-proxy in user space: ClusterIPs answer on their loopback twins. And `follow`, callbacks of an informer."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from flotilla.kube.client import KubeClient
from flotilla.kube.informer import Informer
from flotilla.kube.kinds import ENDPOINT_SLICE, SERVICE, Kind
from flotilla_devcluster.network import local_address

log = logging.getLogger(__name__)

_CHUNK = 2**16
_SERVICE_LABEL = "kubernetes.io/service-name"
_CONNECT_TIMEOUT_S = 5.0

Service = tuple[str, str]
"""Namespace and name."""


class ServiceProxy:
    """One TCP listener per Service port; each connection goes to the next ready endpoint."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._slices: dict[Service, dict[str, dict[str, Any]]] = {}
        self._listeners: dict[tuple[str, int], asyncio.Server] = {}
        self._services: dict[str, list[tuple[str, int]]] = {}
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(follow(self._client, ENDPOINT_SLICE, changed=self._slice, gone=self._slice_gone))
                group.create_task(follow(self._client, SERVICE, changed=self._service, gone=self._service_gone))
        finally:
            for server in self._listeners.values():
                server.close()

    def _slice(self, obj: dict[str, Any]) -> None:
        meta = obj["metadata"]
        name = (meta["namespace"], (meta.get("labels") or {}).get(_SERVICE_LABEL, ""))
        self._slices.setdefault(name, {})[meta["uid"]] = obj

    def _slice_gone(self, obj: dict[str, Any]) -> None:
        meta = obj["metadata"]
        name = (meta["namespace"], (meta.get("labels") or {}).get(_SERVICE_LABEL, ""))
        self._slices.get(name, {}).pop(meta["uid"], None)

    def _service(self, obj: dict[str, Any]) -> None:
        meta, spec = obj["metadata"], obj["spec"]
        address = spec.get("clusterIP") or "None"
        if address == "None" or not spec.get("selector"):
            return
        for port in spec.get("ports") or ():
            where = (local_address(address), port["port"])
            if where in self._listeners or port.get("protocol", "TCP") != "TCP":
                continue
            self._services.setdefault(meta["uid"], []).append(where)
            task = asyncio.create_task(self._listen(where, (meta["namespace"], meta["name"]), port.get("name", "")))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _service_gone(self, obj: dict[str, Any]) -> None:
        for where in self._services.pop(obj["metadata"]["uid"], ()):
            server = self._listeners.pop(where, None)
            if server is not None:
                server.close()

    async def _listen(self, where: tuple[str, int], service: Service, port: str) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._forward(service, port, reader, writer)

        try:
            self._listeners[where] = await asyncio.start_server(accept, *where)
        except OSError as error:
            log.warning("a Service cannot be served", extra={"service": "/".join(service), "cause": str(error)})

    def _endpoints(self, service: Service, port: str) -> list[tuple[str, int]]:
        found = []
        for piece in self._slices.get(service, {}).values():
            number = next((p["port"] for p in piece.get("ports") or () if p.get("name", "") == port), None)
            if number is None:
                continue
            for endpoint in piece.get("endpoints") or ():
                if (endpoint.get("conditions") or {}).get("ready"):
                    found += [(local_address(address), number) for address in endpoint["addresses"]]
        return sorted(found)

    async def _forward(
        self, service: Service, port: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        endpoints = self._endpoints(service, port)
        if not endpoints:
            writer.transport.abort()
            return
        self._turn += 1
        where = endpoints[self._turn % len(endpoints)]
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                upstream_reader, upstream_writer = await asyncio.open_connection(*where)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        for stream in (writer, upstream_writer):
            sock = stream.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
        writer.close()
        upstream_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end of one direction, which is passed on as a half-close."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


class _Callbacks:
    """The cache of an informer, which calls back."""

    def __init__(self, changed: Callable[[dict[str, Any]], None], gone: Callable[[dict[str, Any]], None]) -> None:
        self._changed = changed
        self._gone = gone
        self._known: dict[str, dict[str, Any]] = {}

    def put(self, kind: Kind, obj: dict[str, Any]) -> None:
        self._known[obj["metadata"]["uid"]] = obj
        self._changed(obj)

    def drop(self, kind: Kind, obj: dict[str, Any], *, resource_version: str = "") -> None:
        self._known.pop(obj["metadata"]["uid"], None)
        self._gone(obj)

    def objects(self, kind: Kind, namespace: str | None = None) -> Sequence[dict[str, Any]]:
        return list(self._known.values())


async def follow(
    client: KubeClient,
    kind: Kind,
    *,
    changed: Callable[[dict[str, Any]], None],
    gone: Callable[[dict[str, Any]], None],
    field_selector: str | None = None,
) -> None:
    """Call `changed` and `gone` for every object until cancelled; after a break, for what happened meanwhile too."""
    await Informer(client, _Callbacks(changed, gone), kind, field_selector=field_selector).run()
