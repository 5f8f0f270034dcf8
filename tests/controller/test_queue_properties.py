"""The work queue under any order of calls."""

import asyncio
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flotilla.controller.queue import Queue

KEYS = st.sampled_from("abc")


class QueueMachine(RuleBasedStateMachine):
    """Against a model: which keys still owe a pass, and from when on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue: Queue[str] = Queue(clock=lambda: self.now, jitter=lambda: 1.0)
        self.owed: set[str] = set()
        self.later: dict[str, float] = {}
        self.working: set[str] = set()

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)
        self.later.pop(key, None)

    @rule(key=KEYS, delay_s=st.integers(0, 5))
    def add_after(self, key: str, delay_s: int) -> None:
        in_line = key in self.owed and key not in self.working
        self.queue.add_after(key, delay_s)
        if not in_line:
            self.later[key] = min(self.later.get(key, float("inf")), self.now + delay_s)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), again_s=st.none() | st.integers(0, 5))
    def succeed(self, data: st.DataObject, again_s: int | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.queue.succeeded(key, again_s=again_s)
        if again_s is not None:
            self.later[key] = min(self.later.get(key, float("inf")), self.now + again_s)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    def next(self) -> str:
        """The key that is there; a queue that lost one must fail and not hang."""
        return asyncio.run(asyncio.wait_for(self.queue.get(), 5))

    def due(self) -> set[str]:
        return {key for key, at in self.later.items() if at <= self.now}

    @precondition(lambda self: (self.owed | self.due()) - self.working)
    @rule()
    def take(self) -> None:
        key = self.next()
        assert key not in self.working
        for late in self.due():
            del self.later[late]
            self.owed.add(late)
        assert key in self.owed
        self.owed.discard(key)
        self.working.add(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.queue.done(key)
        self.working.discard(key)
        if key in self.owed:
            # It goes in line now, which is sooner than any later wish.
            self.later.pop(key, None)

    @invariant()
    def what_works_is_counted(self) -> None:
        assert self.queue.working == len(self.working)
        assert self.queue.depth <= 3

    def teardown(self) -> None:
        for key in sorted(self.working):
            self.queue.done(key)
        self.now += 10
        left = self.owed | set(self.later)
        drained = {self.next() for _ in left}
        assert drained == left
        assert self.queue.depth == 0


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestQueue = QueueMachine.TestCase


def fresh(clock: Callable[[], float]) -> Queue[str]:
    return Queue(clock=clock, base_s=0.2, cap_s=60.0, jitter=lambda: 1.0)


@given(failures=st.integers(1, 40))
def test_backoff_doubles_up_to_its_cap(failures: int) -> None:
    now = 0.0
    queue = fresh(lambda: now)
    for _ in range(failures - 1):
        queue.retry("a")
        queue._due.clear()
    queue.retry("a")
    assert queue._due["a"] == min(0.2 * 2 ** (failures - 1), 60.0)


def test_a_success_resets_the_backoff() -> None:
    queue = fresh(lambda: 0.0)
    for _ in range(5):
        queue.retry("a")
    queue.succeeded("a")
    queue._due.clear()
    queue.retry("a")
    assert queue._due["a"] == 0.2


def test_the_servers_wish_outweighs_a_shorter_backoff() -> None:
    queue = fresh(lambda: 0.0)
    queue.retry("a", after_s=7)
    assert queue._due["a"] == 7


async def passes(count: int, *, newcomer_at: int | None = None) -> list[tuple[str, int]]:
    """The passes in order, of `count` keys at once which need two passes each, a second apart; one pass takes 10 ms."""
    now = 0.0
    queue = fresh(lambda: now)
    seen: dict[str, int] = {}
    order: list[tuple[str, int]] = []
    for number in range(count):
        queue.add(f"old-{number}")
    while len(order) < 2 * len(seen) or queue.depth:
        if not queue.depth:
            now += 1
        key = await asyncio.wait_for(queue.get(), 5)
        now += 0.01
        seen[key] = seen.get(key, 0) + 1
        order.append((key, seen[key]))
        queue.succeeded(key, again_s=1.0 if seen[key] == 1 else None)
        queue.done(key)
        if len(order) == newcomer_at:
            queue.add("new")
    return order


async def test_of_many_keys_at_once_half_are_finished_after_about_half_of_the_passes() -> None:
    order = await passes(1000)
    first_half = order[: len(order) // 2]
    assert sum(number == 2 for _, number in first_half) >= 400
    assert sorted(order) == sorted((f"old-{key}", number) for key in range(1000) for number in (1, 2))


async def test_a_new_key_among_many_is_finished_soon() -> None:
    order = await passes(1000, newcomer_at=400)
    assert order.index(("new", 1)) < 400 + 10
    assert order.index(("new", 2)) < 400 + 300  # of 10 ms each: its wait of a second, and its turn


async def test_a_stream_of_new_keys_does_not_keep_the_oldest_waiting() -> None:
    queue = fresh(lambda: 0.0)
    queue.add("oldest")
    for number in range(20):
        for more in range(3):
            queue.add(f"new-{number}-{more}")
        key = await queue.get()
        queue.succeeded(key, again_s=0.0)
        queue.done(key)
        if key == "oldest":
            return
    raise AssertionError("the oldest key starved")
