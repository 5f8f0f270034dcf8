"""Startup, readiness and liveness probes."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp


async def succeeds(
    session: aiohttp.ClientSession, probe: Mapping[str, Any], address: str, ports: Mapping[str, int]
) -> bool:
    """One attempt. httpGet and tcpSocket are real; exec cannot be, there is no container to run it in: it succeeds."""
    timeout_s = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(timeout_s):
            if get := probe.get("httpGet"):
                url = f"http://{address}:{port_number(get['port'], ports)}{get.get('path') or '/'}"
                async with session.get(url, allow_redirects=False) as answer:
                    return 200 <= answer.status < 400
            if tcp := probe.get("tcpSocket"):
                _, writer = await asyncio.open_connection(address, port_number(tcp["port"], ports))
                writer.close()
            return True
    except (TimeoutError, OSError, aiohttp.ClientError):
        return False


def port_number(port: int | str, ports: Mapping[str, int]) -> int:
    """A port by number or by the container's name for it."""
    return port if isinstance(port, int) else ports.get(port, 0)
