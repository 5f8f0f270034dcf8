"""The gateway's reconciler with an apiserver and pods that only answer."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.support.routing import SOUND
from tests.support.schema import put

from flotilla.api.routing_policy import ModelDeploymentRef
from flotilla.api.types import SecretKeyRef
from flotilla.constants import ANNOTATION_DOCUMENT, ANNOTATION_TEMPLATE_HASH, GATEWAY
from flotilla.controller.apply import Executor, Object, StatusWriter
from flotilla.controller.gateway import GatewayReconciler, PodNudge
from flotilla.controller.policy_status import GatewayReport
from flotilla.controller.promotions import Promotions
from flotilla.errors import NotReady
from flotilla.evaluation.revision import self_hosted_revision
from flotilla.kube.client import NotFound
from flotilla.kube.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    EVALUATION,
    MODEL_DEPLOYMENT,
    POD,
    ROLE,
    ROLE_BINDING,
    ROUTING_POLICY,
    SERVICE,
    SERVICE_ACCOUNT,
    Key,
    Kind,
    gateway_key,
)
from flotilla.kube.store import Store, owner
from flotilla.render.gateway import MAX_OWNERS, GatewaySettings, selector
from flotilla.routing.document import DOCUMENT_FILE, key_file, load_document
from flotilla.routing.guard_window import GuardKey

KEY = gateway_key("team")
BAD = put(SOUND, ("defaultRoute", "split", 0, "target"), "nowhere")


class Api:
    """Stands for KubeClient: applies are kept, and answered with a newer version."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.pods: dict[str, Object] = {}
        self.writes: list[str] = []
        self.reads: list[str] = []
        self.version = 100
        self.unseen: set[str] = set()
        """Kinds whose next write is answered 404, as by an apiserver that does not see yet what it was just told."""

    async def get(self, kind: Kind, name: str, *, namespace: str) -> Object | None:
        self.reads.append(kind.kind)
        return self.objects.get((kind.kind, name))

    async def apply(self, kind: Kind, obj: Mapping[str, Any], **_: object) -> Object:
        self.version += 1
        name = obj["metadata"]["name"]
        if kind.kind in self.unseen or (kind == ROLE_BINDING and (ROLE.kind, name) not in self.objects):
            self.unseen.discard(kind.kind)
            raise NotFound(f'{kind.plural} "{name}" not found (HTTP 404)')
        self.writes.append(kind.kind)
        meta = {"uid": f"{kind.kind}-{name}", **obj["metadata"], "resourceVersion": str(self.version)}
        self.objects[kind.kind, name] = {**obj, "metadata": meta}
        return self.objects[kind.kind, name]

    async def patch(self, kind: Kind, name: str, body: Mapping[str, Any], *, namespace: str) -> Object:
        self.version += 1
        self.writes.append(f"patch {kind.kind}")
        known = self.pods[name]
        meta = {**known["metadata"], **body["metadata"], "resourceVersion": str(self.version)}
        self.pods[name] = {**known, "metadata": meta}
        return self.pods[name]

    async def apply_status(self, kind: Kind, obj: Mapping[str, Any], **_: object) -> Object:
        self.version += 1
        self.writes.append(f"{kind.kind} {obj['metadata']['name']}")
        known = self.objects[kind.kind, obj["metadata"]["name"]]
        meta = {**known["metadata"], "resourceVersion": str(self.version)}
        self.objects[kind.kind, obj["metadata"]["name"]] = {**known, "metadata": meta, "status": obj["status"]}
        return self.objects[kind.kind, obj["metadata"]["name"]]


class Pods:
    """Stands for GatewayReader."""

    def __init__(self) -> None:
        self.serves = ""
        self.lacks: tuple[str, ...] = ()
        self.asked = 0

    async def ask(self, pods: Mapping[str, str]) -> dict[str, GatewayReport]:
        self.asked += 1
        return dict.fromkeys(pods, GatewayReport(self.serves, missing_keys=self.lacks))


class Events:
    """Stands for EventRecorder."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def record(self, kind: Kind, live: Object, *, topic: str, reason: str, note: str, type_: str) -> None:
        self.told.append((type_, reason))


class World:
    """A namespace with its operator."""

    def __init__(self) -> None:
        self.api, self.pods = Api(), Pods()
        self.store = Store(owner)
        self.events = Events()
        self.now_s = 1_800_000_000.0
        self.queued: list[Key] = []
        self.moves: list[tuple[str, ...]] = []
        self.restart()

    def restart(self) -> None:
        """A new operator that has listed everything."""
        client: Any = self.api
        reader: Any = self.pods
        self.promotions = Promotions(self.store, clock=lambda: self.now_s, enqueue=self.queued.append)
        events: Any = self.events
        self.reconciler = GatewayReconciler(
            store=self.store,
            executor=Executor(client, self.store),
            status=StatusWriter(client, self.store, interval_s=0, clock=lambda: 0.0),
            events=events,
            reader=reader,
            settings=GatewaySettings(image="flotilla:1"),
            allow_private_hosted_addresses=False,
            now=lambda: "2026-01-01T00:00:00Z",
            promotions=self.promotions,
            nudge=PodNudge(client, self.store),
            moved=lambda *moved: self.moves.extend([moved[:4]] * moved[4]),
        )

    def policy(self, name: str, spec: dict[str, Any], generation: int = 1) -> None:
        """A user applies a policy."""
        self.api.version += 1
        meta = {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "generation": generation,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "resourceVersion": str(self.api.version),
        }
        known = self.api.objects.get((ROUTING_POLICY.kind, name), {})
        obj = {"metadata": meta, "spec": spec, **({"status": known["status"]} if "status" in known else {})}
        self.api.objects[ROUTING_POLICY.kind, name] = obj
        self.store.put(ROUTING_POLICY, obj)

    def delete(self, name: str) -> None:
        """A user deletes a policy."""
        self.store.drop(ROUTING_POLICY, self.api.objects.pop((ROUTING_POLICY.kind, name)))

    def pod(self, *, restarts: int = 0) -> None:
        """A replica is ready."""
        self.api.version += 1
        replicaset = {"kind": "ReplicaSet", "name": f"{GATEWAY}-1", "uid": "rs", "controller": True}
        meta = {"name": "gw", "namespace": "team", "uid": "pod", "labels": selector(), "ownerReferences": [replicaset]}
        status = {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"restartCount": restarts}],
        }
        pod: Object = {"metadata": {**meta, "resourceVersion": str(self.api.version)}, "status": status}
        self.api.pods["gw"] = pod
        self.store.put(POD, pod)

    def condition(self, name: str, type_: str) -> tuple[str, str]:
        """Status and reason."""
        conditions = self.api.objects[ROUTING_POLICY.kind, name]["status"]["conditions"]
        found = next(c for c in conditions if c["type"] == type_)
        return found["status"], found["reason"]

    @property
    def document(self) -> bytes:
        """What the ConfigMap holds."""
        text: str = self.api.objects[CONFIG_MAP.kind, GATEWAY]["data"][DOCUMENT_FILE]
        return text.encode()

    async def settle(self) -> None:
        """Pods serve what the ConfigMap has; then reconcile twice."""
        await self.reconciler.reconcile(KEY)
        self.pods.serves = load_document(self.document).hash
        assert await self.reconciler.reconcile(KEY) is None


async def served() -> World:
    world = World()
    world.policy("a", SOUND)
    for name in ("qwen-small", "qwen-medium"):
        meta = {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1"}
        world.store.put(MODEL_DEPLOYMENT, {"metadata": meta, "spec": {}})
    world.pod()
    await world.settle()
    assert world.condition("a", "Programmed") == ("True", "Programmed")
    return world


async def test_a_policy_gets_a_gateway_and_is_programmed_when_its_pods_say_so() -> None:
    world = World()
    world.policy("a", SOUND)
    assert await world.reconciler.reconcile(KEY) is None
    assert world.condition("a", "Programmed") == ("False", "GatewayStarting")
    made = [kind for kind in world.api.writes if " " not in kind]
    assert made == [
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ConfigMap",
        "NetworkPolicy",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
    ]
    world.pod()
    assert await world.reconciler.reconcile(KEY) is not None  # looks again by itself: nothing tells of a reload
    assert world.condition("a", "Programmed") == ("False", "GatewayUpdating")
    world.pods.serves = load_document(world.document).hash
    assert await world.reconciler.reconcile(KEY) is None
    assert world.condition("a", "Programmed") == ("True", "Programmed")


async def test_a_steady_gateway_makes_no_write_and_asks_no_pod() -> None:
    world = await served()
    world.api.writes.clear()
    asked = world.pods.asked
    assert await world.reconciler.reconcile(KEY) is None
    assert (world.api.writes, world.pods.asked) == ([], asked)


async def test_a_restarted_operator_writes_nothing_and_keeps_what_was_accepted() -> None:
    world = await served()
    world.policy("a", BAD, generation=2)
    await world.reconciler.reconcile(KEY)
    before = world.document
    world.restart()
    world.api.writes.clear()
    await world.reconciler.reconcile(KEY)
    assert world.api.writes == []
    assert world.document == before
    assert world.condition("a", "Accepted") == ("False", "UnknownTarget")
    assert world.condition("a", "Programmed") == ("False", "OlderGenerationServed")
    assert world.events.told == [("Normal", "Ready"), ("Warning", "UnknownTarget")]


async def test_a_binding_answered_404_in_the_pass_that_makes_its_role_is_tried_again_at_once_and_no_error_is_told() -> (
    None
):
    world = World()
    world.policy("a", SOUND)
    world.api.unseen.add(ROLE_BINDING.kind)
    assert await world.reconciler.reconcile(KEY) is None
    assert [kind for kind in world.api.writes if kind in ("Role", "RoleBinding")] == ["Role", "RoleBinding"]
    assert world.condition("a", "Programmed") == ("False", "GatewayStarting")


async def test_a_role_that_went_unseen_is_made_again_when_its_binding_is_answered_404() -> None:
    world = await served()
    binding = world.store.get(ROLE_BINDING, "team", GATEWAY)
    assert binding is not None
    world.store.drop(ROLE_BINDING, binding)
    for kind in (ROLE, ROLE_BINDING):  # both deleted, of which only the listing of bindings told
        del world.api.objects[kind.kind, GATEWAY]
    world.api.writes.clear()
    assert await world.reconciler.reconcile(KEY) is None
    assert world.api.writes == ["Role", "RoleBinding"]
    assert world.condition("a", "Programmed") == ("True", "Programmed")
    world.api.reads.clear()
    await world.reconciler.reconcile(KEY)
    assert world.api.reads == [], "what was read once more is known again"


async def test_a_404_that_stays_is_waited_out_by_the_queue_and_told() -> None:
    world = World()
    world.policy("a", SOUND)
    world.api.unseen.add(SERVICE_ACCOUNT.kind)  # of a namespace that is new, say
    with pytest.raises(NotReady):
        await world.reconciler.reconcile(KEY)
    assert world.condition("a", "Programmed") == ("False", "GatewayWaiting")
    assert await world.reconciler.reconcile(KEY) is None
    assert world.condition("a", "Programmed") == ("False", "GatewayStarting")


async def test_a_container_that_started_again_is_asked_again() -> None:
    world = await served()
    asked = world.pods.asked
    world.pod(restarts=1)
    await world.reconciler.reconcile(KEY)
    assert world.pods.asked == asked + 1


async def test_a_key_that_the_gateway_does_not_find_is_told_until_it_does() -> None:
    world = await served()
    world.pods.lacks = (key_file(SecretKeyRef(name="provider", key="api-key")),)
    world.pod(restarts=1)
    assert await world.reconciler.reconcile(KEY) is not None  # no event tells of Secrets
    assert world.condition("a", "ResolvedRefs") == ("False", "SecretKeyNotFound")
    assert world.condition("a", "Programmed") == ("True", "Programmed")
    world.pods.lacks = ()
    assert await world.reconciler.reconcile(KEY) is None
    assert world.condition("a", "Ready") == ("True", "Ready")


async def test_a_policy_that_was_never_sound_has_no_gateway_and_owns_none() -> None:
    world = World()
    world.policy("bad", BAD)
    await world.reconciler.reconcile(KEY)
    assert world.api.writes == ["RoutingPolicy bad"]
    world.policy("a", SOUND)
    await world.reconciler.reconcile(KEY)
    references = world.api.objects[SERVICE.kind, GATEWAY]["metadata"]["ownerReferences"]
    assert [reference["name"] for reference in references] == ["a"]


async def test_each_served_policy_becomes_an_owner_and_a_deleted_one_is_taken_off() -> None:
    world = await served()
    world.policy("b", {**SOUND, "hostModels": ["other"]})
    await world.settle()
    both = world.api.objects[DEPLOYMENT.kind, GATEWAY]["metadata"]["ownerReferences"]
    assert {reference["name"] for reference in both} == {"a", "b"}
    world.delete("a")
    await world.settle()
    left = world.api.objects[DEPLOYMENT.kind, GATEWAY]["metadata"]["ownerReferences"]
    assert {reference["name"] for reference in left} == {"b"}
    assert [policy.name for policy in load_document(world.document).policies] == ["b"]


async def test_a_new_policy_waits_until_the_gateway_of_deleted_ones_is_collected() -> None:
    world = await served()
    world.delete("a")
    assert await world.reconciler.reconcile(KEY) is None
    world.policy("b", SOUND)
    with pytest.raises(NotReady, match="still being collected"):
        await world.reconciler.reconcile(KEY)
    assert world.condition("b", "Programmed") == ("False", "GatewayWaiting")
    for kind in ("ServiceAccount", "Role", "RoleBinding", "ConfigMap", "NetworkPolicy"):
        del world.api.objects[kind, GATEWAY]  # nobody watches these
    for watched in (DEPLOYMENT, SERVICE):
        world.store.drop(watched, world.api.objects.pop((watched.kind, GATEWAY)))
    with pytest.raises(NotReady, match="PodDisruptionBudget"):
        await world.reconciler.reconcile(KEY)


async def test_a_strangers_object_of_the_gateways_name_is_left_alone() -> None:
    world = World()
    stranger = {"metadata": {"name": GATEWAY, "namespace": "team", "uid": "x", "resourceVersion": "1"}, "data": {}}
    world.api.objects[CONFIG_MAP.kind, GATEWAY] = stranger
    world.policy("a", SOUND)
    assert await world.reconciler.reconcile(KEY) is not None
    assert world.condition("a", "Programmed") == ("False", "NameConflict")
    assert world.api.objects[CONFIG_MAP.kind, GATEWAY] is stranger


async def test_a_policy_for_which_the_document_has_no_space_is_left_out_and_the_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await served()
    before = world.document
    (a,) = load_document(before).policies
    for module in ("routing.budgets", "controller.policy_status"):
        monkeypatch.setattr(f"flotilla.{module}.MAX_BYTES", 2 * a.size + 100)
    models = [f"model-{number}" for number in range(200)]
    world.policy("b", {**SOUND, "hostModels": models[:100]})
    await world.reconciler.reconcile(KEY)
    assert world.condition("b", "Accepted") == ("True", "Accepted")
    assert world.condition("b", "Programmed") == ("False", "DocumentTooLarge")
    assert world.condition("b", "Stalled") == ("True", "DocumentTooLarge")
    assert world.document == before
    # A smaller one that is newer has space, and edits of those that are served arrive.
    world.policy("c", {**SOUND, "hostModels": ["other"]})
    world.policy("a", {**SOUND, "hostModels": ["mine"]}, generation=2)
    await world.settle()
    assert [(policy.name, policy.generation) for policy in load_document(world.document).policies] == [
        ("a", 2),
        ("c", 1),
    ]
    assert world.condition("c", "Programmed") == ("True", "Programmed")
    # One that is served and becomes too large keeps its last form.
    world.policy("c", {**SOUND, "hostModels": models[100:]}, generation=2)
    await world.settle()
    assert world.condition("c", "Programmed") == ("False", "DocumentTooLarge")
    assert load_document(world.document).by_name["c"].generation == 1
    world.delete("a")
    await world.settle()
    assert world.condition("c", "Programmed") == ("True", "Programmed")
    assert world.condition("b", "Programmed") == ("False", "DocumentTooLarge")


async def test_the_oldest_policies_own_a_gateway_and_the_next_takes_the_place_of_a_deleted_one() -> None:
    world = await served()
    for number in range(2 * MAX_OWNERS):
        world.policy(f"p{number:02}", {**SOUND, "hostModels": [f"model-{number}"]})
    await world.settle()

    def owners() -> list[str]:
        references = world.api.objects[DEPLOYMENT.kind, GATEWAY]["metadata"]["ownerReferences"]
        return sorted(reference["name"] for reference in references)

    assert owners() == ["a", *(f"p{number:02}" for number in range(MAX_OWNERS - 1))]
    assert len(load_document(world.document).policies) == 2 * MAX_OWNERS + 1
    world.delete("p03")
    await world.settle()
    assert len(owners()) == MAX_OWNERS
    assert f"p{MAX_OWNERS - 1:02}" in owners()
    world.api.writes.clear()
    world.restart()
    await world.settle()
    assert world.api.writes == []


def test_what_belongs_to_a_gateway_wakes_its_namespace() -> None:
    policy = {"apiVersion": "flotilla.dev/v1alpha1", "kind": "RoutingPolicy", "name": "a", "uid": "u"}
    assert owner(SERVICE, {"metadata": {"name": GATEWAY, "namespace": "team", "ownerReferences": [policy]}}) == KEY
    replicaset = {"kind": "ReplicaSet", "name": f"{GATEWAY}-6f", "uid": "r", "controller": True}
    pod = {"metadata": {"name": "p", "namespace": "team", "labels": selector(), "ownerReferences": [replicaset]}}
    assert owner(POD, pod) == KEY
    pod["metadata"]["ownerReferences"] = [{**replicaset, "name": "stranger-6f"}]
    assert owner(POD, pod) is None
    model = {"apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelDeployment", "name": "m", "uid": "u"}
    child = {"metadata": {"name": "m", "namespace": "team", "ownerReferences": [{**model, "controller": True}]}}
    assert owner(DEPLOYMENT, child) == Key(MODEL_DEPLOYMENT, "team", "m")


SMALL = Key(MODEL_DEPLOYMENT, "team", "qwen-small")
PREFERENCE = {
    "preference": [{"target": "small", "evaluations": ["triage"]}, {"target": "frontier"}],
    "promotion": {
        "steps": [{"percent": 5, "minutes": 1}, {"percent": 25, "minutes": 1}],
        "guard": {"errorPermille": 50, "minRequests": 10},
    },
}
BY_EVIDENCE = {**SOUND, "rules": [], "defaultRoute": PREFERENCE}


class Evidence(World):
    """A namespace whose default route goes by evidence, with pods that serve whatever the ConfigMap holds."""

    counts: tuple[int, ...] = (0,) * 6

    def model(self, template: str) -> str:
        """A ModelDeployment whose Deployment has this template; returns its revision."""
        self.api.version += 1
        meta = {"name": SMALL.name, "namespace": "team", "uid": "m", "resourceVersion": str(self.api.version)}
        model = {"metadata": meta, "spec": {}}
        deployment = {"metadata": {**meta, "uid": "d", "annotations": {ANNOTATION_TEMPLATE_HASH: template}}, "spec": {}}
        self.store.put(MODEL_DEPLOYMENT, model)
        self.store.put(DEPLOYMENT, deployment)
        revision = self_hosted_revision(ModelDeploymentRef(name=SMALL.name), model, deployment)
        assert revision is not None
        return revision

    def verdict(self, revision: str, verdict: str = "Qualified") -> None:
        """An Evaluation has judged a revision."""
        self.api.version += 1
        meta = {"name": "triage", "namespace": "team", "uid": "e", "resourceVersion": str(self.api.version)}
        result = {
            "target": "base",
            "revision": revision,
            "verdict": verdict,
            "message": "950 of 1000 cases are right.",
            "finishedTime": "2026-01-01T00:00:00Z",
        }
        spec = {"targets": [{"name": "base", "modelDeploymentRef": {"name": SMALL.name}}]}
        self.store.put(EVALUATION, {"metadata": meta, "spec": spec, "status": {"results": [result]}})

    async def look(self, after_s: float = 0.0, *, requests: int = 0, errors: int = 0) -> dict[str, int]:
        """The gateway counts requests, then the operator looks; the shares of the document by target."""
        shares = (
            {share.target: share for share in self.route.shares}
            if (CONFIG_MAP.kind, GATEWAY) in self.api.objects
            else {}
        )
        more = (requests, errors, requests, 0, 0, 0)
        self.counts = tuple(old + new for old, new in zip(self.counts, more, strict=True))
        rows = {
            GuardKey("a", "default", "small", shares["small"].revision): tuple(self.counts)
            for _ in range("small" in shares)
        }
        self.now_s += after_s
        self.promotions.observe("team", {"pod": rows})
        await self.reconciler.reconcile(KEY)
        self.pods.serves = load_document(self.document).hash
        await self.reconciler.reconcile(KEY)
        return {share.target: share.percent for share in self.route.shares}

    @property
    def route(self) -> Any:
        """The state of the default route in the ConfigMap."""
        return load_document(self.document).policies[0].route_status["default"]

    def status(self) -> Any:
        """The policy's status."""
        return self.api.objects[ROUTING_POLICY.kind, "a"]["status"]


async def by_evidence() -> Evidence:
    world = Evidence()
    world.policy("a", BY_EVIDENCE)
    other = {"name": "qwen-medium", "namespace": "team", "uid": "other", "resourceVersion": "1"}
    world.store.put(MODEL_DEPLOYMENT, {"metadata": other, "spec": {}})
    world.verdict(world.model("t1"))
    world.pod()
    for _ in range(2):  # the first report of a gateway only says from where to count
        assert await world.look() == {"small": 5, "frontier": 95}
    return world


async def test_a_qualified_target_takes_the_traffic_step_by_step_and_the_status_says_so() -> None:
    world = await by_evidence()
    assert world.condition("a", "Promoting") == ("True", "Promoting")
    assert world.condition("a", "Ready") == ("True", "Ready")
    assert await world.look(61, requests=9) == {"small": 5, "frontier": 95}
    assert await world.look(1, requests=1) == {"small": 25, "frontier": 75}
    assert await world.look(61, requests=20) == {"small": 100}
    assert world.condition("a", "Promoting") == ("False", "Settled")
    assert world.condition("a", "Qualified") == ("True", "Qualified")
    (rule,) = world.status()["rules"]
    assert (rule["name"], rule["holder"], rule["reason"]) == ("default", "small", "Promoted")
    assert [reason for _, reason in world.events.told if reason in ("Promoting", "Promoted")][-1] == "Promoted"
    assert [reason for *_, reason in world.moves] == ["Promoting", "Promoting", "Promoted"]
    world.api.writes.clear()
    assert await world.look(600) == {"small": 100}
    assert world.api.writes == []


async def test_a_breached_guard_takes_the_traffic_back_and_a_restart_does_not_forget_it() -> None:
    world = await by_evidence()
    assert await world.look(2, requests=4, errors=4) == {"frontier": 100}
    assert world.condition("a", "Qualified") == ("False", "GuardBreached")
    assert ("Warning", "GuardBreached") in world.events.told
    world.restart()
    assert await world.look(3600) == {"frontier": 100}


async def test_a_restart_in_the_middle_of_a_step_continues_with_it() -> None:
    world = await by_evidence()
    await world.look(61, requests=20)
    assert await world.look(30) == {"small": 25, "frontier": 75}
    since = world.route.since
    world.restart()
    for _ in range(2):
        assert await world.look(1) == {"small": 25, "frontier": 75}
    assert world.route.since == since
    assert await world.look(60, requests=5) == {"small": 25, "frontier": 75}
    assert await world.look(1, requests=15) == {"small": 100}


async def test_a_new_template_waits_until_the_gateways_route_to_the_pilot() -> None:
    world = await by_evidence()
    assert world.promotions.release(SMALL, "t1") is None
    assert world.promotions.release(SMALL, "t2") == 1.0
    assert world.queued[-1] == KEY
    await world.reconciler.reconcile(KEY)  # the ConfigMap has it, and the pod does not yet
    assert world.promotions.release(SMALL, "t2") == 1.0
    assert world.api.pods["gw"]["metadata"]["annotations"][ANNOTATION_DOCUMENT] == load_document(world.document).hash
    assert await world.look() == {"frontier": 100}
    assert world.queued[-1] == SMALL
    assert world.promotions.release(SMALL, "t2") is None
    revision = world.model("t2")
    assert await world.look(1) == {"frontier": 100}
    assert world.condition("a", "Qualified") == ("False", "VerdictLost")
    world.verdict(revision)
    assert await world.look(1) == {"small": 5, "frontier": 95}


async def test_a_rollout_does_not_wait_for_ever_for_a_gateway_that_does_not_answer() -> None:
    world = await by_evidence()
    assert world.promotions.release(SMALL, "t2") == 1.0
    world.now_s += 61
    assert world.promotions.release(SMALL, "t2") is None


async def test_a_changed_model_that_no_verdict_lets_have_traffic_waits_for_nothing() -> None:
    world = await by_evidence()
    world.verdict("other")
    assert await world.look(1) == {"frontier": 100}
    assert world.promotions.release(SMALL, "t2") is None


class Dying(Exception):
    """The operator's process ends in the middle of a pass."""


async def test_an_operator_that_dies_at_any_write_of_a_move_ends_with_the_same_traffic() -> None:
    """Each write of a breach is in turn the last one of a process; a new one converges to what a whole run does."""
    calm = await by_evidence()
    assert await calm.look(2, requests=4, errors=4) == {"frontier": 100}
    await calm.look(2)
    dying = 0
    while True:
        world = await by_evidence()
        left = dying
        apply, apply_status, patch = world.api.apply, world.api.apply_status, world.api.patch

        def counted(call: Any) -> Any:
            async def write(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Dying
                left -= 1
                return await call(*arguments, **named)

            return write

        api: Any = world.api
        api.apply, api.apply_status, api.patch = counted(apply), counted(apply_status), counted(patch)
        try:
            await world.look(2, requests=4, errors=4)
        except Dying:
            api.apply, api.apply_status, api.patch = apply, apply_status, patch
            world.restart()
            for _ in range(2):
                await world.look(2)
            if dying == 0:  # nothing was written, so that the gateways must show the failures again
                await world.look(2, requests=4, errors=4)
            await world.look(2)
        else:
            break
        assert {s.target: s.percent for s in world.route.shares} == {"frontier": 100}
        assert world.route.reason == calm.route.reason == "GuardBreached"
        assert world.status()["rules"][0]["shares"] == calm.status()["rules"][0]["shares"]
        dying += 1
    assert dying >= 2
