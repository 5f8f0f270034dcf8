"""Measures how long it takes until a queue changes the number of replicas, on a whole local cluster.

    uv run python benchmarks/reaction.py [--runs 20] [--json FILE]

The operator runs with its production defaults (it reads the queues every 2 s) and role. Each run sends 80 requests at
once to a model with one replica and a target of 8, at a random moment within the interval. It measures the time from
the first request to more replicas (as seen in a watch of the apiserver) and from the last answer to one replica again.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from flotilla.constants import API_VERSION
from flotilla.errors import Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import DEPLOYMENT
from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.process import until
from flotilla_devcluster.stack import Stack

ROOT = Path(__file__).parent.parent
NAME, NAMESPACE = "reaction", "default"
TARGET, REPLICAS, DELAY_S, INTERVAL_S = 8, 10, 6, 2.0
SPEC: dict[str, Any] = {
    "model": {"source": "hf://Qwen/Qwen2.5-1.5B-Instruct"},
    "engine": {"name": "vllm"},
    # Room for more replicas than the local cluster has GPUs.
    "accelerator": {"class": "cpu-amd64"},
    "scaling": {
        "maxReplicas": REPLICAS,
        "queueDepthPerReplica": TARGET,
        "scaleDownDelaySeconds": DELAY_S,
        "scaleDownPercentPerMinute": 100,
    },
}
NODES = AgentConfig(simulation={"FLOTILLA_SIM_LOAD_SECONDS": "0.2", "FLOTILLA_SIM_TOKENS_PER_SECOND": "2000"})


@dataclass(frozen=True)
class Run:
    """The times of one run, in seconds."""

    first_s: float
    """From the first request to the first higher count."""
    full_s: float
    """From the first request to ten replicas."""
    back_s: float
    """From the last answer to one replica."""


class Counts:
    """Every count that the Deployment has had, with the time at which the watch reported it."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []
        self._changed = asyncio.Event()

    async def follow(self, client: KubeClient) -> None:
        """Follow the watch until cancelled."""
        while True:
            page = await client.list(DEPLOYMENT, namespace=NAMESPACE)
            try:
                async for events in client.watch(
                    DEPLOYMENT, resource_version=page.resource_version, namespace=NAMESPACE, lasts_s=600, silence_s=90
                ):
                    for _, obj in events:
                        if obj["metadata"].get("name") == NAME:
                            self.seen.append((time.monotonic(), obj["spec"]["replicas"]))
                            self._changed.set()
            except Transient:
                continue

    async def first(self, since: float, wanted: range) -> float:
        """Return the first time after `since` with a count in `wanted`."""
        while True:
            self._changed.clear()
            for at, count in self.seen:
                if at >= since and count in wanted:
                    return at
            async with asyncio.timeout(120):
                await self._changed.wait()


async def ask(session: aiohttp.ClientSession, url: str) -> None:
    """Send one request that takes some seconds."""
    body = {"model": NAME, "prompt": "Classify this ticket.", "max_tokens": 200}
    async with session.post(f"{url}/completions", json=body) as answer:
        answer.raise_for_status()
        await answer.read()


async def measure(stack: Stack, runs: int) -> list[Run]:
    """Measure all runs, one after the other."""
    client = await KubeClient.connect(kubeconfig=stack.plane.kubeconfig, user_agent="benchmark")
    counts, found = Counts(), list[Run]()
    following = asyncio.create_task(counts.follow(client))
    url = stack.service_url(NAME)
    assert url is not None
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
            for number in range(runs):
                await asyncio.sleep(random.uniform(1, 1 + INTERVAL_S))
                start = time.monotonic()
                requests = [asyncio.create_task(ask(session, url)) for _ in range(TARGET * REPLICAS)]
                first = await counts.first(start, range(2, REPLICAS + 1))
                full = await counts.first(start, range(REPLICAS, REPLICAS + 1))
                await asyncio.gather(*requests)
                over = time.monotonic()
                back = await counts.first(over, range(1, 2))
                found.append(Run(first - start, full - start, back - over))
                sys.stderr.write(f"run {number + 1}: {found[-1]}\n")
    finally:
        following.cancel()
        await client.close()
    return found


def table(runs: list[Run]) -> str:
    """Return median and worst times as a Markdown table."""
    lines = [f"| {len(runs)} runs | median (s) | worst (s) |", "|---|---|---|"]
    for name, what in (
        ("first_s", "first request to a higher count"),
        ("full_s", f"first request to {REPLICAS} replicas"),
        ("back_s", f"last answer to 1 replica, delay {DELAY_S} s"),
    ):
        values = [getattr(run, name) for run in runs]
        lines.append(f"| {what} | {statistics.median(values):.2f} | {max(values):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="flotilla-reaction-") as directory,
        Stack.start(directory=Path(directory), crds=ROOT / "crds", nodes=NODES) as stack,
    ):
        stack.apply_model(
            {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": NAME}, "spec": SPEC}
        )
        until(
            lambda: any(model.get("status", {}).get("readyReplicas") for model in stack.models()),
            what="the first replica",
            timeout_s=120,
        )
        runs = asyncio.run(measure(stack, options.runs))
    sys.stdout.write(table(runs) + "\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=2))


if __name__ == "__main__":
    main()
