"""What a load asks for, before any limit: an absolute number, the same however many of the replicas are up yet."""

import math
from dataclasses import replace
from typing import Final

from flotilla.domain.scaling.state import Queue, Sample, ScalingSpec, State

KV_CACHE_SHARE: Final = 0.9
"""Of its KV cache, a replica may use so much: beyond it engines preempt requests and compute them again."""
LONG_WAIT_S: Final = 10.0
WAITING_SHARE: Final = 0.25
"""Of the target: fewer requests that wait are those between two steps of the engine."""


def load_of(sample: Sample) -> float:
    """Requests that are there now. What gateways hold is no part of the engines' queues, what they sent on is."""
    inside = sample.waiting + sample.running
    return (inside if sample.demand is None else max(inside, sample.demand.requests)) + sample.rejected


def by_load(load: float, spec: ScalingSpec) -> int:
    """Replicas at the target."""
    return math.ceil(load / spec.queue_depth_per_replica)


def needed(state: State, sample: Sample, spec: ScalingSpec) -> int:
    """What the replicas that answered ask for together."""
    load = load_of(sample)
    need = max(by_load(load, spec), math.ceil(sample.kv_full / KV_CACHE_SHARE))
    if sample.rejected > 0:
        need = max(need, sample.answered + 1)
    if state.crowded is not None and load >= state.crowded.load:
        need = max(need, state.crowded.replicas + 1)
    return need


def remember_waiting(state: State, sample: Sample, spec: ScalingSpec, now: float) -> State:
    """Keep in mind how long requests have waited, and the load at which they did for too long.

    An engine may run fewer requests at a time than the target says; without the memory the replica that was added
    for them would go again after each delay.
    """
    load, replicas = load_of(sample), sample.answered
    queue, crowded = state.queue, state.crowded
    if sample.waiting < max(1.0, WAITING_SHARE * spec.queue_depth_per_replica * replicas):
        if queue is None and crowded is None:
            return state
        queue = None
        if crowded is not None and load >= crowded.load and replicas <= crowded.replicas:
            crowded = None
    elif queue is None or queue.replicas != replicas:
        # A replica that just came takes its share of the queue first.
        queue = Queue(now, replicas, load)
    else:
        queue = Queue(queue.since, replicas, min(queue.load, load))
        if now - queue.since >= LONG_WAIT_S:
            crowded = queue
    return replace(state, queue=queue, crowded=crowded)
