"""Leader election by a Lease: one operator acts, the others watch the Lease.

The client library's own elector lets network errors escape without stopping the leader, so this one is ours. Times are
judged by how long *we* have seen the Lease unchanged on our monotonic clock, as client-go does: clocks of other hosts
do not matter.

A leader's process may be paused for longer than its Lease lasts (SIGSTOP, a suspended virtual machine), so that another
one leads when it goes on. `check` refuses writes from then on; `KubeClient.guarded` calls it right before each write.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flotilla.errors import Conflict, FlotillaError, Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import LEASE

log = logging.getLogger(__name__)

_RELEASES = 3


class LeaseExpired(Transient):
    """The Lease was not renewed in time: another operator may act now, so this one must not write."""


class Lease:
    """Run `run` as a task, wait for `acquired`, and end the process when `on_lost` is called."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration_s: float,
        renew_deadline_s: float,
        retry_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration_s = duration_s
        self._renew_deadline_s = renew_deadline_s
        self._retry_s = retry_s
        self._clock = clock
        self._held: dict[str, Any] | None = None
        self._doubtful = False
        """A write got no answer, or a conflict: it may have happened, so the version may have changed."""
        self._seen: tuple[str, float] = ("", clock())
        """The last resourceVersion of a Lease that another operator holds, and when we first saw it."""
        self._valid_until = float("-inf")
        """We lead until then: `renew_deadline_s` after the last renewal was sent, by `clock`. Others take the Lease not
        before `duration_s` after that, so a write that is on its way then has the difference of the two to arrive."""
        self._acquired = asyncio.Event()

    def check(self) -> None:
        """Raise LeaseExpired unless we lead at this moment."""
        late_s = self._clock() - self._valid_until
        if late_s >= 0:
            raise LeaseExpired(
                f"The Lease {self._namespace}/{self._name} is not held by this operator any more; nothing is written."
            )

    async def acquired(self) -> None:
        """Wait until we lead."""
        await self._acquired.wait()

    async def run(self, *, on_lost: Callable[[], None]) -> None:
        """Take the Lease, then renew it; ends after `on_lost` when it could not be renewed in time."""
        while not await self._attempt(self._take):
            await asyncio.sleep(self._retry_s)
        self._acquired.set()
        log.info("leading", extra={"lease": f"{self._namespace}/{self._name}", "identity": self._identity})
        while self._clock() < self._valid_until:
            await asyncio.sleep(self._retry_s)
            if not await self._attempt(self._renew) and self._held is None:
                break
        self._valid_until = float("-inf")
        log.error("the lease is lost; another operator may act now", extra={"identity": self._identity})
        on_lost()

    async def release(self) -> None:
        """Give the Lease up, so that a standby need not wait until it expires. If this fails, it waits.

        A write that was cancelled at our end may still arrive, and make this one a conflict: then it is repeated.
        """
        self._valid_until = float("-inf")
        for _ in range(_RELEASES):
            if not await self._attempt(self._give_up):
                break
        self._held, self._doubtful = None, False

    async def _give_up(self) -> bool:
        """Returns whether to try again."""
        await self._settle()
        if self._held is None:
            return False
        self._held["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._write()
        except Conflict:
            return True
        return False

    async def _attempt(self, action: Callable[[], Any]) -> bool:
        try:
            async with asyncio.timeout(self._renew_deadline_s / 3):
                return bool(await action())
        except Conflict:
            return False
        except (FlotillaError, TimeoutError) as error:
            log.warning("the lease could not be reached", extra={"cause": str(error) or type(error).__name__})
            return False
        except Exception:
            # Such as a Lease that somebody wrote by hand; the election must go on, and a leader end in time.
            log.exception("the lease could not be read or written")
            return False

    async def _take(self) -> bool:
        found = await self._client.get(LEASE, self._name, namespace=self._namespace)
        if found is not None and not self._expired(found):
            return False
        lease = found or {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {"leaseTransitions": 0},
        }
        self._stamp(lease, taken=True)
        self._held = lease
        return await self._write()

    def _expired(self, lease: dict[str, Any]) -> bool:
        holder = lease["spec"].get("holderIdentity") or ""
        if holder in ("", self._identity):
            return True
        version, since = lease["metadata"]["resourceVersion"], self._seen[1]
        if version != self._seen[0]:
            self._seen = (version, self._clock())
            return False
        return self._clock() - since > float(lease["spec"].get("leaseDurationSeconds") or self._duration_s)

    async def _settle(self) -> None:
        """Read the Lease where it is not known whether the last write has happened."""
        if self._doubtful:
            lease = await self._client.get(LEASE, self._name, namespace=self._namespace)
            mine = lease is not None and lease["spec"].get("holderIdentity") == self._identity
            self._held, self._doubtful = (lease if mine else None), False

    async def _renew(self) -> bool:
        await self._settle()
        if self._held is None:
            return False
        self._stamp(self._held, taken=False)
        return await self._write()

    async def _write(self) -> bool:
        assert self._held is not None
        self._doubtful = True
        write = self._client.update if "resourceVersion" in self._held["metadata"] else self._client.create
        sent = self._clock()
        self._held = await write(LEASE, self._held)
        self._doubtful = False
        if self._held["spec"].get("holderIdentity") == self._identity:
            self._valid_until = sent + self._renew_deadline_s
        return True

    def _stamp(self, lease: dict[str, Any], *, taken: bool) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = lease["spec"]
        if taken:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = now
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._duration_s)),
            "renewTime": now,
        }
