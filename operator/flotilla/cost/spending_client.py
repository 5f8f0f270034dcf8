"""Read what was spent: growth over a period from Prometheus, or the totals of the operator's own /metrics."""

import asyncio
import math
from collections.abc import Mapping
from decimal import Decimal

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from flotilla.cost.route_spending import ROUTES, TARGETS, TEAMS, WEIGHTS
from flotilla.cost.spending import COUNTERS, GAUGES, Samples
from flotilla.errors import Transient
from flotilla.prometheus.client import PrometheusClient, RangeSeries, Series, window

_MODEL = ("namespace", "modeldeployment")
_POLICY = ("namespace", "policy")
_LIMIT_BYTES = 64 * 2**20
_TIMEOUT_S = 15.0


class History:
    """A Prometheus that scrapes the operator. Each call raises as `PrometheusClient` does."""

    def __init__(self, client: PrometheusClient) -> None:
        self._client = client

    async def period(self, start: float, end: float) -> Samples:
        """Counters' growth and gauges' last values between two Unix times; for `spending.spent`."""
        seconds = end - start
        grown = {name: _grown(name, (*_MODEL, *more), seconds, end) for name, more in COUNTERS.items()}
        last = {name: _last(name, (*_MODEL, *more), seconds, end) for name, more in GAUGES.items()}
        found = await self._all({**grown, **last})
        # A model that was exchanged has two series in the period: the one that is there at its end comes last.
        info = "flotilla_deployment_info"
        current = await self._client.query(f"{info} @ {end:.3f}")
        return {**found, info: (*found[info], *_samples(current))}

    async def routes(self, start: float, end: float) -> Samples:
        """`period`, and the gateways' counters; for `route_spending.routes`."""
        return {**await self.period(start, end), **await self._gateways(ROUTES, start, end)}

    async def teams(self, start: float, end: float) -> Samples:
        """The same by team; for `route_spending.teams`."""
        return {**await self.period(start, end), **await self._gateways(TEAMS, start, end)}

    async def gateways(self, counters: Mapping[str, tuple[str, ...]], start: float, end: float) -> Samples:
        """Growth of counters of the gateways, by their labels beside namespace and policy."""
        seconds = end - start
        return await self._all({name: _grown(name, (*_POLICY, *more), seconds, end) for name, more in counters.items()})

    async def _gateways(self, counters: Mapping[str, tuple[str, ...]], start: float, end: float) -> Samples:
        seconds = end - start
        return await self._all(
            {
                **{name: _grown(name, (*_POLICY, *more), seconds, end) for name, more in counters.items()},
                **{name: _last(name, (*_POLICY, *more), seconds, end) for name, more in TARGETS.items()},
                **{name: _last(name, (*_MODEL, *more), seconds, end) for name, more in WEIGHTS.items()},
            }
        )

    async def steps(self, start: float, end: float, *, step_s: float) -> tuple[RangeSeries, ...]:
        """US dollars by state, spent in the step that ends at each point."""
        query = f"sum by (state) (increase(flotilla_deployment_cost_usd_total{window(step_s)}))"
        return await self._client.query_range(query, start=start + step_s, end=end, step_s=step_s)

    async def _all(self, queries: Mapping[str, str]) -> dict[str, tuple[tuple[Mapping[str, str], Decimal], ...]]:
        answers = await asyncio.gather(*map(self._client.query, queries.values()))
        return {name: _samples(answer) for name, answer in zip(queries, answers, strict=True)}


def _grown(name: str, labels: tuple[str, ...], seconds: float, end: float) -> str:
    """`increase` before `sum`: the operator's counters begin anew in another pod when the leader changes."""
    return f"sum by ({', '.join(labels)}) (increase({name}{window(seconds)} @ {end:.3f}))"


def _last(name: str, labels: tuple[str, ...], seconds: float, end: float) -> str:
    return f"max by ({', '.join(labels)}) (last_over_time({name}{window(seconds)} @ {end:.3f}))"


def _samples(series: tuple[Series, ...]) -> tuple[tuple[Mapping[str, str], Decimal], ...]:
    # Infinity is an answer of one metric only ("never breaks even"), and the client returns None for no answer.
    return tuple((one.labels, Decimal(str(one.value))) for one in series if one.value is not None)


def totals(text: str) -> Samples:
    """From the text of /metrics. Raises Transient when it is not readable, or not the leading operator's."""
    found: dict[str, list[tuple[Mapping[str, str], Decimal]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("flotilla_") and not math.isnan(sample.value):
                    found.setdefault(sample.name, []).append((sample.labels, Decimal(str(sample.value))))
    except ValueError as error:
        raise Transient(f"The answer is no metric text: {error}") from error
    if "flotilla_build_info" not in found:
        raise Transient("The address answers, but not as the metrics of a Flotilla operator.")
    return found


def leads(samples: Samples) -> bool:
    """Whether the operator that wrote them leads; one on stand-by has no deployments."""
    return any(value == 1 for _, value in samples.get("flotilla_leader", ()))


async def fetch(url: str) -> str:
    """The text of a /metrics address; raises Transient."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise Transient(f"{url} answers HTTP {answer.status}.")
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > _LIMIT_BYTES:
                    raise Transient(f"{url} answers with more than {_LIMIT_BYTES} bytes.")
            return body.decode(errors="replace")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Transient(f"{url} does not answer: {error or type(error).__name__}") from error
