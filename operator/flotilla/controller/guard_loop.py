"""Every two seconds: read what gateways count for the guards of promotions, in namespaces that have any."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from flotilla.background import isolated
from flotilla.controller.promotions import Promotions
from flotilla.kube import observed
from flotilla.kube.kinds import POD, gateway_key
from flotilla.kube.store import Store
from flotilla.routing.guard_window import FIELDS, Counts, GuardKey
from flotilla.scaling.scrape_client import ScrapeError, Scraper, ScrapeTarget

_INTERVAL_S = 2.0
_MOST = 2**53
"""The largest count that is believed."""


class GuardLoop:
    """Reads `/guard` of the gateway pods that are ready."""

    def __init__(
        self, store: Store, scraper: Scraper, promotions: Promotions, *, port: int, interval_s: float = _INTERVAL_S
    ) -> None:
        self._store = store
        self._scraper = scraper
        self._promotions = promotions
        self._port = port
        self._interval_s = interval_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(self._interval_s)

    async def tick(self) -> None:
        """Read all gateways once."""
        pods = {namespace: self._targets(namespace) for namespace in self._promotions.namespaces}
        everyone = [target for targets in pods.values() for target in targets]
        answers = await self._scraper.read(everyone, lambda body, _: read_report(body)) if everyone else {}
        for namespace, targets in pods.items():
            reports = {target.uid: _known(answers[target.uid]) for target in targets}
            with isolated("guards", namespace):
                self._promotions.observe(namespace, reports)

    def _targets(self, namespace: str) -> list[ScrapeTarget]:
        pods = [observed.pod(obj) for obj in self._store.owned_by(POD, gateway_key(namespace))]
        ready = [pod for pod in pods if pod.ready and not pod.terminating and pod.ip]
        return [ScrapeTarget(pod.uid, pod.ip, self._port, "/guard", {}) for pod in ready]


def read_report(body: bytes) -> Mapping[GuardKey, Counts] | ScrapeError:
    """The rows of an answer of `/guard`; see `gateway.guard`."""
    try:
        rows = orjson.loads(body)["rows"]
        return {GuardKey(*map(str, row[:4])): _counts(row[4:]) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        return ScrapeError(f"unreadable answer: {error}")


def _counts(values: Any) -> Counts:
    if len(values) != len(FIELDS) or not all(type(value) is int and 0 <= value <= _MOST for value in values):
        raise ValueError(f"{values!r} are no {len(FIELDS)} counts")
    return tuple(values)


def _known(answer: Mapping[GuardKey, Counts] | ScrapeError) -> Mapping[GuardKey, Counts] | None:
    return None if isinstance(answer, ScrapeError) else answer
