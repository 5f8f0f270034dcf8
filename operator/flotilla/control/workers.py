"""N workers that take keys from the queue and call the reconciler of the key's kind."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from flotilla.control.keys import Key
from flotilla.control.queue import Queue
from flotilla.errors import Conflict, Ending, FlotillaError, NotReady, Transient
from flotilla.kube.kinds import Kind
from flotilla.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Reconciler(Protocol):
    """Level-triggered: looks at the store, not at what happened."""

    async def reconcile(self, key: Key) -> float | None:
        """Bring the cluster in line; returns the seconds after which to look again, or None for the next event."""


class Workers:
    """Runs `count` tasks; a failing key backs off by itself and holds up nobody else."""

    def __init__(
        self,
        queue: Queue[Key],
        reconcilers: Mapping[Kind, Reconciler],
        metrics: Metrics,
        *,
        count: int,
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._reconcilers = reconcilers
        self._metrics = metrics
        self._count = count
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._work(), name=f"worker-{number}")

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._one(key)
            finally:
                self._queue.done(key)

    async def _one(self, key: Key) -> None:
        started = self._clock()
        outcome = "success"
        try:
            again_s = await self._reconcilers[key.kind].reconcile(key)
            self._queue.succeeded(key)
            if again_s is not None:
                self._queue.add_after(key, again_s)
        except Ending as ending:
            outcome = "ending"
            self._queue.succeeded(key)
            log.debug("reconcile ends with its namespace", extra={"key": str(key), "cause": str(ending)})
        except NotReady as waiting:
            outcome = "waiting"
            self._queue.retry(key)
            log.info("reconcile waits", extra={"key": str(key), "cause": str(waiting)})
        except (Transient, Conflict) as failure:
            outcome = "retry"
            self._queue.retry(key, after_s=getattr(failure, "retry_after_s", None))
            log.warning("reconcile is retried", extra={"key": str(key), "cause": str(failure)})
        except FlotillaError as failure:
            outcome = "error"
            self._queue.retry(key)
            log.error("reconcile failed", extra={"key": str(key), "cause": str(failure)})
        except Exception:
            outcome = "panic"
            self._queue.retry(key)
            log.exception("reconcile crashed; please report this", extra={"key": str(key)})
        finally:
            self._metrics.reconciled(key.kind.kind, outcome, self._clock() - started)
