"""The operator's HTTP server: /healthz, /readyz, /metrics and the console."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from importlib.resources import files

import orjson
from aiohttp import web
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from flotilla.console.metrics import exposition
from flotilla.console.view import Json

Families = Callable[[], Awaitable[Sequence[Metric]]]
"""The metric families of this moment, gathered without blocking the event loop."""
Checks = Mapping[str, Callable[[], bool]]
_LAG_LIMIT_S = 10.0
_BEAT_S = 1.0
_STOP_S = 2.0
"""How long `stop` waits for answers that are under way: a client may never read its own."""


class HealthServer:
    """Running server; made by `start`."""

    def __init__(self, runner: web.AppRunner, beat: asyncio.Task[None]) -> None:
        self._runner = runner
        self._beat = beat

    @property
    def port(self) -> int:
        """The port in use, also where 0 asked for a free one."""
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Close the socket."""
        self._beat.cancel()
        await self._runner.cleanup()


class _Lag:
    """How late the event loop is: a loop that is stuck for seconds answers, but does not work."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def run(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            self.seconds = time.monotonic() - before - _BEAT_S


async def start_server(
    *,
    host: str,
    port: int,
    families: Families,
    live: Checks,
    ready: Checks,
    more: Iterable[web.RouteDef] = (),
) -> HealthServer:
    """Serve until `stop`; each check returns whether a part is healthy. `more` are other GETs."""
    lag = _Lag()

    def respond(checks: Checks) -> web.Response:
        results = {name: check() for name, check in checks.items()}
        return web.json_response(
            {name: "ok" if good else "failed" for name, good in results.items()},
            status=200 if all(results.values()) else 503,
        )

    async def healthz(_: web.Request) -> web.Response:
        return respond({"event-loop": lambda: lag.seconds < _LAG_LIMIT_S, **live})

    async def readyz(_: web.Request) -> web.Response:
        return respond(ready)

    async def metrics(_: web.Request) -> web.Response:
        # The text of a large fleet takes half a second, in which the event loop must stay free.
        text = await asyncio.to_thread(exposition, await families())
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics), *more])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_S)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return HealthServer(runner, asyncio.create_task(lag.run(), name="loop-lag"))


_HEADERS = {
    # Nothing from other hosts, nothing inline, no framing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}


def console_routes(source: Callable[[], Awaitable[Json]]) -> list[web.RouteDef]:
    """GET /console/ and what it needs. `source` gives the JSON of `view.fleet` at each request."""

    async def fleet(_: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(await source()), content_type="application/json", headers=_HEADERS)

    async def moved(_: web.Request) -> web.Response:
        raise web.HTTPMovedPermanently("/console/")

    def packaged(path: str, name: str, content_type: str) -> web.RouteDef:
        body = (files("flotilla.console") / name).read_bytes()

        async def page(_: web.Request) -> web.Response:
            return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

        return web.get(f"/console/{path}", page)

    pages = [packaged(path, *file) for path, file in _FILES.items()]
    return [web.get("/console", moved), web.get("/console/fleet.json", fleet), *pages]
