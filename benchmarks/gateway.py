"""Measures the CPU time and the latency that Flotilla's gateway and others add, with one fake engine and one load.

    uv run python -m benchmarks.gateway [--seconds 2] [--rounds 5] [--only flotilla envoy] [--json FILE]
    uv run python -m benchmarks.gateway --streams 1000       that many concurrent streams through Flotilla alone
    uv run python -m benchmarks.gateway --soak 600           ten minutes of requests through Flotilla, and its memory

CPU is user and system time of the gateway's processes divided by requests or by chunks. Others use the machine too:
times of the clock (latency, throughput) are noisy, CPU less so, and ratios within one run least.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop
from benchmarks.gateway_peers import HEADERS, MODEL, PEERS, Peer, Running, flotilla, free_port, installed
from benchmarks.http_load import Load, message, request_body
from tests.support.gateway import endpoint_slice
from tests.support.slices_api import slices_api

STREAMS, CONNECTIONS = 80, 20
SOAK_RATE = 100


@dataclass
class Row:
    """The results of one gateway in all rounds: CPU in microseconds, times in milliseconds, memory in MiB."""

    name: str
    start_s: float = 0.0
    memory_mib: float = 0.0
    cpu_request_us: list[float] = field(default_factory=list)
    cpu_chunk_us: list[float] = field(default_factory=list)
    requests_per_s: list[float] = field(default_factory=list)
    requests_per_core_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    first_p50_ms: list[float] = field(default_factory=list)
    gap_p99_ms: list[float] = field(default_factory=list)
    failures: int = 0


class Bench:
    """One engine, and the gateways in front of it, one after the other."""

    def __init__(self, scratch: Path, engine_port: int) -> None:
        self._scratch, self._engine_port = scratch, engine_port

    @asynccontextmanager
    async def flotilla(self) -> AsyncIterator[tuple[Running, int]]:
        """Start Flotilla's gateway, with endpoints from an API that serves EndpointSlices."""
        port, admin = free_port(), free_port()
        async with slices_api([endpoint_slice("qwen-small", [self._engine_port])]) as api:
            command = flotilla(api.kubeconfig(self._scratch), port, admin, self._scratch)
            running = Running(command, self._scratch / "flotilla.log")
            try:
                await asyncio.to_thread(running.ready, f"http://127.0.0.1:{admin}/readyz")
                yield running, port
            finally:
                await asyncio.to_thread(running.stop)

    @asynccontextmanager
    async def peer(self, peer: Peer, home: Path) -> AsyncIterator[tuple[Running, int]]:
        """Start another gateway."""
        port = free_port()
        running = Running(peer.command(home, self._engine_port, port, self._scratch), self._scratch / "peer.log")
        path = "health/liveliness" if "LiteLLM" in peer.name else "v1/models"
        try:
            await asyncio.to_thread(running.ready, f"http://127.0.0.1:{port}/{path}")
            yield running, port
        finally:
            await asyncio.to_thread(running.stop)

    async def measure(self, row: Row, running: Running | None, port: int, seconds: float) -> None:
        """Warm up, then measure whole answers over 16 connections and over one, then streams."""
        # No two neighbours are the same, so that nothing gains by remembering a body.
        whole = [message(request_body(MODEL, stream=False, order=1000 + n), HEADERS) for n in range(500)]
        streamed = message(request_body(MODEL, stream=True), HEADERS)
        await Load(whole, stream=False, requests=10_000_000, limit_s=min(1.0, seconds)).run(port, 4)
        before = running.cpu_s() if running else 0.0
        found = await Load(whole, stream=False, requests=10_000_000, limit_s=seconds).run(port, 16)
        cpu = (running.cpu_s() if running else 0.0) - before
        count = max(len(found.latencies), 1)
        row.failures += found.failures
        row.cpu_request_us.append(cpu / count * 1e6)
        row.requests_per_s.append(count / found.seconds)
        row.requests_per_core_s.append(count / cpu if cpu else 0.0)
        alone = await Load(whole, stream=False, requests=10_000_000, limit_s=seconds / 2).run(port, 1)
        row.p50_ms.append(quantile(alone.latencies, 0.5) * 1000)
        row.p99_ms.append(quantile(alone.latencies, 0.99) * 1000)
        before = running.cpu_s() if running else 0.0
        found = await Load(streamed, stream=True, requests=STREAMS, limit_s=30).run(port, CONNECTIONS)
        cpu = (running.cpu_s() if running else 0.0) - before
        row.failures += found.failures
        row.cpu_chunk_us.append(cpu / max(found.chunks, 1) * 1e6)
        row.first_p50_ms.append(quantile(found.first, 0.5) * 1000)
        row.gap_p99_ms.append(quantile(found.gaps, 0.99) * 1000)
        row.memory_mib = running.memory_mib() if running else 0.0


def quantile(values: list[float], share: float) -> float:
    """Return the quantile of a list, which may be empty."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else float("nan")


async def compare(bench: Bench, args: argparse.Namespace) -> list[Row]:
    """Measure all gateways in the given number of rounds, one round after another."""
    peers = [(peer, home) for peer in PEERS if wanted(peer.name, args.only) and (home := installed(peer)) is not None]
    rows = {name: Row(name) for name in ("direct", "Flotilla", *(peer.name for peer, _ in peers))}
    for _ in range(args.rounds):
        await bench.measure(rows["direct"], None, bench._engine_port, args.seconds)
        async with bench.flotilla() as (running, port):
            await bench.measure(rows["Flotilla"], running, port, args.seconds)
        progress(rows["direct"], rows["Flotilla"])
        for peer, home in peers:
            try:
                async with bench.peer(peer, home) as (running, port):
                    await bench.measure(rows[peer.name], running, port, args.seconds)
                progress(rows[peer.name])
            except RuntimeError as error:
                print(f"{peer.name} is left out: {error}", flush=True)
    return [row for row in rows.values() if row.cpu_request_us]


def progress(*rows: Row) -> None:
    """Print the results so far, in case the run is ended early."""
    for row in rows:
        print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)


def wanted(name: str, only: list[str]) -> bool:
    """Return whether the name begins with one of the given names; true if none is given."""
    return not only or any(name.lower().startswith(item.lower()) for item in only)


def table(rows: list[Row]) -> str:
    """Return a Markdown table of the medians of the rounds."""
    lines = [
        "| gateway | CPU µs/request | of Envoy's | CPU µs/chunk | requests/s per core | p50 / p99 ms at 1 | "
        "first token p50 ms | gap p99 ms | PSS MiB | failures |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    envoy = next((row.cpu_request_us for row in rows if row.name.startswith("Envoy")), [])
    for row in rows:
        cells = [
            row.name,
            f"{statistics.median(row.cpu_request_us):.0f}",
            _ratio(row.cpu_request_us, envoy),
            f"{statistics.median(row.cpu_chunk_us):.0f}",
            f"{statistics.median(row.requests_per_core_s):.0f}",
            f"{statistics.median(row.p50_ms):.2f} / {statistics.median(row.p99_ms):.1f}",
            f"{statistics.median(row.first_p50_ms):.1f}",
            f"{statistics.median(row.gap_p99_ms):.0f}",
            f"{row.memory_mib:.0f}",
            str(row.failures),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(mine: list[float], envoy: list[float]) -> str:
    """The median of the ratios of the rounds: neighbours in time, so that other work on the machine cancels out."""
    pairs = [a / b for a, b in zip(mine, envoy, strict=False) if b and a]
    return f"{statistics.median(pairs):.2f}" if pairs else ""


async def streams(bench: Bench, count: int) -> str:
    """Run that many concurrent streams: check that each is complete, and measure the memory."""
    body = request_body(MODEL, stream=True, chunks=20, gap_ms=1000)
    async with bench.flotilla() as (running, port):
        before = running.memory_mib()
        load = asyncio.create_task(
            Load(message(body, HEADERS), stream=True, requests=count, limit_s=120).run(port, count)
        )
        peak, cpu = before, running.cpu_s()
        while not load.done():
            await asyncio.sleep(0.5)
            peak = max(peak, running.memory_mib())
        found = await load
        cpu = running.cpu_s() - cpu
    return (
        f"{count} concurrent streams: {len(found.latencies)} whole, {found.failures} failed, "
        f"{found.chunks} chunks in {found.seconds:.0f} s, {cpu / max(found.chunks, 1) * 1e6:.0f} µs CPU a chunk, "
        f"PSS {before:.0f} MiB before, {peak:.0f} MiB at most."
    )


async def soak(bench: Bench, seconds: float) -> str:
    """Send requests at a fixed rate, whole and streamed, and measure how the memory changes."""
    whole = message(request_body(MODEL, stream=False), HEADERS)
    streamed = message(request_body(MODEL, stream=True, chunks=20, gap_ms=5), HEADERS)
    samples: list[tuple[int, float]] = []
    count = failures = 0
    async with bench.flotilla() as (running, port):
        loop = asyncio.get_running_loop()
        started = loop.time()
        while (now := loop.time() - started) < seconds:
            for data, stream in ((whole, False), (streamed, True)):
                found = await Load(data, stream=stream, requests=SOAK_RATE, limit_s=10).run(port, 10)
                count += len(found.latencies)
                failures += found.failures
            samples.append((count, running.rss_kib()))
            await asyncio.sleep(max(0.0, 2 - (loop.time() - started - now)))
    first, second = growth(samples)
    return (
        f"Soak of {seconds:.0f} s: {count} requests, {failures} failed, RSS {samples[0][1] / 1024:.1f} MiB then "
        f"{samples[-1][1] / 1024:.1f} MiB, slope {first:+.1f} KiB per 1000 requests in the first half, "
        f"{second:+.1f} in the second."
    )


def growth(samples: list[tuple[int, float]]) -> tuple[float, float]:
    """Return KiB per 1000 requests in the first and the second half of samples (requests so far, KiB).

    Memory that is allocated at the start appears only in the first half; unlimited growth appears in both. NaN if a
    half has less than two samples.
    """
    middle = len(samples) // 2
    return _slope(samples[:middle]), _slope(samples[middle:])


def _slope(samples: list[tuple[int, float]]) -> float:
    if len(samples) < 2:
        return float("nan")
    return 1000 * statistics.linear_regression([at for at, _ in samples], [kib for _, kib in samples]).slope


async def main(args: argparse.Namespace) -> None:
    """Run the benchmark that the arguments select."""
    with tempfile.TemporaryDirectory() as folder:
        engine_port = free_port()
        engine = Running([sys.executable, "-m", "benchmarks.http_load", str(engine_port)], Path(folder) / "engine.log")
        try:
            await asyncio.to_thread(engine.ready, f"http://127.0.0.1:{engine_port}/v1/models")
            bench = Bench(Path(folder), engine_port)
            if args.streams:
                print(await streams(bench, args.streams))
            elif args.soak:
                print(await soak(bench, args.soak))
            else:
                rows = await compare(bench, args)
                print(table(rows))
                if args.json:
                    args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
        finally:
            engine.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="of whole answers, for each gateway and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="peers by the beginning of their names")
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--soak", type=float, default=0)
    parser.add_argument("--json", type=Path)
    uvloop.run(main(parser.parse_args()))
