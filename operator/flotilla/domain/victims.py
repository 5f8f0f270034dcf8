"""Which replicas go when there are to be fewer: those with the least to do.

A ReplicaSet takes pods without a node and pods that are not ready first, then those of the lowest deletion cost.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from flotilla.domain.observed import Pod

VICTIM: Final = "-1"


def choose(pods: Sequence[Pod], load: Mapping[str, float], count: int) -> frozenset[str]:
    """Uids of the ready pods that go when `count` pods do. `load` are requests by uid; one that is unknown is full."""
    alive = [pod for pod in pods if not pod.terminating]
    ready = sorted((pod for pod in alive if pod.ready), key=lambda pod: (load.get(pod.uid, math.inf), pod.name))
    return frozenset(pod.uid for pod in ready[: max(0, count - (len(alive) - len(ready)))])


def marks(pods: Sequence[Pod], victims: Collection[str]) -> dict[str, str | None]:
    """The annotation by pod name, None to take it away; only for pods whose own differs."""
    return {
        pod.name: VICTIM if pod.uid in victims else None
        for pod in pods
        if not pod.terminating and (pod.deletion_cost == VICTIM) != (pod.uid in victims)
    }
