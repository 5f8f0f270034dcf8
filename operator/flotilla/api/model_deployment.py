"""ModelDeployment: a model, an engine, a quantization and an accelerator become pods that scale."""

from typing import Annotated

from pydantic import Field

from flotilla.api.cost import ONE_PRICE, CostSpec
from flotilla.api.engine import AcceleratorSpec, EngineSpec, QuantizationSpec
from flotilla.api.meta import ObjectMeta
from flotilla.api.model import ModelSpec
from flotilla.api.pods import ResourcesSpec, RolloutSpec, SchedulingSpec
from flotilla.api.scaling import BOUNDS, MAX_REPLICAS, ZERO, ScalingSpec
from flotilla.api.types import Cel, Model

_REPLICAS_OWNER = Cel(
    "!has(self.replicas) || self.scaling.mode != 'Internal'",
    "spec.replicas belongs to scaling.mode External or None; in mode Internal the operator counts between minReplicas "
    "and maxReplicas, so remove spec.replicas or change spec.scaling.mode",
    field_path=".replicas",
)
NAME_RULE = Cel(
    "self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name must start with a letter, hold only lower case letters, digits and dashes, and have at most 52 "
    "characters: a Service and labels take it",
)


class ModelDeploymentSpec(Model):
    """What is wanted."""

    model: ModelSpec
    """model says which weights are served, under which name."""
    engine: EngineSpec
    """engine is the inference server."""
    quantization: QuantizationSpec = QuantizationSpec()
    """quantization says how weights and KV cache are stored."""
    accelerator: AcceleratorSpec
    """accelerator says which GPUs a replica gets."""
    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """replicas is the number of pods in scaling.mode External, where /scale writes it, and None.

    Leave it out of Git where an autoscaler writes it."""
    scaling: Annotated[ScalingSpec, BOUNDS, ZERO] = ScalingSpec()
    """scaling says how many replicas there are and who decides."""
    rollout: RolloutSpec = RolloutSpec()
    """rollout says how a change reaches the pods."""
    scheduling: SchedulingSpec = SchedulingSpec()
    """scheduling says where pods may run."""
    resources: ResourcesSpec = ResourcesSpec()
    """resources override the CPU and memory of the engine's container."""
    cost: Annotated[CostSpec, ONE_PRICE] = CostSpec()
    """cost says what the deployment is priced at and held against."""


class ModelDeployment(Model):
    """ModelDeployment serves one model on GPUs of the cluster."""

    metadata: ObjectMeta
    spec: Annotated[ModelDeploymentSpec, _REPLICAS_OWNER]
