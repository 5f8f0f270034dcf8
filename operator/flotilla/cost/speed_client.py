"""How fast deployments of a model really are, from the operator's counters in a Prometheus."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flotilla.prometheus.client import PrometheusClient, Series, window

_BY = "namespace, modeldeployment"
_RATE = "rate(flotilla_deployment_tokens_total{token_type='output'}[5m])"
_PER_REPLICA = f"sum by ({_BY}) ({_RATE}) / on ({_BY}) max by ({_BY}) (flotilla_ready_replicas > 0)"
_WAITING = f"min by ({_BY}) (min_over_time(flotilla_requests_waiting[5m])) > 0"
_OBSERVED = (
    "speed_ratio",
    "speed_observations",
    "speed_age_seconds",
    "token_interval_seconds",
    "first_token_seconds",
)
"""Metrics that the operator computes from the engines' histograms."""
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class MeasuredSpeed:
    """What one deployment did in a period."""

    namespace: str
    name: str
    model: str
    """The source of its spec."""
    engine: str
    gpu_type: str
    input_tokens: float
    """Of the mean request, cached ones included."""
    output_tokens: float
    cached_share: float
    tokens_per_s: float
    """Output tokens per second of one replica: the median of the five-minute windows in which requests waited all the
    time, or the most of any window where there was none of those."""
    saturated: bool
    """Whether requests waited. Otherwise the replica could have done more than `tokens_per_s`."""
    ratio: float | None = None
    """What the operator observed over what it computed for the same load, in the last hour; None: too few tokens."""
    observations: int = 0
    """Times between tokens that `ratio` rests on."""
    age_s: float = 0.0
    """Since the last of them."""
    token_interval_s: float | None = None
    first_token_s: float | None = None
    """Means of the last hour, by the engines' histograms."""


async def measured_speeds(client: PrometheusClient, *, period_s: float) -> tuple[MeasuredSpeed, ...]:
    """Of every deployment that is there now and served anything in the period that ends now.

    Raises as `PrometheusClient` does. Deployments of which a part of the figures is missing are left out.
    """
    period = window(period_s)
    steps = f"{period[:-1]}:1m]"
    tokens = f"sum by ({_BY}, token_type) (increase(flotilla_deployment_tokens_total{period}))"
    requests = f"sum by ({_BY}) (increase(flotilla_deployment_requests_total{{outcome='success'}}{period}))"
    counted: dict[_Key, dict[str, float]] = {}
    for series in await client.query(tokens):
        if series.value is not None:
            counted.setdefault(_key(series.labels), {})[series.labels["token_type"]] = series.value
    served = _values(await client.query(requests))
    busiest = _values(await client.query(f"max_over_time(({_PER_REPLICA}){steps})"))
    while_waiting = f"({_PER_REPLICA}) and on ({_BY}) ({_WAITING})"
    saturated = _values(await client.query(f"quantile_over_time(0.5, ({while_waiting}){steps})"))
    last_hour = {
        name: _values(await client.query(f"max by ({_BY}) (flotilla_deployment_{name})")) for name in _OBSERVED
    }
    found = []
    for series in await client.query(f"max by ({_BY}, model, engine, gpu_type) (flotilla_deployment_info)"):
        key = _key(series.labels)
        kinds, count, most = counted.get(key), served.get(key, 0.0), busiest.get(key, 0.0)
        if not kinds or count <= 0 or most <= 0:
            continue
        cached = kinds.get("cached_input", 0.0)
        prompts = kinds.get("input", 0.0) + cached
        found.append(
            MeasuredSpeed(
                namespace=key[0],
                name=key[1],
                model=series.labels.get("model", ""),
                engine=series.labels.get("engine", ""),
                gpu_type=series.labels.get("gpu_type", ""),
                input_tokens=prompts / count,
                output_tokens=kinds.get("output", 0.0) / count,
                cached_share=cached / prompts if prompts else 0.0,
                tokens_per_s=saturated.get(key, most),
                saturated=key in saturated,
                ratio=last_hour["speed_ratio"].get(key),
                observations=int(last_hour["speed_observations"].get(key, 0)),
                age_s=last_hour["speed_age_seconds"].get(key, 0.0),
                token_interval_s=last_hour["token_interval_seconds"].get(key),
                first_token_s=last_hour["first_token_seconds"].get(key),
            )
        )
    return tuple(found)


def _key(labels: Mapping[str, str]) -> _Key:
    return labels.get("namespace", ""), labels.get("modeldeployment", "")


def _values(series: Iterable[Series]) -> dict[_Key, float]:
    return {_key(one.labels): one.value for one in series if one.value is not None}
