"""Only the holder of the Lease writes, however long its process was paused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.support.apiserver import FakeApiserver, fake_apiserver

from flotilla.errors import Conflict
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import DEPLOYMENT
from flotilla.kube.lease import Lease, LeaseExpired

MANIFEST: dict[str, Any] = {"kind": "Deployment", "metadata": {"name": "a", "namespace": "ns"}, "spec": {}}


class Remembering:
    """Stands for KubeClient where only the Lease is written."""

    def __init__(self) -> None:
        self.version = 0
        self.taken = False
        """By another holder, so that a renewal is refused."""

    async def get(self, *_: object, **__: object) -> None:
        return None

    async def create(self, _: object, lease: dict[str, Any]) -> dict[str, Any]:
        if self.taken:
            raise Conflict("the object has been modified")
        self.version += 1
        return {**lease, "metadata": {**lease["metadata"], "resourceVersion": str(self.version)}}

    update = create


def elector(client: Any, clock: list[float]) -> Lease:
    return Lease(
        client,
        namespace="ns",
        name="l",
        identity="me",
        duration_s=60,
        renew_deadline_s=45,
        retry_s=0.01,
        clock=lambda: clock[0],
    )


async def test_writes_are_allowed_from_taking_the_lease_until_the_deadline_after_its_last_renewal() -> None:
    clock = [0.0]
    lease = elector(Remembering(), clock)
    with pytest.raises(LeaseExpired, match="ns/l is not held"):
        lease.check()
    assert await lease._attempt(lease._take)
    lease.check()
    clock[0] = 44.9
    lease.check()
    assert await lease._attempt(lease._renew)
    clock[0] = 44.9 + 44.9
    lease.check()
    clock[0] = 44.9 + 45
    with pytest.raises(LeaseExpired):
        lease.check()


async def test_the_time_that_a_renewal_took_is_not_added_to_its_validity() -> None:
    clock = [0.0]
    client = Remembering()
    lease = elector(client, clock)
    await lease._attempt(lease._take)

    async def slow(_: object, obj: dict[str, Any]) -> dict[str, Any]:
        clock[0] += 30
        return await client.create(_, obj)

    client.update = slow  # type: ignore[method-assign,assignment]
    await lease._attempt(lease._renew)
    clock[0] = 45.0
    with pytest.raises(LeaseExpired):
        lease.check()


async def test_nothing_is_written_after_the_lease_was_given_up() -> None:
    lease = elector(Remembering(), [0.0])
    await lease._attempt(lease._take)
    await lease.release()
    with pytest.raises(LeaseExpired):
        lease.check()


async def test_a_lease_that_cannot_be_understood_ends_no_election() -> None:
    class Odd(Remembering):
        async def get(self, *_: object, **__: object) -> Any:
            return {"metadata": {"name": "l", "resourceVersion": "1"}}

    assert not await (lease := elector(Odd(), [0.0]))._attempt(lease._take)


@asynccontextmanager
async def guarded(directory: Path, lease: Lease) -> AsyncIterator[tuple[FakeApiserver, KubeClient]]:
    async with fake_apiserver() as server:
        await server.put(DEPLOYMENT, "a")
        client = await KubeClient.connect(kubeconfig=server.kubeconfig(directory), user_agent="test")
        try:
            yield server, client.guarded(lease.check)
        finally:
            await client.close()


@pytest.mark.parametrize("verb", ["create", "update", "apply", "apply_status", "patch", "delete"])
async def test_no_write_of_any_kind_leaves_a_client_whose_lease_has_expired(tmp_path: Path, verb: str) -> None:
    clock = [0.0]
    lease = elector(Remembering(), clock)
    await lease._attempt(lease._take)
    async with guarded(tmp_path, lease) as (server, client):
        writes: dict[str, Callable[[], Awaitable[object]]] = {
            "create": lambda: client.create(DEPLOYMENT, MANIFEST),
            "update": lambda: client.update(DEPLOYMENT, MANIFEST),
            "apply": lambda: client.apply(DEPLOYMENT, MANIFEST, manager="m"),
            "apply_status": lambda: client.apply_status(DEPLOYMENT, MANIFEST, manager="m"),
            "patch": lambda: client.patch(DEPLOYMENT, "a", {}, namespace="ns"),
            "delete": lambda: client.delete(DEPLOYMENT, "a", namespace="ns"),
        }
        server.fault = lambda request: None if request.method == "GET" else web.json_response({"metadata": {}})
        await writes[verb]()
        assert [request.method != "GET" for request in server.requests] == [True]
        clock[0] = 60.0
        with pytest.raises(LeaseExpired):
            await writes[verb]()
        assert len(server.requests) == 1
        assert (await client.list(DEPLOYMENT, namespace="ns")).items, "reading is allowed"


async def test_a_leader_that_was_paused_writes_nothing_when_it_goes_on(tmp_path: Path) -> None:
    """The pause is a jump of the clock: no task runs in between, as when a process is stopped."""
    clock = [0.0]
    leases = Remembering()
    lease = elector(leases, clock)
    lost = asyncio.Event()
    election = asyncio.create_task(lease.run(on_lost=lost.set))
    await asyncio.wait_for(lease.acquired(), 5)
    async with guarded(tmp_path, lease) as (server, client):
        server.fault = lambda request: None if request.method == "GET" else web.json_response({"metadata": {}})

        async def work() -> None:
            while True:
                await client.apply(DEPLOYMENT, MANIFEST, manager="m")
                await asyncio.sleep(0.001)

        workers = [asyncio.create_task(work()) for _ in range(8)]
        async with asyncio.timeout(20):
            while len(server.requests) < 50:
                await asyncio.sleep(0.001)
            clock[0] += 100
            leases.taken = True
            sent = len(server.requests)
            ends = await asyncio.gather(*workers, return_exceptions=True)
            await lost.wait()
        assert all(isinstance(end, LeaseExpired) for end in ends)
        assert len(server.requests) - sent <= 8, "what was on its way already may arrive"
    await election
