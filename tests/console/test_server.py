"""The operator's HTTP server as a process sees it: it ends in time."""

import asyncio

from prometheus_client.core import GaugeMetricFamily, Metric

from flotilla.console.server import start_server


async def test_a_client_that_does_not_read_its_answer_does_not_hold_up_the_end() -> None:
    asked = asyncio.Event()

    async def families() -> list[Metric]:
        family = GaugeMetricFamily("large", "More than the buffers of a connection hold.", labels=["text"])
        for number in range(200):
            family.add_metric([f"{number}" + "x" * 100_000], 1.0)
        asked.set()
        return [family]

    server = await start_server(host="127.0.0.1", port=0, families=families, live={}, ready={})
    _, client = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    client.transport.pause_reading()  # type: ignore[attr-defined]
    client.write(b"GET /metrics HTTP/1.1\r\nHost: operator\r\n\r\n")
    await asyncio.wait_for(asked.wait(), 10)
    async with asyncio.timeout(20):
        await server.stop()
    client.transport.abort()
