"""What pods still serve while they go. The scaler asks them no more; their last tokens count all the same."""

import asyncio

from flotilla.control.scaler import Scaler
from flotilla.domain import observed
from flotilla.kube.kinds import POD
from flotilla.kube.store import Store
from flotilla.telemetry.scrape import EngineSample, ScrapeError, Scraper, Target


class Draining:
    """Reads the counters of pods that are being deleted, a handful at any time."""

    def __init__(self, store: Store, scaler: Scaler, scraper: Scraper, *, interval_s: float) -> None:
        self._store = store
        self._scaler = scaler
        self._scraper = scraper
        self._interval_s = interval_s
        self.answers: dict[str, EngineSample | ScrapeError] = {}
        """By pod uid, of the last round."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Ask every pod that is going."""
        targets = list(self._targets())
        self.answers = await self._scraper.scrape(targets) if targets else {}

    def _targets(self) -> list[Target]:
        found: list[Target] = []
        for key, entry in self._scaler.tracked.items():
            metrics = entry.resolved.profile.metrics
            for obj in self._store.owned_by(POD, key):
                if "deletionTimestamp" not in obj["metadata"]:
                    continue
                pod = observed.pod(obj)
                if pod.ip:
                    found.append(Target(pod.uid, pod.ip, entry.resolved.port, metrics.path, metrics.names))
        return found
