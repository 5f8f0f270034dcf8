"""The watch layer: kopf, and the only module that imports it.

kopf runs in a thread with an event loop of its own, for two reasons. `kopf.operator()` takes every task that starts
after it for its own and cancels it on exit; and a watch error other than 410 ends it, after which it must be started
again without taking the workers down. Handlers only forward: kopf's own state machine stays asleep, so it writes
nothing, not even an annotation.
"""

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import kopf
import uvloop

from flotilla import __version__
from flotilla.constants import GROUP, MANAGED_BY_SELECTOR
from flotilla.errors import InvalidSpec
from flotilla.kube.aside import Aside, Known
from flotilla.kube.client import Connection
from flotilla.kube.kinds import Kind
from flotilla.kube.traffic import Traffic

log = logging.getLogger(__name__)

OnEvent = Callable[[Kind, str | None, dict[str, Any]], None]
"""Told of each event in the main loop: kind, type (None: from a list), object."""

_STOP_TIMEOUT_S = 5.0
_RESTART_CAP_S = 15.0
_HEALTHY_AFTER_S = 60.0
_GAP_DEBOUNCE_S = 0.5
_DISCOVERY_S = 15.0
_LOGIN_PAUSE_S = 10.0
_ENDING_S = 10.0
"""kopf gives its tasks five seconds to end by themselves, then cancels them, and then waits without a limit."""
_LEFTOVERS_S = 2.0
_ROOT_TASK = "multidimensional multitasker"
"""Name of kopf's task that watches; without it kopf is on its way out."""


class _Patient:
    """kopf gives a request up after the last backoff, and then itself: an apiserver may stay away for longer."""

    def __iter__(self) -> Iterator[float]:
        backoff_s = 0.5
        while True:
            yield backoff_s * random.uniform(0.7, 1.0)  # noqa: S311 - jitter
            backoff_s = min(backoff_s * 1.7, 5.0)


class _NoMemory(kopf.DiffBaseStorage):
    """kopf copies each object to compare it with the one before; nobody asks it what changed."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> Any:
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        return None


class Watch:
    """Forward the events of some kinds to the loop that called `start`, until `stop`.

    `on_restart` is called in that loop whenever deletions may have been missed, which needs a LIST: after a watch was
    resumed from a new list (410), and once kopf listens again after its end.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        on_event: OnEvent,
        *,
        namespaces: Sequence[str] = (),
        kubeconfig: Path | None = None,
        on_restart: Callable[[], None] = lambda: None,
        known: Known = lambda *_: False,
    ) -> None:
        self._kinds = tuple(kinds)
        self._on_event = on_event
        self._namespaces = tuple(namespaces)
        self._kubeconfig = kubeconfig
        self._on_restart = on_restart
        scopes = self._namespaces or (None,)
        paths = {kind.path(scope): kind for kind in self._kinds for scope in scopes}
        self._aside = Aside(known)
        self._traffic = Traffic(paths, self._aside, on_relisted=self._relisted)
        self._arrived: deque[tuple[Kind, str | None, dict[str, Any]]] = deque()
        self._gap: asyncio.TimerHandle | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._main: asyncio.AbstractEventLoop | None = None
        self._life: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self.restarts = 0
        """How often kopf ended by itself."""

    def start(self) -> None:
        """Start the thread; call it from the loop that shall receive the events."""
        # Below WARNING kopf logs whole objects; and it warns at each start that it is not in the main thread.
        logging.getLogger("kopf").setLevel(logging.WARNING)
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
        self._main = asyncio.get_running_loop()
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
                log.debug("the loop of the watch layer is closed already")
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    @property
    def alive(self) -> bool:
        """Whether the thread runs (kopf itself may be between two starts)."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def last_event_age_s(self) -> float:
        """Seconds since the apiserver last said anything to the watch layer.

        Silent watches are opened anew after 70 s, so much more than that means that it does not answer.
        """
        return time.monotonic() - self._traffic.heard_at

    def _supervise(self) -> None:
        backoff_s = 0.5
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
                backoff_s = 0.5
            wait_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            log.warning("the watch layer is started again", extra={"cause": cause, "after_s": round(wait_s, 2)})
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
            asyncio.set_event_loop(None)
            loop.close()

    async def _operate(self) -> None:
        # Not the threading.Event itself: kopf would wait for it in an executor, and a loop that ends for another reason
        # would wait for that executor until kopf's own deadline kills the process.
        ending = asyncio.Event()
        self._life = (asyncio.get_running_loop(), ending)
        if self._stop.is_set():
            return
        self._traffic.begin()
        self._gap = None
        watchdogs = [asyncio.create_task(self._check_discovery(ending)), asyncio.create_task(self._limit_the_end())]
        try:
            await kopf.operator(
                registry=self._registry(),
                settings=self._settings(),
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=ending,
            )
        finally:
            for watchdog in watchdogs:
                watchdog.cancel()

    async def _limit_the_end(self) -> None:
        """Where kopf's end hangs, stop the loop below it, so that kopf is started again; nobody would watch otherwise.

        Seen after a watch error while other watches waited for a new login. kopf's own remedy kills the process.
        The task that watches may end before we first look: it counts as seen at the start.
        """
        seen = time.monotonic()
        while time.monotonic() - seen < _ENDING_S:
            await asyncio.sleep(_ENDING_S / 20)
            if any(task.get_name() == _ROOT_TASK for task in asyncio.all_tasks()):
                seen = time.monotonic()
        log.warning("the end of the watch layer hangs and is cut short")
        asyncio.get_running_loop().stop()

    async def _check_discovery(self, ending: asyncio.Event) -> None:
        """kopf looks once for the resources that it is to watch and ignores those that it does not find."""
        started = time.monotonic()
        while self._traffic.unasked:
            await asyncio.sleep(_DISCOVERY_S / 5)
            heard = self._traffic.heard_at > started
            if heard and time.monotonic() - started > _DISCOVERY_S and (missing := self._traffic.unasked):
                log.warning("resources cannot be watched; are the CRDs installed?", extra={"missing": missing})
                ending.set()
                return

    def _relisted(self) -> None:
        if self._gap is None:
            self._gap = asyncio.get_running_loop().call_later(_GAP_DEBOUNCE_S, self._report_gap)

    def _report_gap(self) -> None:
        self._gap = None
        self._call(self._on_restart)

    def _deliver(self) -> None:
        while self._arrived:
            kind, type_, obj = self._arrived.popleft()
            try:
                self._on_event(kind, type_, obj)
            except Exception:
                log.exception("an event could not be taken; please report this", extra={"resource": kind.plural})

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
                log.error("the apiserver refuses the credentials of the watch layer")
                return None
            logged_in_at = time.monotonic()
            try:
                connection = await Connection.load(self._kubeconfig)
            except InvalidSpec as error:
                log.error("the watch layer cannot log in", extra={"cause": str(error)})
                return None
            session = self._traffic.session(connection, user_agent=f"flotilla-watch/{__version__}")
            return kopf.AiohttpSession(server=connection.host, aiohttp_session=session)

        for kind in self._kinds:
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(self._forward(kind))
        return registry

    def _forward(self, kind: Kind) -> Callable[..., Any]:
        async def forward(*, event: Any, **_: object) -> None:
            self._traffic.heard()
            self._arrived.append((kind, event["type"], self._aside.take(event["object"])))
            if len(self._arrived) == 1:
                # The others of a burst go along: each wake-up of the other loop is a system call.
                self._call(self._deliver)

        return forward

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.persistence.diffbase_storage = _NoMemory()
        settings.scanning.disabled = True
        settings.peering.standalone = True
        settings.persistence.finalizer = f"{GROUP}/kopf"
        settings.networking.request_timeout = 30
        settings.networking.connect_timeout = 10
        settings.networking.error_backoffs = _Patient()
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 310
        settings.watching.connect_timeout = 10
        settings.watching.chunk_size = 25
        # After an unexpected end this would kill the whole process, and us with it.
        settings.process.ultimate_exiting_timeout = None
        settings.queueing.exit_timeout = 0.5
        # kopf has a task per object, which holds on to its last event: 5 s by default, a whole fleet after a LIST. Few
        # at one time and no waiting for more keeps that to some dozens; each has nothing to do but to forward.
        settings.queueing.idle_timeout = 0.01
        settings.queueing.worker_limit = 64
        for kind in self._kinds:
            if kind.group != GROUP:
                selector = (kind.group, kind.version, kind.plural)
                settings.watching.label_selectors[selector] = MANAGED_BY_SELECTOR
        return settings
