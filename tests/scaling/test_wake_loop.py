"""The long polls of the operator at the gateways: reconnects, pods that vanish, garbage, and the bound on wakes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.registry import CollectorRegistry

from flotilla.addresses import AddressMap
from flotilla.gateway.admin import AdminServer, Probes
from flotilla.gateway.pending import HeldCounter
from flotilla.scaling.scrape_client import ScrapeError, Scraper, ScrapeTarget
from flotilla.scaling.wake_loop import WakeLoop, parse


def pod(uid: str, *, port: int = 9090) -> ScrapeTarget:
    return ScrapeTarget(uid, "127.0.0.1", port, "/metrics", {})


class Gateways:
    """Stands for Scraper. `answers` are those of each pod in turn; a pod without further ones does not answer."""

    def __init__(self, **answers: Sequence[bytes | ScrapeError]) -> None:
        self._answers: dict[str, Iterator[bytes | ScrapeError]] = {uid: iter(given) for uid, given in answers.items()}
        self.paths: dict[str, list[str]] = {uid: [] for uid in answers}
        self.cancelled: set[str] = set()

    async def read(
        self, targets: Sequence[ScrapeTarget], parse_: Callable[[bytes, ScrapeTarget], Any]
    ) -> dict[str, Any]:
        (target,) = targets
        self.paths[target.uid].append(target.path)
        answer = next(self._answers[target.uid], None)
        if answer is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.add(target.uid)
        if isinstance(answer, bytes):
            return {target.uid: parse_(answer, target)}
        return {target.uid: answer}


class Wakes:
    """What the loop did, and the pods that it is to poll."""

    def __init__(self, pods: Mapping[str, Sequence[ScrapeTarget]]) -> None:
        self.pods = pods
        self.woken: list[set[str]] = []

    async def wake(self, namespaces: frozenset[str]) -> None:
        self.woken.append(set(namespaces))


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def running(
    scraper: Any, wakes: Wakes, until: Callable[[], bool], *, spacing_s: float = 0, then: Awaitable[None] | None = None
) -> WakeLoop:
    loop = WakeLoop(scraper, lambda: wakes.pods, wakes.wake, interval_s=0.001, spacing_s=spacing_s, backoff_s=0.0001)
    task = asyncio.create_task(loop.run())
    await eventually(until)
    if then is not None:
        await then
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return loop


async def test_each_new_count_wakes_the_gateways_namespace_and_is_polled_from() -> None:
    gateways = Gateways(a=[b'{"count": 0}', b'{"count": 3}', b'{"count": 3}', b'{"count": 4}'])
    wakes = Wakes({"ns": [pod("a")]})
    await running(gateways, wakes, lambda: len(gateways.paths["a"]) == 5)
    counts = [path.partition("after=")[2].partition("&")[0] for path in gateways.paths["a"]]
    assert counts == ["0", "0", "3", "3", "4"]
    assert wakes.woken == [{"ns"}, {"ns"}]


async def test_a_gateway_that_restarts_counts_from_zero_and_is_heard_again() -> None:
    gateways = Gateways(a=[b'{"count": 2}', ScrapeError("connection refused"), b'{"count": 0}', b'{"count": 1}'])
    wakes = Wakes({"ns": [pod("a")]})
    await running(gateways, wakes, lambda: len(gateways.paths["a"]) == 5)
    assert "after=2" in gateways.paths["a"][1]
    assert "after=2" in gateways.paths["a"][2]
    assert wakes.woken
    assert "after=1" in gateways.paths["a"][4]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"count": "1"}',
        b'{"count": true}',
        b'{"count": -1}',
        b'{"count": 1.5}',
        b'{"count": NaN}',
        ScrapeError("HTTP 404"),
        ScrapeError("HTTP 503"),
    ],
)
async def test_what_is_no_count_wakes_nothing_and_is_asked_again(answer: bytes | ScrapeError) -> None:
    gateways = Gateways(a=[answer, answer, b'{"count": 1}'])
    wakes = Wakes({"ns": [pod("a")]})
    if isinstance(answer, bytes):
        assert isinstance(parse(answer), ScrapeError)
    await running(gateways, wakes, lambda: len(gateways.paths["a"]) == 4)
    assert wakes.woken == [{"ns"}]


async def test_the_poll_of_a_pod_that_vanishes_ends_and_that_of_another_goes_on() -> None:
    gateways = Gateways(a=[], b=[b'{"count": 1}'])
    wakes = Wakes({"ns": [pod("a")], "other": [pod("b")]})

    async def vanish() -> None:
        wakes.pods = {"other": [pod("b")]}
        await eventually(lambda: gateways.cancelled == {"a"})

    await running(gateways, wakes, lambda: all(gateways.paths.values()), then=vanish())
    assert len(gateways.paths["a"]) == 1
    assert wakes.woken == [{"other"}]


async def test_nothing_is_polled_where_no_model_may_be_at_zero() -> None:
    rounds = 0

    def none() -> dict[str, list[ScrapeTarget]]:
        nonlocal rounds
        rounds += 1
        return {}

    gateways, wakes = Gateways(), Wakes({})
    loop = WakeLoop(gateways, none, wakes.wake, interval_s=0)  # type: ignore[arg-type]
    task = asyncio.create_task(loop.run())
    await eventually(lambda: rounds > 3)
    assert loop.polled == frozenset()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert wakes.woken == []


async def test_the_number_of_open_polls_is_bounded() -> None:
    names = [f"pod{number}" for number in range(1001)]
    gateways = Gateways(**dict.fromkeys(names, ()))
    wakes = Wakes({"ns": [pod(name) for name in names]})
    loop = await running(gateways, wakes, lambda: sum(map(len, gateways.paths.values())) >= 1000)
    assert sum(map(len, gateways.paths.values())) == 1000
    assert loop.polled == frozenset()


async def test_gateways_that_answer_together_are_one_wake() -> None:
    many = {f"pod{number}": [b'{"count": 1}'] for number in range(50)}
    gateways = Gateways(**many)
    wakes = Wakes({f"ns{number}": [pod(f"pod{number}")] for number in range(50)})
    await running(gateways, wakes, lambda: all(len(paths) == 2 for paths in gateways.paths.values()))
    assert set().union(*wakes.woken) == set(wakes.pods)
    assert len(wakes.woken) < 5


async def test_a_gateway_that_always_has_news_wakes_once_in_each_pause() -> None:
    gateways = Gateways(a=[b'{"count": %d}' % number for number in range(1, 1000)])
    wakes = Wakes({"ns": [pod("a")]})
    await running(gateways, wakes, lambda: bool(wakes.woken), spacing_s=3600)
    assert len(wakes.woken) == len(gateways.paths["a"]) == 1


@contextmanager
def admin_server(counter: HeldCounter) -> Iterator[AdminServer]:
    probes = Probes(dict, dict, dict, CollectorRegistry(), counter.poll)
    server = AdminServer("127.0.0.1", 0, probes)
    try:
        yield server
    finally:
        counter.close()
        server.close()


async def test_the_operator_and_a_gateway_understand_each_other_over_a_socket() -> None:
    counter, scraper = HeldCounter(), Scraper(AddressMap(), timeout_s=60)
    with admin_server(counter) as server:
        wakes = Wakes({"ns": [pod("a", port=server.port)]})

        async def one_more() -> None:
            counter.increment()
            await eventually(lambda: wakes.woken == [{"ns"}])

        await running(scraper, wakes, lambda: counter.polls == 1, then=one_more())
    await scraper.close()
