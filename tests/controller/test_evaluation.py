"""The Evaluation's reconciler with an apiserver that only answers."""

from collections.abc import Mapping
from typing import Any

from tests.support.schema import put
from tests.support.whole import EVALUATION as WHOLE

from flotilla.controller.apply import Object, StatusWriter
from flotilla.controller.evaluation import EvaluationReconciler
from flotilla.kube.kinds import EVALUATION, MODEL_DEPLOYMENT, Key, Kind
from flotilla.kube.store import Store, owner

KEY = Key(EVALUATION, "team", "triage")


class Api:
    """Stands for KubeClient."""

    def __init__(self) -> None:
        self.version = 100
        self.writes: list[Object] = []

    async def apply_status(self, kind: Kind, obj: Mapping[str, Any], **_: object) -> Object:
        self.version += 1
        self.writes.append(dict(obj))
        meta = {**obj["metadata"], "generation": 1, "resourceVersion": str(self.version)}
        return {**obj, "metadata": meta, "spec": WHOLE["spec"]}


class Events:
    """Stands for EventRecorder."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def record(self, kind: Kind, live: Object, *, topic: str, reason: str, note: str, type_: str) -> None:
        self.sent.append((type_, reason))


class World:
    """A namespace with an evaluation."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.api, self.events, self.store = Api(), Events(), Store(owner)
        client: Any = self.api
        events: Any = self.events
        self.reconciler = EvaluationReconciler(
            store=self.store,
            status=StatusWriter(client, self.store, interval_s=0, clock=lambda: 0.0),
            events=events,
            allow_private_hosted_addresses=False,
            now=lambda: "2026-01-01T00:00:00Z",
        )
        self.put(EVALUATION, "triage", spec)

    def put(self, kind: Kind, name: str, spec: dict[str, Any]) -> None:
        self.api.version += 1
        meta = {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": 1}
        meta["resourceVersion"] = str(self.api.version)
        self.store.put(kind, {"metadata": meta, "spec": spec})

    async def conditions(self) -> dict[str, tuple[str, str]]:
        """Status and reason by type, after a pass."""
        await self.reconciler.reconcile(KEY)
        live = self.store.get(EVALUATION, "team", "triage")
        assert live is not None
        assert live["status"]["observedGeneration"] == 1
        return {c["type"]: (c["status"], c["reason"]) for c in live["status"]["conditions"]}


SPEC = put(WHOLE["spec"], ("requirements", "quality"), {"minPermille": 900})
MODEL = {"model": {"source": "hf://a/b", "adapters": [{"name": "triage", "source": "hf://a/c"}]}}


async def test_a_sound_evaluation_waits_for_its_targets_and_a_second_pass_writes_nothing() -> None:
    world = World(SPEC)
    before = await world.conditions()
    assert before["Accepted"] == ("True", "Accepted")
    assert before["ResolvedRefs"] == ("False", "ModelDeploymentNotFound")
    assert before["Reconciling"] == ("True", "ModelDeploymentNotFound")
    world.put(MODEL_DEPLOYMENT, "qwen2-5-1-5b", MODEL)
    after = await world.conditions()
    assert after["ResolvedRefs"] == ("True", "ResolvedRefs")
    writes = len(world.api.writes)
    await world.conditions()
    assert len(world.api.writes) == writes


async def test_an_evaluation_that_nothing_but_its_author_can_correct_is_stalled() -> None:
    world = World(put(SPEC, ("targets", 0, "external", "baseURL"), "https://localhost/v1"))
    found = await world.conditions()
    assert found["Accepted"] == ("False", "ForbiddenAddress")
    assert found["Stalled"] == ("True", "ForbiddenAddress")
    assert world.events.sent == [("Warning", "ForbiddenAddress")]


async def test_a_spec_of_another_release_is_named_by_its_field() -> None:
    world = World(put(SPEC, ("scorer", "method"), "Oracle"))
    assert (await world.conditions())["Stalled"] == ("True", "InvalidSpec")
