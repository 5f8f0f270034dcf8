"""Watch Flotilla's own kinds with kopf: the only module that imports it.

kopf's handlers get whole objects and only pass them on, so kopf's own state machine has nothing to do and writes
nothing, not even an annotation. kopf runs in a thread with an event loop of its own, for two reasons: it treats every
task that starts after it as its own and cancels it when it ends; and a watch error other than 410 ends it, after which
it must be started again while the rest of the operator goes on.

Everything here uses kopf's public interface. `kopf.spawn_tasks` returns the tasks that run for as long as kopf does:
when one of them is done, kopf is ending, and `kopf.run_tasks` must return soon. If it does not (some of its tasks may
wait without a limit), its event loop is abandoned and kopf is started again. That works however kopf ends, also right
after its start.

kopf does not report objects that were deleted while it did not watch: after a 410 or a restart it lists what is there
and stays silent about the rest. It sends its requests through an HTTP session that is ours, where each of its LISTs is
seen; `on_listed` then tells the owner of this class to make a LIST of its own, which drops what is gone.
"""

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf
import uvloop
from yarl import URL

from flotilla import __version__
from flotilla.constants import GROUP
from flotilla.errors import InvalidSpec
from flotilla.kube.client import SILENCE_S, WATCH_S, ApiConnection
from flotilla.kube.kinds import Kind

log = logging.getLogger(__name__)

OnEvent = Callable[[Kind, str | None, dict[str, Any]], None]
"""Called in the main loop with each event: kind, type (None: from a LIST of kopf's), object."""

_STOP_TIMEOUT_S = 5.0
_RESTART_BASE_S, _RESTART_CAP_S = 0.5, 15.0
_HEALTHY_AFTER_S = 60.0
_LOGIN_PAUSE_S = 10.0
_ENDING_S = 10.0
"""kopf gives its tasks five seconds to end by themselves, then cancels them, and then waits without a limit."""
_LEFTOVERS_S = 2.0
_REQUEST_GAP_S = 45.0
"""A healthy kopf sends a request per path at least every `SILENCE_S`, or after its longest backoff."""
_REQUEST_S = 10
_PAGE_SIZE = 100
_SLICE = 100
"""Events that are passed on in one turn of the main loop."""


class _UnlimitedBackoff:
    """kopf gives up a request after the last backoff, and ends; an apiserver may stay away for longer than any list."""

    def __iter__(self) -> Iterator[float]:
        backoff_s = 0.5
        while True:
            yield backoff_s * random.uniform(0.7, 1.0)  # noqa: S311 - jitter
            backoff_s = min(backoff_s * 1.7, 5.0)


class _NullDiffBaseStorage(kopf.DiffBaseStorage):
    """kopf copies each object to compare it with its last version; no handler of ours uses the difference."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> Any:
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        return None


class Watch:
    """Pass the events of some kinds to the loop that called `start`, until `stop`.

    `on_listed` is called in that loop after each LIST of kopf's, the first included: deletions may have been missed.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        on_event: OnEvent,
        *,
        on_listed: Callable[[], None] = lambda: None,
        namespaces: Sequence[str] = (),
        kubeconfig: Path | None = None,
        context: str | None = None,
        ending_s: float = _ENDING_S,
        request_gap_s: float = _REQUEST_GAP_S,
    ) -> None:
        """`ending_s` bounds the end of kopf, `request_gap_s` the time between two of its requests for one path."""
        self._kinds = tuple(kinds)
        self._on_event = on_event
        self._on_listed = on_listed
        self._namespaces = tuple(namespaces)
        self._kubeconfig = kubeconfig
        self._context = context
        self._ending_s = ending_s
        self._request_gap_s = request_gap_s
        self._paths = {kind.path(scope): kind for kind in self._kinds for scope in self._namespaces or (None,)}
        self._asked_at: dict[str, float] = {}
        """By path: the start of kopf's last request."""
        self._heard_at = dict.fromkeys(self._paths, time.monotonic())
        """By path: the last answer or event. Written by kopf's thread, read by the main one."""
        self._listing: set[str] = set()
        self._arrived: deque[tuple[Kind, str | None, dict[str, Any]]] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._main: asyncio.AbstractEventLoop | None = None
        self._life: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        """kopf's event loop and its stop flag."""
        self._sessions: list[aiohttp.ClientSession] = []
        self.restarts = 0
        """How often kopf ended by itself."""

    def start(self) -> None:
        """Start the thread; call it from the loop that shall receive the events."""
        # Below WARNING kopf logs whole objects; and it warns at each start that it is not in the main thread.
        logging.getLogger("kopf").setLevel(logging.ERROR)
        self._main = asyncio.get_running_loop()
        # An operator that stood by has heard nothing until now.
        self._heard_at = dict.fromkeys(self._paths, time.monotonic())
        self._thread = threading.Thread(target=self._supervise, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask kopf to end and wait for it; blocks, for less than two seconds as a rule."""
        self._stop.set()
        if (life := self._life) is not None:
            loop, ending = life
            try:
                loop.call_soon_threadsafe(ending.set)
            except RuntimeError:
                log.debug("kopf's event loop is closed already")
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    @property
    def alive(self) -> bool:
        """Whether the thread runs (kopf itself may be between two starts)."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def silent_s(self) -> float:
        """Seconds since the apiserver last answered or sent an event, for the path where that is longest ago."""
        return time.monotonic() - min(self._heard_at.values())

    def _supervise(self) -> None:
        backoff_s = _RESTART_BASE_S
        while not self._stop.is_set():
            started = time.monotonic()
            cause = "it ended by itself"
            try:
                self._run_once()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever ends kopf, it must run again
                cause = f"{type(error).__name__}: {error}"
            self._life = None
            if self._stop.is_set():
                return
            if time.monotonic() - started > _HEALTHY_AFTER_S:
                backoff_s = _RESTART_BASE_S
            wait_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            log.warning("kopf is started again", extra={"cause": cause, "after_s": round(wait_s, 2)})
            self.restarts += 1
            self._stop.wait(wait_s)
            backoff_s = min(2 * backoff_s, _RESTART_CAP_S)

    def _run_once(self) -> None:
        """As asyncio.run, but for a limit on the time that cancelled tasks may take: some of kopf's never end."""
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._operate())
        finally:
            leftovers = asyncio.all_tasks(loop)
            for task in leftovers:
                task.cancel()
            if leftovers:
                loop.run_until_complete(asyncio.wait(leftovers, timeout=_LEFTOVERS_S))
            while self._sessions:
                loop.run_until_complete(self._sessions.pop().close())
            asyncio.set_event_loop(None)
            loop.close()

    async def _operate(self) -> None:
        """Run kopf until it ends, or is asked to."""
        # Not the threading.Event itself: kopf would wait for it in an executor, and a loop that ends for another reason
        # would wait for that executor until kopf's own deadline kills the process.
        stop = asyncio.Event()
        self._life = (asyncio.get_running_loop(), stop)
        if self._stop.is_set():
            return
        self._asked_at = dict.fromkeys(self._paths, time.monotonic())
        self._listing.clear()
        listener = asyncio.create_task(self._check_requests(stop))
        not_kopfs = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=self._settings(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=stop,
        )
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        listener.cancel()
        # However it came to end: kopf's own task that waits for this flag would hold up the end for five seconds.
        stop.set()
        end = asyncio.create_task(kopf.run_tasks(tasks, ignored=not_kopfs))
        await asyncio.wait({end}, timeout=self._ending_s)
        if not end.done():
            causes = [str(task.exception()) for task in tasks if task.done() and not task.cancelled()]
            log.warning("the end of kopf hangs and is cut short", extra={"after_s": self._ending_s, "causes": causes})
            return
        await end

    async def _check_requests(self, stop: asyncio.Event) -> None:
        """End kopf where it neither watches nor ends.

        Besides defects, that is so where a CRD was not installed: kopf looks for the resources once, at its start.
        """
        while True:
            await asyncio.sleep(self._request_gap_s / 10)
            now = time.monotonic()
            if silent := sorted(path for path, at in self._asked_at.items() if now - at > self._request_gap_s):
                log.warning("kopf does not watch every resource; are the CRDs installed?", extra={"missing": silent})
                stop.set()
                return

    def _deliver(self) -> None:
        for _ in range(min(_SLICE, len(self._arrived))):
            kind, type_, obj = self._arrived.popleft()
            try:
                self._on_event(kind, type_, obj)
            except Exception:
                log.exception("event handler failed", extra={"resource": kind.plural})
        if self._arrived:
            self._call(self._deliver)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._main is not None
        try:
            self._main.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The main loop is closed: the process is about to end and so are we.
            self._stop.set()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        logged_in_at = float("-inf")

        @kopf.on.login(registry=registry)
        async def login(**_: object) -> kopf.AiohttpSession | None:
            nonlocal logged_in_at
            if time.monotonic() - logged_in_at < _LOGIN_PAUSE_S:
                # Without credentials kopf ends, and our own backoff applies; it would ask again and again otherwise.
                log.error("the apiserver refuses the credentials of the watch")
                return None
            logged_in_at = time.monotonic()
            try:
                connection = await ApiConnection.load(self._kubeconfig, self._context)
            except InvalidSpec as error:
                log.error("kopf cannot log in", extra={"cause": str(error)})
                return None
            session = self._session(connection)
            self._sessions.append(session)
            return kopf.AiohttpSession(server=connection.host, aiohttp_session=session)

        for kind in self._kinds:
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(self._forward(kind))
        return registry

    def _forward(self, kind: Kind) -> Callable[..., Any]:
        async def forward(*, event: Any, **_: object) -> None:
            obj = event["object"]
            scope = obj["metadata"].get("namespace") if self._namespaces else None
            self._heard_at[kind.path(scope)] = time.monotonic()
            self._arrived.append((kind, event["type"], obj))
            if len(self._arrived) == 1:
                # The others of a burst go along: each wake-up of the other loop is a system call.
                self._call(self._deliver)

        return forward

    def _session(self, connection: ApiConnection) -> aiohttp.ClientSession:
        """Each request carries the token of the moment, and is noted with its path."""
        base = URL(connection.host).path.rstrip("/")

        async def on_start(
            _: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestStartParams
        ) -> None:
            if token := await connection.authorization():
                request.headers["Authorization"] = token
            self._asked(request.url.path.removeprefix(base), watching="watch" in request.url.query)

        async def on_end(_: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestEndParams) -> None:
            path = request.url.path.removeprefix(base)
            if path in self._heard_at:
                self._heard_at[path] = time.monotonic()

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(on_start)
        trace.on_request_end.append(on_end)
        return connection.session(user_agent=f"flotilla-watch/{__version__}", traces=[trace])

    def _asked(self, path: str, *, watching: bool) -> None:
        """kopf is about to send a request. The first watch after a LIST means that the LIST is complete."""
        if path not in self._asked_at:
            return
        self._asked_at[path] = time.monotonic()
        if not watching:
            self._listing.add(path)
        elif path in self._listing:
            self._listing.discard(path)
            self._call(self._on_listed)

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.persistence.diffbase_storage = _NullDiffBaseStorage()
        settings.scanning.disabled = True
        settings.peering.standalone = True
        settings.persistence.finalizer = f"{GROUP}/kopf"
        settings.networking.request_timeout = _REQUEST_S
        settings.networking.connect_timeout = _REQUEST_S
        settings.networking.error_backoffs = _UnlimitedBackoff()
        settings.watching.server_timeout = WATCH_S
        settings.watching.client_timeout = SILENCE_S + WATCH_S
        settings.watching.inactivity_timeout = SILENCE_S
        settings.watching.connect_timeout = _REQUEST_S
        settings.watching.chunk_size = _PAGE_SIZE
        # After an unexpected end this would kill the whole process, and us with it.
        settings.process.ultimate_exiting_timeout = None
        settings.queueing.exit_timeout = 0.5
        # kopf has a task per object, which holds on to its last event: 5 s by default, a whole fleet after a LIST. Few
        # at one time and no waiting for more keeps that to some dozens; each has nothing to do but to forward.
        settings.queueing.idle_timeout = 0.01
        settings.queueing.worker_limit = 64
        return settings
