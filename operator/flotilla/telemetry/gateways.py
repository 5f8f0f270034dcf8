"""Ask the pods of gateways which document they serve."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from flotilla.domain.policy_status import Report
from flotilla.telemetry.addresses import AddressMap

_LIMIT_BYTES = 64 * 1024
_PROBLEM = 500


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

    async def ask(self, pods: Mapping[str, str]) -> dict[str, Report]:
        """What each pod serves, by uid; without those that do not answer. Never raises.

        `pods` are addresses by uid.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        session = self._session
        answers = await asyncio.gather(*(self._one(session, address) for address in pods.values()))
        return {uid: answer for uid, answer in zip(pods, answers, strict=True) if answer is not None}

    async def _one(self, session: aiohttp.ClientSession, address: str) -> Report | None:
        host = self._addresses.translate(address)
        url = f"http://{f'[{host}]' if ':' in host else host}:{self._port}/config"
        try:
            async with session.get(url, allow_redirects=False) as answer:
                if answer.status != 200:
                    return None
                return report(orjson.loads(await answer.content.read(_LIMIT_BYTES)))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None


def report(answer: Any) -> Report:
    """Read an answer; raises ValueError where it is none."""
    if not isinstance(answer, dict) or not isinstance(answer.get("hash"), str):
        raise ValueError("no hash")
    problem, missing = answer.get("problem"), answer.get("missingKeys")
    return Report(
        answer["hash"],
        problem[:_PROBLEM] if isinstance(problem, str) else "",
        tuple(key for key in missing if isinstance(key, str)) if isinstance(missing, list) else (),
    )
