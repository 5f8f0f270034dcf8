"""The logs of containers, and the kubelet's own API as far as the apiserver needs it for `kubectl logs`.

`ContainerLogs` keeps a file for each start of a container and knows when its lines were written; `KubeletApi` serves
them.
"""

import asyncio
import ssl
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from flotilla.errors import InvalidSpec, NotReady
from flotilla_devcluster.nodeagent.nodes import KUBELET_PORT
from flotilla_devcluster.pki import Authority

_POLL_S = 0.1
_MARK_S = 1.0
"""Programs write to their file themselves, so the time of a line is known to a second, as `--since` asks for it."""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """The options of the kubelet's containerLogs that kubectl has too."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    since: float | None = None
    """Unix time."""
    tail: int | None = None
    limit_bytes: int | None = None

    @classmethod
    def parse(cls, query: Mapping[str, str], *, now: float) -> "LogQuery":
        """Raises InvalidSpec for a value that cannot be read."""
        try:
            since = datetime.fromisoformat(query["sinceTime"]).timestamp() if "sinceTime" in query else None
            if "sinceSeconds" in query:
                since = now - int(query["sinceSeconds"])
            return cls(
                follow=query.get("follow") == "true",
                previous=query.get("previous") == "true",
                timestamps=query.get("timestamps") == "true",
                since=since,
                tail=int(query["tailLines"]) if "tailLines" in query else None,
                limit_bytes=int(query["limitBytes"]) if "limitBytes" in query else None,
            )
        except ValueError as error:
            raise InvalidSpec(f"The query cannot be read: {error}.", field="query") from error


@dataclass(slots=True)
class _File:
    path: Path
    ended: bool = False
    marks: list[tuple[int, float]] = field(default_factory=list)
    """Sizes of the file, each with the time at which it was seen."""

    def mark(self, now: float) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size > (self.marks[-1][0] if self.marks else 0):
            self.marks.append((size, now))

    def written(self, end: int) -> float:
        """The latest time at which the line that ends there can have been written."""
        self.mark(time.time())
        return self.marks[bisect_left(self.marks, (end, 0.0))][1]

    def read(self, start: int) -> bytes:
        """Whole lines, or all bytes when the program has ended."""
        ended = self.ended
        if not self.path.exists():
            return b""
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read()
        return data if ended else data[: data.rfind(b"\n") + 1]


class ContainerLogs:
    """The container reports each start and end; the kubelet's API reads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: list[_File] = []
        self._marked = 0.0

    def start(self, number: int) -> Path:
        """The file for the output of the container's start of that number."""
        file = _File(self._directory / f"{number}.log")
        self._files = [*self._files[-1:], file]
        return file.path

    def mark(self) -> None:
        """Note the time of what was written since the last look; cheap when called often."""
        now = time.time()
        if self._files and now - self._marked >= _MARK_S:
            self._marked = now
            self._files[-1].mark(now)

    def end(self) -> None:
        """Nothing more is written."""
        if self._files:
            self._files[-1].mark(time.time())
            self._files[-1].ended = True

    async def read(self, query: LogQuery) -> AsyncIterator[bytes]:
        """The lines, and with `follow` those to come until the container ends.

        Raises NotReady where there is no such log.
        """
        file = self._file(query.previous)
        data = file.read(0)
        position, ends = 0, []
        for line in data.splitlines(keepends=True):
            position += len(line)
            ends.append((line, position))
        chosen = [(line, end) for line, end in ends if query.since is None or file.written(end) >= query.since]
        if query.tail is not None:
            chosen = chosen[max(0, len(chosen) - query.tail) :]
        for line, end in chosen:
            yield _stamped(line, file.written(end)) if query.timestamps else line
        while query.follow:
            last = file.ended
            for line in file.read(position).splitlines(keepends=True):
                position += len(line)
                yield _stamped(line, file.written(position)) if query.timestamps else line
            if last:
                return
            await asyncio.sleep(_POLL_S)

    def _file(self, previous: bool) -> _File:
        """The newest, or the newest that has ended: while a container waits for its restart that is the same one."""
        found = [file for file in self._files if file.ended or not previous]
        if not found:
            raise NotReady("previous terminated container not found" if previous else "is waiting to start")
        return found[-1]


def _stamped(line: bytes, at: float) -> bytes:
    return f"{datetime.fromtimestamp(at, UTC).isoformat().replace('+00:00', 'Z')} ".encode() + line


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
        pair = Authority("flotilla-nodeagent").server("kubelet", hosts)
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
