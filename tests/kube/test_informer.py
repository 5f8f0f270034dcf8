"""An informer's cache is what the apiserver has, whatever happens to its lists and watches."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.support.apiserver import FakeApiserver, fake_apiserver, status

from flotilla.kube.client import KubeClient
from flotilla.kube.informer import Informer, in_slices
from flotilla.kube.kinds import DEPLOYMENT, Kind
from flotilla.kube.store import Store


class Bench:
    """A fake apiserver, a client, a store, and an informer between them."""

    def __init__(self, server: FakeApiserver, client: KubeClient, informer: Informer, store: Store) -> None:
        self.server, self.client, self.informer, self.store = server, client, informer, store

    @property
    def names(self) -> list[str]:
        return sorted(obj["metadata"]["name"] for obj in self.store.all(DEPLOYMENT))

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not check():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(directory: Path, *names: str, start: bool = True, **options: Any) -> AsyncIterator[Bench]:
    async with fake_apiserver() as server:
        for name in names:
            await server.put(DEPLOYMENT, name)
        client = await KubeClient.connect(kubeconfig=server.kubeconfig(directory), user_agent="test", timeout_s=2)
        store = Store(lambda kind, obj: None)
        informer = Informer(client, store, DEPLOYMENT, **options)
        task = asyncio.create_task(informer.run()) if start else asyncio.create_task(asyncio.sleep(0))
        try:
            if start:
                async with asyncio.timeout(20):
                    await informer.synced.wait()
            yield Bench(server, client, informer, store)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await client.close()


def is_watch(request: web.Request) -> bool:
    return "watch" in request.query


async def test_it_lists_all_pages_and_then_follows_every_change(tmp_path: Path) -> None:
    many = [f"m{number:03}" for number in range(250)]
    async with running(tmp_path, *many) as bench:
        assert bench.names == many
        await bench.server.put(DEPLOYMENT, "new")
        await bench.server.delete(DEPLOYMENT, "m000")
        await bench.server.put(DEPLOYMENT, "m001", spec={"replicas": 3})
        await bench.until(lambda: bench.names == [*many[1:], "new"])
        live = bench.store.get(DEPLOYMENT, "ns", "m001")
        assert live is not None
        assert live["spec"] == {"replicas": 3}
        assert bench.server.asked(DEPLOYMENT, watch=False) == 1


async def test_a_watch_that_ends_in_order_goes_on_where_it_ended_without_a_list(tmp_path: Path) -> None:
    async with running(tmp_path, "a", lasts_s=1) as bench:
        await bench.until(lambda: bench.server.asked(DEPLOYMENT, watch=True) >= 2)
        await bench.server.put(DEPLOYMENT, "b")
        await bench.until(lambda: bench.names == ["a", "b"])
        assert bench.server.asked(DEPLOYMENT, watch=False) == 1
        assert bench.informer.restarts == 0


async def test_watches_that_are_cut_lose_nothing_and_list_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as bench:
        for name in ("b", "c", "d"):
            await bench.until(lambda: bool(bench.server.watches))
            bench.server.cut()
            await bench.server.put(DEPLOYMENT, name)
            await bench.until(lambda name=name: name in bench.names)  # type: ignore[misc]
        assert bench.server.asked(DEPLOYMENT, watch=False) == 1
        assert bench.informer.restarts >= 3


@pytest.mark.parametrize("how", ["event", "answer"])
async def test_a_version_that_is_too_old_leads_to_a_list_that_drops_what_is_gone(tmp_path: Path, how: str) -> None:
    async with running(tmp_path, "stays", "goes") as bench:
        refused: list[web.Request] = []

        def gone(request: web.Request) -> web.StreamResponse | None:
            if how == "answer" and is_watch(request) and not refused:
                refused.append(request)
                return status(410)
            return None

        await bench.server.delete(DEPLOYMENT, "goes", told=False)
        await bench.server.put(DEPLOYMENT, "new")
        bench.server.fault = gone
        bench.server.expire()
        bench.server.cut()
        await bench.until(lambda: bench.names == ["new", "stays"])
        assert bench.server.asked(DEPLOYMENT, watch=False) >= 2


async def test_a_silent_watch_is_given_up_after_its_bound(tmp_path: Path) -> None:
    async with running(tmp_path, "a", silence_s=0.2) as bench:
        bench.server.mute = True
        await bench.until(lambda: bench.server.asked(DEPLOYMENT, watch=True) >= 2)
        await bench.server.put(DEPLOYMENT, "b")
        bench.server.mute = False
        await bench.until(lambda: bench.names == ["a", "b"])
        assert bench.server.asked(DEPLOYMENT, watch=False) == 1


@pytest.mark.parametrize("code", [401, 403, 404, 409, 429, 500, 503])
async def test_refused_lists_and_watches_are_tried_again(tmp_path: Path, code: int) -> None:
    async with running(tmp_path, "a") as bench:
        refused: list[web.Request] = []

        def refuse(request: web.Request) -> web.StreamResponse | None:
            if len(refused) < 3:
                refused.append(request)
                return status(code)
            return None

        bench.server.fault = refuse
        bench.server.cut()
        await bench.server.put(DEPLOYMENT, "b")
        await bench.until(lambda: bench.names == ["a", "b"])
        assert len(refused) == 3


async def test_the_servers_wish_to_wait_is_granted(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as bench:
        times: list[float] = []
        loop = asyncio.get_running_loop()

        def refuse(request: web.Request) -> web.StreamResponse | None:
            times.append(loop.time())
            return status(429, retry_after_s=1) if len(times) == 1 else None

        bench.server.fault = refuse
        bench.server.cut()
        await bench.until(lambda: len(times) >= 2)
        assert times[1] - times[0] >= 1


async def test_rotated_credentials_are_read_again_after_401(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as bench:
        bench.server.kubeconfig(tmp_path, token="second")
        bench.server.fault = lambda request: (
            None if request.headers["Authorization"] == "Bearer second" else status(401)
        )
        bench.server.cut()
        await bench.server.put(DEPLOYMENT, "b")
        await bench.until(lambda: bench.names == ["a", "b"])


async def test_an_object_that_cannot_be_taken_up_does_not_keep_the_others_out(tmp_path: Path) -> None:
    def owner(kind: Kind, obj: Any) -> None:
        if obj["metadata"]["name"] == "odd":
            raise OverflowError("too large")

    async with running(tmp_path, "a", "odd", "z", start=False) as bench:
        store = Store(owner)
        informer = Informer(bench.client, store, DEPLOYMENT)
        task = asyncio.create_task(informer.run())
        await asyncio.wait_for(informer.synced.wait(), 20)
        await bench.server.put(DEPLOYMENT, "odd")
        await bench.server.put(DEPLOYMENT, "zz")
        await bench.until(lambda: store.get(DEPLOYMENT, "ns", "zz") is not None)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert store.get(DEPLOYMENT, "ns", "a") is not None
        assert informer.restarts == 0


async def test_events_that_arrive_in_one_piece_are_one_batch_and_lines_stay_whole(tmp_path: Path) -> None:
    async with running(tmp_path, "a", start=False) as bench:
        await bench.server.put(DEPLOYMENT, "long", spec={"text": "x" * 700_000})
        for number in range(50):
            await bench.server.put(DEPLOYMENT, f"m{number}")
        batches = [
            batch async for batch in bench.client.watch(DEPLOYMENT, resource_version="101", lasts_s=1, silence_s=5)
        ]
        names = [obj["metadata"].get("name") for batch in batches for _, obj in batch]
        assert names == ["long", *(f"m{number}" for number in range(50)), None]
        assert len(batches) < 10


async def test_slices_give_way_to_others() -> None:
    turns: list[str] = []

    async def other() -> None:
        for _ in range(3):
            turns.append("other")
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for piece in in_slices([1, 2, 3, 4, 5], 2):
        turns += map(str, piece)
    await task
    assert turns == ["1", "2", "other", "3", "4", "other", "5", "other"]
