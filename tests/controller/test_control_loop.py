"""Workers, status writer, lease and events, with an apiserver that only remembers."""

import asyncio
from copy import deepcopy
from typing import Any

import pytest

from flotilla.console.metrics import Metrics
from flotilla.controller.apply import StatusWriter
from flotilla.controller.control_loop import dependants
from flotilla.controller.queue import Queue, Workers
from flotilla.errors import Conflict, Ending, FlotillaError, Forbidden, InvalidSpec, NotReady, Transient
from flotilla.kube.client import FieldConflict, failure, watch_event
from flotilla.kube.events import EventRecorder
from flotilla.kube.kinds import LEASE, MODEL_DEPLOYMENT, POD, SERVICE, Key, Kind, gateway_key
from flotilla.kube.lease import Lease
from flotilla.kube.store import Store, owner
from flotilla_devcluster.stack import samples, value


class Remembering:
    """Stands for KubeClient."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.lease: dict[str, Any] | None = None
        self.fails: FlotillaError | None = None

    def _answer(self, verb: str, obj: Any) -> Any:
        if self.fails is not None:
            raise self.fails
        self.calls.append((verb, obj))
        version = str(len(self.calls))
        return {**obj, "metadata": {"uid": "u", **obj["metadata"], "resourceVersion": version}}

    async def apply_status(self, kind: Kind, obj: Any, *, manager: str) -> Any:
        return self._answer(f"status {manager}", obj)

    async def create(self, kind: Kind, obj: Any) -> Any:
        self.lease = self._answer("create", obj)
        return self.lease

    async def update(self, kind: Kind, obj: Any) -> Any:
        self.lease = self._answer("update", obj)
        return self.lease

    async def get(self, kind: Kind, name: str, *, namespace: str) -> Any:
        return self.lease


KEY = Key(MODEL_DEPLOYMENT, "ns", "a")


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ("success", None),
        ("waiting", NotReady("x")),
        ("retry", Transient("x")),
        ("retry", Conflict("x")),
        ("error", InvalidSpec("x")),
        ("panic", ValueError("x")),
    ],
)
async def test_a_failing_key_is_tried_again_and_holds_nobody_up(outcome: str, error: Exception | None) -> None:
    queue: Queue[Key] = Queue(clock=asyncio.get_running_loop().time, base_s=0.001, cap_s=0.002)
    metrics, passes, good = Metrics(version="1"), [0, 0], Key(MODEL_DEPLOYMENT, "ns", "good")
    done = asyncio.Event()

    class Reconciler:
        async def reconcile(self, key: Key) -> float | None:
            passes[key == good] += 1
            if key == good or (error is None and passes[0] > 1):
                done.set()
                return None
            if error is None:
                return 0.001
            if passes[0] == 3:
                queue.add(good)
            raise error

    workers = Workers(queue, {MODEL_DEPLOYMENT: Reconciler()}, metrics, count=1, clock=asyncio.get_running_loop().time)
    queue.add(KEY)
    running = asyncio.create_task(workers.run())
    async with asyncio.timeout(10):
        await done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    from prometheus_client import generate_latest

    found = samples(generate_latest(metrics.registry).decode())
    assert (value(found, "flotilla_reconcile_total", outcome=outcome) or 0) >= 1
    assert passes[0] >= 2


def status_writer(client: Remembering, clock: list[float]) -> StatusWriter:
    return StatusWriter(client, Store(owner), interval_s=5, clock=lambda: clock[0])  # type: ignore[arg-type]


def live(status: dict[str, Any] | None = None) -> dict[str, Any]:
    meta = {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "1"}
    return {"metadata": meta, **({"status": status} if status else {})}


async def test_an_equal_status_is_not_written() -> None:
    client = Remembering()
    assert await status_writer(client, [0.0]).write(KEY, live({"a": 1}), {"a": 1}) is None
    assert client.calls == []


async def test_two_writes_of_one_resource_are_an_interval_apart_but_for_urgent_ones() -> None:
    client, clock = Remembering(), [0.0]
    writer = status_writer(client, clock)
    assert await writer.write(KEY, live(), {"a": 1}) is None
    clock[0] = 2.0
    assert await writer.write(KEY, live(), {"a": 2}) == 3.0
    assert len(client.calls) == 1
    assert await writer.write(KEY, live(), {"a": 3}, urgent=True) is None
    verb, body = client.calls[-1]
    assert verb == "status flotilla-status"
    assert body["metadata"] == {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "1"}
    assert set(body) == {"apiVersion", "kind", "metadata", "status"}


def elector(client: Remembering, clock: list[float], identity: str = "me") -> Lease:
    return Lease(
        client,  # type: ignore[arg-type]
        namespace="ns",
        name="l",
        identity=identity,
        duration_s=10,
        renew_deadline_s=5,
        retry_s=0.01,
        clock=lambda: clock[0],
    )


async def test_a_free_lease_is_taken_and_given_back() -> None:
    client = Remembering()
    lease = elector(client, [0.0])
    running = asyncio.create_task(lease.run(on_lost=lambda: None))
    await asyncio.wait_for(lease.acquired(), 5)
    assert client.lease is not None
    assert client.lease["spec"]["holderIdentity"] == "me"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await lease.release()
    assert client.lease["spec"]["holderIdentity"] == ""


async def test_a_held_lease_is_taken_once_it_was_not_renewed_for_its_duration_on_our_clock() -> None:
    client, clock = Remembering(), [0.0]
    client.lease = {
        "metadata": {"name": "l", "namespace": "ns", "resourceVersion": "9"},
        "spec": {"holderIdentity": "other", "leaseDurationSeconds": 10, "renewTime": "2000-01-01T00:00:00Z"},
    }
    lease = elector(client, clock)
    assert not await lease._attempt(lease._take)
    clock[0] = 10.0
    assert not await lease._attempt(lease._take)
    clock[0] = 10.1
    assert await lease._attempt(lease._take)
    assert client.lease["spec"]["leaseTransitions"] == 1


async def test_a_lease_that_another_took_is_lost_at_once() -> None:
    client, lost = Remembering(), asyncio.Event()
    lease = elector(client, [0.0])
    running = asyncio.create_task(lease.run(on_lost=lost.set))
    await asyncio.wait_for(lease.acquired(), 5)
    client.lease = {**(client.lease or {}), "spec": {"holderIdentity": "another"}}
    client.fails = Conflict("another's")
    await asyncio.wait_for(lost.wait(), 5)
    await running
    await lease.release()
    assert lost.is_set()


class Slow(Remembering):
    """Writes, and then lets the caller wait for the answer in vain; refuses what was read before that."""

    mute = False

    async def update(self, kind: Kind, obj: Any) -> Any:
        assert self.lease is not None
        if obj["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("it changed")
        written = await super().update(kind, obj)
        if self.mute:
            self.mute = False
            raise Transient("no answer")
        return written


async def test_a_renewal_without_an_answer_is_not_taken_for_another_holder() -> None:
    client, lost = Slow(), asyncio.Event()
    lease = elector(client, [0.0])
    running = asyncio.create_task(lease.run(on_lost=lost.set))
    await asyncio.wait_for(lease.acquired(), 5)
    client.mute = True
    before = len(client.calls)
    while len(client.calls) < before + 5 and not running.done():
        await asyncio.sleep(0.01)
    assert not lost.is_set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Late(Slow):
    """A write that is cut off arrives all the same: at once, or after the next look at the Lease, or never."""

    cut = False
    arrives = ""
    written: Any = None

    async def update(self, kind: Kind, obj: Any) -> Any:
        if self.cut:
            self.cut, self.written = False, deepcopy(obj)
            await self._arrive("at once")
            await asyncio.Event().wait()
        return await super().update(kind, obj)

    async def get(self, kind: Kind, name: str, *, namespace: str) -> Any:
        found = deepcopy(self.lease)
        if self.written:
            await self._arrive("after a look")
        return found

    async def _arrive(self, when: str) -> None:
        if self.arrives == when:
            await super().update(LEASE, self.written)
            self.written = None


@pytest.mark.parametrize("arrives", ["at once", "after a look", "never"])
async def test_a_lease_is_given_back_although_a_renewal_was_cut_off(arrives: str) -> None:
    client = Late()
    client.arrives = arrives
    lease = elector(client, [0.0])
    running = asyncio.create_task(lease.run(on_lost=lambda: None))
    await asyncio.wait_for(lease.acquired(), 5)
    client.cut = True
    while client.cut:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await lease.release()
    assert client.lease is not None
    assert client.lease["spec"]["holderIdentity"] == ""


async def test_a_lease_whose_taking_was_cut_off_is_given_back() -> None:
    client = Late()
    client.lease = {"metadata": {"name": "l", "namespace": "ns", "resourceVersion": "9"}, "spec": {}}
    client.cut, client.arrives = True, "at once"
    lease = elector(client, [0.0])
    running = asyncio.create_task(lease.run(on_lost=lambda: None))
    while client.cut:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert client.lease["spec"]["holderIdentity"] == "me"
    await lease.release()
    assert client.lease["spec"]["holderIdentity"] == ""


async def test_a_lease_that_cannot_be_renewed_is_lost_after_the_deadline_only() -> None:
    client, clock, lost = Remembering(), [0.0], asyncio.Event()
    lease = elector(client, clock)
    running = asyncio.create_task(lease.run(on_lost=lost.set))
    await asyncio.wait_for(lease.acquired(), 5)
    client.fails = Transient("away")
    await asyncio.sleep(0.05)
    assert not lost.is_set()
    clock[0] = 6.0
    await asyncio.wait_for(lost.wait(), 5)
    await running
    assert lost.is_set()


async def test_events_are_one_per_transition() -> None:
    client = Remembering()
    recorder = EventRecorder(client, instance="host")  # type: ignore[arg-type]

    def say(reason: str) -> bool:
        return recorder.record(MODEL_DEPLOYMENT, live(), topic="Ready", reason=reason, note="n" * 2000)

    assert [say(reason) for reason in ("A", "A", "B", "A")] == [True, False, True, True]
    running = asyncio.create_task(recorder.run())
    while len(client.calls) < 3:
        await asyncio.sleep(0)
    running.cancel()
    event = client.calls[0][1]
    assert event["regarding"]["uid"] == "u"
    assert len(event["note"]) == 1024


def test_pods_find_their_model_by_label_and_strangers_by_nothing() -> None:
    reference = {"kind": "ReplicaSet", "apiVersion": "apps/v1", "name": "a-77", "controller": True}
    meta = {"namespace": "ns", "name": "a-77-x", "labels": {"flotilla.dev/model": "a"}, "ownerReferences": [reference]}
    assert owner(POD, {"metadata": meta}) == KEY
    assert owner(POD, {"metadata": {**meta, "ownerReferences": []}}) is None
    assert owner(POD, {"metadata": {**meta, "labels": {"flotilla.dev/model": "b"}}}) is None
    assert str(KEY) == "ModelDeployment ns/a"


def fitted(context_length: int, **metadata: Any) -> dict[str, Any]:
    meta = {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "1", **metadata}
    return {"metadata": meta, "spec": {}, "status": {"fit": {"contextLength": context_length}}}


@pytest.mark.parametrize(
    ("before", "after", "gateway"),
    [
        (None, fitted(8192), True),
        (fitted(8192), fitted(4096), True),
        (fitted(8192), None, True),
        (fitted(8192), fitted(8192, deletionTimestamp="now"), True),
        (fitted(8192), fitted(8192, labels={"x": "y"}), False),
    ],
    ids=["new", "another context length", "gone", "going", "nothing that a gateway knows"],
)
def test_a_gateway_depends_on_what_it_knows_of_a_model(before: Any, after: Any, gateway: bool) -> None:
    found = set(dependants(MODEL_DEPLOYMENT, before, after))
    assert found == ({KEY, gateway_key("ns")} if gateway else {KEY})


def test_a_child_that_loses_its_owner_wakes_the_one_it_had() -> None:
    reference = {"apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelDeployment", "name": "a", "controller": True}
    meta = {"name": "a", "namespace": "ns", "uid": "s", "resourceVersion": "1"}
    owned = {"metadata": {**meta, "ownerReferences": [reference]}}
    assert set(dependants(SERVICE, owned, {"metadata": meta})) == {KEY}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, InvalidSpec),
        (401, Transient),
        (403, Transient),
        (404, NotReady),
        (409, Conflict),
        (410, Transient),
        (422, InvalidSpec),
        (429, Transient),
        (500, Transient),
        (503, Transient),
    ],
)
def test_http_codes_become_errors_of_our_tree(code: int, error: type[FlotillaError]) -> None:
    found = failure("patch /x", code, {"Retry-After": "3"}, b'{"message": "because"}')
    assert isinstance(found, error)
    assert str(found) == f"patch /x: because (HTTP {code})"
    if code == 429:
        assert isinstance(found, Transient)
        assert found.retry_after_s == 3


def test_only_another_managers_field_is_told_from_a_lost_race() -> None:
    cause = b'{"message": "x", "details": {"causes": [{"reason": "FieldManagerConflict", "field": ".spec.ports"}]}}'
    assert isinstance(failure("patch /x", 409, {}, cause), FieldConflict)
    assert not isinstance(failure("patch /x", 409, {}, b'{"message": "the object has been modified"}'), FieldConflict)


ENDING = b'{"message": "x", "details": {"causes": [{"reason": "NamespaceTerminating"}]}}'


def test_a_namespace_that_goes_is_told_from_a_right_that_lacks() -> None:
    assert isinstance(failure("post /x", 403, {}, ENDING), Ending)
    assert isinstance(failure("post /x", 403, {}, b'{"message": "exceeded quota"}'), Forbidden)


async def test_what_ends_with_its_namespace_is_left_alone_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    queue: Queue[Key] = Queue(clock=asyncio.get_running_loop().time, base_s=0.001, cap_s=0.002)
    other, passes, done = Key(MODEL_DEPLOYMENT, "ns", "b"), [0], asyncio.Event()

    class Reconciler:
        async def reconcile(self, key: Key) -> float | None:
            if key == other:
                done.set()
                return None
            passes[0] += 1
            queue.add_after(other, 0.05)
            raise Ending("x")

    client = Remembering()
    recorder = EventRecorder(client, instance="host")  # type: ignore[arg-type]
    clock = asyncio.get_running_loop().time
    workers = Workers(queue, {MODEL_DEPLOYMENT: Reconciler()}, Metrics(version="1"), count=1, clock=clock)
    client.fails = Ending("x")
    recorder.record(MODEL_DEPLOYMENT, live(), topic="Ready", reason="A", note="n")
    queue.add(KEY)
    with caplog.at_level("INFO"):
        running = [asyncio.create_task(one.run()) for one in (workers, recorder)]
        await asyncio.wait_for(done.wait(), 10)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert (passes, caplog.messages) == ([1], [])


def test_a_watch_error_asks_for_a_new_list() -> None:
    assert watch_event("watch /x", b'{"type": "ADDED", "object": {"a": 1}}') == ("ADDED", {"a": 1})
    with pytest.raises(Transient, match="too old"):
        watch_event("watch /x", b'{"type": "ERROR", "object": {"message": "too old"}}')
