"""How a changed pod template replaces the running pods: with one more while there is room, else one at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from flotilla.api.pods import RolloutStrategy
from flotilla.domain.accelerators import Accelerator
from flotilla.domain.quantity import amount

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rollout:
    """`surge`: a new pod starts before an old one goes, else an old one makes room for it."""

    surge: bool
    reason: str
    """A sentence for the log."""


def decide(strategy: RolloutStrategy, *, gpus: int, free: Iterable[int] | None) -> Rollout:
    """`free` are the unused accelerators of each node that has the class; None where nobody knows.

    A surge that finds no room would wait for ever, and the old model would stay; a replacement without need takes
    capacity away for as long as a model loads.
    """
    if strategy is RolloutStrategy.SURGE:
        return Rollout(True, "spec.rollout.strategy is Surge.")
    if strategy is RolloutStrategy.REPLACE:
        return Rollout(False, "spec.rollout.strategy is Replace.")
    if free is None:
        return Rollout(False, "It is not known what is free, so one replica is replaced at a time.")
    roomy = sum(units >= gpus for units in free)
    if roomy:
        return Rollout(True, f"{roomy} nodes have {gpus} accelerators free, so a new replica starts first.")
    return Rollout(False, f"No node has {gpus} accelerators free, so one replica is replaced at a time.")


def free_units(accelerator: Accelerator, nodes: Iterable[Object], pods: Iterable[Object]) -> list[int]:
    """Unused units of the class on each node that a pod could be placed on: allocatable less what pods ask for."""
    resource = accelerator.resource
    free = {
        node["metadata"]["name"]: _units((node.get("status") or {}).get("allocatable"), resource)
        for node in nodes
        if _usable(node, accelerator)
    }
    for pod in pods:
        name, phase = pod["spec"].get("nodeName"), (pod.get("status") or {}).get("phase")
        if name in free and phase not in ("Succeeded", "Failed"):
            free[name] -= sum(
                _units((container.get("resources") or {}).get("requests"), resource)
                for container in pod["spec"].get("containers") or ()
            )
    return list(free.values())


def _usable(node: Object, accelerator: Accelerator) -> bool:
    labels = node["metadata"].get("labels") or {}
    if (node.get("spec") or {}).get("unschedulable"):
        return False
    return not accelerator.node_labels or any(labels.get(key) in values for key, values in accelerator.node_labels)


def _units(quantities: Mapping[str, Any] | None, resource: str) -> int:
    value = amount(str((quantities or {}).get(resource, "0")))
    return int(value or Decimal(0))
