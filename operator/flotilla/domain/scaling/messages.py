"""The sentences of `ScalingActive`."""

from functools import lru_cache
from typing import Final

from flotilla.domain.scaling.reasons import (
    AT_MAXIMUM,
    BOUNDS_CHANGED,
    METRICS_MISSING,
    METRICS_PARTIAL,
    NO_READY_REPLICAS,
    NO_WAKE_SIGNAL,
    PODS,
    PROMETHEUS,
    QUOTA_EXCEEDED,
    SCALED_IN,
    SCALED_OUT,
    SCALED_TO_ZERO,
    STALE,
    STEADY,
    UNSCHEDULABLE,
    WOKEN,
)
from flotilla.domain.scaling.state import ScalingSpec


@lru_cache(maxsize=4096)
def message(reason: str, desired: int, spec: ScalingSpec, source: str) -> str:
    """A sentence or two that depend on nothing that moves by itself, so that writing them does not churn."""
    count = "1 replica" if desired == 1 else f"{desired} replicas"
    target = f"{spec.queue_depth_per_replica} waiting and running requests per replica"
    said = {
        STEADY: f"{count}: the load has not asked for another number at a target of {target}.",
        SCALED_OUT: f"{count}: the load rose above the target of {target}, or requests waited or were rejected.",
        SCALED_IN: f"{count}: for {spec.scale_down_delay_s:g} s the load asked for no more at a target of {target}.",
        SCALED_TO_ZERO: (
            f"{count}: no request came for {spec.zero_after_s:g} s. The next one starts a replica and waits for it."
        ),
        WOKEN: f"{count}: requests came while there was none.",
        BOUNDS_CHANGED: (
            f"{count}: spec.scaling allows from {spec.min_replicas} to {spec.max_replicas}, which the number before "
            f"was outside of."
        ),
        AT_MAXIMUM: (
            f"{count}: the load asks for more, at a target of {target}, than spec.scaling.maxReplicas allows. "
            f"Raise maxReplicas, or accept longer queues with a higher queueDepthPerReplica."
        ),
        UNSCHEDULABLE: (
            f"{count}: the load asks for more, but some of these wait for a node, so that more would not serve either. "
            f"The Scheduled condition says what they wait for."
        ),
        QUOTA_EXCEEDED: (
            f"{count}: the load asks for more, but a ResourceQuota of the namespace does not even allow these. "
            f"The Scheduled condition names it: raise the quota, or lower maxReplicas."
        ),
        NO_READY_REPLICAS: f"{count}: kept, because no replica is ready and so there is no queue to read.",
        METRICS_MISSING: (
            f"{count}: kept, because no ready replica answers with its metrics. Check that the operator reaches the "
            f"pods' metrics port: a NetworkPolicy must let it in."
        ),
        METRICS_PARTIAL: (
            f"{count}: not lowered, because some ready replicas do not answer with their metrics. Check that the "
            f"operator reaches the metrics port of each pod, and the engine's log."
        ),
        NO_WAKE_SIGNAL: (
            f"{count}: nothing says whether requests come for a model without replicas. Name it as a target of a "
            f"RoutingPolicy, whose gateway holds them, or give the operator a wake_query."
        ),
    }[reason]
    return f"{said} {_SOURCES[source]}" if source and desired and reason not in _WITHOUT_DATA else said


_WITHOUT_DATA: Final = STALE | {NO_READY_REPLICAS, NO_WAKE_SIGNAL}
_SOURCES: Final = {
    PODS: "The queues are read from the pods.",
    PROMETHEUS: "The queues are read from Prometheus, because the pods are not, and may be 45 s old.",
}
