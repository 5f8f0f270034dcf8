"""Ask the pods of gateways which document they serve."""

import asyncio
from collections.abc import Mapping

import aiohttp
import orjson

from flotilla.telemetry.addresses import AddressMap

_LIMIT_BYTES = 4096


class GatewayReader:
    """One session for all gateways; `close` it."""

    def __init__(self, addresses: AddressMap, *, port: int, timeout_s: float = 2.0) -> None:
        self._addresses = addresses
        self._port = port
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def hashes(self, pods: Mapping[str, str]) -> dict[str, str]:
        """Hash of the document that each pod serves, by uid; without those that do not answer. Never raises.

        `pods` are addresses by uid.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        session = self._session
        answers = await asyncio.gather(*(self._one(session, address) for address in pods.values()))
        return {uid: answer for uid, answer in zip(pods, answers, strict=True) if answer}

    async def _one(self, session: aiohttp.ClientSession, address: str) -> str:
        host = self._addresses.translate(address)
        url = f"http://{f'[{host}]' if ':' in host else host}:{self._port}/config"
        try:
            async with session.get(url, allow_redirects=False) as answer:
                body = await answer.content.read(_LIMIT_BYTES) if answer.status == 200 else b"{}"
                value = orjson.loads(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return ""
        found = value.get("hash") if isinstance(value, dict) else None
        return found if isinstance(found, str) else ""
