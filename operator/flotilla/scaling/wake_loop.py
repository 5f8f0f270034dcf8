"""Wakes models at zero as soon as a request waits for them, instead of at the next round of the scaling loop.

The loop keeps one long poll (`GET /held`) open at each gateway of a namespace in which a model may be at zero. A
gateway answers when requests begin to wait; then the gateways of that namespace are read and decided for at once.
Without such requests this costs one call in 25 s for each gateway. A gateway that does not answer, or that is too old
to know the path, is asked again with a growing pause; the scaling loop reads its metrics every two seconds in any case.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import orjson

from flotilla.scaling.scrape_client import ScrapeError, Scraper, ScrapeTarget

POLL_TIMEOUT_S = 25
"""After which a gateway answers that nothing has changed."""
SCRAPER_TIMEOUT_S = POLL_TIMEOUT_S + 10.0
_FOLLOW_INTERVAL_S = 2.0
"""Between two looks at which gateways there are."""
_SPACING_S = 0.25
"""Least time between two wakes, and between two polls of one gateway, however often requests begin to wait."""
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 1.0, 30.0
_MAX_POLLS = 1000
"""Open connections; gateways beyond are read every two seconds only."""


def parse(body: bytes) -> int | ScrapeError:
    """The counter in an answer of `/held`."""
    try:
        answer = orjson.loads(body)
    except ValueError as error:
        return ScrapeError(f"/held is not JSON: {error}")
    count = answer.get("count") if isinstance(answer, dict) else None
    if type(count) is not int or count < 0:
        return ScrapeError("/held has no count that is an integer of at least 0")
    return count


class WakeLoop:
    """`gateways` are the pods to poll, by namespace; `wake` is called with the namespaces where requests wait.

    The scraper must wait for an answer for `SCRAPER_TIMEOUT_S`.
    """

    def __init__(
        self,
        scraper: Scraper,
        gateways: Callable[[], Mapping[str, Sequence[ScrapeTarget]]],
        wake: Callable[[frozenset[str]], Awaitable[None]],
        *,
        interval_s: float = _FOLLOW_INTERVAL_S,
        spacing_s: float = _SPACING_S,
        backoff_s: float = _BACKOFF_BASE_S,
    ) -> None:
        self._scraper = scraper
        self._gateways = gateways
        self._wake = wake
        self._interval_s = interval_s
        self._spacing_s = spacing_s
        self._backoff_s = backoff_s
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._waiting: set[str] = set()
        self._notified = asyncio.Event()

    @property
    def polled(self) -> frozenset[str]:
        """Uids of the gateway pods with a poll."""
        return frozenset(self._polls)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._wake_namespaces())
                while True:
                    self._follow(group)
                    await asyncio.sleep(self._interval_s)
        finally:
            self._polls.clear()

    def _follow(self, group: asyncio.TaskGroup) -> None:
        """Start polls of new pods, and end those of pods that are gone."""
        wanted = {pod.uid: (namespace, pod) for namespace, pods in self._gateways().items() for pod in pods}
        for uid in [uid for uid in self._polls if uid not in wanted]:
            self._polls.pop(uid).cancel()
        for uid, (namespace, pod) in wanted.items():
            if uid not in self._polls and len(self._polls) < _MAX_POLLS:
                self._polls[uid] = group.create_task(self._poll(namespace, pod), name=f"held requests of {namespace}")

    async def _poll(self, namespace: str, pod: ScrapeTarget) -> None:
        count, backoff_s = 0, self._backoff_s
        while True:
            target = replace(pod, path=f"/held?after={count}&timeoutSeconds={POLL_TIMEOUT_S}")
            answer = (await self._scraper.read([target], lambda body, _: parse(body)))[pod.uid]
            if isinstance(answer, ScrapeError):
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                backoff_s = min(2 * backoff_s, _BACKOFF_CAP_S)
                continue
            backoff_s = self._backoff_s
            if answer != count:
                count = answer
                self._waiting.add(namespace)
                self._notified.set()
            await asyncio.sleep(self._spacing_s)

    async def _wake_namespaces(self) -> None:
        while True:
            await self._notified.wait()
            self._notified.clear()
            namespaces, self._waiting = frozenset(self._waiting), set()
            await self._wake(namespaces)
            await asyncio.sleep(self._spacing_s)
