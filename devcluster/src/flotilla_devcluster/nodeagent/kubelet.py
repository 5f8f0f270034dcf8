"""The kubelet's own API, as far as the apiserver needs it for `kubectl logs`."""

import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from aiohttp import web

from flotilla.errors import InvalidSpec, NotReady
from flotilla_devcluster import certs
from flotilla_devcluster.nodeagent.containerlogs import ContainerLogs, LogQuery
from flotilla_devcluster.nodeagent.nodes import KUBELET_PORT

Find = Callable[[str, str, str], ContainerLogs | None]
"""By namespace, pod and container."""


class KubeletApi:
    """Serves all nodes of the agent, each on its own address, over TLS, to clients of the cluster's authority only."""

    def __init__(self, find: Find, *, authority: bytes) -> None:
        """`authority`: PEM of the certificates that clients are known by."""
        self._find = find
        self._authority = authority.decode()
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    async def start(self, addresses: Iterable[str], directory: Path) -> None:
        """Listen; certificate and key are written to `directory`."""
        hosts = list(addresses)
        pair = certs.Authority("flotilla-nodeagent").server("kubelet", hosts)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair.write(directory, "kubelet"))
        context.load_verify_locations(cadata=self._authority)
        context.verify_mode = ssl.CERT_REQUIRED
        await self._runner.setup()
        for host in hosts:
            await web.TCPSite(self._runner, host, KUBELET_PORT, ssl_context=context).start()

    async def stop(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        namespace, pod, container = (request.match_info[part] for part in ("namespace", "pod", "container"))
        logs = self._find(namespace, pod, container)
        if logs is None:
            return web.Response(status=404, text=f'pod "{pod}" with a container "{container}" not found')
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        try:
            query = LogQuery.parse(request.query, now=time.time())
            left = query.limit_bytes
            async for line in logs.read(query):
                if not answer.prepared:
                    await answer.prepare(request)
                await answer.write(line if left is None else line[:left])
                if left is not None and (left := left - len(line)) <= 0:
                    break
        except InvalidSpec as error:
            return web.Response(status=400, text=str(error))
        except NotReady as error:
            return web.Response(status=400, text=f'container "{container}" in pod "{pod}": {error}')
        if not answer.prepared:
            await answer.prepare(request)
        return answer
