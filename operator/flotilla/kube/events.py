"""Kubernetes Events, one per transition, sent in the background so that no reconcile waits for them."""

import asyncio
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from flotilla.errors import Ending, FlotillaError
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import EVENT, Kind

log = logging.getLogger(__name__)

_REMEMBERED = 4096
_WAITING = 1000
_NOTE_LIMIT = 1024
_RECENT = 50


class EventRecorder:
    """`record` returns at once; `run` sends. What cannot be sent is logged and dropped."""

    def __init__(self, client: KubeClient, *, instance: str) -> None:
        self._client = client
        self._instance = instance
        self._last: OrderedDict[tuple[str, str], tuple[str, str]] = OrderedDict()
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=_WAITING)
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=_RECENT)
        """The newest events, the oldest first."""

    def record(
        self,
        kind: Kind,
        obj: Mapping[str, Any],
        *,
        topic: str,
        reason: str,
        note: str,
        type_: Literal["Normal", "Warning"] = "Normal",
        action: str = "Reconcile",
    ) -> bool:
        """Send an event unless the last one on this `topic` of the object was the same; returns whether it is sent.

        `topic` names what changes, a condition type for instance, so that A, B, A are three events and A, A is one.
        """
        meta = obj["metadata"]
        key, content = (meta["uid"], topic), (reason, note)
        if self._last.get(key) == content:
            return False
        self._last[key] = content
        self._last.move_to_end(key)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)
        event = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {
                "name": f"{meta['name'][:200]}.{secrets.token_hex(8)}",
                "namespace": meta["namespace"],
            },
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "flotilla.dev/operator",
            "reportingInstance": self._instance[:128],
            "type": type_,
            "reason": reason[:128],
            "action": action,
            "note": note if len(note) <= _NOTE_LIMIT else f"{note[: _NOTE_LIMIT - 3]}...",
            "regarding": {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
        }
        self.recent.append(event)
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("an event is dropped: too many wait", extra={"reason": reason})
            return False
        return True

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            event = await self._waiting.get()
            try:
                await self._client.create(EVENT, event)
            except Ending:
                # The events of a namespace that is being deleted go with it.
                continue
            except FlotillaError as error:
                log.warning("an event could not be sent", extra={"reason": event["reason"], "cause": str(error)})
