"""How a request to the apiserver is put, and what its answers mean in our own errors. Pure: no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from flotilla.errors import Conflict, Ending, FlotillaError, Forbidden, InvalidSpec, NotReady, Transient

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
PATCHES: Final = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}

_MESSAGE_LIMIT = 2000
_REJECTED = frozenset({400, 405, 413, 415, 422})
_UNAUTHORIZED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class ObjectList:
    """A LIST, all pages of it."""

    items: list[dict[str, Any]]
    resource_version: str


class FieldConflict(Conflict):
    """HTTP 409 of a server-side apply: another manager owns a field. Any other 409 is a race that was lost."""


class NotFound(NotReady):
    """HTTP 404: no such object, no such namespace, or a CRD that is not installed."""


def url(host: str, path: str, query: Mapping[str, str | None] | None) -> str:
    """The whole address; parameters that are None are left out."""
    pairs = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{host}{path}?{urlencode(pairs)}" if pairs else f"{host}{path}"


def failure(call: str, code: int, headers: Mapping[str, str], body: bytes) -> FlotillaError:
    """The error for an answer of HTTP `code` >= 400; `call` says what was tried ("patch /api/v1/...")."""
    status = _status(body)
    text = str(status.get("message") or body.decode(errors="replace")).strip()[:_MESSAGE_LIMIT]
    message = f"{call}: {text or 'no explanation'} (HTTP {code})"
    if code == 404:
        return NotFound(message)
    if code in _UNAUTHORIZED:
        return Ending(message) if _has_cause(status, "NamespaceTerminating") else Forbidden(message)
    if code == 409:
        return FieldConflict(message) if _has_cause(status, "FieldManagerConflict") else Conflict(message)
    if code in _REJECTED:
        return InvalidSpec(message, reason="Rejected")
    return Transient(message, retry_after_s=_retry_after_s(headers, status))


def watch_event(call: str, line: bytes) -> tuple[str, dict[str, Any]]:
    """Type and object of one line of a watch; an ERROR (410 above all) raises Transient."""
    event = orjson.loads(line)
    if event["type"] == "ERROR":
        raise Transient(f"{call}: the apiserver ended it: {event['object'].get('message') or 'no explanation'}")
    return event["type"], event["object"]


def silence(call: str, error: BaseException) -> Transient:
    """The error for an answer that never came, or that broke off."""
    return Transient(f"{call}: the apiserver gave no answer ({str(error) or type(error).__name__}).")


def _status(body: bytes) -> Mapping[str, Any]:
    try:
        parsed = orjson.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _has_cause(status: Mapping[str, Any], reason: str) -> bool:
    causes = (status.get("details") or {}).get("causes") or ()
    return any(cause.get("reason") == reason for cause in causes)


def _retry_after_s(headers: Mapping[str, str], status: Mapping[str, Any]) -> float | None:
    wish = headers.get("Retry-After") or (status.get("details") or {}).get("retryAfterSeconds")
    try:
        return max(0.0, float(wish)) if wish else None
    except ValueError:
        # The other form of the header is a date; no Kubernetes component sends it.
        return None
