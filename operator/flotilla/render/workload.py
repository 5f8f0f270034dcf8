"""The children of a ModelDeployment."""

from flotilla.api.model_deployment import ModelDeployment
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.domain.resolve import Resolved
from flotilla.render.names import Object, child, digest, selector
from flotilla.render.pod import template

SERVICE_PORT = 8000
_PATIENCE_S = 600
"""Beyond what a start may take: pulling an image of many gigabytes."""


def children(md: ModelDeployment, resolved: Resolved, *, replicas: int, surge: bool = False) -> list[Object]:
    """Deployment, Service and, from two replicas on, a PodDisruptionBudget, in the order to apply them.

    The Deployment has no `spec.replicas`: that field belongs to the scaler.
    """
    result = [deployment(md, resolved, surge=surge), service(md)]
    if replicas > 1:
        result.append(budget(md))
    return result


def deployment(md: ModelDeployment, resolved: Resolved, *, surge: bool) -> Object:
    """apps/v1 Deployment. Without `surge` a rollout takes one replica at a time: with it, it would wait for a GPU that
    a full cluster never has."""
    pod = template(md, resolved)
    spec: Object = {
        "selector": {"matchLabels": selector(md)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": int(surge), "maxUnavailable": int(not surge)},
        },
        "progressDeadlineSeconds": md.spec.rollout.timeout_seconds or resolved.startup_seconds + _PATIENCE_S,
        "revisionHistoryLimit": 3,
        "template": pod,
    }
    hashed = {ANNOTATION_TEMPLATE_HASH: digest(pod)}
    return child(md, api_version="apps/v1", kind="Deployment", spec=spec, annotations=hashed)


def service(md: ModelDeployment) -> Object:
    """v1 Service: one address for all replicas, on the same port for every engine."""
    port = {"name": "http", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": "http"}
    return child(
        md,
        api_version="v1",
        kind="Service",
        spec={"type": "ClusterIP", "selector": selector(md), "ports": [port]},
    )


def budget(md: ModelDeployment) -> Object:
    """policy/v1 PodDisruptionBudget: a drain takes one replica at a time, and broken ones at once."""
    return child(
        md,
        api_version="policy/v1",
        kind="PodDisruptionBudget",
        spec={
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(md)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    )
