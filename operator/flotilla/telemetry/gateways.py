"""Ask the pods of gateways which document they serve."""

from collections.abc import Mapping
from typing import Any

import orjson

from flotilla.domain.policy_status import Report
from flotilla.telemetry.addresses import AddressMap
from flotilla.telemetry.scrape import ScrapeError, Scraper, Target

_PROBLEM = 500


class GatewayReader:
    """One session for all gateways; `close` it."""

    def __init__(self, addresses: AddressMap, *, port: int, timeout_s: float = 2.0) -> None:
        self._scraper = Scraper(addresses, timeout_s=timeout_s)
        self._port = port

    async def close(self) -> None:
        """Close the connections."""
        await self._scraper.close()

    async def ask(self, pods: Mapping[str, str]) -> dict[str, Report]:
        """What each pod serves, by uid; without those that do not answer. Never raises.

        `pods` are addresses by uid.
        """
        targets = [Target(uid, address, self._port, "/config", {}) for uid, address in pods.items()]
        answers = await self._scraper.read(targets, lambda body, _: _read(body))
        return {uid: answer for uid, answer in answers.items() if isinstance(answer, Report)}


def _read(body: bytes) -> Report | ScrapeError:
    try:
        return report(orjson.loads(body))
    except ValueError as error:
        return ScrapeError(f"unreadable answer: {error}")


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
