"""The autoscaler's input: the pods' own metrics, Prometheus for pods that do not answer, the gateways' demand."""

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from prometheus_client.parser import text_string_to_metric_families

from flotilla.catalog.engines import metric_name
from flotilla.errors import FlotillaError
from flotilla.prometheus.client import PrometheusClient, RangeSeries, selector, window
from flotilla.scaling.autoscaler import Demand
from flotilla.scaling.scrape_client import MOST, EngineSample, ScrapeError, Scraper, ScrapeTarget, combine

log = logging.getLogger(__name__)

METRIC: Final = "flotilla_gateway_demand_requests"
"""Held + in flight, by the label modeldeployment: the gateways' side of the contract."""
GATEWAY_PORT: Final = 9090
_PAUSE_S = 5.0
_FRESH_S = 15.0

Model = tuple[str, str]
"""Namespace and name of a ModelDeployment."""


async def gateway_demand(scraper: Scraper, pods: Mapping[str, Sequence[ScrapeTarget]]) -> dict[Model, Demand]:
    """What the gateways of each namespace know of; a model is incomplete where one of them does not answer."""
    everyone = [pod for targets in pods.values() for pod in targets]
    answers = await scraper.read(everyone, lambda body, _: parse(body)) if everyone else {}
    found: dict[Model, Demand] = {}
    for namespace, targets in pods.items():
        reported = [answers[pod.uid] for pod in targets]
        sums: dict[str, float] = defaultdict(float)
        for one in reported:
            for name, requests in ({} if isinstance(one, ScrapeError) else one).items():
                sums[name] += requests
        complete = not any(isinstance(one, ScrapeError) for one in reported)
        found |= {(namespace, name): Demand(requests, complete) for name, requests in sums.items()}
    return found


def parse(body: bytes) -> dict[str, float] | ScrapeError:
    """Requests by ModelDeployment in a gateway's metric text."""
    lines = [line for line in body.decode(errors="replace").splitlines() if line.startswith(f"{METRIC}{{")]
    requests: dict[str, float] = defaultdict(float)
    try:
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if not 0 <= sample.value <= MOST:
                    return ScrapeError(f"{METRIC} is {sample.value:g}, which is no count")
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
        self._answered_at = -math.inf
        self._demand: dict[Model, Demand] = {}

    def refresh(self) -> None:
        """Ask again where it is time to, without waiting for the answer."""
        now = self._clock()
        if now - self._asked_at >= _PAUSE_S and (self._task is None or self._task.done()):
            self._asked_at = now
            self._task = asyncio.create_task(self._ask())

    def demand(self, model: Model) -> Demand:
        """Whether requests come. Their number is unknown, so the demand is for one replica."""
        return self.known().get(model, _UNKNOWN)

    def known(self) -> Mapping[Model, Demand]:
        """The models that the last answer names; empty when it is stale."""
        return self._demand if self._clock() - self._answered_at <= _FRESH_S else {}

    async def _ask(self) -> None:
        try:
            series = await self._client.query(self._promql)
        except FlotillaError as error:
            log.warning("wake_query got no answer", extra={"cause": str(error)})
            return
        self._demand = {
            (one.labels.get("namespace", ""), one.labels.get("modeldeployment", "")): (
                _UNKNOWN if one.value is None else Demand(1.0 if one.value > 0 else 0.0)
            )
            for one in series
        }
        self._answered_at = self._clock()


_UNKNOWN: Final = Demand(0.0, complete=False)


_PODS_PER_QUERY = 200


@dataclass(frozen=True, slots=True)
class PodSeries:
    """Where a pod's metrics are: `names` as in Target. The labels are those of Prometheus' Kubernetes discovery."""

    uid: str
    namespace: str
    pod: str
    names: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Aged:
    """A sample and when Prometheus scraped it, in Unix seconds of its clock."""

    sample: EngineSample
    at: float


def engine_query(pods: Iterable[PodSeries], *, fresh_s: float) -> str:
    """The samples of the last seconds of all metrics that the pods' engines are asked for.

    Raw samples, because only they carry the times of their scrapes: an instant vector repeats the last value for five
    minutes after the target is gone. Counters are raw: the caller handles restarts of the engine.
    """
    pods = list(pods)
    names = (metric_name(name).family for one in pods for candidates in one.names.values() for name in candidates)
    labels = {"namespace": {one.namespace: None for one in pods}, "pod": {one.pod: None for one in pods}}
    return selector(names, labels) + window(fresh_s)


class PrometheusEngines:
    """Reads engines through Prometheus; a pod without a sample of the last `fresh_s` seconds is a ScrapeError."""

    def __init__(
        self, client: PrometheusClient, *, fresh_s: float = 45.0, unix_clock: Callable[[], float] = time.time
    ) -> None:
        self._client, self._fresh_s, self._unix_clock = client, fresh_s, unix_clock

    async def read(self, pods: Sequence[PodSeries]) -> dict[str, Aged | ScrapeError]:
        """All pods by uid; never raises. When a query fails, its pods are unknown."""
        groups: dict[tuple[str, int], list[PodSeries]] = defaultdict(list)
        for pod in pods:
            # Pods of one engine ask for the same names.
            groups[pod.namespace, id(pod.names)].append(pod)
        chunks = [
            group[start : start + _PODS_PER_QUERY]
            for group in groups.values()
            for start in range(0, len(group), _PODS_PER_QUERY)
        ]
        answers: dict[str, Aged | ScrapeError] = {}
        for answer in await asyncio.gather(*map(self._read, chunks)):
            answers |= answer
        return answers

    async def _read(self, pods: Sequence[PodSeries]) -> dict[str, Aged | ScrapeError]:
        try:
            found = await self._client.query_samples(engine_query(pods, fresh_s=self._fresh_s))
        except (FlotillaError, ValueError) as error:
            return {pod.uid: ScrapeError(str(error)) for pod in pods}
        series: dict[str, list[RangeSeries]] = defaultdict(list)
        for one in found:
            series[one.labels.get("pod", "")].append(one)
        return {pod.uid: self._sample(series[pod.pod], pod.names) for pod in pods}

    def _sample(self, series: Iterable[RangeSeries], names: Mapping[str, Sequence[str]]) -> Aged | ScrapeError:
        newest = [(one.labels, one.points[-1]) for one in series if one.points]
        if not newest:
            return ScrapeError(f"Prometheus has no sample of the last {self._fresh_s:g} s")
        last = max(point.at for _, point in newest)
        if abs(self._unix_clock() - last) > 2 * self._fresh_s:
            return ScrapeError("the clocks of Prometheus and the operator differ too much")
        values: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for labels, point in newest:
            # Older points belong to a container that has ended or a rank that is gone: all come in one scrape.
            if point.at == last:
                value = float("nan") if point.value is None else point.value
                values[labels.get("__name__", "")].append((labels, value))
        known = {field: _first(values, candidates) for field, candidates in names.items()}
        answer = combine({field: present for field, present in known.items() if present})
        return answer if isinstance(answer, ScrapeError) else Aged(answer, last)


def _first(values: Mapping[str, Sequence[tuple[Mapping[str, str], float]]], candidates: Sequence[str]) -> list[float]:
    """The samples of the first candidate that has any."""
    for name in map(metric_name, candidates):
        found = (name.value(labels, value) for labels, value in values.get(name.family, ()))
        if meant := [value for value in found if value is not None]:
            return meant
    return []


Order = Literal["Auto", "Pods", "Prometheus"]
PROMETHEUS_FRESH_S: Final = 45.0
"""Three of Prometheus' usual scrape intervals of 15 s."""


@dataclass(frozen=True, slots=True)
class EnginePod:
    """One pod, by its own address and by its labels in Prometheus."""

    target: ScrapeTarget
    namespace: str
    pod: str


@dataclass(frozen=True, slots=True)
class Answers:
    """By pod uid; those in `indirect` come from Prometheus."""

    by_uid: Mapping[str, EngineSample | ScrapeError] = field(default_factory=dict)
    indirect: frozenset[str] = frozenset()


class EngineSources:
    """Auto and Pods ask the pods first, Prometheus asks Prometheus first; all but Pods then ask the other one.

    Prometheus is asked in the background, as it may take seconds, and its answer is used by the next reads.
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
        self._from_prometheus: dict[str, Aged] = {}

    @property
    def oldest_s(self) -> float:
        """How old an answer may be."""
        return 0.0 if self._prometheus is None else PROMETHEUS_FRESH_S

    async def read(self, engines: Sequence[EnginePod]) -> Answers:
        """Every engine; never raises."""
        first = set(self._known(engines)) if self._indirect_first else set()
        asked = [engine.target for engine in engines if engine.target.uid not in first]
        answers = await self._scraper.scrape(asked) if asked else {}
        failed = {uid for uid, answer in answers.items() if isinstance(answer, ScrapeError)}
        if self._prometheus is not None and (failed or self._indirect_first):
            self._refresh([e for e in engines if self._indirect_first or e.target.uid in failed])
        known = self._known([engine for engine in engines if engine.target.uid in failed | first])
        return Answers({**answers, **known}, frozenset(known))

    def _known(self, engines: Sequence[EnginePod]) -> dict[str, EngineSample]:
        oldest = self._unix_clock() - PROMETHEUS_FRESH_S
        reported = ((engine.target.uid, self._from_prometheus.get(engine.target.uid)) for engine in engines)
        return {uid: aged.sample for uid, aged in reported if aged is not None and aged.at >= oldest}

    def _refresh(self, engines: Sequence[EnginePod]) -> None:
        now = self._clock()
        if now - self._asked_at < _PAUSE_S or not (self._task is None or self._task.done()):
            return
        self._asked_at = now
        self._task = asyncio.create_task(self._ask(engines))

    async def _ask(self, engines: Sequence[EnginePod]) -> None:
        assert self._prometheus is not None
        pods = [PodSeries(e.target.uid, e.namespace, e.pod, e.target.names) for e in engines]
        answers = await self._prometheus.read(pods)
        reported = {uid: answer for uid, answer in answers.items() if isinstance(answer, Aged)}
        # What did not come again stays until it is too old.
        self._from_prometheus = {
            uid: self._from_prometheus[uid] for uid in answers if uid in self._from_prometheus
        } | reported
