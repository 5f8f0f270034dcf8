"""`flotilla gateway` as a process, before fake targets in a thread: for clients that block, as most programs do."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from flotilla.domain.routing.document import GatewayDocument, key_file
from tests.support.gateway import endpoint_slice
from tests.support.hosted import HostedApi, Received, Reply, Stream, Whole
from tests.support.hosted_answers import answered

_START_S = 60


class Fakes:
    """Servers in a thread and loop of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="fakes")
        self._apis: list[HostedApi] = []
        self._thread.start()

    def start(self, answer: Callable[[Received], Reply] = answered) -> HostedApi:
        """Scripts may be given from any thread: a deque is appended to in one step."""
        api = HostedApi(answer)
        asyncio.run_coroutine_threadsafe(api.start(), self._loop).result(10)
        self._apis.append(api)
        return api

    def stop(self) -> None:
        for api in self._apis:
            asyncio.run_coroutine_threadsafe(api.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def apiserver(slices: list[dict[str, Any]]) -> Callable[[Received], Reply]:
    """An apiserver that knows EndpointSlices and nothing else; its watch is silent."""

    def answer(request: Received) -> Reply:
        if "watch=" in request.path:
            return Stream([], hang_after=0, headers={"content-type": "application/json"})
        metadata = {"resourceVersion": "1"}
        kinds = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList"}
        return Whole({**kinds, "metadata": metadata, "items": slices})

    return answer


@contextmanager
def gateway_process(
    directory: Path,
    fakes: Fakes,
    document: GatewayDocument,
    engines: Mapping[str, HostedApi],
    environ: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The gateway's URL, once it serves; every Secret holds `key-of-NAME-KEY`."""
    (directory / "document.json").write_bytes(document.text)
    for secret in document.secrets:
        file = directory / "keys" / key_file(secret)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"key-of-{secret.name}-{secret.key}")
    slices = [endpoint_slice(owner, [api.port]) for owner, api in engines.items()]
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(_kubeconfig(fakes.start(apiserver(slices)).url)))
    here = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--lame-duck", "0", "--grace", "5")
    files = ("--document", str(directory / "document.json"), "--keys", str(directory / "keys"))
    with ExitStack() as stack:
        log = stack.enter_context((directory / "log").open("w"))
        process = subprocess.Popen(
            [sys.executable, "-m", "flotilla", "gateway", *here, *files, "--kubeconfig", str(kubeconfig)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
        )
        stack.callback(_end, process)
        yield f"http://127.0.0.1:{_port(process, directory / 'log')}"


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """As the gateway logs it when it listens."""
    waiting = threading.Event()
    for _ in range(_START_S * 20):
        for line in log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("msg", entry.get("message")) == "listening":
                return int(entry["port"])
        if process.poll() is not None:
            break
        waiting.wait(0.05)
    raise AssertionError(f"the gateway does not listen:\n{log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()


def _kubeconfig(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        "clusters": [{"name": "fake", "cluster": {"server": server}}],
        "users": [{"name": "fake", "user": {"token": "none"}}],
    }
