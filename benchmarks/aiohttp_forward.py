"""A bare forward in aiohttp, as a reference for benchmarks/gateway.py: it reads a request, sends it on, and relays the
answer. It decides, checks and counts nothing.

    python -m benchmarks.aiohttp_forward ENGINE_PORT PORT
"""

import sys

import uvloop
from aiohttp import ClientSession, TCPConnector, web


def application(engine: int) -> web.Application:
    """An application that forwards every request to the engine."""
    app = web.Application()

    async def session(_: web.Application) -> object:
        async with ClientSession(connector=TCPConnector(limit=0), auto_decompress=False) as found:
            app["session"] = found
            yield

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"content-type": "application/json"}
        url = f"http://127.0.0.1:{engine}{request.rel_url}"
        async with app["session"].request(request.method, url, data=body or None, headers=headers) as answer:
            kind = answer.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                return web.Response(status=answer.status, body=await answer.read(), headers={"content-type": kind})
            out = web.StreamResponse(status=answer.status, headers={"content-type": kind})
            await out.prepare(request)
            async for piece in answer.content.iter_any():
                await out.write(piece)
            await out.write_eof()
            return out

    app.cleanup_ctx.append(session)  # type: ignore[arg-type]
    app.router.add_route("*", "/{path:.*}", forward)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(application(int(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)
