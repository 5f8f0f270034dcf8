"""spec.scaling: how many replicas, and who decides."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from flotilla.api.types import Cel, Model

MAX_REPLICAS = 1000
SCALE_TO_ZERO_AFTER_S = 900


class ScalingMode(StrEnum):
    """Who sets the replica count."""

    INTERNAL = "Internal"
    EXTERNAL = "External"
    NONE = "None"


class ScalingSpec(Model):
    """How many replicas, and who decides."""

    mode: ScalingMode = ScalingMode.INTERNAL
    """mode is Internal (the operator, on queue depth), External (an HPA or KEDA, on /scale) or None (spec.replicas)."""
    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = 1
    """minReplicas is the least number of replicas in mode Internal.

    0 needs something that tells of requests for a model without replicas: a gateway, or the operator's wake_query."""
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    """maxReplicas is the greatest number of replicas in mode Internal."""
    queue_depth_per_replica: Annotated[int, Field(ge=1, le=10_000)] = 8
    """queueDepthPerReplica is the wanted number of waiting and running requests per replica."""
    scale_down_delay_seconds: Annotated[int, Field(ge=0, le=86_400)] = 240
    """scaleDownDelaySeconds is how long a smaller number must have been enough before replicas are removed."""
    scale_up_limit_per_minute: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 20
    """scaleUpLimitPerMinute is how many replicas may be added within a minute."""
    scale_down_percent_per_minute: Annotated[int, Field(ge=1, le=100)] = 25
    """scaleDownPercentPerMinute is the share of the replicas that may be removed within a minute; one always may."""
    scale_to_zero_after_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = None
    """scaleToZeroAfterSeconds without any request remove the last replica, but not before scaleDownDelaySeconds.

    Only where minReplicas is 0. Default: 900."""


BOUNDS = Cel(
    # The apiserver judges `default: {}` before it fills the defaults in.
    "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
    "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas; maxReplicas is 1 where it is left out",
    field_path=".minReplicas",
)
ZERO = Cel(
    "!has(self.scaleToZeroAfterSeconds) || (has(self.minReplicas) && self.minReplicas == 0)",
    "spec.scaling.scaleToZeroAfterSeconds needs spec.scaling.minReplicas: 0, which is 1 where it is left out",
    field_path=".scaleToZeroAfterSeconds",
)
