"""Reading the apiserver's audit log: who asked what how often."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITE_VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One answered request. A watch is recorded when it ends."""

    user: str
    user_agent: str
    verb: str
    group: str
    """API group; empty for the core group."""
    resource: str
    """Plural name; empty for a URL that is no resource."""
    subresource: str
    namespace: str
    name: str
    code: int
    """HTTP status; 0 when the server ended without one."""
    uri: str

    @property
    def is_write(self) -> bool:
        return self.verb in WRITE_VERBS


class AuditLog:
    """The events of one `audit.log`; `mark` before an action and `since` after it select what it did."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> int:
        """The present end of the log, in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def since(self, mark: int = 0) -> list[AuditEvent]:
        """The events after `mark`. The server writes an event just after it has answered the request."""
        with self.path.open("rb") as file:
            file.seek(mark)
            lines = file.read().split(b"\n")
        # What follows the last line end is an event that is still being written.
        return [_event(json.loads(line)) for line in lines[:-1] if line]


def select(events: Iterable[AuditEvent], *, user: str = "", agent: str = "", writes: bool = False) -> list[AuditEvent]:
    """The events of exactly this user, of a user agent that starts with `agent`, writes only if `writes`."""
    return [
        event
        for event in events
        if (not user or event.user == user) and event.user_agent.startswith(agent) and (event.is_write or not writes)
    ]


def _event(line: dict[str, Any]) -> AuditEvent:
    target = line.get("objectRef") or {}
    return AuditEvent(
        user=(line.get("user") or {}).get("username", ""),
        user_agent=line.get("userAgent", ""),
        verb=line.get("verb", ""),
        group=target.get("apiGroup", ""),
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=(line.get("responseStatus") or {}).get("code", 0),
        uri=line.get("requestURI", ""),
    )
