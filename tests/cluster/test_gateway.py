"""RoutingPolicies on a whole cluster: their gateway comes, follows them, and goes with the last of them."""

from typing import Any

import pytest
from tests.support.models import Models

from flotilla.constants import GATEWAY

pytestmark = pytest.mark.cluster

OWNED = ("ServiceAccount", "RoleBinding", "ConfigMap", "NetworkPolicy", "Deployment", "Service", "PodDisruptionBudget")


def policy(*models: str) -> dict[str, Any]:
    return {
        "hostModels": list(models),
        "targets": [{"name": "small", "modelDeploymentRef": {"name": "tiny"}}],
        "dataPolicy": {"unknownClass": "any", "classes": [{"name": "any", "allowBoundaries": ["Cluster"]}]},
        "defaultRoute": {"split": [{"target": "small"}]},
    }


def test_the_gateway_is_owned_by_its_policies_and_goes_with_the_last(models: Models) -> None:
    models.apply("first", policy("a"), kind="RoutingPolicy")
    models.apply("second", policy("b"), kind="RoutingPolicy")
    for name in ("first", "second"):
        models.wait_condition(name, "Programmed", "True", kind="RoutingPolicy")
    models.delete("RoutingPolicy", "first")
    models.wait(lambda: _owners(models) == {"second"}, "the deleted policy to be taken off")
    models.wait_condition("second", "Programmed", "True", kind="RoutingPolicy")
    models.delete("RoutingPolicy", "second")
    models.wait(lambda: not any(models.get(kind, GATEWAY) for kind in OWNED), "the gateway to be collected")
    models.apply("third", policy("c"), kind="RoutingPolicy")
    models.wait_condition("third", "Programmed", "True", kind="RoutingPolicy")


def _owners(models: Models) -> set[str]:
    deployment = models.get("Deployment", GATEWAY) or {}
    return {reference["name"] for reference in deployment.get("metadata", {}).get("ownerReferences", ())}
