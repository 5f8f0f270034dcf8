"""Measures one sampling round: scrape every ready pod over its own socket, decide and account every deployment.

    uv run python benchmarks/scrape.py [--models 500] [--replicas 4] [--rounds 10] [--interval 5] [--profile FILE]

The pods are 127.x addresses of one process that answers each with the metric text of a loaded vLLM (the simulated
engine's), whose queue differs from pod to pod and from round to round. The other side is the operator's own scaler,
store and ledger, without a cluster: nothing is written. CPU is that of the operator alone.
"""

import argparse
import asyncio
import cProfile
import multiprocessing
import pstats
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psutil

from flotilla.addresses import AddressMap
from flotilla.api.model_deployment import ModelDeployment
from flotilla.constants import API_VERSION, LABEL_MODEL
from flotilla.cost.accounting_loop import FleetAccounting
from flotilla.cost.gpu_prices import CostBasis
from flotilla.cost.ledger import Ledger
from flotilla.cost.price_loop import PriceCache
from flotilla.kube.kinds import MODEL_DEPLOYMENT, POD, Key
from flotilla.kube.store import Store, owner
from flotilla.planning.resolve import load_catalog, resolve
from flotilla.scaling.scaling_loop import Scaler
from flotilla.scaling.scrape_client import EngineSample, Scraper
from flotilla.simulation.engine import SimulatedSequence
from flotilla_devcluster.engine.vllm import VllmEngine
from flotilla_devcluster.engine.vllm_config import configure

_PORT = 8000
_QUEUES = 16


def address(number: int) -> str:
    """Return the address of the pod with that number; all are on the loopback interface."""
    return f"127.213.{number // 250}.{number % 250 + 1}"


def texts() -> list[bytes]:
    """Return HTTP answers of a loaded vLLM, with queues of 0, 1, ... requests."""

    async def loaded() -> str:
        engine = VllmEngine(configure(["Qwen/Qwen2.5-7B-Instruct", "--max-num-seqs=8"], {}))
        for number in range(40):
            engine.loop.submit(
                [SimulatedSequence(prompt_tokens=400 + number, output_tokens=50 + number)], streaming=False
            )
        await asyncio.sleep(2)
        engine.loop.refresh()
        return engine.metrics.text()

    text = asyncio.run(loaded())
    waiting = re.compile(r"^(vllm:num_requests_waiting\{[^}]*\}) .*$", re.MULTILINE)
    bodies = [waiting.sub(rf"\1 {queue}.0", text).encode() for queue in range(_QUEUES)]
    return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies]


class _Pod(asyncio.Protocol):
    answers: list[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        host = transport.get_extra_info("sockname")[0]
        self._next = int(host.rpartition(".")[2])

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self._next += 1
            self._transport.write(self.answers[self._next % _QUEUES])


def serve(pods: int, answers: list[bytes], ready: Event) -> None:
    """Serve all pods, until killed."""

    async def forever() -> None:
        loop = asyncio.get_running_loop()
        _Pod.answers = answers
        for number in range(pods):
            await loop.create_server(_Pod, address(number), _PORT, backlog=8)
        ready.set()
        await asyncio.Event().wait()

    asyncio.run(forever())


def pod(namespace: str, model: str, number: int) -> dict[str, Any]:
    """Return a ready pod of a model, as it is in the store."""
    name = f"{model}-5d4f-{number}"
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "labels": {LABEL_MODEL: model},
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{model}-5d4f", "uid": "r", "controller": True}],
        },
        "spec": {"containers": [{"name": "engine", "image": "vllm/vllm-openai:v0.33.0"}]},
        "status": {
            "podIP": address(number),
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": "2026-11-25T08:00:00Z"}
                for kind in ("PodScheduled", "Ready")
            ],
            "containerStatuses": [{"restartCount": 0, "ready": True, "state": {"running": {}}}],
        },
    }


class Bench:
    """The operator's loop with an invented fleet."""

    def __init__(self, models: int, replicas: int, interval_s: float) -> None:
        self.store = Store(owner)
        self.scraper = Scraper(AddressMap())
        self.queued = 0
        self.scaler = Scaler(
            self.store, self.scraper, interval_s=interval_s, clock=time.monotonic, enqueue=lambda _: self._count()
        )
        book = PriceCache(lambda: None, time.monotonic, 600)
        bases: dict[Key, CostBasis] = {}
        self.fleet = FleetAccounting(self.store, self.scaler, Ledger(), book, bases, clock=time.time)
        catalog = load_catalog()
        for number in range(models):
            namespace, name = f"team-{number % 20}", f"model-{number}"
            live = _model(namespace, name, replicas)
            self.store.put(MODEL_DEPLOYMENT, live)
            for replica in range(replicas):
                self.store.put(POD, pod(namespace, name, number * replicas + replica))
            model = ModelDeployment.model_validate(live)
            key = Key(MODEL_DEPLOYMENT, namespace, name)
            resolved = resolve(name, model.spec, catalog)
            bases[key] = CostBasis(resolved.accelerator)
            self.scaler.track(key, live, model, resolved)

    def _count(self) -> None:
        self.queued += 1

    def unanswered(self) -> int:
        """Return the number of pods of the last round whose queue is not known."""
        answers = (answer for entry in self.scaler.tracked.values() for answer in entry.answers.values())
        return sum(not isinstance(answer, EngineSample) for answer in answers)

    async def round(self) -> None:
        """Do what the operator does once per interval."""
        await self.scaler.tick()
        self.fleet.account()


def _model(namespace: str, name: str, replicas: int) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": "1"},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen2.5-7B-Instruct"},
            "engine": {"name": "vllm"},
            "accelerator": {"class": "nvidia-l4"},
            "scaling": {"minReplicas": 1, "maxReplicas": 8, "queueDepthPerReplica": 8},
        },
        "status": {"scaling": {"desiredReplicas": replicas}},
    }


@dataclass(frozen=True)
class Round:
    """Seconds of wall-clock time and of CPU time of a round."""

    wall_s: float
    cpu_s: float


async def measure(bench: Bench, rounds: int, interval_s: float, pods: int) -> list[Round]:
    """Measure the rounds at their interval; the first round also opens the connections."""
    process, measured = psutil.Process(), []
    for _ in range(rounds + 1):
        due, before = time.monotonic() + interval_s, process.cpu_times()
        started = time.monotonic()
        await bench.round()
        wall_s, after = time.monotonic() - started, process.cpu_times()
        measured.append(Round(wall_s, after.user + after.system - before.user - before.system))
        if missing := bench.unanswered():
            raise SystemExit(f"{missing} of {pods} pods did not answer: the figures would be worth nothing.")
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await bench.scraper.close()
    return measured


def lines(measured: list[Round], interval_s: float, rss_mib: float) -> Iterator[str]:
    """Return the lines of a Markdown table."""
    first, rest = measured[0], measured[1:]
    wall = sorted(item.wall_s for item in rest)
    cpu = sum(item.cpu_s for item in rest) / len(rest)
    yield "| | |\n|---|---|"
    yield f"| first round, with the connections (s) | {first.wall_s:.2f} |"
    yield f"| round, median and worst of {len(rest)} (s) | {wall[len(wall) // 2]:.2f}, {wall[-1]:.2f} |"
    yield f"| CPU of a round (s) | {cpu:.2f} |"
    yield f"| CPU at an interval of {interval_s:g} s (% of a core) | {100 * cpu / interval_s:.1f} |"
    yield f"| resident memory (MiB) | {rss_mib:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--profile", type=Path, help="Write cProfile's table there; the figures are then higher.")
    options = parser.parse_args()
    pods = options.models * options.replicas
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    answers = texts()
    server = context.Process(target=serve, args=(pods, answers, ready), daemon=True)
    server.start()
    try:
        ready.wait(60)
        bench = Bench(options.models, options.replicas, options.interval)
        profile = cProfile.Profile() if options.profile else None
        if profile:
            profile.enable()
        measured = asyncio.run(measure(bench, options.rounds, options.interval, pods))
        if profile:
            profile.disable()
            with options.profile.open("w") as file:
                pstats.Stats(profile, stream=file).sort_stats("tottime").print_stats(45)
        sys.stdout.write(f"{options.models} models, {pods} pods, {len(answers[0]) // 1000} KB each\n\n")
        rss_mib = psutil.Process().memory_info().rss / 2**20
        sys.stdout.write("\n".join(lines(measured, options.interval, rss_mib)) + "\n")
    finally:
        server.kill()


if __name__ == "__main__":
    main()
