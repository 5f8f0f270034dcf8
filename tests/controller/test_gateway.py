"""The gateway's reconciler with an apiserver and pods that only answer."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.support.routing import SOUND
from tests.support.schema import put

from flotilla.api.types import SecretKeyRef
from flotilla.constants import GATEWAY
from flotilla.controller.apply import Executor, Object, StatusWriter
from flotilla.controller.gateway import GatewayReconciler
from flotilla.controller.policy_status import GatewayReport
from flotilla.errors import NotReady
from flotilla.kube.client import NotFound
from flotilla.kube.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
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
from flotilla.render.gateway import GatewaySettings, selector
from flotilla.routing.document import DOCUMENT_FILE, key_file, load_document

KEY = gateway_key("team")
BAD = put(SOUND, ("defaultRoute", "split", 0, "target"), "nowhere")


class Api:
    """Stands for KubeClient: applies are kept, and answered with a newer version."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
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
        self.restart()

    def restart(self) -> None:
        """A new operator that has listed everything."""
        client: Any = self.api
        reader: Any = self.pods
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
        self.store.put(POD, {"metadata": {**meta, "resourceVersion": str(self.api.version)}, "status": status})

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


async def test_a_document_that_no_config_map_holds_is_told_and_the_one_before_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await served()
    before = world.document
    monkeypatch.setattr("flotilla.controller.gateway.MAX_BYTES", len(before) + 100)
    world.policy("b", {**SOUND, "hostModels": ["other"]})
    await world.reconciler.reconcile(KEY)
    assert world.condition("b", "Programmed") == ("False", "DocumentTooLarge")
    assert world.document == before


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
