"""Where the engines' numbers come from: the pods themselves, Prometheus, or one where the other does not answer."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from flotilla.telemetry.prometheus_engines import Aged, PodSeries, PrometheusEngines
from flotilla.telemetry.scrape import EngineSample, ScrapeError, Scraper, Target

Order = Literal["Auto", "Pods", "Prometheus"]
PROMETHEUS_FRESH_S: Final = 45.0
"""Three of Prometheus' usual scrape intervals of 15 s."""
_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Engine:
    """One pod, as it is reached itself and as Prometheus knows it."""

    target: Target
    namespace: str
    pod: str


@dataclass(frozen=True, slots=True)
class Answers:
    """By pod uid; those in `indirect` are Prometheus' words."""

    by_uid: Mapping[str, EngineSample | ScrapeError] = field(default_factory=dict)
    indirect: frozenset[str] = frozenset()


class EngineSources:
    """Auto and Pods ask the pods first, Prometheus asks Prometheus first; all but Pods ask the other one then.

    Prometheus is asked in the background, as it may take seconds, and what it said is used by the next reads.
    """

    def __init__(
        self,
        scraper: Scraper,
        prometheus: PrometheusEngines | None,
        *,
        order: Order,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._scraper = scraper
        self._prometheus = None if order == "Pods" else prometheus
        self._indirect_first = order == "Prometheus"
        self._clock, self._unix_clock = clock, unix_clock
        self._task: asyncio.Task[None] | None = None
        self._asked_at = -math.inf
        self._told: dict[str, Aged] = {}

    @property
    def oldest_s(self) -> float:
        """How old an answer may be."""
        return 0.0 if self._prometheus is None else PROMETHEUS_FRESH_S

    async def read(self, engines: Sequence[Engine]) -> Answers:
        """Every engine; never raises."""
        first = set(self._known(engines)) if self._indirect_first else set()
        asked = [engine.target for engine in engines if engine.target.uid not in first]
        answers = await self._scraper.scrape(asked) if asked else {}
        failed = {uid for uid, answer in answers.items() if isinstance(answer, ScrapeError)}
        if self._prometheus is not None and (failed or self._indirect_first):
            self._refresh([e for e in engines if self._indirect_first or e.target.uid in failed])
        known = self._known([engine for engine in engines if engine.target.uid in failed | first])
        return Answers({**answers, **known}, frozenset(known))

    def _known(self, engines: Sequence[Engine]) -> dict[str, EngineSample]:
        oldest = self._unix_clock() - PROMETHEUS_FRESH_S
        told = ((engine.target.uid, self._told.get(engine.target.uid)) for engine in engines)
        return {uid: aged.sample for uid, aged in told if aged is not None and aged.at >= oldest}

    def _refresh(self, engines: Sequence[Engine]) -> None:
        now = self._clock()
        if now - self._asked_at < _PAUSE_S or not (self._task is None or self._task.done()):
            return
        self._asked_at = now
        self._task = asyncio.create_task(self._ask(engines))

    async def _ask(self, engines: Sequence[Engine]) -> None:
        assert self._prometheus is not None
        pods = [PodSeries(e.target.uid, e.namespace, e.pod, e.target.names) for e in engines]
        answers = await self._prometheus.read(pods)
        told = {uid: answer for uid, answer in answers.items() if isinstance(answer, Aged)}
        # What did not come again stays until it is too old.
        self._told = {uid: self._told[uid] for uid in answers if uid in self._told} | told
