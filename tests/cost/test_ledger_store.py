"""Accounts that the operator keeps in its own namespace, and deletes with their resources."""

import asyncio
import re
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotilla.cost.ledger import Counters, Ledger, PodObservation
from flotilla.cost.ledger_store import KEY, LABEL_LEDGER, LedgerStore, record, record_name
from flotilla.errors import FlotillaError, Transient
from flotilla.kube.client import ObjectList
from flotilla.kube.kinds import MODEL_DEPLOYMENT, Kind
from flotilla.kube.store import Store, owner

D = Decimal


class Records:
    """Stands for KubeClient: remembers ConfigMaps."""

    def __init__(self) -> None:
        self.maps: dict[str, dict[str, Any]] = {}
        self.writes = 0
        self.fails: FlotillaError | None = None

    async def pages(self, kind: Kind, *, namespace: str | None, label_selector: str) -> Any:
        assert (namespace, label_selector) == ("system", LABEL_LEDGER)
        yield ObjectList([obj for obj in self.maps.values() if LABEL_LEDGER in obj["metadata"].get("labels", {})], "1")

    async def get(self, kind: Kind, name: str, *, namespace: str) -> dict[str, Any] | None:
        assert namespace == "system"
        return self.maps.get(name)

    async def apply(self, kind: Kind, obj: dict[str, Any], *, manager: str) -> dict[str, Any]:
        if self.fails is not None:
            raise self.fails
        assert (manager, obj["metadata"]["namespace"]) == ("flotilla-ledger", "system")
        self.writes += 1
        known = self.maps.get(obj["metadata"]["name"], {"metadata": {"uid": f"map-{self.writes}"}})
        obj["metadata"]["uid"] = known["metadata"]["uid"]
        self.maps[obj["metadata"]["name"]] = obj
        return obj

    async def delete(self, kind: Kind, name: str, *, namespace: str, uid: str) -> bool:
        if self.fails is not None:
            raise self.fails
        assert self.maps[name]["metadata"]["uid"] == uid
        del self.maps[name]
        return True


RECORD = record_name("ns", "m")


def resource(uid: str = "u", namespace: str = "ns") -> dict[str, Any]:
    return {"metadata": {"name": "m", "namespace": namespace, "uid": uid, "resourceVersion": "1"}}


def records_of(client: Records, ledger: Ledger, store: Store, now: list[float], *watched: str) -> LedgerStore:
    return LedgerStore(
        client,  # type: ignore[arg-type]
        store,
        ledger,
        namespace="system",
        watched=watched,
        interval_s=300,
        clock=lambda: now[0],
    )


def fleet(client: Records, now: list[float], uid: str = "u") -> tuple[Ledger, LedgerStore]:
    store, ledger = Store(owner), Ledger()
    store.put(MODEL_DEPLOYMENT, resource(uid))
    return ledger, records_of(client, ledger, store, now)


def observe(ledger: Ledger, now: float, *uids: str) -> None:
    pods = [PodObservation(uid, 0, "serving", D(1), Counters(prompt=now), D(1)) for uid in uids]
    ledger.observe("u", pods, now=now)


async def test_a_record_is_written_when_the_pods_change_and_at_a_slow_cadence_and_not_without_pods() -> None:
    client, now = Records(), [0.0]
    ledger, kept = fleet(client, now)
    writes = []
    for at, uids in (
        (0, ""),
        (10, "a"),
        (20, "a"),
        (30, "ab"),
        (40, "ab"),
        (330, "ab"),
        (340, "ab"),
        (350, ""),
        (9000, ""),
    ):
        now[0] = float(at)
        observe(ledger, now[0], *uids)
        await kept.write_due()
        writes.append(client.writes)
    assert writes == [0, 1, 1, 2, 2, 3, 3, 4, 4]


async def test_a_successor_goes_on_where_the_operator_ended() -> None:
    client, now = Records(), [10.0]
    ledger, kept = fleet(client, now)
    observe(ledger, 10.0, "a")
    observe(ledger, 20.0, "a")
    await kept.save()
    assert client.maps[RECORD]["metadata"]["labels"][LABEL_LEDGER] == "u"
    again, taken_up = fleet(client, now)
    await taken_up.load()
    observe(again, 30.0, "a")
    assert round(again.accounts["u"].total_usd * 3600, 6) == 20
    assert again.accounts["u"].usage.prompt == 30
    await taken_up.write_due()
    assert client.writes == 1, "nothing changed but time, and the interval is not over"


async def test_a_record_of_a_namesake_or_one_that_is_broken_is_not_taken_up() -> None:
    client, now = Records(), [0.0]
    ledger, kept = fleet(client, now)
    observe(ledger, 10.0, "a")
    await kept.save()
    client.maps[RECORD]["data"][KEY] = "{"
    again, broken = fleet(client, now)
    await broken.load()
    assert again.accounts == {}
    await kept.save()
    namesake, other = fleet(client, now, uid="later")
    await other.load()
    assert (namesake.accounts, client.maps) == ({}, {}), "the record of the one that went is no longer there"


async def test_a_strangers_configmap_is_left_alone() -> None:
    client, now = Records(), [0.0]
    client.maps[RECORD] = {"metadata": {"name": RECORD}, "data": {"mine": "x"}}
    ledger, kept = fleet(client, now)
    observe(ledger, 10.0, "a")
    await kept.save()
    assert (client.writes, client.maps[RECORD]["data"]) == (0, {"mine": "x"})


async def test_a_write_that_failed_is_tried_again() -> None:
    client, now = Records(), [0.0]
    client.fails = Transient("later")
    ledger, kept = fleet(client, now)
    observe(ledger, 10.0, "a")
    await kept.write_due()
    client.fails = None
    await kept.write_due()
    assert client.writes == 1


async def test_a_record_goes_with_its_resource_at_once_or_at_the_next_start() -> None:
    client, now = Records(), [0.0]
    store, ledger = Store(owner), Ledger()
    store.put(MODEL_DEPLOYMENT, resource())
    kept = records_of(client, ledger, store, now)
    observe(ledger, 10.0, "a")
    await kept.write_due()
    store.drop(MODEL_DEPLOYMENT, resource())
    client.fails = Transient("later")
    await kept.remove_gone()
    assert list(client.maps) == [RECORD]
    client.fails = None
    running = asyncio.create_task(kept.run())
    kept.trigger()
    async with asyncio.timeout(1):
        while client.maps:
            await asyncio.sleep(0)
    running.cancel()

    orphan, _ = fleet(client, now)
    client.maps[RECORD] = record(resource("gone"), "{}", namespace="system")
    client.maps[RECORD]["metadata"]["uid"] = "map"
    await records_of(client, orphan, Store(owner), now, "elsewhere").load()
    assert list(client.maps) == [RECORD], "that of an operator of other namespaces"
    await records_of(client, orphan, Store(owner), now, "ns").load()
    assert client.maps == {}


async def test_a_namesakes_record_outlives_the_deletion_of_the_one_before() -> None:
    client, now = Records(), [0.0]
    store, ledger = Store(owner), Ledger()
    store.put(MODEL_DEPLOYMENT, resource())
    kept = records_of(client, ledger, store, now)
    observe(ledger, 10.0, "a")
    await kept.write_due()
    store.put(MODEL_DEPLOYMENT, resource("later"))
    client.maps[RECORD]["metadata"]["labels"][LABEL_LEDGER] = "later"
    await kept.remove_gone()
    assert list(client.maps) == [RECORD]


@given(st.text("ab-.", min_size=1, max_size=80), st.text("ab-.", min_size=1, max_size=80))
def test_names_of_records_are_short_and_differ(namespace: str, name: str) -> None:
    named = record_name(namespace, name)
    assert len(named) <= 63
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", named)
    assert named != record_name(f"{namespace}-x", name)
    assert record_name("a-b", "c") != record_name("a", "b-c")
