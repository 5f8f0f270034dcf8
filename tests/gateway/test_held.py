"""`GET /held` of the admin server: the operator learns at once that requests wait for a model at zero."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.gateway.test_routing import small_and_frontier
from tests.support.gateway import Running, eventually

from flotilla.gateway.pending import MAX_POLLS, HeldCounter


async def poll(gw: Running, query: str) -> tuple[int, int]:
    """Status and counter."""
    status, text = await gw.admin(f"/held?{query}")
    return status, json.loads(text).get("count", -1)


async def test_a_poll_is_answered_when_a_request_begins_to_wait(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, small, _):
        gw.gateway.endpoints.replace([])
        polling = asyncio.create_task(poll(gw, "after=0&timeoutSeconds=25"))
        await eventually(lambda: gw.gateway.held.polls == 1)
        asking = asyncio.create_task(gw.chat())
        assert await polling == (200, 1)
        gw.serve("qwen-small", [small])
        assert (await asking)[0] == 200


async def test_requests_that_find_a_replica_answer_no_poll(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, _, _):
        assert (await gw.chat())[0] == 200
        assert await poll(gw, "after=0&timeoutSeconds=0") == (200, 0)


async def test_a_line_that_doubles_answers_again_so_that_a_burst_is_known_whole(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, small, _):
        gw.gateway.endpoints.replace([])
        asking = [asyncio.create_task(gw.chat()) for _ in range(9)]
        await eventually(lambda: gw.gateway.state.pending.count("qwen-small") == 9)
        assert await poll(gw, "after=0") == (200, 4)  # at 1, 2, 4 and 8
        gw.serve("qwen-small", [small])
        await asyncio.gather(*asking)


async def test_a_replica_that_goes_at_once_does_not_keep_the_line_moving(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, small, _):
        gw.gateway.endpoints.replace([])
        asking = [asyncio.create_task(gw.chat()) for _ in range(4)]
        await eventually(lambda: gw.gateway.state.pending.count("qwen-small") == 4)
        gw.serve("qwen-small", [small])
        gw.gateway.endpoints.replace([])
        await asyncio.sleep(0.5)
        assert gw.gateway.state.pending.count("qwen-small") == 4
        # At 1, 2 and 4, and at 4 again when the one that was released came back.
        assert await poll(gw, "after=0") == (200, 4)
        gw.serve("qwen-small", [small])
        assert [status for status, *_ in await asyncio.gather(*asking)] == [200] * 4


async def test_a_poll_of_another_count_is_answered_at_once_as_after_a_restart(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, _, _):
        assert await poll(gw, "after=7&timeoutSeconds=25") == (200, 0)


async def test_more_polls_than_may_wait_are_refused_and_all_end_with_the_gateway(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, _, _):
        polling = [asyncio.create_task(poll(gw, "after=0")) for _ in range(MAX_POLLS)]
        await eventually(lambda: gw.gateway.held.polls == MAX_POLLS)
        assert (await poll(gw, "after=0"))[0] == 503
        # What need not wait is answered all the same.
        assert await poll(gw, "after=1") == (200, 0)
        assert (await gw.admin("/healthz"))[0] == 200
        gw.gateway.held.close()
        assert await asyncio.gather(*polling) == [(200, 0)] * MAX_POLLS


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=1e3", "timeoutSeconds=1.5", f"after={'9' * 30}"])
async def test_a_parameter_that_is_no_whole_number_is_refused_by_name(tmp_path: Path, query: str) -> None:
    async with small_and_frontier(tmp_path) as (gw, _, _):
        status, text = await gw.admin(f"/held?{query}")
        assert status == 400
        assert query.partition("=")[0] in json.loads(text)["error"]


def test_a_poll_ends_with_its_time_and_leaves_room_for_others() -> None:
    counter = HeldCounter(max_polls=1)
    for _ in range(3):
        assert counter.poll(0, 0.001) == 0
    assert counter.polls == 0


def test_no_increment_is_lost_between_two_polls() -> None:
    counter, seen = HeldCounter(), list[int]()

    def follow() -> None:
        count: int | None = 0
        while count is not None and count < 100:
            count = counter.poll(count, 25)
            seen.append(count or 0)

    with ThreadPoolExecutor() as pool:
        following = [pool.submit(follow) for _ in range(2)]
        for _ in range(100):
            counter.increment()
        for one in following:
            one.result()
    assert seen.count(100) == 2
