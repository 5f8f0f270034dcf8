"""The store holds Flotilla's own kinds as they are, although kopf reports no deletion that it missed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from tests.support.apiserver import FakeApiserver, fake_apiserver, status

from flotilla.controller.resync import Resync
from flotilla.kube.client import KubeClient
from flotilla.kube.informer import Informer
from flotilla.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, Key
from flotilla.kube.store import Store, owner


class Bench:
    """A fake apiserver with two ModelDeployments, and the keys that were queued."""

    def __init__(self, server: FakeApiserver, store: Store, resync: Resync, queued: list[Key]) -> None:
        self.server, self.store, self.resync, self.queued = server, store, resync, queued

    @property
    def names(self) -> list[str]:
        return sorted(obj["metadata"]["name"] for obj in self.store.all(MODEL_DEPLOYMENT))

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not check():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(directory: Path, *, interval_s: float = 3600) -> AsyncIterator[Bench]:
    async with fake_apiserver() as server:
        for name in ("a", "b"):
            await server.put(MODEL_DEPLOYMENT, name)
        client = await KubeClient.connect(kubeconfig=server.kubeconfig(directory), user_agent="test", timeout_s=2)
        queued: list[Key] = []
        store = Store(owner)
        own, child = Informer(client, store, MODEL_DEPLOYMENT), Informer(client, store, DEPLOYMENT)
        resync = Resync([own], [child], store, interval_s=interval_s, enqueue=queued.append)
        tasks = [asyncio.create_task(child.run())]
        try:
            async with asyncio.timeout(20):
                await resync.first()
            tasks.append(asyncio.create_task(resync.run()))
            yield Bench(server, store, resync, queued)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()


async def test_at_the_start_everything_is_known_before_any_work_begins(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        assert bench.names == ["a", "b"]
        assert bench.server.asked(DEPLOYMENT, watch=False) == 1


async def test_a_start_waits_for_crds_that_are_not_installed_yet(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        missing: list[web.Request] = []

        def refuse(request: web.Request) -> web.StreamResponse | None:
            if request.path != MODEL_DEPLOYMENT.path() or missing:
                return None
            missing.append(request)
            return status(404)

        bench.server.fault = refuse
        await bench.resync.first()
        assert len(missing) == 1


async def test_a_list_that_is_asked_for_drops_what_is_gone_and_wakes_nobody_else(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.server.delete(MODEL_DEPLOYMENT, "a", told=False)
        bench.resync.trigger()
        await bench.until(lambda: bench.names == ["b"])
        assert bench.queued == []


async def test_a_list_that_fails_is_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        refused: list[web.Request] = []

        def refuse(request: web.Request) -> web.StreamResponse | None:
            if request.path == MODEL_DEPLOYMENT.path() and len(refused) < 2:
                refused.append(request)
                return status(404 if refused[1:] else 500)
            return None

        bench.server.fault = refuse
        await bench.server.delete(MODEL_DEPLOYMENT, "a", told=False)
        bench.resync.trigger()
        await bench.until(lambda: bench.names == ["b"])
        assert len(refused) == 2


async def test_every_resource_is_looked_at_when_asked_without_a_list(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        lists = bench.server.asked(MODEL_DEPLOYMENT, watch=False)
        bench.resync.trigger_all()
        await bench.until(lambda: len(bench.queued) == 2)
        assert {key.name for key in bench.queued} == {"a", "b"}
        assert bench.server.asked(MODEL_DEPLOYMENT, watch=False) == lists


async def test_at_each_interval_everything_is_listed_and_looked_at(tmp_path: Path) -> None:
    async with running(tmp_path, interval_s=0.2) as bench:
        await bench.server.delete(MODEL_DEPLOYMENT, "a", told=False)
        await bench.until(lambda: bench.names == ["b"] and len(bench.queued) >= 2)
