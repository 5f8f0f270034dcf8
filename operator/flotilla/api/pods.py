"""spec.rollout, spec.scheduling and spec.resources: how pods are replaced, where they run, what they ask for."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from flotilla.api.types import Atomic, DnsLabel, DnsSubdomain, LabelKey, LabelValue, Model, Preserve, Quantity


class RolloutStrategy(StrEnum):
    """How a changed pod template replaces running pods."""

    AUTO = "Auto"
    SURGE = "Surge"
    REPLACE = "Replace"


class TopologySpread(StrEnum):
    """Whether replicas prefer different hosts and zones."""

    PREFERRED = "Preferred"
    NONE = "None"


class RolloutSpec(Model):
    """How a change of the model, the engine or its flags reaches the pods."""

    strategy: RolloutStrategy = RolloutStrategy.AUTO
    """strategy is Surge (a new replica starts before an old one goes) or Replace (an old one makes room first).

    Auto surges where a node has the accelerators free when the change is made."""
    timeout_seconds: Annotated[int, Field(ge=60, le=86_400)] | None = None
    """timeoutSeconds is how long a rollout may make no progress before it is reported; old replicas keep serving.

    Default: what the model may take to start, and ten minutes."""


class Toleration(Model):
    """Lets pods run on nodes with a taint."""

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    """key of the taint; without it every key."""
    operator: Annotated[str, StringConstraints(pattern="^(Exists|Equal)$", min_length=5, max_length=6)] | None = None
    """operator is Exists or Equal."""
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """value of the taint, for Equal."""
    effect: (
        Annotated[
            str,
            StringConstraints(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$", min_length=9, max_length=16),
        ]
        | None
    ) = None
    """effect of the taint; without it every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """tolerationSeconds bounds how long a NoExecute taint is tolerated."""


class SchedulingSpec(Model):
    """Where pods may run, beside what the accelerator class asks for."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Atomic(32)] = Field(default_factory=dict)
    """nodeSelector are labels that a node must have."""
    tolerations: Annotated[list[Toleration], Atomic(32)] = Field(default_factory=list)
    """tolerations are added to those of the accelerator class."""
    affinity: Annotated[dict[str, Any], Preserve()] | None = None
    """affinity is a Kubernetes pod affinity; required node terms are combined with those of the accelerator class."""
    topology_spread: TopologySpread = TopologySpread.PREFERRED
    """topologySpread Preferred spreads replicas over hosts and zones where there is room."""
    priority_class_name: DnsSubdomain | None = None
    """priorityClassName lets more important models preempt others."""
    runtime_class_name: DnsSubdomain | None = None
    """runtimeClassName selects a container runtime, such as nvidia."""
    scheduler_name: DnsSubdomain | None = None
    """schedulerName selects another scheduler than the default one."""
    queue_name: DnsLabel | None = None
    """queueName is the Kueue LocalQueue that admits the pods."""


class ResourcesSpec(Model):
    """CPU and memory of the engine's container; the defaults grow with the number of GPUs."""

    cpu: Quantity | None = None
    """cpu that is requested, in cores. There is no CPU limit: throttling would stall the GPU."""
    memory: Quantity | None = None
    """memory that is requested and the limit."""
    shared_memory: Quantity | None = None
    """sharedMemory is the size of /dev/shm, which counts against memory."""
