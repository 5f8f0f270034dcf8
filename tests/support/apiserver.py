"""A small apiserver: lists in pages, watches with bookmarks, discovery of Flotilla's kinds; faults on demand.

It runs in the test's own event loop. Versions are those of a real one: each change takes the next integer, a watch
continues from any version that was not compacted away.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import ClientConnectionResetError, web

from flotilla.kube.kinds import MODEL_DEPLOYMENT, USER_KINDS, Kind

Object = dict[str, Any]
Fault = Callable[[web.Request], web.StreamResponse | None]
"""Returns an answer of its own, or None to let the request through."""


class FakeApiserver:
    """`put` and `delete` change objects; `requests` tells what was asked. Writes of clients are left to `fault`."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[str, dict[str, Object]] = {}
        """By collection path, then by name."""
        self.history: dict[str, list[tuple[int, str, Object]]] = {}
        self.compacted = 0
        """Watches from an older version are answered with 410."""
        self.requests: list[web.Request] = []
        self.fault: Fault = lambda _: None
        self.mute = False
        """Watches are opened and then send nothing, not even their end."""
        self.watches: list[web.Request] = []
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def put(self, kind: Kind, name: str, **more: Any) -> Object:
        """Create or change an object of the namespace `ns`."""
        path = kind.path("ns")
        known = self.objects.setdefault(path, {}).get(name)
        self.version += 1
        uid = known["metadata"]["uid"] if known else f"{name}-{self.version}"
        meta = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(self.version), "generation": 1}
        obj = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "spec": {}, **more}
        self.objects[path][name] = obj
        await self._tell(path, "MODIFIED" if known else "ADDED", obj)
        return obj

    async def delete(self, kind: Kind, name: str, *, told: bool = True) -> None:
        """Delete an object; `told` False: no watch ever hears of it, as after a compaction."""
        obj = self.objects[kind.path("ns")].pop(name)
        self.version += 1
        gone = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        if told:
            await self._tell(kind.path("ns"), "DELETED", gone)

    def expire(self) -> None:
        """Compact: every watch that is opened from a version before now is answered with 410."""
        self.compacted = self.version + 1
        self.version += 1

    def cut(self) -> None:
        """Break off every running watch."""
        for request in self.watches:
            if request.transport is not None:
                request.transport.abort()

    def asked(self, kind: Kind, *, watch: bool) -> int:
        """How often a kind was listed or watched; pages of one LIST count once."""
        found = [r for r in self.requests if r.path in (kind.path("ns"), kind.path()) and "continue" not in r.query]
        return sum(("watch" in request.query) is watch for request in found)

    async def _tell(self, path: str, type_: str, obj: Object) -> None:
        self.history.setdefault(path, []).append((self.version, type_, obj))
        async with self._changed:
            self._changed.notify_all()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if (answer := self.fault(request)) is not None:
            return answer
        if (found := _discovery().get(request.path)) is not None:
            return web.json_response(found)
        if request.method != "GET":
            return status(405)
        path = request.path if "/namespaces/" in request.path else _in_ns(request.path)
        return await (self._watch if "watch" in request.query else self._list)(path, request)

    async def _list(self, path: str, request: web.Request) -> web.StreamResponse:
        items = sorted(self.objects.get(path, {}).values(), key=lambda obj: obj["metadata"]["name"])
        start, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", 500))
        meta = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            meta["continue"] = str(start + limit)
        return web.json_response({"kind": "List", "metadata": meta, "items": items[start : start + limit]})

    async def _watch(self, path: str, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "application/json"})
        await answer.prepare(request)
        self.watches.append(request)
        try:
            await self._stream(path, request, answer)
        except (ClientConnectionResetError, ConnectionResetError):
            pass
        finally:
            self.watches.remove(request)
        return answer

    async def _stream(self, path: str, request: web.Request, answer: web.StreamResponse) -> None:
        since = int(request.query["resourceVersion"])
        if self.mute:
            await asyncio.Event().wait()
        if since < self.compacted:
            error = {"kind": "Status", "code": 410, "message": "too old resource version", "reason": "Expired"}
            await answer.write(_line("ERROR", error))
            return
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", 1800))):
                while True:
                    news = [event for event in self.history.get(path, ()) if event[0] > since]
                    if news:
                        await answer.write(b"".join(_line(type_, obj) for _, type_, obj in news))
                        since = news[-1][0]
                    async with self._changed:
                        await self._changed.wait_for(partial(self._newer, path, since))
        except TimeoutError:
            await answer.write(_line("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}}))

    def _newer(self, path: str, since: int) -> bool:
        return any(version > since for version, _, _ in self.history.get(path, ())[-1:])

    async def start(self) -> None:
        """Serve at a free port."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """End it, and its watches."""
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()

    def kubeconfig(self, directory: Path, *, token: str = "first") -> Path:
        """Write a file that leads here."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "users": [{"name": "c", "user": {"token": token}}],
            "current-context": "c",
        }
        file = directory / "kubeconfig"
        file.write_text(json.dumps(config))
        return file


@asynccontextmanager
async def fake_apiserver() -> AsyncIterator[FakeApiserver]:
    """Serve until the end of the block."""
    server = FakeApiserver()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def status(code: int, *, retry_after_s: int | None = None) -> web.Response:
    """An answer that is an error."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": f"code {code}"}
    return web.json_response(body, status=code, headers=headers)


def _line(type_: str, obj: Object) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode() + b"\n"


def _in_ns(path: str) -> str:
    root, plural = path.rsplit("/", 1)
    return f"{root}/namespaces/ns/{plural}"


def _discovery() -> dict[str, Object]:
    """What clients find out about the API, by path."""
    own = f"/apis/{MODEL_DEPLOYMENT.api_version}"
    version = {"groupVersion": MODEL_DEPLOYMENT.api_version, "version": MODEL_DEPLOYMENT.version}
    group = {"name": MODEL_DEPLOYMENT.group, "versions": [version], "preferredVersion": version}
    verbs = ["list", "watch", "patch"]
    namespaces = {"name": "namespaces", "singularName": "namespace", "kind": "Namespace", "namespaced": False}
    kinds = [
        {"name": kind.plural, "singularName": "", "kind": kind.kind, "namespaced": True, "verbs": verbs}
        for kind in USER_KINDS
    ]
    return {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        # kopf waits until it has found namespaces, also where it need not list them.
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [namespaces]},
        "/apis": {"kind": "APIGroupList", "groups": [group]},
        own: {"kind": "APIResourceList", "groupVersion": MODEL_DEPLOYMENT.api_version, "resources": kinds},
    }
