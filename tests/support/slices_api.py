"""The one resource of the Kubernetes API that a gateway reads, served without a control plane: EndpointSlices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientConnectionResetError, web

PATH = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


@dataclass
class SlicesApi:
    """What is listed, and what watchers are told."""

    port: int = 0
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    lists: int = 0
    version: int = 1
    gone: bool = False
    """Watches are answered with 410, as after a compaction; so are those from an older version, always."""
    watchers: set[asyncio.Queue[Any]] = field(default_factory=set)
    _runner: web.AppRunner | None = None

    @classmethod
    def of(cls, items: Iterable[dict[str, Any]]) -> SlicesApi:
        """That lists these."""
        return cls(items={item["metadata"]["name"]: item for item in items})

    async def start(self) -> None:
        """Serve, at a free port."""
        app = web.Application()
        app.router.add_get(PATH, self.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End all watches too."""
        self.end_watches()
        if self._runner is not None:
            await self._runner.cleanup()

    def put(self, item: dict[str, Any]) -> None:
        """Add or change a slice."""
        name = item["metadata"]["name"]
        kind = "MODIFIED" if name in self.items else "ADDED"
        self.items[name] = item
        self._tell(kind, item)

    def delete(self, name: str) -> None:
        """Delete a slice."""
        self._tell("DELETED", self.items.pop(name))

    def end_watches(self) -> None:
        """Close all watches, as the apiserver does after some minutes."""
        for queue in self.watchers:
            queue.put_nowait(None)

    def kubeconfig(self, directory: Path) -> Path:
        """A file that leads here."""
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "users": [{"name": "c", "user": {}}],
            "current-context": "c",
        }
        file = directory / "kubeconfig"
        file.write_text(json.dumps(config))
        return file

    def _tell(self, kind: str, item: dict[str, Any]) -> None:
        self.version += 1
        for queue in self.watchers:
            meta = {"uid": item["metadata"]["name"], **item["metadata"], "resourceVersion": str(self.version)}
            queue.put_nowait((kind, {**item, "metadata": meta}))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """List or watch."""
        if request.query.get("watch") != "true":
            self.lists += 1
            meta = {"resourceVersion": str(self.version)}
            items = [
                {**item, "metadata": {"uid": name, **meta, **item["metadata"]}} for name, item in self.items.items()
            ]
            return web.json_response({"metadata": meta, "items": items})
        answer = web.StreamResponse(headers={"content-type": "application/json"})
        await answer.prepare(request)
        if self.gone or request.query["resourceVersion"] != str(self.version):
            error = {"kind": "Status", "code": 410, "message": "too old resource version"}
            await answer.write(json.dumps({"type": "ERROR", "object": error}).encode() + b"\n")
            return answer
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self.watchers.add(queue)
        try:
            while (told := await queue.get()) is not None:
                await answer.write(json.dumps({"type": told[0], "object": told[1]}).encode() + b"\n")
        except (ClientConnectionResetError, ConnectionResetError):
            pass
        finally:
            self.watchers.discard(queue)
        return answer


@asynccontextmanager
async def slices_api(items: Iterable[dict[str, Any]] = ()) -> AsyncIterator[SlicesApi]:
    """Serve until the end of the block."""
    api = SlicesApi.of(items)
    await api.start()
    try:
        yield api
    finally:
        await api.stop()
