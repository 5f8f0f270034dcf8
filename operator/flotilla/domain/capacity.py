"""Replicas that find no place, and who is to make room for whom."""

from collections.abc import Iterable

from flotilla.domain.observed import Workload
from flotilla.domain.scaling.reasons import QUOTA_EXCEEDED, UNSCHEDULABLE


def blocked(load: Workload) -> str:
    """Why replicas that are wanted already cannot be placed, as a reason of `ScalingActive`; empty where they can."""
    if "exceeded quota" in load.failure:
        return QUOTA_EXCEEDED
    return UNSCHEDULABLE if list(_waits(load)) else ""


def _waits(load: Workload) -> Iterable[int]:
    """Priorities of the pods that the scheduler has no node for."""
    return (pod.priority for pod in load.pods if pod.scheduling_message and not pod.terminating)


def pressing(loads: Iterable[tuple[str, Workload]]) -> dict[str, int]:
    """The highest priority of a pod without a node, by accelerator class."""
    found: dict[str, int] = {}
    for class_name, load in loads:
        for priority in _waits(load):
            found[class_name] = max(found.get(class_name, priority), priority)
    return found


def yields(class_name: str, load: Workload, pressing_: dict[str, int]) -> bool:
    """Whether idle replicas of this one are to go at once: something more important waits for their accelerators."""
    priority = pressing_.get(class_name)
    return priority is not None and any(pod.priority < priority for pod in load.pods if pod.scheduled)
