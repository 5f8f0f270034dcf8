"""GPUs that no pod holds: nobody pays for them, so they are shown by themselves."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.support.unallocated import node, pod

from flotilla.catalog.accelerators import WHOLE_GPUS, load_accelerators
from flotilla.cost.gpu_prices import NO_SOURCES
from flotilla.cost.unallocated_loop import GpuNode, Unallocated, gpu_node, held, usd_per_hour
from flotilla.errors import Forbidden, Transient
from flotilla.kube.client import ObjectList
from flotilla.kube.kinds import NODE, Kind
from flotilla.kube.store import Store, owner

CLASSES = load_accelerators()
TABLE = tuple(CLASSES.values())
L4 = "nvidia.com/gpu"


def seen(obj: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> GpuNode:
    found = gpu_node(obj, TABLE, WHOLE_GPUS)
    assert found is not None
    return found.with_others(others)


def usd(*nodes: GpuNode, own: Sequence[dict[str, Any]] = ()) -> dict[str, Decimal]:
    return usd_per_hour(nodes, held(own), NO_SOURCES)


def test_a_free_gpu_costs_what_its_node_says_and_a_held_one_nothing() -> None:
    a = seen(node("a", {L4: "4"}, product="NVIDIA-L4", price="2"), [pod("x", "a", 1)])
    b = seen(node("b", {L4: "2"}, product="NVIDIA-L4", price="1"), [pod("y", "b", 1), pod("z", "b", 1)])
    assert usd(a, b, own=[pod("ours", "a", 2), pod("elsewhere", "c", 1)]) == {"nvidia-l4": 2}
    assert usd(b) == {"nvidia-l4": 0}, "none is free, and that is known"


def test_what_ended_holds_nothing_and_an_init_container_runs_before_the_others() -> None:
    ended = [pod("x", "a", 1, phase=phase) for phase in ("Succeeded", "Failed")]
    early = pod("y", "a", 1)
    early["spec"]["initContainers"] = [{"name": "i", "resources": {"requests": {L4: "2", "cpu": "1"}}}]
    assert held([*ended, early, {"metadata": {}, "spec": {"containers": []}}]) == {"a": {L4: 2}}


def test_slices_and_shares_are_parts_of_a_gpu() -> None:
    mig = node("a", {"nvidia.com/mig-3g.40gb": "2"}, product="NVIDIA-H100-80GB-HBM3", price="4")
    (resource,) = seen(mig).units
    sliced = seen(mig, [pod("x", "a", 1, resource=resource)])
    assert list(usd(sliced).values()) == [2]
    shares = node("b", {L4: "8"}, product="NVIDIA-L4", price="1", labels={"nvidia.com/gpu.replicas": "4"})
    assert usd(seen(shares, [pod("x", "b", 6)])) == {"nvidia-l4": Decimal("0.5")}


def test_a_node_without_gpus_or_of_an_unknown_class_is_none() -> None:
    assert gpu_node(node("a", {"cpu": "8"}, product="NVIDIA-L4"), TABLE, WHOLE_GPUS) is None
    assert gpu_node(node("a", {L4: "0"}, product="NVIDIA-L4"), TABLE, WHOLE_GPUS) is None
    assert gpu_node(node("a", {L4: "4"}, product="Mystery"), TABLE, WHOLE_GPUS) is None


def test_a_class_with_a_free_gpu_of_no_price_is_absent() -> None:
    bare = CLASSES["nvidia-l4"].model_copy(update={"price": None})
    nodes = [
        gpu_node(node(name, {L4: "1"}, product="NVIDIA-L4", price=price), [bare], WHOLE_GPUS)
        for name, price in (("a", "1"), ("b", None))
    ]
    assert usd_per_hour([found for found in nodes if found], {}, NO_SOURCES) == {}


@given(st.integers(0, 8), st.lists(st.integers(1, 3), max_size=4), st.lists(st.integers(1, 3), max_size=4))
def test_free_and_held_are_the_nodes_and_more_held_than_there_is_costs_nothing(
    gpus: int, others: list[int], own: list[int]
) -> None:
    one = gpu_node(node("a", {L4: str(gpus)}, product="NVIDIA-L4", price="1"), TABLE, WHOLE_GPUS)
    if one is None:
        assert gpus == 0
        return
    found = usd(
        one.with_others([pod("o", "a", count) for count in others]), own=[pod("p", "a", count) for count in own]
    )
    assert found == {"nvidia-l4": max(0, gpus - sum(others) - sum(own))}


class Cluster:
    """Stands for KubeClient."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.asked: list[tuple[str, str | None]] = []

    async def pages(self, kind: Kind, *, label_selector: str | None = None, field_selector: str | None = None) -> Any:
        self.asked.append((kind.plural, field_selector))
        if self.fails is not None:
            raise self.fails
        nodes = [node("a", {L4: "4"}, product="NVIDIA-L4", price="1"), node("cpu", {"cpu": "4"}, product="")]
        yield ObjectList(nodes if kind == NODE else [pod("x", "a", 1)], "1")


def watching(client: Cluster) -> Unallocated:
    return Unallocated(client, Store(owner), TABLE, lambda: NO_SOURCES, interval_s=600)  # type: ignore[arg-type]


async def test_only_the_pods_of_nodes_with_gpus_are_listed_and_a_failure_keeps_what_was_known() -> None:
    client = Cluster()
    spare = watching(client)
    assert spare.usd_per_hour() == {}, "unknown before the first look"
    await spare.refresh()
    fields = "spec.nodeName=a,status.phase!=Succeeded,status.phase!=Failed"
    assert client.asked == [("nodes", None), ("pods", fields)]
    client.fails = Transient("later")
    try:
        await spare.refresh()
    except Transient:
        assert spare.usd_per_hour() == {"nvidia-l4": 3}


async def test_an_operator_that_may_not_see_nodes_says_nothing_and_stops_asking() -> None:
    client = Cluster()
    client.fails = Forbidden("no")
    spare = watching(client)
    await spare.run()
    assert (spare.usd_per_hour(), len(client.asked)) == ({}, 1)
