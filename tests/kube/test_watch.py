"""kopf, unchanged and against a fake apiserver, passes events on; however it ends or hangs, it is started again."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web
from tests.support.apiserver import FakeApiserver, fake_apiserver

from flotilla.kube.kinds import MODEL_DEPLOYMENT, ROUTING_POLICY, Kind
from flotilla.kube.watch import Watch


class Bench:
    """What a watch has reported so far."""

    def __init__(self, server: FakeApiserver) -> None:
        self.server = server
        self.events: list[tuple[Kind, str | None, dict[str, Any]]] = []
        self.lists = 0
        self.watch: Any = None

    def listed(self) -> None:
        self.lists += 1

    def seen(self, type_: str | None, name: str) -> bool:
        return any(event[1] == type_ and event[2]["metadata"]["name"] == name for event in self.events)

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not check():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(directory: Path, *, cls: type[Watch] = Watch, **options: Any) -> AsyncIterator[Bench]:
    async with fake_apiserver() as server:
        bench = Bench(server)
        await server.put(MODEL_DEPLOYMENT, "old", spec={"model": {"source": "hf://a/b"}})
        options.setdefault("kubeconfig", server.kubeconfig(directory))
        bench.watch = cls(
            [MODEL_DEPLOYMENT, ROUTING_POLICY],
            lambda *event: bench.events.append(event),
            on_listed=bench.listed,
            **options,
        )
        bench.watch.start()
        try:
            yield bench
        finally:
            await asyncio.to_thread(bench.watch.stop)
            assert not bench.watch.alive


async def test_handlers_get_whole_objects_and_kopf_writes_nothing(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        await bench.until(lambda: bench.seen(None, "old") and len(bench.server.watches) == 2)
        await bench.server.put(MODEL_DEPLOYMENT, "new")
        await bench.server.put(ROUTING_POLICY, "route")
        await bench.server.delete(MODEL_DEPLOYMENT, "old")
        await bench.until(lambda: bench.seen("ADDED", "route") and bench.seen("DELETED", "old"))
        kind, _, obj = bench.events[0]
        assert kind == MODEL_DEPLOYMENT
        assert obj["spec"] == {"model": {"source": "hf://a/b"}}
        assert {request.method for request in bench.server.requests} == {"GET"}
        assert bench.watch.restarts == 0


async def test_of_one_namespace_only_that_is_listed_and_watched(tmp_path: Path) -> None:
    async with watching(tmp_path, namespaces=["ns"]) as bench:
        await bench.until(lambda: bench.seen(None, "old") and len(bench.server.watches) == 2)
        assert {request.path for request in bench.server.watches} == {
            MODEL_DEPLOYMENT.path("ns"),
            ROUTING_POLICY.path("ns"),
        }


async def test_each_list_of_kopfs_is_reported_for_deletions_are_missed_there(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        await bench.until(lambda: bench.lists == 2)
        await bench.server.delete(MODEL_DEPLOYMENT, "old", told=False)
        bench.server.expire()
        bench.server.cut()
        await bench.until(lambda: bench.lists >= 4)
        assert not bench.seen("DELETED", "old")
        assert bench.watch.restarts == 0


def broken_off(request: web.Request) -> web.StreamResponse | None:
    if "watch" not in request.query:
        return None
    error = {"kind": "Status", "code": 500, "message": "broken off"}
    return web.Response(text=json.dumps({"type": "ERROR", "object": error}) + "\n", content_type="application/json")


async def test_a_watch_error_ends_kopf_which_is_started_again(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        await bench.until(lambda: len(bench.server.watches) == 2)
        bench.server.fault = broken_off
        bench.server.cut()
        await bench.until(lambda: bench.watch.restarts >= 1)
        bench.server.fault = lambda _: None
        await bench.server.put(MODEL_DEPLOYMENT, "new")
        await bench.until(lambda: bench.seen("ADDED", "new") or bench.seen(None, "new"))


class Stubborn(Watch):
    """In kopf's loop is a task that no cancellation ends, so that kopf never ends by itself."""

    def _registry(self) -> kopf.OperatorRegistry:
        registry = super()._registry()

        @kopf.on.startup(registry=registry)
        async def start(**_: object) -> None:
            self.stubborn = asyncio.create_task(stubborn())

        return registry


async def stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


@pytest.mark.parametrize("when", ["after it watched", "at its start"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_end_of_kopf_that_hangs_is_cut_short_and_kopf_started_again(tmp_path: Path, when: str) -> None:
    """Without the bound this test runs into its timeout: kopf waits for its tasks without a limit."""
    async with watching(tmp_path, cls=Stubborn, ending_s=0.3) as bench:
        if when == "at its start":
            bench.server.fault = broken_off
        else:
            await bench.until(lambda: len(bench.server.watches) == 2)
            bench.server.fault = broken_off
            bench.server.cut()
        await bench.until(lambda: bench.watch.restarts >= 1)
        bench.server.fault = lambda _: None
        await bench.server.put(MODEL_DEPLOYMENT, "new")
        await bench.until(lambda: bench.seen("ADDED", "new") or bench.seen(None, "new"))
    # What was cut off is destroyed here, where pytest does not mind, and not during another test.
    gc.collect()


async def test_without_credentials_kopf_is_started_again_until_there_are_some(tmp_path: Path) -> None:
    """It ends before anything could watch it."""
    later = tmp_path / "later"
    later.mkdir()
    async with watching(tmp_path, kubeconfig=later / "kubeconfig") as bench:
        await bench.until(lambda: bench.watch.restarts >= 1)
        bench.server.kubeconfig(later)
        await bench.until(lambda: bench.seen(None, "old"))


async def test_a_kopf_that_watches_too_little_is_started_again(tmp_path: Path) -> None:
    """Such as of a resource whose CRD was not there when it looked."""
    async with watching(tmp_path, request_gap_s=0.5) as bench:
        bench.server.fault = lambda request: (
            web.json_response({"kind": "APIResourceList", "resources": []})
            if request.path == f"/apis/{MODEL_DEPLOYMENT.api_version}"
            else None
        )
        await bench.until(lambda: bench.watch.restarts >= 1)
        bench.server.fault = lambda _: None
        await bench.until(lambda: bench.seen(None, "old"))


async def test_silence_is_measured_for_the_path_where_it_lasts_longest(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        await bench.until(lambda: len(bench.server.watches) == 2)
        await bench.until(lambda: bench.watch.silent_s > 0.3)
        await bench.server.put(MODEL_DEPLOYMENT, "new")
        await bench.until(lambda: bench.seen("ADDED", "new"))
        assert bench.watch.silent_s > 0.3, "policies are still silent"
