"""From a held request to its answer: a model at zero whose engine loads at once, on a whole local cluster.

    uv run python benchmarks/cold_start.py [--runs 20] [--json FILE]

The operator runs with its production defaults and role. Each run waits until the model has no pod, and sends one
streamed request to the gateway at a random moment of the operator's interval. The apiserver's watch tells when each
step has happened, and the gateway's own histogram how long it held the request. The simulated engine loads in 0.01 s,
so what is left is the time that the control plane, the operator, the gateway and the probes take.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from flotilla.constants import API_VERSION, GATEWAY
from flotilla.errors import Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, POD, ROUTING_POLICY, Kind
from flotilla.render.gateway import ADMIN_PORT
from flotilla_devcluster.network import local_address
from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.process import until
from flotilla_devcluster.stack import Stack

ROOT = Path(__file__).parent.parent
NAME, NAMESPACE = "sleeper", "default"
INTERVAL_S = 2.0
TIMEOUT_S = 120.0
MODEL: dict[str, Any] = {
    "model": {"source": "hf://Qwen/Qwen2.5-1.5B-Instruct"},
    "engine": {"name": "vllm"},
    "accelerator": {"class": "nvidia-l4"},
    "scaling": {"minReplicas": 0, "scaleDownDelaySeconds": 1, "scaleToZeroAfterSeconds": 2},
}
POLICY: dict[str, Any] = {
    "hostModels": [NAME],
    "targets": [{"name": "only", "modelDeploymentRef": {"name": NAME}}],
    "dataPolicy": {"unknownClass": "any", "classes": [{"name": "any", "allowBoundaries": ["Cluster"]}]},
    "defaultRoute": {"split": [{"target": "only"}]},
}
NODES = AgentConfig(simulation={"FLOTILLA_SIM_LOAD_SECONDS": "0.01", "FLOTILLA_SIM_TOKENS_PER_SECOND": "2000"})

PARTS = (
    ("patched", "request sent to replicas patched"),
    ("bound", "to pod bound to a node"),
    ("started", "to container started"),
    ("ready", "to pod Ready"),
    ("released", "to endpoint at the gateway"),
    ("first_byte", "to first byte of the answer"),
    ("answered", "to end of the answer"),
)
"""The end of each part, as a key of a run, and its description. A run has seconds since the request was sent."""

Run = dict[str, float]


class Events:
    """Everything that the apiserver's watches have reported, with the time at which it came."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._seen: list[tuple[float, Kind, str, dict[str, Any]]] = []
        self._changed = asyncio.Event()

    async def follow(self, kind: Kind) -> None:
        """Until cancelled."""
        while True:
            page = await self._client.list(kind, namespace=NAMESPACE)
            try:
                async for events in self._client.watch(
                    kind, resource_version=page.resource_version, namespace=NAMESPACE, lasts_s=600, silence_s=90
                ):
                    now = time.monotonic()
                    self._seen += [(now, kind, type_, obj) for type_, obj in events]
                    self._changed.set()
            except Transient:
                continue

    async def first(self, kind: Kind, since: float, is_it: Callable[[Mapping[str, Any]], bool]) -> float:
        """When the first object after `since` came that `is_it` accepts."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                self._changed.clear()
                for at, kind_, type_, obj in self._seen:
                    if at >= since and kind_ == kind and type_ != "DELETED" and is_it(obj):
                        return at
                await self._changed.wait()


def _of_the_model(obj: Mapping[str, Any]) -> bool:
    return bool((obj["metadata"].get("labels") or {}).get("flotilla.dev/model") == NAME)


def _bound(pod: Mapping[str, Any]) -> bool:
    return _of_the_model(pod) and bool(pod["spec"].get("nodeName"))


def _started(pod: Mapping[str, Any]) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return _of_the_model(pod) and any("running" in status["state"] for status in statuses)


def _ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return _of_the_model(pod) and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


class Gateways:
    """The admin ports of the gateway's pods."""

    def __init__(self, session: aiohttp.ClientSession, addresses: list[str]) -> None:
        self._session = session
        self._addresses = addresses

    async def held_s(self) -> float:
        """Seconds that requests for the model have been held, of all gateways since their start."""
        total = 0.0
        for address in self._addresses:
            async with self._session.get(f"http://{address}:{ADMIN_PORT}/metrics") as answer:
                text = await answer.text()
            total += sum(
                sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == "flotilla_gateway_hold_seconds_sum" and sample.labels["modeldeployment"] == NAME
            )
        return total


async def ask(session: aiohttp.ClientSession, url: str) -> tuple[float, float]:
    """One streamed request; the times of the first byte and of the end of its answer."""
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}
    async with session.post(f"{url}/chat/completions", json=body) as answer:
        answer.raise_for_status()
        await answer.content.readany()
        first = time.monotonic()
        await answer.read()
        return first, time.monotonic()


async def measure(stack: Stack, runs: int) -> list[Run]:
    """All runs, one after the other."""
    client = await KubeClient.connect(kubeconfig=stack.plane.kubeconfig, user_agent="benchmark")
    events, found = Events(client), list[Run]()
    following = [asyncio.create_task(events.follow(kind)) for kind in (DEPLOYMENT, POD)]
    url = stack.service_url(GATEWAY)
    assert url is not None
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
            pods = (await client.list(POD, namespace=NAMESPACE)).items
            gateways = Gateways(session, [local_address(p["status"]["podIP"]) for p in pods if not _of_the_model(p)])
            for number in range(runs):
                await at_zero(client)
                await asyncio.sleep(random.uniform(1, 1 + INTERVAL_S))
                held_s, start = await gateways.held_s(), time.monotonic()
                first_byte, answered = await ask(session, url)
                moments = {
                    "patched": await events.first(DEPLOYMENT, start, _has_replicas),
                    "bound": await events.first(POD, start, _bound),
                    "started": await events.first(POD, start, _started),
                    "ready": await events.first(POD, start, _ready),
                    "released": start + await gateways.held_s() - held_s,
                    "first_byte": first_byte,
                    "answered": answered,
                }
                found.append({name: moment - start for name, moment in moments.items()})
                shown = ", ".join(f"{name} {at_s:.2f}" for name, at_s in found[-1].items())
                sys.stderr.write(f"run {number + 1}: {shown}\n")
    finally:
        for task in following:
            task.cancel()
        await client.close()
    return found


def _has_replicas(deployment: Mapping[str, Any]) -> bool:
    return bool(deployment["metadata"]["name"] == NAME and deployment["spec"]["replicas"])


async def at_zero(client: KubeClient) -> None:
    """Wait until the model has no replica and no pod."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            deployment = await client.get(DEPLOYMENT, NAME, namespace=NAMESPACE)
            pods = (await client.list(POD, namespace=NAMESPACE)).items
            if deployment is not None and not deployment["spec"]["replicas"] and not any(map(_of_the_model, pods)):
                return
            await asyncio.sleep(0.2)


def durations(runs: list[Run]) -> list[tuple[str, list[float]]]:
    """The seconds of each part in each run, and of the whole."""
    found, before = list[tuple[str, list[float]]](), [0.0] * len(runs)
    for name, what in PARTS:
        ends = [run[name] for run in runs]
        found.append((what, [end - begin for end, begin in zip(ends, before, strict=True)]))
        before = ends
    return [*found, ("request sent to end of the answer", before)]


def table(runs: list[Run]) -> str:
    """Median and worst of each part, as Markdown of at most 80 columns."""
    lines = [f"| {f'{len(runs)} runs':<36} | median (s) | worst (s) |", f"|{'-' * 38}|-----------:|----------:|"]
    for what, values_s in durations(runs):
        lines.append(f"| {what:<36} | {statistics.median(values_s):10.2f} | {max(values_s):9.2f} |")
    return "\n".join(lines)


def prepare(stack: Stack) -> None:
    """Create the model and its policy, and wait until the model has gone to zero behind a ready gateway."""
    for kind, spec in ((MODEL_DEPLOYMENT, MODEL), (ROUTING_POLICY, POLICY)):
        path = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{kind.plural}/{NAME}"
        manifest = {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": {"name": NAME}, "spec": spec}
        stack.plane.api.apply(path, manifest, manager="kubectl")

    def asleep() -> bool:
        conditions = stack.models()[0].get("status", {}).get("conditions", ())
        return any(c["type"] == "ScalingActive" and c["reason"] == "ScaledToZero" for c in conditions)

    until(asleep, what="the model to be at zero", timeout_s=TIMEOUT_S)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the moments of each run, in seconds since the request")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="flotilla-cold-start-") as directory,
        Stack.start(directory=Path(directory), crds=ROOT / "crds", nodes=NODES) as stack,
    ):
        prepare(stack)
        runs = asyncio.run(measure(stack, options.runs))
    sys.stdout.write(f"{table(runs)}\n\nload average at the end: {os.getloadavg()[0]:.1f}\n")
    if options.json:
        options.json.write_text(json.dumps(runs, indent=2))


if __name__ == "__main__":
    main()
