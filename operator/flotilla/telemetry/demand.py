"""Requests for models that may have no replica: what gateways hold, or what a query of the administrator's counts."""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from flotilla.domain.scaling import Demand
from flotilla.errors import FlotillaError
from flotilla.telemetry.prometheus import PrometheusClient
from flotilla.telemetry.scrape import ScrapeError, Scraper, Target

log = logging.getLogger(__name__)

METRIC: Final = "flotilla_gateway_demand_requests"
"""Held + in flight, by the label modeldeployment: the gateways' side of the contract."""
GATEWAY_PORT: Final = 9090
_PAUSE_S = 5.0
_FRESH_S = 15.0

Model = tuple[str, str]
"""Namespace and name of a ModelDeployment."""


async def gateway_demand(scraper: Scraper, pods: Mapping[str, Sequence[Target]]) -> dict[Model, Demand]:
    """What the gateways of each namespace know of; a model is incomplete where one of them does not answer."""
    everyone = [pod for targets in pods.values() for pod in targets]
    answers = await scraper.read(everyone, lambda body, _: parse(body)) if everyone else {}
    found: dict[Model, Demand] = {}
    for namespace, targets in pods.items():
        told = [answers[pod.uid] for pod in targets]
        sums: dict[str, float] = defaultdict(float)
        for one in told:
            for name, requests in ({} if isinstance(one, ScrapeError) else one).items():
                sums[name] += requests
        complete = not any(isinstance(one, ScrapeError) for one in told)
        found |= {(namespace, name): Demand(requests, complete) for name, requests in sums.items()}
    return found


def parse(body: bytes) -> dict[str, float] | ScrapeError:
    """Requests by ModelDeployment in a gateway's metric text."""
    lines = [line for line in body.decode(errors="replace").splitlines() if line.startswith(f"{METRIC}{{")]
    requests: dict[str, float] = defaultdict(float)
    try:
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if not 0 <= sample.value < math.inf:
                    return ScrapeError(f"{METRIC} is {sample.value}")
                requests[sample.labels["modeldeployment"]] += sample.value
    except (ValueError, KeyError) as error:
        return ScrapeError(f"unreadable metrics: {error}")
    return dict(requests)


class WakeQuery:
    """One PromQL query for the whole fleet, asked in the background; no series for a model is unknown, not 0."""

    def __init__(self, client: PrometheusClient, promql: str, *, clock: Callable[[], float]) -> None:
        self._client, self._promql, self._clock = client, promql, clock
        self._task: asyncio.Task[None] | None = None
        self._asked_at = -math.inf
        self._told_at = -math.inf
        self._told: dict[Model, Demand] = {}

    def refresh(self) -> None:
        """Ask again where it is time to, without waiting for the answer."""
        now = self._clock()
        if now - self._asked_at >= _PAUSE_S and (self._task is None or self._task.done()):
            self._asked_at = now
            self._task = asyncio.create_task(self._ask())

    def demand(self, model: Model) -> Demand:
        """Whether requests come; how many is not known, so they ask for one replica."""
        fresh = self._clock() - self._told_at <= _FRESH_S
        return self._told.get(model, _UNKNOWN) if fresh else _UNKNOWN

    async def _ask(self) -> None:
        try:
            series = await self._client.query(self._promql)
        except FlotillaError as error:
            log.warning("wake_query got no answer", extra={"cause": str(error)})
            return
        self._told = {
            (one.labels.get("namespace", ""), one.labels.get("modeldeployment", "")): (
                _UNKNOWN if one.value is None else Demand(1.0 if one.value > 0 else 0.0)
            )
            for one in series
        }
        self._told_at = self._clock()


_UNKNOWN: Final = Demand(0.0, complete=False)
