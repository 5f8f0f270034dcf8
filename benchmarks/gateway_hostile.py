"""Good clients beside hostile ones: what the good ones lose, and what the gateway's process takes.

    uv run python -m benchmarks.gateway_hostile [--seconds 20] [--only bodies values readers]

A gateway with the memory budget of a pod with a limit of 512 MiB serves 50 small requests a second: alone, and beside
100 clients with bodies of 30 MiB, or 20 with bodies of 30 MiB that are lists of empty lists, or 1,000 that read nothing
of long streams. Printed are the latencies of the good requests, how many failed, the highest RSS of the process, and
what the hostile clients got.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from benchmarks.gateway_peers import HEADERS, MODEL, Running, flotilla, free_port
from benchmarks.http_load import message, request_body
from tests.support.gateway import endpoint_slice
from tests.support.slices_api import slices_api

MIB = 2**20
BODY_BYTES = 30 * MIB
RATE = 50
MEMORY_BYTES = 208 * MIB
"""What flotilla.gateway.app.memory_for_requests gives for a container with 512 MiB."""
VALUES = b'{"model":"support","messages":[' + b"[]," * (BODY_BYTES // 3) + b"[]]}"
TEXT = b'{"model":"support","messages":[{"role":"user","content":"' + b"x" * BODY_BYTES + b'"}]}'


@dataclass
class Good:
    """The latencies of the good requests in seconds, and how many failed."""

    latencies: list[float] = field(default_factory=list)
    failures: int = 0

    def row(self, name: str, rss_mib: float) -> str:
        """One line of the table."""
        ordered = sorted(self.latencies) or [float("nan")]
        p50, p99 = ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000
        return f"| {name} | {len(self.latencies)} | {self.failures} | {p50:.1f} | {p99:.1f} | {rss_mib:.0f} |"


async def ask(port: int, data: bytes, *, reads: bool = True) -> str:
    """Send bytes and return the status of the answer; `reset` if the connection was closed without one."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
    except OSError:
        return "no connection"
    try:
        if not reads:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(data)
        if not reads:
            await asyncio.sleep(3600)
        sending = asyncio.create_task(writer.drain())
        try:
            head = await asyncio.wait_for(reader.readline(), 60)
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending
        return head.split(b" ", 2)[1].decode() if head.count(b" ") else "reset"
    except (OSError, TimeoutError):
        return "reset"
    finally:
        writer.transport.abort()


async def good(port: int, seconds: float) -> Good:
    """Send small requests at a fixed rate, whatever the answers take."""
    found, loop = Good(), asyncio.get_running_loop()
    data = message(request_body(MODEL, stream=False), {**HEADERS, "connection": "close"})

    async def one() -> None:
        started = loop.time()
        if await ask(port, data) == "200":
            found.latencies.append(loop.time() - started)
        else:
            found.failures += 1

    tasks, began = [], loop.time()
    while (now := loop.time() - began) < seconds:
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(max(0.0, len(tasks) / RATE - now))
    await asyncio.gather(*tasks)
    return found


async def again(port: int, data: bytes, got: Counter[str]) -> None:
    """Send the same bytes again and again."""
    while True:
        got[await ask(port, data)] += 1
        await asyncio.sleep(0.05)


def raw(body: bytes, key: str = "") -> bytes:
    """A request with this body."""
    lines = f"authorization: Bearer {key}\r\n" if key else ""
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n%b" % (
        lines.encode(),
        len(body),
        body,
    )


def hostile(kind: str, port: int, got: Counter[str]) -> list[Awaitable[None]]:
    """The hostile clients of a kind."""
    if kind == "bodies":
        return [again(port, raw(TEXT), got) for _ in range(100)]
    if kind == "values":
        return [again(port, raw(VALUES), got) for _ in range(20)]
    stream = message(request_body(MODEL, stream=True, chunks=100_000, gap_ms=0), HEADERS)

    async def reader() -> None:
        got[await ask(port, stream, reads=False)] += 1

    return [reader() for _ in range(1000)]


async def attack(kind: str, port: int, seconds: float) -> None:
    """Be the hostile clients of a kind for a while, then print what they got. Runs in a process of its own."""
    got: Counter[str] = Counter()
    tasks = [asyncio.ensure_future(one) for one in hostile(kind, port, got)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(", ".join(f"{count} x {what}" for what, count in got.most_common(4)))


@asynccontextmanager
async def gateway(scratch: Path) -> AsyncIterator[tuple[Running, int]]:
    """An engine, and a gateway in front of it with the budget of a small pod."""
    engine_port, port, admin = free_port(), free_port(), free_port()
    engine = Running([sys.executable, "-m", "benchmarks.http_load", str(engine_port)], scratch / "engine.log")
    try:
        await asyncio.to_thread(engine.ready, f"http://127.0.0.1:{engine_port}/v1/models")
        async with slices_api([endpoint_slice("qwen-small", [engine_port])]) as api:
            command = flotilla(api.kubeconfig(scratch), port, admin, scratch)
            command += ["--memory", str(MEMORY_BYTES)]
            running = Running(command, scratch / "flotilla.log")
            try:
                await asyncio.to_thread(running.ready, f"http://127.0.0.1:{admin}/readyz")
                yield running, port
            finally:
                await asyncio.to_thread(running.stop)
    finally:
        engine.stop()


async def measure(name: str, running: Running, work: Callable[[], Awaitable[Good]]) -> str:
    """Run the good clients and sample the memory."""
    peak = running.rss_kib()
    task = asyncio.ensure_future(work())
    while not task.done():
        await asyncio.sleep(0.1)
        peak = max(peak, running.rss_kib())
    return (await task).row(name, peak / 1024)


async def main(args: argparse.Namespace) -> None:
    """Print a Markdown table."""
    print(f"Load of the machine at the start: {os.getloadavg()[0]:.1f}")
    print("| hostile clients | good requests | failed | p50 ms | p99 ms | highest RSS MiB | hostile ones got |")
    print("|---|---|---|---|---|---|---|")
    for kind in args.only:
        with tempfile.TemporaryDirectory() as folder:
            async with gateway(Path(folder)) as (running, port):
                alone = await measure("none", running, lambda: good(port, args.seconds))
                print(alone, flush=True)
                command = [sys.executable, "-m", "benchmarks.gateway_hostile", "--attack", kind, str(port)]
                hostile_ones = await asyncio.create_subprocess_exec(
                    *command, "--seconds", str(args.seconds + 2), stdout=asyncio.subprocess.PIPE
                )
                await asyncio.sleep(2)
                row = await measure(kind, running, lambda: good(port, args.seconds))
                print(f"{row} {(await hostile_ones.communicate())[0].decode().strip()} |", flush=True)
                print(await measure("none, after", running, lambda: good(port, args.seconds / 4)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", nargs="*", default=["bodies", "values", "readers"])
    parser.add_argument("--attack", nargs=2, metavar=("KIND", "PORT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.attack:
        uvloop.run(attack(asked.attack[0], int(asked.attack[1]), asked.seconds))
    else:
        uvloop.run(main(asked))
