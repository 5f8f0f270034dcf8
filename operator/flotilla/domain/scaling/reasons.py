"""Why the number of replicas is what it is: the reasons of `ScalingActive`."""

from typing import Final

STEADY: Final = "Steady"
SCALED_OUT: Final = "ScaledOut"
SCALED_IN: Final = "ScaledIn"
SCALED_TO_ZERO: Final = "ScaledToZero"
WOKEN: Final = "Woken"
BOUNDS_CHANGED: Final = "BoundsChanged"
AT_MAXIMUM: Final = "AtMaximum"
UNSCHEDULABLE: Final = "ReplicasUnschedulable"
QUOTA_EXCEEDED: Final = "QuotaExceeded"
NO_READY_REPLICAS: Final = "NoReadyReplicas"
METRICS_MISSING: Final = "MetricsMissing"
METRICS_PARTIAL: Final = "MetricsPartial"
NO_WAKE_SIGNAL: Final = "NoWakeSignal"

LASTING: Final = frozenset({STEADY, SCALED_OUT, SCALED_IN, SCALED_TO_ZERO, WOKEN, BOUNDS_CHANGED})
"""Reasons that explain the number; the others explain for a while why it is not another one."""
STALE: Final = frozenset({METRICS_MISSING, METRICS_PARTIAL})
"""The data that the number would follow is old."""
NOT_FOLLOWING: Final = STALE | {NO_READY_REPLICAS, NO_WAKE_SIGNAL, UNSCHEDULABLE, QUOTA_EXCEEDED}
"""`ScalingActive` is False."""
OBSTACLES: Final = NOT_FOLLOWING | {AT_MAXIMUM}

PODS: Final = "Pods"
PROMETHEUS: Final = "Prometheus"
