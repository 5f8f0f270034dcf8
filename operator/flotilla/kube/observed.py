"""What a Deployment and its pods report, as typed values, and a cache of it per ModelDeployment."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flotilla.constants import CONDITION_ADAPTERS, ENGINE_CONTAINER
from flotilla.kube.kinds import DEPLOYMENT, POD, Key
from flotilla.kube.store import Store

Object = Mapping[str, Any]

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""Annotation of pods: a ReplicaSet deletes those of the lowest number first; without it a pod has 0."""

_LAST_LOG_LINE_LENGTH = 300
_VOLATILE = re.compile(r"\(?\bpid[= ]\d+\)?|\b\d{2,4}-\d{2}(-\d{2})?[T ]|\b\d{2}:\d{2}:\d{2}([.,]\d+)?Z?|0x[0-9a-f]+")
STUCK_REASONS = frozenset(
    {
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "ErrImagePull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""Waiting reasons of the kubelet that do not end by themselves."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One engine pod."""

    name: str
    uid: str
    ip: str
    scheduled: bool
    ready: bool
    terminating: bool
    restarts: int
    scheduling_message: str
    """Why the scheduler could not place it; empty when it could."""
    waiting_reason: str
    waiting_message: str
    last_exit: str
    """`exit code 1` or `OOMKilled` of the container's last end; empty when it never ended."""
    last_log_line: str
    """The last line that the container logged before an end with an error; without what changes from run to run."""
    scheduled_time: str
    """RFC 3339; empty when not scheduled."""
    priority: int = 0
    """What the pod's PriorityClass comes to."""
    gates: tuple[str, ...] = ()
    """Names of the scheduling gates that hold the pod, such as Kueue's."""
    deletion_cost: str = ""
    """The annotation by which a ReplicaSet chooses the pods to delete first; empty without it."""
    node: str = ""
    """Empty when not scheduled."""
    ready_time: str = ""
    """RFC 3339 of the last change of readiness; empty when it was never ready or is not."""
    answers: bool = False
    """Whether the engine answers its readiness probe; the pod is Ready only when its gates are open too."""
    adapters: str = ""
    """Status of the condition on LoRA adapters; empty before the operator has set it."""
    adapters_message: str = ""
    """Why an adapter is not loaded."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The child Deployment and its pods."""

    exists: bool
    generation: int
    observed_generation: int
    wanted: int
    """`spec.replicas`."""
    replicas: int
    updated: int
    ready: int
    failure: str
    """Message of the ReplicaFailure condition, such as an exceeded quota; empty when there is none."""
    overdue: bool
    """Whether a rollout made no progress for as long as it may take."""
    pods: tuple[Pod, ...]
    paused: bool = False
    """Whether somebody paused the rollout of the Deployment."""

    @property
    def rolled_out(self) -> bool:
        """No pod of an older template is left, and the controller has seen the newest one."""
        return self.observed_generation >= self.generation and self.updated >= self.replicas


def _condition(status: Object, kind: str) -> Object:
    return next((c for c in status.get("conditions") or () if c.get("type") == kind), {})


def pod(obj: Object) -> Pod:
    """Reduce a v1 Pod; only the engine's container counts, or a gateway's only one: others may have been injected."""
    meta, status = obj["metadata"], obj.get("status") or {}
    scheduled, ready = _condition(status, "PodScheduled"), _condition(status, "Ready")
    containers: Sequence[Object] = status.get("containerStatuses") or ()
    container: Object = next((c for c in containers if c.get("name") == ENGINE_CONTAINER), next(iter(containers), {}))
    adapters = _condition(status, CONDITION_ADAPTERS)
    waiting: Object = (container.get("state") or {}).get("waiting") or {}
    ended: Object = (
        (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    )
    last_exit = ""
    if ended:
        last_exit = "OOMKilled" if ended.get("reason") == "OOMKilled" else f"exit code {ended.get('exitCode', '?')}"
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        ip=status.get("podIP") or "",
        node=obj.get("spec", {}).get("nodeName") or "",
        scheduled=scheduled.get("status") == "True",
        ready=ready.get("status") == "True",
        terminating="deletionTimestamp" in meta,
        restarts=int(container.get("restartCount") or 0),
        scheduling_message=(scheduled.get("message") or "") if scheduled.get("status") == "False" else "",
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        last_exit=last_exit,
        last_log_line=_last_log_line(ended.get("message") or "") if ended else "",
        scheduled_time=(scheduled.get("lastTransitionTime") or "") if scheduled.get("status") == "True" else "",
        gates=tuple(gate["name"] for gate in obj.get("spec", {}).get("schedulingGates") or ()),
        priority=int((obj.get("spec") or {}).get("priority") or 0),
        deletion_cost=(meta.get("annotations") or {}).get(DELETION_COST, ""),
        ready_time=(ready.get("lastTransitionTime") or "") if ready.get("status") == "True" else "",
        answers=bool(container.get("ready")),
        adapters=adapters.get("status") or "",
        adapters_message=adapters.get("message") or "",
    )


def _last_log_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # Process numbers and times differ in each crash of the same cause, and each new message is a write.
    return _VOLATILE.sub("", lines[-1])[:_LAST_LOG_LINE_LENGTH].strip() if lines else ""


def workload(deployment: Object | None, pods: Sequence[Object]) -> Workload:
    """Reduce an apps/v1 Deployment and its pods, sorted by name so that messages are stable."""
    reduced = tuple(sorted((pod(p) for p in pods), key=lambda p: p.name))
    if deployment is None:
        return Workload(False, 0, 0, 0, 0, 0, 0, "", overdue=False, pods=reduced)
    status = deployment.get("status") or {}
    failure = _condition(status, "ReplicaFailure")
    return Workload(
        exists=True,
        generation=int(deployment["metadata"].get("generation") or 0),
        observed_generation=int(status.get("observedGeneration") or 0),
        wanted=int(deployment["spec"].get("replicas", 1)),
        replicas=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        failure=(failure.get("message") or "") if failure.get("status") == "True" else "",
        overdue=_condition(status, "Progressing").get("reason") == "ProgressDeadlineExceeded",
        pods=reduced,
        paused=bool(deployment["spec"].get("paused")),
    )


class Workloads:
    """A view of the store, which replaces objects and never changes them: the same objects give the same workload."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Key, tuple[list[Any], Workload]] = {}

    def of(self, key: Key) -> Workload:
        """As the store has it now."""
        objects = [self._store.get(DEPLOYMENT, key.namespace, key.name), *self._store.owned_by(POD, key)]
        known = self._known.get(key)
        if known is not None and len(known[0]) == len(objects) and all(map(_same, known[0], objects)):
            return known[1]
        load = workload(objects[0], [obj for obj in objects[1:] if obj is not None])
        self._known[key] = (objects, load)
        return load

    def forget(self, key: Key) -> None:
        """Drop a ModelDeployment that was deleted."""
        self._known.pop(key, None)


def _same(one: object, other: object) -> bool:
    return one is other
