"""A background loop that fails ends nothing else, and runs again."""

import asyncio
from decimal import Decimal, InvalidOperation

import pytest

from flotilla.background import isolated, keep_running


@pytest.mark.parametrize(
    "error", [OverflowError("too large"), InvalidOperation("no number"), ValueError(), KeyError("x")]
)
async def test_a_loop_that_fails_is_logged_counted_and_started_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    runs, failed = [0], list[str]()

    async def loop() -> None:
        runs[0] += 1
        if runs[0] < 4:
            raise error

    await asyncio.wait_for(keep_running("ledger", loop, on_failure=failed.append, base_s=0.001), 10)
    assert (runs[0], failed) == (4, ["ledger"] * 3)
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3


async def test_others_of_the_same_group_go_on() -> None:
    seen: list[Decimal] = []
    done = asyncio.Event()

    async def bad() -> None:
        raise OverflowError("cannot convert Infinity to integer")

    async def good() -> None:
        for number in range(20):
            seen.append(Decimal(number))
            await asyncio.sleep(0)
        done.set()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(keep_running("bad", bad, base_s=0.001))
        group.create_task(keep_running("good", good))
        await done.wait()
        task.cancel()
    assert len(seen) == 20


async def test_cancellation_ends_it() -> None:
    task = asyncio.create_task(keep_running("loop", asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_an_object_that_fails_does_not_stop_the_others_and_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now, good = [0.0], list[str]()
    for _ in range(3):
        for key in ("a", "infinite", "b"):
            with isolated("test of one object", key, clock=lambda: now[0]):
                if key == "infinite":
                    int(float("inf"))
                good.append(key)
        now[0] += 30
    assert good == ["a", "b"] * 3
    assert [record.__dict__["key"] for record in caplog.records] == ["infinite"] * 2


def test_an_isolated_part_can_be_cancelled() -> None:
    with pytest.raises(asyncio.CancelledError), isolated("test of cancellation", "a"):
        raise asyncio.CancelledError
