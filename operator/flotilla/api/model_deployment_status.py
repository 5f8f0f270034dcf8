"""The status of a ModelDeployment."""

from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.cost import CostStatus
from flotilla.api.meta import Condition
from flotilla.api.scaling import MAX_REPLICAS
from flotilla.api.types import ListMap, Model


class EngineStatus(Model):
    """The engine in use."""

    name: Annotated[str, StringConstraints(max_length=63)] | None = None
    """name of the engine."""
    version: Annotated[str, StringConstraints(max_length=63)] | None = None
    """version of the engine."""
    image: Annotated[str, StringConstraints(max_length=500)] | None = None
    """image that the pods run."""


class QuantizationStatus(Model):
    """What the quantization was resolved to."""

    method: Annotated[str, StringConstraints(max_length=63)] | None = None
    """method in use."""
    kv_cache: Annotated[str, StringConstraints(max_length=63)] | None = None
    """kvCache type in use."""
    note: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """note says what is slower or different than one may expect."""


class AcceleratorStatus(Model):
    """The GPUs in use."""

    class_: Annotated[Annotated[str, StringConstraints(max_length=63)] | None, Field(alias="class")] = None
    """class of the accelerator."""
    count: Annotated[int, Field(ge=0, le=16)] | None = None
    """count of GPUs per replica."""
    resource: Annotated[str, StringConstraints(max_length=253)] | None = None
    """resource that pods request, such as nvidia.com/gpu."""


class FitStatus(Model):
    """How the model fits into the memory of one GPU."""

    verdict: Annotated[str, StringConstraints(max_length=63)] | None = None
    """verdict is Fits, Tight or Unknown."""
    weights_mib: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """weightsMib of the model on each GPU."""
    working_mib: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """workingMib is the estimate of what the engine needs beside weights and cache."""
    kv_cache_mib: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """kvCacheMib is left for the KV cache."""
    context_length: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """contextLength in tokens that requests may have."""
    longest_context_length: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """longestContextLength would fit by the estimate."""
    concurrent_requests: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """concurrentRequests of the whole context length fit at one time."""


class ScalingStatus(Model):
    """What the autoscaler last decided; a restarted operator goes on from here."""

    mode: Annotated[str, StringConstraints(max_length=63)] | None = None
    """mode in force."""
    desired_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """desiredReplicas is the number of pods that is wanted now."""
    source: Annotated[str, StringConstraints(max_length=63)] | None = None
    """source of the engines' queues: Pods or Prometheus."""
    panic_since: Annotated[str, StringConstraints(max_length=40)] | None = None
    """panicSince a burst began: no replica is removed before it has been over for scaleDownDelaySeconds."""


class ModelDeploymentStatus(Model):
    """What is so."""

    conditions: Annotated[list[Condition], ListMap(("type",), 16)] | None = None
    """conditions: Ready, Reconciling and Stalled sum up.

    SpecValid, FitsMemory, Scheduled, ModelLoaded, ScalingActive and CostKnown say why."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    replicas: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """replicas that exist."""
    ready_replicas: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """readyReplicas serve."""
    ready_summary: Annotated[str, StringConstraints(max_length=63)] | None = None
    """readySummary is ready/wanted, for a column."""
    selector: Annotated[str, StringConstraints(max_length=253)] | None = None
    """selector of the pods, for the /scale subresource."""
    endpoint: Annotated[str, StringConstraints(max_length=253)] | None = None
    """endpoint is the base URL for OpenAI clients inside the cluster."""
    engine: EngineStatus | None = None
    """engine in use."""
    quantization: QuantizationStatus | None = None
    """quantization in use."""
    accelerator: AcceleratorStatus | None = None
    """accelerator in use."""
    fit: FitStatus | None = None
    """fit of the model into the accelerator's memory."""
    scaling: ScalingStatus | None = None
    """scaling decision in force."""
    cost: CostStatus | None = None
    """cost basis."""
