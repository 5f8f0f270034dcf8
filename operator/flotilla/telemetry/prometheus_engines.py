"""The engines' state as Prometheus has scraped it: the same answers as `telemetry.scrape`, some seconds older."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flotilla.engines.metric_name import metric_name
from flotilla.errors import FlotillaError
from flotilla.telemetry.prometheus import PrometheusClient, RangeSeries
from flotilla.telemetry.promql import selector, window
from flotilla.telemetry.scrape import EngineSample, ScrapeError, combine

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
    minutes after the target is gone. Counters come as the engine has them, for whoever knows about its restarts.
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
        """All pods by uid; never raises. What Prometheus cannot tell is unknown for all pods of that query."""
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
        if meant := [value for labels, value in values.get(name.family, ()) if name.accepts(labels)]:
            return meant
    return []
