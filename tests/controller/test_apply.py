"""When the executor renders and writes, and when it need not, with an apiserver that only answers."""

from collections.abc import Mapping
from typing import Any

import pytest

from flotilla.controller.apply import RIVAL_S, Executor, Object
from flotilla.errors import NameTaken
from flotilla.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, SERVICE, Key, Kind
from flotilla.kube.store import Store, owner

KEY = Key(MODEL_DEPLOYMENT, "ns", "a")
OWNER = {"apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelDeployment", "name": "a", "uid": "u", "controller": True}


def manifest(kind: Kind, **spec: Any) -> Object:
    meta = {"name": "a", "namespace": "ns", "ownerReferences": [OWNER], "annotations": {"flotilla.dev/hash": "h"}}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "spec": spec}


class Answering:
    """Stands for KubeClient: an apply is answered with the object, a version, and `spec.replicas` of one."""

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.meanwhile: list[tuple[Kind, Object]] = []
        """Objects that the watch brings before the answer."""
        self.strangers: dict[str, Object] = {}
        """Objects of other owners, by kind."""
        self.store = Store(owner)

    async def get(self, kind: Kind, name: str, *, namespace: str) -> Object | None:
        return self.strangers.get(kind.kind)

    async def apply(self, kind: Kind, obj: Mapping[str, Any], **_: object) -> Object:
        self.applied.append(kind.kind)
        while self.meanwhile:
            self.store.put(*self.meanwhile.pop())
        version = str(len(self.applied))
        return {**obj, "metadata": {**obj["metadata"], "uid": f"uid-{kind.kind}", "resourceVersion": version}}


class Planned:
    """Counts how often the plan is rendered."""

    def __init__(self) -> None:
        self.rendered = 0

    def __call__(self) -> list[Object]:
        self.rendered += 1
        return [manifest(DEPLOYMENT, template={"x": 1}), manifest(SERVICE, ports=[])]


async def settled(client: Answering, plan: Planned) -> Executor:
    executor = Executor(client, client.store)  # type: ignore[arg-type]
    assert await executor.converge(KEY, ("u",), plan, revision=1, replicas=1) == 2
    return executor


async def test_what_was_just_made_true_is_not_rendered_again_until_the_plan_changes() -> None:
    client, plan = Answering(), Planned()
    executor = await settled(client, plan)
    assert await executor.converge(KEY, ("u",), plan, revision=1, replicas=1) == 0
    assert plan.rendered == 1
    await executor.converge(KEY, ("u",), plan, revision=2, replicas=1)
    assert plan.rendered == 2


async def test_an_edited_child_is_looked_at_and_a_new_status_of_it_is_not() -> None:
    client, plan = Answering(), Planned()
    executor = await settled(client, plan)
    live = client.store.get(DEPLOYMENT, "ns", "a")
    assert live is not None
    newer = {**live, "metadata": {**live["metadata"], "resourceVersion": "50"}, "status": {"replicas": 1}}
    client.store.put(DEPLOYMENT, newer)
    await executor.converge(KEY, ("u",), plan, revision=1, replicas=1)
    assert plan.rendered == 1
    edited = {**newer, "metadata": {**newer["metadata"], "resourceVersion": "51"}, "spec": {"template": {"x": 2}}}
    client.store.put(DEPLOYMENT, edited)
    assert await executor.converge(KEY, ("u",), plan, revision=1, replicas=1) == 1
    assert client.applied[-1] == "Deployment"


async def test_a_deleted_child_is_made_again() -> None:
    client, plan = Answering(), Planned()
    executor = await settled(client, plan)
    live = client.store.get(SERVICE, "ns", "a")
    assert live is not None
    client.store.drop(SERVICE, live)
    assert await executor.converge(KEY, ("u",), plan, revision=1, replicas=1) == 1
    assert client.applied[-1] == "Service"


async def test_an_edit_that_overtakes_the_answer_to_our_write_is_seen() -> None:
    client, plan = Answering(), Planned()
    edited = manifest(DEPLOYMENT, template={"x": "by hand"}, replicas=1)
    edited["metadata"] |= {"uid": "uid-Deployment", "resourceVersion": "9"}
    client.meanwhile.append((DEPLOYMENT, edited))
    executor = await settled(client, plan)
    assert await executor.converge(KEY, ("u",), plan, revision=1, replicas=1) == 1
    assert plan.rendered == 2


async def test_another_owners_service_is_found_before_any_child_is_written() -> None:
    client, plan = Answering(), Planned()
    client.strangers = {
        SERVICE.kind: {"metadata": {"name": "a", "namespace": "ns", "uid": "x", "resourceVersion": "1"}}
    }
    executor = Executor(client, client.store)  # type: ignore[arg-type]
    with pytest.raises(NameTaken, match="A Service named 'a' exists"):
        await executor.converge(KEY, ("u",), plan, revision=1, replicas=1)
    assert client.applied == []
    client.strangers.clear()
    assert await executor.converge(KEY, ("u",), plan, revision=1, replicas=1) == 2


async def test_a_child_that_lost_its_owner_references_gets_them_back_and_a_strangers_stays() -> None:
    client, plan = Answering(), Planned()
    executor = await settled(client, plan)
    service = client.store.get(SERVICE, "ns", "a")
    assert service is not None
    orphan = {**service, "metadata": {**service["metadata"], "ownerReferences": [], "resourceVersion": "50"}}
    client.store.put(SERVICE, orphan)
    assert await executor.converge(KEY, ("u",), plan, revision=1, replicas=1) == 1
    assert client.applied[-1] == SERVICE.kind
    stranger = {**orphan, "metadata": {**orphan["metadata"], "annotations": {}, "resourceVersion": "60"}}
    client.store.put(SERVICE, stranger)
    with pytest.raises(NameTaken):
        await executor.converge(KEY, ("u",), plan, revision=1, replicas=1)


async def test_a_manager_that_scales_the_child_again_and_again_is_a_rival_for_ten_minutes() -> None:
    now = [0.0]
    client, plan = Answering(), Planned()
    executor = Executor(client, client.store, clock=lambda: now[0])  # type: ignore[arg-type]
    await executor.converge(KEY, ("u",), plan, revision=1, replicas=1)

    async def scaled_by(manager: str, version: int) -> str:
        live = client.store.get(DEPLOYMENT, "ns", "a")
        assert live is not None
        entry = {"manager": manager, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
        meta = {**live["metadata"], "resourceVersion": str(version), "managedFields": [entry]}
        client.store.put(DEPLOYMENT, {**live, "metadata": meta, "spec": {**live["spec"], "replicas": 7}})
        await executor.converge(KEY, ("u",), plan, revision=1, replicas=1)
        return executor.rival(KEY)

    assert await scaled_by("kubectl", 100) == ""
    now[0] += 15
    assert await scaled_by("kube-controller-manager", 200) == "kube-controller-manager"
    now[0] += RIVAL_S - 1
    assert executor.rival(KEY) == ""
