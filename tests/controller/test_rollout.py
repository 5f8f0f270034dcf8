"""Surge or replace, from what the cluster has free."""

from typing import Any

import pytest

from flotilla.api.model_deployment import RolloutStrategy
from flotilla.catalog.accelerators import load_accelerators
from flotilla.controller.apply import choose_rollout, free_units

TABLE = load_accelerators()


def node(name: str, *, gpus: int = 4, label: str = "NVIDIA-L4", **spec: Any) -> dict[str, Any]:
    allocatable = {"nvidia.com/gpu": str(gpus), "nvidia.com/mig-1g.10gb": "7"}
    labels = {"nvidia.com/gpu.product": label}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"allocatable": allocatable}}


def pod(where: str, gpus: int, *, phase: str = "Running") -> dict[str, Any]:
    containers = [{"resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}, {}]
    return {"spec": {"nodeName": where, "containers": containers}, "status": {"phase": phase}}


def test_free_is_what_pods_have_not_asked_for_on_nodes_of_the_class() -> None:
    nodes = [
        node("a"),
        node("b"),
        node("cordoned", unschedulable=True),
        node("other", label="NVIDIA-H100-80GB-HBM3"),
        {"metadata": {"name": "cpu"}},
    ]
    pods = [pod("a", 3), pod("b", 1), pod("b", 4, phase="Succeeded"), pod("other", 1), {"spec": {}}]
    assert free_units(TABLE["nvidia-l4"], nodes, pods) == [1, 3]


def test_slices_are_counted_by_their_own_resource() -> None:
    nodes = [node("a", label="NVIDIA-H100-80GB-HBM3")]
    assert free_units(TABLE["nvidia-h100-80gb-mig-1g-10gb"], nodes, [pod("a", 4)]) == [7]


@pytest.mark.parametrize(
    ("strategy", "gpus", "free", "surge", "why"),
    [
        ("Auto", 2, [1, 2], True, "1 nodes have 2 accelerators free"),
        ("Auto", 2, [1, 1], False, "No node has 2 accelerators free"),
        ("Auto", 1, [], False, "No node has 1 accelerators free"),
        ("Auto", 1, None, False, "not known what is free"),
        ("Surge", 8, [], True, "strategy is Surge"),
        ("Replace", 1, [8], False, "strategy is Replace"),
    ],
)
def test_a_rollout_surges_where_one_node_has_room_for_a_replica(
    strategy: str, gpus: int, free: list[int] | None, surge: bool, why: str
) -> None:
    decided = choose_rollout(RolloutStrategy(strategy), gpus=gpus, free=free)
    assert decided.surge is surge
    assert why in decided.reason
