"""`flotilla gateway` as a process, and fake targets in a thread: for clients that block, as most programs do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from flotilla.routing.document import GatewayDocument, key_file
from tests.support.engine_sim import eventually
from tests.support.gateway import chat_body, endpoint_slice
from tests.support.hosted import HostedApi, Received, Reply
from tests.support.hosted_answers import answered
from tests.support.slices_api import SlicesApi

_START_S = 60
_T = TypeVar("_T")


class Fakes:
    """Servers in a thread and loop of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="fakes")
        self._servers: list[HostedApi | SlicesApi] = []
        self._thread.start()

    def start(self, answer: Callable[[Received], Reply] = answered) -> HostedApi:
        """Scripts may be given from any thread: a deque is appended to in one step."""
        api = HostedApi(answer)
        self._run(api.start())
        self._servers.append(api)
        return api

    def slices(self, engines: Mapping[str, HostedApi]) -> SlicesApi:
        """An apiserver that knows where ModelDeployments are."""
        api = SlicesApi.of(endpoint_slice(owner, [engine.port]) for owner, engine in engines.items())
        self._run(api.start())
        self._servers.append(api)
        return api

    def stop(self) -> None:
        for server in self._servers:
            self._run(server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, what: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """Where it listens."""

    process: subprocess.Popen[bytes]
    url: str
    admin_url: str

    def kill(self) -> None:
        """As a machine that fails."""
        self.process.kill()
        self.process.wait(10)


@dataclass(frozen=True, slots=True)
class Client:
    """Of a gateway, in the test's own loop."""

    gateway: GatewayProcess
    session: aiohttp.ClientSession

    async def chat(self, *, headers: Mapping[str, str] | None = None, **fields: Any) -> tuple[int, str]:
        """Status and text."""
        url = f"{self.gateway.url}/v1/chat/completions"
        async with self.session.post(url, json=chat_body(**fields), headers=headers) as answer:
            return answer.status, await answer.text()

    async def ready(self) -> bool:
        async with self.session.get(f"{self.gateway.admin_url}/readyz") as answer:
            return answer.status == 200


@asynccontextmanager
async def client_of(gateway: GatewayProcess) -> AsyncIterator[Client]:
    """When it is ready."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        client = Client(gateway, session)
        await eventually(client.ready, timeout_s=20)
        yield client


@contextmanager
def gateway_process(
    directory: Path,
    document: GatewayDocument,
    api: SlicesApi,
    *options: str,
    environ: Mapping[str, str] | None = None,
) -> Iterator[GatewayProcess]:
    """A gateway that listens; every Secret holds `key-of-NAME-KEY`. Its end is in order unless the test killed it."""
    directory.mkdir(exist_ok=True)
    (directory / "document.json").write_bytes(document.text)
    for secret in document.secrets:
        file = directory / "keys" / key_file(secret)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"key-of-{secret.name}-{secret.key}")
    here = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--lame-duck", "0", "--grace", "5")
    files = ("--document", str(directory / "document.json"), "--keys", str(directory / "keys"))
    (directory / "keys").mkdir(exist_ok=True)
    kubeconfig = ("--kubeconfig", str(api.kubeconfig(directory)))
    with ExitStack() as stack:
        log = stack.enter_context((directory / "log").open("w"))
        process = subprocess.Popen(
            [sys.executable, "-m", "flotilla", "gateway", *here, *files, *kubeconfig, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
        )
        stack.callback(_end, process)
        port, admin_port = _ports(process, directory / "log")
        yield GatewayProcess(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}")


def _ports(process: subprocess.Popen[bytes], log: Path) -> tuple[int, int]:
    """As the gateway logs them when it listens."""
    waiting = threading.Event()
    for _ in range(_START_S * 20):
        for line in log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("message") == "listening":
                return int(entry["port"]), int(entry["admin_port"])
        if process.poll() is not None:
            break
        waiting.wait(0.05)
    raise AssertionError(f"the gateway does not listen:\n{log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        assert process.wait(30) in (0, -signal.SIGKILL)
    finally:
        process.kill()
