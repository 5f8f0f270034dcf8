"""Write the status subresource: only when it changed, and not on every twitch of a rollout."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flotilla.constants import API_VERSION, STATUS_MANAGER
from flotilla.control.keys import Key
from flotilla.kube.client import KubeClient
from flotilla.kube.events import EventRecorder
from flotilla.kube.kinds import Kind
from flotilla.kube.store import Store


class StatusWriter:
    """Server-side apply to /status, at most once per `interval_s` for one resource and generation.

    A rollout moves several counters within milliseconds; each write would wake every watcher, Argo CD among them.
    """

    def __init__(self, client: KubeClient, store: Store, *, interval_s: float, clock: Callable[[], float]) -> None:
        self._client = client
        self._store = store
        self._interval_s = interval_s
        self._clock = clock
        self._earliest: dict[Key, float] = {}

    async def write(
        self, key: Key, live: Mapping[str, Any], status: dict[str, Any], *, urgent: bool = False
    ) -> float | None:
        """Write if different. Returns None when the cluster has `status`, else the seconds to come back in.

        `urgent` skips the wait: for errors, which a user waits for, and for a spec that was not answered before. Raises
        Conflict when the resource is another by now: the answer would hold a spec that nobody has looked at, and its
        event, being older, would tell the store nothing new.
        """
        old: Mapping[str, Any] = live.get("status") or {}
        if old == status:
            return None
        now = self._clock()
        wait_s = self._earliest.get(key, 0.0) - now
        if wait_s > 0 and not urgent:
            return wait_s
        body = {
            "apiVersion": API_VERSION,
            "kind": key.kind.kind,
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                **{name: live["metadata"][name] for name in ("uid", "resourceVersion")},
            },
            "status": status,
        }
        applied = await self._client.apply_status(key.kind, body, manager=STATUS_MANAGER)
        self._earliest[key] = now + self._interval_s
        self._store.put(key.kind, applied)
        return None

    def defer(self, key: Key) -> None:
        """Children were just written: let them settle for one interval before the next status."""
        self._earliest[key] = self._clock() + self._interval_s

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self._earliest.pop(key, None)


def announce(
    events: EventRecorder, kind: Kind, live: Mapping[str, Any], conditions: Iterable[Mapping[str, Any]]
) -> None:
    """An event where the summary of a resource turned; after a restart nothing did, so nothing is said."""
    before = {c["type"]: (c["status"], c["reason"]) for c in (live.get("status") or {}).get("conditions") or ()}
    for now in conditions:
        bad = now["type"] == "Stalled" and now["status"] == "True"
        good = now["type"] == "Ready" and now["status"] == "True"
        if (bad or good) and before.get(now["type"]) != (now["status"], now["reason"]):
            events.record(
                kind,
                live,
                topic=now["type"],
                reason=now["reason"],
                note=now["message"],
                type_="Warning" if bad else "Normal",
            )
