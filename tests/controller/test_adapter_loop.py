"""Adapters on one pod's engine, with an apiserver that only keeps what is written."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from tests.support.engine_sim import FAST, Running, serving

from flotilla.addresses import AddressMap
from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.constants import CONDITION_ADAPTERS
from flotilla.controller.adapter_loop import AdapterLoader
from flotilla.kube.kinds import MODEL_DEPLOYMENT, POD, Key, Kind
from flotilla.kube.observed import Workloads
from flotilla.kube.store import Store, owner
from flotilla.planning.resolve import Resolved, load_catalog, resolve
from flotilla_devcluster.engine import vllm, vllm_config

KEY = Key(MODEL_DEPLOYMENT, "team", "base")
CATALOG = load_catalog()


def resolved(port: int, *adapters: str, engine: str = "vllm") -> Resolved:

    model = {
        "source": "hf://Qwen/Qwen2.5-7B-Instruct",
        "lora": {},
        "adapters": [{"name": name, "source": f"hf://acme/{name}"} for name in adapters],
    }
    spec = {"model": model, "engine": {"name": engine}, "accelerator": {"class": "nvidia-l4"}}
    return replace(resolve("base", ModelDeploymentSpec.model_validate(spec), CATALOG), port=port)


class Api:
    """Stands for KubeClient: keeps the conditions that are written, in the pod of the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.written: list[tuple[str, str]] = []

    async def patch(self, kind: Kind, name: str, body: Mapping[str, Any], **_: object) -> dict[str, Any]:
        (condition,) = body["status"]["conditions"]
        self.written.append((condition["status"], condition["message"]))
        live = self.store.get(kind, "team", name)
        assert live is not None
        kept = [c for c in live["status"]["conditions"] if c["type"] != CONDITION_ADAPTERS]
        version = str(int(live["metadata"]["resourceVersion"]) + 1)
        meta = {**live["metadata"], "resourceVersion": version}
        return {**live, "metadata": meta, "status": {**live["status"], "conditions": [*kept, condition]}}


class Rig:
    """A loader, and one pod whose engine is `running`."""

    def __init__(self, running: Running) -> None:
        self.now_s = 0.0
        self.version = 0
        self.woken: list[Key] = []
        self.store = Store(owner, lambda *_: None)
        self.api = Api(self.store)
        self.running = running
        self.port = int(running.url.rpartition(":")[2])
        self.loader = AdapterLoader(
            self.api,  # type: ignore[arg-type]
            self.store,
            AddressMap(),
            enqueue=self.woken.append,
            clock=lambda: self.now_s,
            now=lambda: "2026-01-01T00:00:00Z",
        )
        self.pod()

    def pod(self, *, answers: bool = True, ready: bool = False, restarts: int = 0) -> None:
        labels = {"app.kubernetes.io/managed-by": "flotilla", "flotilla.dev/model": "base"}
        self.version += 10
        meta = {
            "name": "base-1-x",
            "namespace": "team",
            "uid": "u1",
            "labels": labels,
            "resourceVersion": str(self.version),
            "ownerReferences": [{"kind": "ReplicaSet", "name": "base-1", "controller": True}],
        }
        container = {"name": "engine", "ready": answers, "restartCount": restarts}
        conditions = [{"type": "Ready", "status": str(ready)}]
        status = {"podIP": "127.0.0.1", "containerStatuses": [container], "conditions": conditions}
        self.store.put(POD, {"metadata": meta, "spec": {}, "status": status})

    async def tick(self, *adapters: str) -> None:
        self.loader.track(KEY, resolved(self.port, *adapters))
        await self.loader.tick(self.running.session)

    async def served(self) -> set[str]:
        async with self.running.session.get(self.running.url + "/v1/models") as answer:
            return {model["id"] for model in (await answer.json())["data"] if model["parent"]}


def lora_engine(**env: str) -> Any:
    config = vllm_config.configure(["m/x", "--port", "0", "--enable-lora"], {**FAST, **env})
    return serving(config, vllm.VllmEngine(config))


RUNTIME = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true"}


async def test_a_pod_gets_what_is_wanted_and_loses_the_rest_and_is_left_alone_then() -> None:
    async with lora_engine(**RUNTIME) as running:
        rig = Rig(running)
        await rig.tick("one", "two")
        assert await rig.served() == {"one", "two"}
        assert rig.api.written == [("True", "")]
        assert rig.woken == [KEY]
        load = Workloads(rig.store).of(KEY)
        assert [(s["name"], s["loadedReplicas"]) for s in rig.loader.statuses(resolved(1, "two", "new"), load)] == [
            ("two", 1),
            ("new", 0),
        ]
        await rig.tick("two", "three")
        assert await rig.served() == {"two", "three"}
        assert rig.api.written == [("True", "")]
        await running.post("/v1/unload_lora_adapter", {"lora_name": "two"})
        await rig.tick("two", "three")
        assert await rig.served() == {"three"}  # it was complete, and is read again later
        rig.now_s = 31
        await rig.tick("two", "three")
        assert await rig.served() == {"two", "three"}


async def test_an_engine_that_does_not_answer_yet_is_not_asked_and_one_that_restarted_is() -> None:
    async with lora_engine(**RUNTIME) as running:
        rig = Rig(running)
        rig.pod(answers=False)
        await rig.tick("one")
        assert await rig.served() == set()
        assert rig.api.written == []
        rig.pod(restarts=1)
        await rig.tick("one")
        await running.post("/v1/unload_lora_adapter", {"lora_name": "one"})  # as a new process has none
        rig.pod(restarts=2)
        await rig.tick("one")
        assert await rig.served() == {"one"}


@pytest.mark.parametrize("ready", [False, True])
async def test_a_refusal_keeps_a_new_pod_from_being_ready_says_why_and_takes_no_pod_out(ready: bool) -> None:
    async with lora_engine() as running:  # without the variable the endpoint does not exist
        rig = Rig(running)
        rig.pod(ready=ready)
        await rig.tick("one")
        said = [] if ready else ["Adapter 'one': the engine answered HTTP 404"]
        assert [(status, message[: len(said[0])]) for status, message in rig.api.written] == [
            ("False", text) for text in said
        ]
        assert rig.woken == [KEY]


async def test_an_engine_that_cannot_be_reached_is_tried_again() -> None:
    async with lora_engine(**RUNTIME) as running:
        rig = Rig(running)
        port, rig.port = rig.port, 9
        await rig.tick("one")
        assert rig.api.written[0][0] == "False"
        rig.port, rig.now_s = port, 6
        await rig.tick("one")
        assert rig.api.written[1:] == [("True", "")]
        assert await rig.served() == {"one"}


async def test_engines_without_these_endpoints_are_never_asked() -> None:
    async with lora_engine(**RUNTIME) as running, aiohttp.ClientSession() as session:
        rig = Rig(running)
        rig.loader.track(KEY, resolved(rig.port, "one", engine="tgi"))
        await rig.loader.tick(session)
        assert await rig.served() == set()
        load = Workloads(rig.store).of(KEY)
        assert [s["loadedReplicas"] for s in rig.loader.statuses(resolved(1, "one", engine="tgi"), load)] == [0]
