"""The children of a ModelDeployment."""

from flotilla.api.model_deployment import ModelDeployment
from flotilla.domain.resolve import Resolved
from flotilla.render.names import Object, child, selector
from flotilla.render.pod import template

SERVICE_PORT = 8000


def children(md: ModelDeployment, resolved: Resolved, *, replicas: int) -> list[Object]:
    """Deployment, Service and, from two replicas on, a PodDisruptionBudget, in the order to apply them.

    The Deployment has no `spec.replicas`: that field belongs to the scaler.
    """
    result = [deployment(md, resolved), service(md)]
    if replicas > 1:
        result.append(budget(md))
    return result


def deployment(md: ModelDeployment, resolved: Resolved) -> Object:
    """apps/v1 Deployment. A rollout takes one replica at a time: with a surge it would wait for a GPU that a full
    cluster never has."""
    spec: Object = {
        "selector": {"matchLabels": selector(md)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "progressDeadlineSeconds": resolved.profile.startup_seconds + 600,
        "revisionHistoryLimit": 3,
        "template": template(md, resolved),
    }
    return child(md, api_version="apps/v1", kind="Deployment", spec=spec)


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
