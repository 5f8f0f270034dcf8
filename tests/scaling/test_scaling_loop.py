"""From pods to samples: sources, gateways, counters, capacity, victims, and when a resource is looked at again."""

import asyncio
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import contains
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.prometheus import serving

from flotilla.addresses import AddressMap
from flotilla.api.model_deployment import ModelDeployment, ModelDeploymentSpec
from flotilla.config import OperatorConfig
from flotilla.controller.apply import PodDeletionCosts, deletion_costs, pods_to_delete
from flotilla.controller.model_status import build
from flotilla.cost.metrics import FleetFamilies
from flotilla.errors import NotReady, Transient
from flotilla.kube import observed
from flotilla.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, POD, Key, Kind
from flotilla.kube.observed import DELETION_COST, Pod, Workload
from flotilla.kube.store import Store, owner
from flotilla.planning.resolve import load_catalog, resolve
from flotilla.prometheus.client import Series
from flotilla.scaling import engine_client as demands
from flotilla.scaling import sampling
from flotilla.scaling.autoscaler import Demand
from flotilla.scaling.engine_client import Aged, Answers, EnginePod, EngineSources, PodSeries, WakeQuery, gateway_demand
from flotilla.scaling.sampling import Sampler
from flotilla.scaling.scaling_loop import Scaler
from flotilla.scaling.scrape_client import EngineSample, ScrapeError, Scraper, ScrapeTarget

NAMES = {"running": ["r"], "waiting": ["w"]}


def a_pod(uid: str, *, ready: bool = True, **changes: Any) -> Pod:
    fresh = Pod(uid, uid, "10.0.0.1", True, ready, False, 0, "", "", "", "", "", "2026-01-01T00:00:00Z")
    return replace(fresh, **changes)


def a_load(*pods: Pod, failure: str = "") -> Workload:
    count = len(pods)
    return Workload(True, 1, 1, count, count, count, count, failure, overdue=False, pods=pods)


# --- samples ---------------------------------------------------------------------------------------------------


def busy(running: float = 0, waiting: float = 0, **counters: float) -> EngineSample:
    return EngineSample(running=running, waiting=waiting, **counters)


def test_pods_add_up_and_one_that_does_not_answer_is_only_ready() -> None:
    answers = Answers({"a": busy(3, 1, kv_usage=0.5), "b": busy(2, kv_usage=0.75), "c": ScrapeError("HTTP 500")})
    sample = Sampler().sample([a_pod("a"), a_pod("b"), a_pod("c")], answers, 7.0, demand=Demand(9))
    assert (sample.ready, sample.answered) == (3, 2)
    assert (sample.running, sample.waiting, sample.kv_full) == (5, 1, 1.25)
    assert (sample.at, sample.demand, sample.source) == (7.0, Demand(9), "Pods")


def test_counters_grow_from_the_tick_before_and_start_again_with_the_engine() -> None:
    sampler = Sampler()

    def tick(answers: Answers) -> tuple[float, float]:
        sample = sampler.sample([a_pod("a")], answers, 0.0)
        sampler.retain(answers.by_uid)
        return sample.rejected, sample.served

    def told(rejected: float, served: float, *, indirect: bool = False) -> Answers:
        answer = busy(rejected=rejected, requests_success=served)
        return Answers({"a": answer}, frozenset({"a"} if indirect else ()))

    assert tick(told(5, 100)) == (0, 0)
    assert tick(told(7, 130)) == (2, 30)
    assert tick(Answers({"a": ScrapeError("late")})) == (0, 0)
    assert tick(told(9, 140)) == (2, 10)
    assert tick(told(1, 4)) == (1, 4)
    # Prometheus is behind the pod: what it says next is no restart.
    assert tick(told(0, 3, indirect=True)) == (0, 0)
    assert tick(told(0, 8, indirect=True)) == (0, 5)
    assert tick(Answers()) == (0, 0)
    assert tick(told(50, 50)) == (0, 0)


# --- sources ---------------------------------------------------------------------------------------------------


class Pods:
    """Stands for Scraper: `says` by uid, all others do not answer."""

    def __init__(self, says: Mapping[str, EngineSample]) -> None:
        self.says, self.asked = dict(says), list[str]()

    async def scrape(self, targets: Sequence[ScrapeTarget]) -> dict[str, EngineSample | ScrapeError]:
        self.asked = [target.uid for target in targets]
        return {target.uid: self.says.get(target.uid, ScrapeError("no answer in 1 s")) for target in targets}


class Prometheus:
    """Stands for PrometheusEngines."""

    def __init__(self, says: Mapping[str, Aged]) -> None:
        self.says, self.asked = says, list[list[str]]()

    async def read(self, pods: Sequence[PodSeries]) -> dict[str, Aged | ScrapeError]:
        self.asked.append([pod.uid for pod in pods])
        return {pod.uid: self.says.get(pod.uid, ScrapeError("no sample")) for pod in pods}


def engines(*uids: str) -> list[EnginePod]:
    return [EnginePod(ScrapeTarget(uid, "10.0.0.1", 8000, "/metrics", NAMES), "ns", uid) for uid in uids]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    """Until what runs in the background has run."""
    for _ in range(5):
        await asyncio.sleep(0)


def sources(pods: Pods, prometheus: Prometheus | None, order: Any, clock: Clock) -> EngineSources:
    return EngineSources(pods, prometheus, order=order, clock=clock, unix_clock=clock)  # type: ignore[arg-type]


async def test_prometheus_answers_for_the_pods_that_do_not() -> None:
    clock, pods = Clock(), Pods({"a": busy(1)})
    prometheus = Prometheus({"a": Aged(busy(7), 990.0), "b": Aged(busy(2), 990.0)})
    read = sources(pods, prometheus, "Auto", clock).read
    first = await read(engines("a", "b"))
    assert first.by_uid == {"a": busy(1), "b": ScrapeError("no answer in 1 s")}
    await settled()
    second = await read(engines("a", "b"))
    assert second == Answers({"a": busy(1), "b": busy(2)}, frozenset({"b"}))
    assert prometheus.asked == [["b"]]
    clock.now += 6
    await read(engines("a", "b"))
    await settled()
    assert prometheus.asked == [["b"], ["b"]]


async def test_what_prometheus_said_grows_too_old() -> None:
    clock = Clock()
    prometheus = Prometheus({"a": Aged(busy(2), 960.0)})
    read = sources(Pods({}), prometheus, "Auto", clock).read
    await read(engines("a"))
    await settled()
    assert (await read(engines("a"))).indirect == {"a"}
    clock.now += 6
    assert isinstance((await read(engines("a"))).by_uid["a"], ScrapeError)


async def test_an_order_of_pods_asks_nobody_else() -> None:
    prometheus = Prometheus({"a": Aged(busy(2), 1000.0)})
    of = sources(Pods({}), prometheus, "Pods", Clock())
    await of.read(engines("a"))
    await settled()
    assert prometheus.asked == []
    assert of.oldest_s == 0


async def test_where_prometheus_comes_first_pods_are_asked_for_what_it_does_not_know() -> None:
    pods, prometheus = Pods({"a": busy(9), "b": busy(3)}), Prometheus({"a": Aged(busy(2), 1000.0)})
    of = sources(pods, prometheus, "Prometheus", Clock())
    assert (await of.read(engines("a", "b"))).by_uid == {"a": busy(9), "b": busy(3)}
    await settled()
    answers = await of.read(engines("a", "b"))
    assert answers == Answers({"a": busy(2), "b": busy(3)}, frozenset({"a"}))
    assert pods.asked == ["b"]
    assert of.oldest_s == 45


def test_settings_that_need_prometheus_say_so() -> None:
    for setting in ({"scaling_source": "Prometheus"}, {"wake_query": "up"}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}.* needs prometheus_url"):
            OperatorConfig.model_validate(setting)
        OperatorConfig.model_validate({**setting, "prometheus_url": "http://prometheus:9090"})


# --- demand ----------------------------------------------------------------------------------------------------


async def test_gateways_add_up_and_one_that_is_silent_makes_their_sum_incomplete() -> None:
    scraper = Scraper(AddressMap(), timeout_s=5)

    def text(**models: int) -> str:
        return "".join(f'{demands.METRIC}{{modeldeployment="{name}"}} {n}\n' for name, n in models.items())

    def at(address: str, uid: str) -> ScrapeTarget:
        host, _, port = address.partition(":")
        return ScrapeTarget(uid, host, int(port), "/metrics", {})

    with serving(text(a=2, b=0)) as one, serving(text(a=3)) as two, serving(None) as silent:
        ns, other = [at(one.address, "1"), at(two.address, "2")], [at(one.address, "3"), at(silent.address, "4")]
        found = await gateway_demand(scraper, {"ns": ns, "other": other})
    await scraper.close()
    assert found == {
        ("ns", "a"): Demand(5.0),
        ("ns", "b"): Demand(0.0),
        ("other", "a"): Demand(2.0, complete=False),
        ("other", "b"): Demand(0.0, complete=False),
    }
    assert await gateway_demand(scraper, {}) == {}


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "x"])
def test_a_gateway_that_counts_nonsense_is_not_believed(value: str) -> None:
    assert isinstance(demands.parse(f'{demands.METRIC}{{modeldeployment="a"}} {value}\n'.encode()), ScrapeError)


class Query:
    """Stands for PrometheusClient."""

    def __init__(self, answer: tuple[Series, ...] | Transient) -> None:
        self.answer = answer

    async def query(self, promql: str) -> tuple[Series, ...]:
        if isinstance(self.answer, Transient):
            raise self.answer
        return self.answer


async def test_a_wake_query_tells_of_models_it_names_and_of_others_nothing() -> None:
    def one(name: str, value: float | None) -> Series:
        return Series({"namespace": "ns", "modeldeployment": name}, value, 0.0)

    clock, client = Clock(), Query((one("busy", 0.2), one("idle", 0.0), one("odd", None)))
    wake = WakeQuery(client, "q", clock=clock)  # type: ignore[arg-type]
    unknown = Demand(0.0, complete=False)
    assert wake.demand(("ns", "busy")) == unknown
    wake.refresh()
    await settled()
    told = [wake.demand(("ns", name)) for name in ("busy", "idle", "odd", "missing")]
    assert told == [Demand(1.0), Demand(0.0), unknown, unknown]
    client.answer = Transient("away")
    clock.now += 10
    wake.refresh()
    await settled()
    assert wake.demand(("ns", "idle")) == Demand(0.0)
    clock.now += 6
    assert wake.demand(("ns", "idle")) == unknown


# --- capacity and victims --------------------------------------------------------------------------------------


def unplaced(uid: str, priority: int = 0) -> Pod:
    return a_pod(uid, ready=False, scheduled=False, scheduling_message="0/3 nodes are available", priority=priority)


def test_what_cannot_be_placed_is_told_from_what_only_starts() -> None:
    assert sampling.blocked(a_load(a_pod("a"), a_pod("b", ready=False))) == ""
    assert sampling.blocked(a_load(a_pod("a"), unplaced("b"))) == "ReplicasUnschedulable"
    assert sampling.blocked(a_load(a_pod("a"), replace(unplaced("b"), terminating=True))) == ""
    assert sampling.blocked(a_load(failure='pods "x" is forbidden: exceeded quota: gpus')) == "QuotaExceeded"


def test_only_the_less_important_of_the_same_class_make_room() -> None:
    pressing = sampling.pressing([("l4", a_load(unplaced("a", 5), unplaced("b", 10))), ("a10", a_load(a_pod("c")))])
    assert pressing == {"l4": 10}
    assert sampling.yields("l4", a_load(a_pod("d", priority=9)), pressing)
    assert not sampling.yields("l4", a_load(a_pod("d", priority=10)), pressing)
    assert not sampling.yields("a10", a_load(a_pod("d")), pressing)


def test_the_idlest_ready_pods_go_after_those_that_are_not_ready() -> None:
    pods = [a_pod("a"), a_pod("b"), a_pod("c"), a_pod("d", ready=False), a_pod("e", terminating=True)]
    load = {"a": 3.0, "b": 0.0}
    assert pods_to_delete(pods, load, 1) == set()
    assert pods_to_delete(pods, load, 2) == {"b"}
    assert pods_to_delete(pods, load, 3) == {"b", "a"}


def test_only_marks_that_differ_are_written() -> None:
    pods = [a_pod("a", deletion_cost="-1"), a_pod("b"), a_pod("c", deletion_cost="-1"), a_pod("d", deletion_cost="7")]
    assert deletion_costs(pods, {"a", "b"}) == {"b": "-1", "c": None}
    assert deletion_costs(pods, {"a", "c"}) == {}


SAMPLES = Path(__file__).parents[2] / "manifests" / "samples" / "autoscaling"


@pytest.mark.parametrize("file", ["hpa.yaml", "keda.yaml"])
def test_the_samples_for_other_autoscalers_point_at_their_model(file: str) -> None:
    resource, scaler = yaml.safe_load_all((SAMPLES / file).read_text())
    spec = ModelDeploymentSpec.model_validate(resource["spec"])
    assert (spec.scaling.mode, spec.replicas) == ("External", 1)
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": resource["apiVersion"],
        "kind": "ModelDeployment",
        "name": resource["metadata"]["name"],
    }


def test_the_samples_for_other_autoscalers_ask_for_metrics_that_there_are() -> None:
    exported = {family.name for family in FleetFamilies().all()}
    adapter = yaml.safe_load((SAMPLES / "prometheus-adapter-values.yaml").read_text())
    pattern = re.search('__name__=~"([^"]+)"', adapter["rules"]["external"][0]["seriesQuery"])
    assert pattern
    hpa = list(yaml.safe_load_all((SAMPLES / "hpa.yaml").read_text()))[1]
    asked = hpa["spec"]["metrics"][0]["external"]["metric"]["name"]
    assert asked in exported
    assert re.fullmatch(pattern[1], asked)
    keda = list(yaml.safe_load_all((SAMPLES / "keda.yaml").read_text()))[1]
    in_query = set(re.findall(r"flotilla_\w+", keda["spec"]["triggers"][0]["metadata"]["query"]))
    assert in_query
    assert in_query <= exported


# --- the loop --------------------------------------------------------------------------------------------------

KEY = Key(MODEL_DEPLOYMENT, "ns", "m")
CATALOG = load_catalog()


def model(**scaling: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "m", "namespace": "ns", "uid": "u", "generation": 1, "resourceVersion": "1"},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen2.5-1.5B-Instruct"},
            "engine": {"name": "vllm"},
            "accelerator": {"class": "nvidia-l4"},
            "scaling": scaling,
        },
    }


def pod_object(name: str, *, version: int = 1, **status: Any) -> dict[str, Any]:
    reference = {"kind": "ReplicaSet", "apiVersion": "apps/v1", "name": "m-1", "controller": True}
    labels = {"flotilla.dev/model": "m"}
    conditions = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Ready")]
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": name,
            "resourceVersion": str(version),
            "labels": labels,
            "ownerReferences": [reference],
        },
        "spec": {"nodeName": "n"},
        "status": {"podIP": "10.0.0.1", "conditions": conditions, **status},
    }


def a_gateway(name: str, namespace: str = "ns", **status: Any) -> dict[str, Any]:
    obj = pod_object(name, **status)
    obj["metadata"] |= {"namespace": namespace, "labels": {"app.kubernetes.io/component": "gateway"}}
    obj["metadata"]["ownerReferences"][0]["name"] = "flotilla-gateway-1"
    return obj


class Loop:
    """A scaler over a store with pods that say what `pods.says`."""

    def __init__(self, live: dict[str, Any], names: Iterable[str] = ("a",)) -> None:
        self.clock, self.pods, self.queued = Clock(), Pods({}), list[Key]()
        self.store, self.live = Store(owner), live
        for name in names:
            self.store.put(POD, pod_object(name))
        self.scaler = Scaler(
            self.store,
            Scraper(AddressMap()),
            sources=EngineSources(self.pods, None, order="Pods"),  # type: ignore[arg-type]
            interval_s=2,
            clock=self.clock,
            enqueue=self.queued.append,
        )

    def track(self) -> int:
        parsed = ModelDeployment.model_validate(self.live)
        return self.scaler.track(KEY, self.live, parsed, resolve("m", parsed.spec, CATALOG))

    async def tick(self, *, seconds: float = 2) -> None:
        self.clock.now += seconds
        await self.scaler.tick()

    def status(self) -> dict[str, Any]:
        entry = self.scaler.tracked[KEY]
        spec = ModelDeployment.model_validate(self.live).spec
        load = observed.workload(None, ())
        desired = entry.state.desired
        return build(self.live, (), load, now="2026-11-25T09:00:00Z", desired=desired, state=entry.state, spec=spec)


async def test_requests_that_ended_are_seen_in_the_next_tick_also_without_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, waiting = Loop(model(minReplicas=0, maxReplicas=4), names=()), [0.0, 3.0, 0.0, 0.0]

    async def demand(*_: object) -> dict[tuple[str, str], Demand]:
        return {(KEY.namespace, KEY.name): Demand(waiting.pop(0))}

    monkeypatch.setattr("flotilla.scaling.scaling_loop.gateway_demand", demand)
    loop.track()
    parsed = ModelDeployment.model_validate(loop.live)
    resolved = resolve("m", parsed.spec, CATALOG)
    for number in range(100):  # so many that this one's turn does not come again
        loop.scaler.track(KEY._replace(name=f"other-{number}"), loop.live, parsed, resolved)
    seen = []
    for _ in range(4):
        await loop.tick()
        sample = loop.scaler.tracked[KEY].sample
        seen.append(None if sample is None or sample.demand is None else sample.demand.requests)
    assert seen == [0, 3, 0, 0]


async def test_a_resource_is_looked_at_again_only_when_its_decision_changed() -> None:
    loop = Loop(model(maxReplicas=8, queueDepthPerReplica=2))
    loop.pods.says = {"a": busy(1)}
    assert loop.track() == 1
    await loop.tick()
    loop.queued.clear()
    for _ in range(5):
        await loop.tick()
    assert loop.queued == []
    loop.pods.says = {"a": busy(7)}
    await loop.tick()
    assert loop.queued == [KEY]
    assert loop.track() == 4
    await loop.tick()
    assert loop.queued == [KEY]


async def test_a_pod_that_becomes_ready_during_a_tick_is_asked_in_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(model(maxReplicas=8, queueDepthPerReplica=2), names=())

    async def gateways(*_: object) -> dict[tuple[str, str], Demand]:
        loop.store.put(POD, pod_object("a"))
        return {}

    monkeypatch.setattr("flotilla.scaling.scaling_loop.gateway_demand", gateways)
    loop.pods.says = {"a": busy(7)}
    loop.track()
    await loop.tick()
    assert (loop.pods.asked, caplog.records) == ([], [])
    await loop.tick()
    assert loop.pods.asked == ["a"]
    assert loop.scaler.tracked[KEY].state.desired == 4


class Fleet(Loop):
    """Two deployments that may be at zero; one of them is."""

    NAMES = ("a", "b")

    def __init__(self) -> None:
        super().__init__(model(minReplicas=0, maxReplicas=4, scaleToZeroAfterSeconds=60), names=())
        self.pods.says = dict.fromkeys(self.NAMES, busy(0))
        self.versions = itertools.count(1)
        self.model = ModelDeployment.model_validate(self.live)
        self.resolved = resolve("m", self.model.spec, CATALOG)
        for name in self.NAMES:
            self.reconcile(name)

    def reconcile(self, name: str) -> None:
        live = {**self.live, "metadata": {**self.live["metadata"], "name": name, "uid": name}}
        live |= {"status": {"scaling": {"desiredReplicas": int(name == "b")}}}
        self.scaler.track(KEY._replace(name=name), live, self.model, self.resolved)

    def pod(self, name: str, what: str) -> None:
        ready = {"type": "Ready", "status": str(what == "ready")}
        obj = pod_object(name, version=next(self.versions), conditions=[ready])
        obj["metadata"]["labels"] = {"flotilla.dev/model": name}
        obj["metadata"]["ownerReferences"][0]["name"] = f"{name}-1"
        if what in ("ready", "starting"):
            self.store.put(POD, obj)
        elif what == "gone":
            self.store.drop(POD, obj)

    def decided(self) -> list[tuple[int, str]]:
        entries = (self.scaler.tracked[KEY._replace(name=name)] for name in self.NAMES)
        return [(entry.state.desired, entry.decision.message) for entry in entries if entry.decision is not None]


REPORTED = {"none": None, "idle": Demand(0.0), "partly": Demand(0.0, complete=False), "asked": Demand(9.0)}
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(Fleet.NAMES),
        st.sampled_from(["reconciled", "ready", "starting", "gone", *REPORTED, *REPORTED]),
        st.sampled_from([0, 1, 2, 12]),
    ),
    max_size=16,
)


@settings(max_examples=60, deadline=None)
@given(events=EVENTS)
async def test_decisions_are_those_of_a_loop_that_visits_every_deployment_in_every_tick(
    events: list[tuple[str, str, int]],
) -> None:
    reports: dict[tuple[str, str], Demand] = {}

    async def demand(*_: object) -> dict[tuple[str, str], Demand]:
        return dict(reports)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flotilla.scaling.scaling_loop.gateway_demand", demand)
        fleet, eager = Fleet(), Fleet()
        for name, what, ticks in [*events, ("a", "reconciled", 20)]:
            if what in REPORTED:
                reports.pop(("ns", name), None)
                if (report := REPORTED[what]) is not None:
                    reports["ns", name] = report
            for one in (fleet, eager):
                one.reconcile(name) if what == "reconciled" else one.pod(name, what)
            for _ in range(ticks):
                before = eager.decided()
                await fleet.tick()
                for each in Fleet.NAMES:
                    eager.reconcile(each)
                await eager.tick()
                # What was known becomes stale in the loop one tick later at most.
                assert all(map(contains, zip(before, eager.decided(), strict=True), fleet.decided()))


async def test_a_deployment_without_pods_is_visited_only_after_changes() -> None:
    fleet = Fleet()
    rounds = []
    for _ in range(60):
        fleet.clock.now += 2
        rounds.append(await fleet.scaler.tick())
    keys = {KEY._replace(name=name) for name in Fleet.NAMES}
    # After the reconcile, and when what was known then is older than 15 s.
    assert [number for number, visited in enumerate(rounds) if visited] == [0, 8]
    assert rounds[0] == rounds[8] == keys
    fleet.reconcile("b")
    assert await fleet.scaler.tick() == {KEY._replace(name="b")}


async def test_gateways_are_the_ready_pods_of_the_models_own_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(model(minReplicas=0, maxReplicas=8, queueDepthPerReplica=2), names=())
    asked: list[tuple[str, list[str]]] = []

    async def gateways(_: object, pods: Mapping[str, Sequence[ScrapeTarget]]) -> dict[tuple[str, str], Demand]:
        asked.extend((namespace, [pod.uid for pod in targets]) for namespace, targets in pods.items())
        return {("ns", "m"): Demand(5.0), ("other", "m"): Demand(99.0)}

    monkeypatch.setattr("flotilla.scaling.scaling_loop.gateway_demand", gateways)
    for name, namespace, ready, component in (
        ("g", "ns", "True", "gateway"),
        ("starting", "ns", "False", "gateway"),
        ("far", "other", "True", "gateway"),
        ("engine", "ns", "True", "engine"),
    ):
        obj = a_gateway(name, namespace, conditions=[{"type": "Ready", "status": ready}])
        obj["metadata"]["labels"]["app.kubernetes.io/component"] = component
        loop.store.put(POD, obj)
    loop.track()
    loop.scaler.tracked[KEY].state = replace(loop.scaler.tracked[KEY].state, desired=0)
    await loop.tick()
    assert asked == [("ns", ["g"])]
    assert loop.scaler.tracked[KEY].state.desired == 3


async def test_a_wake_decides_for_models_at_zero_without_reading_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(model(minReplicas=0, maxReplicas=8, queueDepthPerReplica=2), names=())
    demand = {("ns", "m"): Demand(5.0), ("ns", "unknown"): Demand(1.0)}

    async def gateways(_: object, pods: Mapping[str, Sequence[ScrapeTarget]]) -> dict[tuple[str, str], Demand]:
        return demand if pods else {}

    monkeypatch.setattr("flotilla.scaling.scaling_loop.gateway_demand", gateways)
    loop.store.put(POD, a_gateway("g"))
    loop.track()
    entry = loop.scaler.tracked[KEY]
    entry.state = replace(entry.state, desired=0)
    await loop.scaler.wake({"other"})
    assert (loop.queued, entry.state.desired) == ([], 0)
    await loop.scaler.wake({"ns"})
    assert (loop.queued, entry.state.desired) == ([KEY], 3)
    # More requests wait while the replicas start.
    demand["ns", "m"] = Demand(9.0)
    loop.store.put(POD, pod_object("a", conditions=[]))
    await loop.scaler.wake({"ns"})
    assert entry.state.desired == 5
    # A ready replica has a queue of its own, which only a tick reads.
    demand["ns", "m"] = Demand(16.0)
    loop.store.put(POD, pod_object("a", version=2))
    await loop.scaler.wake({"ns"})
    assert entry.state.desired == 5
    assert loop.pods.asked == []


@pytest.mark.parametrize(
    ("scaling", "polled"),
    [
        ({"minReplicas": 0, "maxReplicas": 2}, {"ns": ["g"]}),
        ({"minReplicas": 1, "maxReplicas": 2}, {}),
        ({"mode": "External"}, {}),
        ({"mode": "None"}, {}),
    ],
)
def test_gateways_are_polled_only_beside_models_that_may_be_at_zero(
    scaling: dict[str, Any], polled: dict[str, list[str]]
) -> None:
    loop = Loop(model(**scaling), names=())
    for name, namespace in (("g", "ns"), ("far", "other")):
        loop.store.put(POD, a_gateway(name, namespace))
    assert loop.scaler.wakeable_gateways() == {}
    loop.track()
    found = loop.scaler.wakeable_gateways()
    assert {namespace: [pod.uid for pod in pods] for namespace, pods in found.items()} == polled


async def test_the_status_carries_a_panic_and_the_source_over_a_restart() -> None:
    loop = Loop(model(maxReplicas=8, queueDepthPerReplica=2))
    loop.pods.says = {"a": busy(16)}
    loop.track()
    await loop.tick()
    kept = loop.status()["scaling"]
    assert kept == {
        "mode": "Internal",
        "desiredReplicas": 8,
        "source": "Pods",
        "panicSince": "2026-11-25T09:00:00Z",
    }
    again = Loop({**loop.live, "status": {"scaling": {**kept, "panicSince": "2026-11-25T08:00:00Z"}}})
    assert again.track() == 8
    entry = again.scaler.tracked[KEY]
    assert entry.state.panicking
    assert entry.state.source == "Pods"
    assert again.status()["scaling"]["panicSince"] == "2026-11-25T08:00:00Z"


def a_child(replicas: int, *managers: str) -> dict[str, Any]:
    reference = {"kind": "ModelDeployment", "apiVersion": "flotilla.dev/v1alpha1", "name": "m", "controller": True}
    owned = [{"manager": manager, "fieldsV1": {"f:spec": {"f:replicas": {}}}} for manager in managers]
    meta = {"name": "m", "namespace": "ns", "uid": "d", "resourceVersion": "1"}
    return {
        "metadata": {**meta, "ownerReferences": [reference], "managedFields": owned},
        "spec": {"replicas": replicas},
    }


@pytest.mark.parametrize(
    ("child", "recorded", "kept"),
    [
        (a_child(8, "flotilla-scaler"), 3, 8),  # the operator ended before it wrote the status
        (a_child(8, "flotilla"), None, 8),
        (a_child(8, "kubectl"), 3, 3),  # by hand, while nobody looked
        (a_child(8, "kubectl"), None, 8),
        (None, 3, 3),
        (None, None, 1),
    ],
)
def test_a_restart_goes_on_from_what_was_written_last(
    child: dict[str, Any] | None, recorded: int | None, kept: int
) -> None:
    status = {} if recorded is None else {"status": {"scaling": {"desiredReplicas": recorded}}}
    loop = Loop({**model(maxReplicas=8), **status})
    if child is not None:
        loop.store.put(DEPLOYMENT, child)
    assert loop.track() == kept


async def test_a_pod_without_a_node_keeps_the_number_where_it_is() -> None:
    loop = Loop(model(maxReplicas=8, queueDepthPerReplica=2))
    waiting = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    loop.store.put(POD, pod_object("b", conditions=[waiting]))
    loop.pods.says = {"a": busy(16)}
    assert loop.track() == 1
    await loop.tick()
    decision = loop.scaler.tracked[KEY].decision
    assert decision is not None
    assert (decision.desired, decision.reason) == (1, "ReplicasUnschedulable")
    loop.store.put(POD, pod_object("b", version=2))
    loop.pods.says = {"a": busy(16), "b": busy(0)}
    await loop.tick()
    assert loop.scaler.tracked[KEY].state.desired == 8


class Patching:
    """Stands for KubeClient."""

    def __init__(self, gone: frozenset[str] = frozenset()) -> None:
        self.gone, self.patches = gone, dict[str, Any]()

    async def patch(self, kind: Kind, name: str, body: Any, *, namespace: str) -> dict[str, Any]:
        if name in self.gone:
            raise NotReady("gone")
        self.patches[name] = body["metadata"]
        changed = pod_object(name, version=2)
        changed["metadata"]["annotations"] = body["metadata"]["annotations"]
        return changed


async def test_pods_are_marked_before_there_are_fewer_and_not_twice() -> None:
    store, client = Store(owner), Patching(frozenset({"c"}))
    for name in "abc":
        store.put(POD, pod_object(name))
    marker = PodDeletionCosts(client, store)  # type: ignore[arg-type]
    load = {"a": 4.0, "b": 0.0, "c": 0.0}
    await marker.annotate(KEY, 1, load)
    assert client.patches == {}
    store.put(DEPLOYMENT, a_child(3, "flotilla-scaler"))
    for same in (3, 4, 0):
        await marker.annotate(KEY, same, load)
    assert client.patches == {}
    await marker.annotate(KEY, 1, load)
    assert client.patches == {"b": {"uid": "b", "annotations": {DELETION_COST: "-1"}}}
    client.patches.clear()
    await marker.annotate(KEY, 1, load)
    assert client.patches == {}
