"""The Evaluation's reconciler with an apiserver that only answers: from the spec to a Job, and to its results."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tests.support.schema import REMOVED, put
from tests.support.whole import EVALUATION as WHOLE

from flotilla.constants import ANNOTATION_PLAN, ANNOTATION_TEMPLATE_HASH, LABEL_EVALUATION
from flotilla.controller.apply import Object, StatusWriter
from flotilla.controller.evaluation import EvaluationReconciler
from flotilla.cost.ledger import Account, Ledger
from flotilla.evaluation.plan import load_plan
from flotilla.kube.kinds import DEPLOYMENT, EVALUATION, MODEL_DEPLOYMENT, POD, Key, Kind
from flotilla.kube.store import Store, owner

KEY = Key(EVALUATION, "team", "triage")
MODEL_KEY = Key(MODEL_DEPLOYMENT, "team", "qwen2-5-1-5b")


class Api:
    """Stands for KubeClient: what is applied is kept, and answered with a newer version."""

    def __init__(self) -> None:
        self.version = 100
        self.writes: list[str] = []
        self.jobs: dict[str, Object] = {}
        self.live: Object = {}

    async def apply_status(self, kind: Kind, obj: Mapping[str, Any], **_: object) -> Object:
        self.version += 1
        self.writes.append("status")
        return {**self.live, **obj, "metadata": {**self.live["metadata"], "resourceVersion": str(self.version)}}

    async def get(self, kind: Kind, name: str, *, namespace: str) -> Object | None:
        return self.jobs.get(name)

    async def apply(self, kind: Kind, obj: Mapping[str, Any], **_: object) -> Object:
        self.version += 1
        name = obj["metadata"]["name"]
        self.writes.append(f"Job {name}")
        meta = {**obj["metadata"], "uid": f"uid-{name}", "resourceVersion": str(self.version)}
        self.jobs[name] = {**obj, "metadata": meta}
        return self.jobs[name]

    async def delete(self, kind: Kind, name: str, **_: object) -> bool:
        self.writes.append(f"delete {name}")
        return self.jobs.pop(name, None) is not None


class Events:
    """Stands for EventRecorder."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def record(self, kind: Kind, live: Object, *, reason: str, type_: str, **_: object) -> None:
        self.sent.append((type_, reason))


class Progress:
    """Stands for ProgressReader."""

    async def ask(self, address: str) -> tuple[int, int] | None:
        return (30, 200) if address else None


class Basis:
    """Stands for CostBasis."""

    def __init__(self) -> None:
        from flotilla.cost.hosted_prices import TokenWeights

        self.weights = TokenWeights()


class World:
    """A namespace with an evaluation."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.api, self.events, self.store, self.ledger = Api(), Events(), Store(owner), Ledger()
        self.now = "2026-01-01T00:00:00Z"
        client: Any = self.api
        events: Any = self.events
        progress: Any = Progress()
        bases: Any = {MODEL_KEY: Basis()}
        self.reconciler = EvaluationReconciler(
            client=client,
            store=self.store,
            status=StatusWriter(client, self.store, interval_s=0, clock=lambda: 0.0),
            events=events,
            progress=progress,
            ledger=self.ledger,
            bases=bases,
            image="flotilla:1",
            allow_private_hosted_addresses=False,
            now=lambda: self.now,
        )
        self.api.live = self.put(EVALUATION, "triage", {"spec": spec})

    def put(self, kind: Kind, name: str, parts: dict[str, Any], **meta: Any) -> Object:
        self.api.version += 1
        known = {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": 1}
        obj = {"metadata": {**known, "resourceVersion": str(self.api.version), **meta}, **parts}
        self.store.put(kind, obj)
        return obj

    def serve(self, template: str = "t1", *, ready: int = 1) -> None:
        """The target's ModelDeployment and its Deployment."""
        self.put(MODEL_DEPLOYMENT, "qwen2-5-1-5b", {"spec": MODEL})
        status = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": ready, "observedGeneration": 1}
        self.put(
            DEPLOYMENT,
            "qwen2-5-1-5b",
            {"spec": {"replicas": 1}, "status": status},
            annotations={ANNOTATION_TEMPLATE_HASH: template},
            uid="deployment",
        )

    def pod(self, container: dict[str, Any]) -> None:
        """The pod of the only Job."""
        (name,) = self.api.jobs
        scheduled = {"type": "PodScheduled", "status": "True"}
        self.put(
            POD,
            f"{name}-x",
            {"status": {"podIP": "10.0.0.9", "conditions": [scheduled], "containerStatuses": [container]}},
            labels={LABEL_EVALUATION: "triage"},
            ownerReferences=[{"kind": "Job", "name": name, "uid": f"uid-{name}", "controller": True}],
        )

    def end(self, summary: dict[str, Any], **state: Any) -> None:
        """The container of the only Job ends with a message."""
        ended = {"exitCode": 0, "message": json.dumps(summary), "finishedAt": "2026-01-01T00:10:00Z", **state}
        self.pod({"state": {"terminated": ended}})

    async def step(self) -> dict[str, tuple[str, str]]:
        """Status and reason by type, after a pass."""
        self.again_s = await self.reconciler.reconcile(KEY)
        assert self.status["observedGeneration"] == 1
        return {c["type"]: (c["status"], c["reason"]) for c in self.status["conditions"]}

    @property
    def status(self) -> dict[str, Any]:
        live = self.store.get(EVALUATION, "team", "triage")
        assert live is not None
        return dict(live["status"])


LABEL = {"method": "Label", "labels": ["a", "b"]}
SPEC = put(put(WHOLE["spec"], ("scorer",), LABEL), ("rerun", "everyHours"), REMOVED)
SPEC = put(SPEC, ("requirements",), {"quality": {"minPermille": 900}, "costPerThousandTasksUSD": "3"})
MODEL = {"model": {"source": "hf://a/b", "adapters": [{"name": "triage", "source": "hf://a/c"}]}}


def summary(plan: Any, hits: int = 195) -> dict[str, Any]:
    """What a run of 200 cases leaves."""
    revisions = {target.name: target.revision for target in plan.targets}
    small = {"t": "small", "r": revisions["small"], "s": {"1000": hits, "0": 200 - hits}, "n": 200, "y": 200}
    small |= {"i": 1000, "o": 100}
    frontier = {"t": "frontier", "r": revisions["frontier"], "s": {"1000": 200}, "n": 200, "y": 200, "u": "0.5"}
    return {"digest": "sha256:abc", "total": 400, "targets": [frontier, small]}


def plan_of(world: World) -> Any:
    (job,) = world.api.jobs.values()
    return load_plan(job["spec"]["template"]["metadata"]["annotations"][ANNOTATION_PLAN])


async def started() -> World:
    world = World(SPEC)
    world.serve()
    await world.step()
    return world


async def test_an_evaluation_waits_until_its_targets_exist_and_serve() -> None:
    world = World(SPEC)
    before = await world.step()
    assert before["Accepted"] == ("True", "Accepted")
    assert before["ResolvedRefs"] == ("False", "ModelDeploymentNotFound")
    assert before["Reconciling"] == ("True", "ModelDeploymentNotFound")
    world.serve(ready=0)
    assert (await world.step())["Complete"] == ("False", "TargetsNotReady")
    assert not world.api.jobs


async def test_a_run_is_a_job_without_rights_that_has_all_it_needs() -> None:
    world = await started()
    (job,) = world.api.jobs.values()
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "evaluations"
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    plan = plan_of(world)
    assert [target.url for target in plan.targets] == [
        "https://api.openai.com/v1",
        "http://qwen2-5-1-5b.team.svc:8000/v1",
    ]
    assert plan.targets[1].model == "triage"
    assert plan.targets[0].key_file
    sources = {volume["name"]: volume for volume in pod["volumes"]}
    assert sources["keys"]["projected"]["sources"][0]["secret"]["name"] == "openai"
    assert sources["results"]["persistentVolumeClaim"] == {"claimName": "results"}
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket"}}]


async def test_progress_is_in_the_status_while_the_run_goes_on() -> None:
    world = await started()
    world.pod({"state": {"running": {}}, "ready": True})
    assert (await world.step())["Complete"] == ("False", "Running")
    assert (world.status["run"]["casesDone"], world.status["run"]["casesTotal"]) == (30, 200)
    assert world.again_s is not None
    assert world.again_s <= 5


async def test_a_run_that_ends_becomes_results_events_and_dollars_and_then_nothing_is_written() -> None:
    world = await started()
    world.ledger.restore(MODEL_KEY, account(usd="10", prompt=5000, generated=500))
    world.pod({"state": {"running": {}}, "ready": True})
    await world.step()
    # Half of the deployment's work meanwhile was the evaluation's.
    world.ledger.accounts[MODEL_KEY] = account(usd="11", prompt=7000, generated=700)
    world.end(summary(plan_of(world)))
    found = await world.step()
    assert (found["Complete"], found["Ready"]) == (("True", "Complete"), ("True", "Ready"))
    frontier, small = world.status["results"]
    assert (small["verdict"], small["cases"], small["qualityPermille"]) == ("Qualified", 200, 975)
    assert (small["costPerThousandTasksUSD"], frontier["costPerThousandTasksUSD"]) == ("2.5", "2.5")
    assert small["finishedTime"] == "2026-01-01T00:10:00Z"
    assert world.status["summary"] == "frontier: Qualified, small: Qualified"
    assert world.status["datasetDigest"] == "sha256:abc"
    assert "run" not in world.status
    assert ("Normal", "Qualified") in world.events.sent
    writes = len(world.api.writes)
    await world.step()
    assert len(world.api.writes) == writes


def account(*, usd: str, prompt: int, generated: int) -> Account:
    made = Account(priced=True)
    made.usd["serving"] = Decimal(usd)
    made.tokens |= {"prompt": Decimal(prompt), "generated": Decimal(generated)}
    return made


async def test_a_target_that_serves_something_else_is_evaluated_again_and_the_old_job_goes() -> None:
    world = await started()
    world.end(summary(plan_of(world)))
    await world.step()
    (old,) = world.api.jobs
    world.serve("t2")
    assert (await world.step())["Complete"] == ("False", "Starting")
    (new,) = world.api.jobs
    assert new != old
    assert world.status["run"]["reason"] == "RevisionChanged"
    # The old results stay, with the revision that they are about.
    assert world.status["results"][1]["revision"] != plan_of(world).targets[1].revision


async def test_a_change_during_a_run_starts_it_anew() -> None:
    world = await started()
    (old,) = world.api.jobs
    world.serve("t2")
    await world.step()
    assert world.api.writes.count(f"delete {old}") == 1
    assert len(world.api.jobs) == 1


async def test_results_that_are_too_old_are_measured_again() -> None:
    world = World(put(SPEC, ("rerun",), {"everyHours": 24}))
    world.serve()
    await world.step()
    world.end(summary(plan_of(world)))
    await world.step()
    await world.step()
    assert world.again_s is not None
    assert 23 * 3600 < world.again_s <= 24.5 * 3600
    world.now = "2026-01-02T00:10:00Z"
    await world.step()
    assert world.status["run"]["reason"] == "Due"
    assert len(world.api.jobs) == 1


async def test_disabled_reruns_leave_the_results_as_they_are() -> None:
    world = World(put(SPEC, ("rerun",), {"afterChange": "Disabled"}))
    world.serve()
    await world.step()
    world.end(summary(plan_of(world)))
    await world.step()
    world.serve("t2")
    await world.step()
    assert "run" not in world.status


async def test_a_wrong_dataset_stalls_and_an_unreachable_target_does_not() -> None:
    world = await started()
    world.end({"error": "line 3: no JSON.", "reason": "DatasetInvalid"})
    found = await world.step()
    assert (found["Complete"], found["Stalled"]) == (("False", "DatasetInvalid"), ("True", "DatasetInvalid"))
    other = await started()
    last = {
        "terminated": {"exitCode": 3, "message": json.dumps({"error": "Target down.", "reason": "TargetUnreachable"})}
    }
    other.pod({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last, "restartCount": 1})
    found = await other.step()
    assert found["Complete"] == ("False", "TargetUnreachable")
    assert found["Stalled"][0] == "False"


async def test_an_evaluation_that_nothing_but_its_author_can_correct_is_stalled() -> None:
    world = World(put(SPEC, ("targets", 0, "external", "baseURL"), "https://localhost/v1"))
    found = await world.step()
    assert found["Accepted"] == ("False", "ForbiddenAddress")
    assert found["Stalled"] == ("True", "ForbiddenAddress")
    assert world.events.sent == [("Warning", "ForbiddenAddress")]


async def test_a_spec_of_another_release_is_named_by_its_field() -> None:
    world = World(put(SPEC, ("scorer", "method"), "Oracle"))
    assert (await world.step())["Stalled"] == ("True", "InvalidSpec")
