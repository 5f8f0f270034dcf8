"""What the watch layer says to the apiserver, seen from its HTTP session.

kopf tells nobody that it listed a kind again (after a 410, or after it was restarted), yet that is when deletions are
missed: it reports survivors only. Its requests tell.
"""

import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import aiohttp
from yarl import URL

from flotilla.kube.aside import Aside, response_class
from flotilla.kube.client import Connection
from flotilla.kube.kinds import Kind


class Traffic:
    """Outlives the sessions that it observes, so that a restart counts as listing again. Confined to one thread."""

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        aside: Aside,
        *,
        on_relisted: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kinds` by the paths that are listed and watched; their objects go by way of `aside`."""
        self._kinds = kinds
        self._aside = aside
        self._paths = frozenset(kinds)
        self._on_relisted = on_relisted
        self._clock = clock
        self._listed: set[str] = set()
        self._relisted: set[str] = set()
        self._asked: set[str] = set()
        self.heard_at = clock()
        """When the apiserver last answered anything."""

    def begin(self) -> None:
        """A new life of the watch layer starts."""
        self._asked.clear()
        self._aside.clear()

    @property
    def unasked(self) -> list[str]:
        """Paths that this life has not even tried to list."""
        return sorted(self._paths - self._asked)

    def session(self, connection: Connection, *, user_agent: str) -> aiohttp.ClientSession:
        """A session for the running loop; each request carries the token that is valid then."""
        base = URL(connection.host).path.rstrip("/")

        async def on_start(
            _: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestStartParams
        ) -> None:
            if token := await connection.authorization():
                request.headers["Authorization"] = token
            self.asked(request.url.path.removeprefix(base), watching="watch" in request.url.query)

        async def on_end(_: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestEndParams) -> None:
            page = "watch" in request.url.query or "continue" in request.url.query
            listed = request.response.status < 400 and not page
            self.answered(request.url.path.removeprefix(base), listed=listed)

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(on_start)
        trace.on_request_end.append(on_end)
        kinds = {base + path: kind for path, kind in self._kinds.items()}
        return connection.session(
            user_agent=user_agent, traces=[trace], response_class=response_class(self._aside, kinds, self.heard)
        )

    def heard(self) -> None:
        """The apiserver said something."""
        self.heard_at = self._clock()

    def asked(self, path: str, *, watching: bool) -> None:
        """A request is about to leave. A watch that follows a repeated list means: deletions may have been missed."""
        if path not in self._paths:
            return
        self._asked.add(path)
        if watching and path in self._relisted:
            self._relisted.discard(path)
            self._on_relisted()

    def answered(self, path: str, *, listed: bool) -> None:
        """The head of an answer came; `listed` when it was a good one to the first page of a LIST."""
        self.heard()
        if listed and path in self._paths:
            (self._relisted if path in self._listed else self._listed).add(path)
