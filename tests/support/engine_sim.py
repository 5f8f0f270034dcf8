"""Simulated engines inside the test's own event loop or as processes, and what tests ask of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import aiohttp

from flotilla_devcluster.engine import tgi, tgi_config, vllm, vllm_config
from flotilla_devcluster.engine.serving import RunningServer, bind

ADDRESS = "127.244.251.7"
"""Where engines of these tests listen that are processes."""
FAST = {"FLOTILLA_SIM_STEP_SECONDS": "0.001", "FLOTILLA_SIM_TOKENS_PER_SECOND": "100000"}


@dataclass
class Running:
    engine: Any
    server: RunningServer
    session: aiohttp.ClientSession
    url: str

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON document of a request that does not stream."""
        async with self.session.post(self.url + path, json=body) as response:
            text = await response.text()
            is_json = response.content_type == "application/json"
            return response.status, json.loads(text) if is_json else text

    async def stream(self, path: str, body: Any) -> tuple[int, list[str]]:
        """Status and the data of all events."""
        async with self.session.post(self.url + path, json={**body, "stream": True}) as response:
            return response.status, events(await response.text())

    async def metrics(self) -> dict[str, float]:
        """Sample name and labels to value."""
        async with self.session.get(self.url + "/metrics") as response:
            return samples(await response.text())


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def samples(text: str) -> dict[str, float]:
    """`name{label=value,...}` without engine and model_name to value.

    Not by prometheus_client's parser, which adds `_total` to the counters of TGI.
    """
    result: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            base, _, inner = name.partition("{")
            labels = re.findall(r'(\w+)="([^"]*)"', inner)
            kept = ",".join(f"{key}={item}" for key, item in labels if key not in ("engine", "model_name"))
            result[f"{base}{{{kept}}}" if kept else base] = float(value)
    return result


@asynccontextmanager
async def running_vllm(*arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[Running]:
    config = vllm_config.configure(["m/x", "--port", "0", *arguments], FAST if env is None else env)
    async with serving(config, vllm.VllmEngine(config)) as running:
        yield running


@asynccontextmanager
async def running_tgi(*arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[Running]:
    config = tgi_config.configure(["--model-id", "m/x", "--port", "0", *arguments], FAST if env is None else env)
    async with serving(config, tgi.TgiEngine(config)) as running:
        yield running


_ARGUMENTS = {
    "vllm": ("m/x", "--port", "0"),
    "tgi": ("--model-id", "m/x", "--port", "0"),
    "sglang": ("python3", "-m", "sglang.launch_server", "--model-path", "m/x", "--port", "0", "--enable-metrics"),
    "llamacpp": ("-m", "m.gguf", "--alias", "m/x", "--port", "0", "--metrics"),
}


@asynccontextmanager
async def running_any(engine: str) -> AsyncIterator[Running]:
    """An engine by its name, with the model m/x loaded."""
    package = "flotilla_devcluster.engine"
    config = import_module(f"{package}.{engine}_config").configure(_ARGUMENTS[engine], FAST)
    made = import_module(f"{package}.{engine}").make(config)
    async with serving(config, made) as running:
        made.loaded()
        yield running


@asynccontextmanager
async def serving(config: Any, engine: Any) -> AsyncIterator[Running]:
    listener = bind(config, "127.0.0.1")
    server = RunningServer(engine.app())
    await server.listen(listener)
    port = listener.getsockname()[1]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield Running(engine, server, session, f"http://127.0.0.1:{port}")
    await server.close()


async def eventually(condition: Callable[[], Awaitable[bool]], *, timeout_s: float = 5) -> None:
    """Poll until the condition holds; TimeoutError otherwise."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def engine(name: str, *argv: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    variables = {"PATH": os.environ["PATH"], **{f"FLOTILLA_SIM_{key}": value for key, value in env.items()}}
    async with module("flotilla_devcluster.engine", name, ADDRESS, "--", *argv, env=variables) as process:
        yield process


@asynccontextmanager
async def module(name: str, *argv: str, env: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m name` until the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", name, *argv),
        env=dict(env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
