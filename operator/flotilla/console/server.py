"""The page and its JSON over HTTP. Read only: there is nothing to send to it."""

from collections.abc import Callable
from importlib.resources import files

import orjson
from aiohttp import web

from flotilla.console.view import Json

_HEADERS = {
    # Nothing from elsewhere, nothing inline, in nobody's frame.
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


def routes(source: Callable[[], Json]) -> list[web.RouteDef]:
    """GET /console/ and what it needs. `source` gives the JSON of `view.fleet` at each request."""

    async def fleet(_: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(source()), content_type="application/json", headers=_HEADERS)

    async def moved(_: web.Request) -> web.Response:
        raise web.HTTPMovedPermanently("/console/")

    def packaged(path: str, name: str, content_type: str) -> web.RouteDef:
        body = (files("flotilla.console") / name).read_bytes()

        async def page(_: web.Request) -> web.Response:
            return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

        return web.get(f"/console/{path}", page)

    pages = [packaged(path, *file) for path, file in _FILES.items()]
    return [web.get("/console", moved), web.get("/console/fleet.json", fleet), *pages]
