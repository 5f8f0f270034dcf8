"""Requests to an apiserver from a thread that waits: a small client, CustomResourceDefinitions, the audit log.

The operator's own client is asyncio and costs 0.7 s of CPU to import, while starting a cluster is one thread that
waits. `Api` keeps its connections, because a handshake costs either side more than the request, and notices one that
a restarted apiserver has closed before it uses it.
"""

import json
import ssl
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
import yaml

from flotilla.errors import Conflict, FlotillaError, Forbidden, InvalidSpec, NotReady, Transient
from flotilla_devcluster.kubeconfig import Access
from flotilla_devcluster.process import until

USER_AGENT = "flotilla-devcluster"
APPLY = "application/apply-patch+yaml"
_ERRORS: dict[int, type[FlotillaError]] = {
    400: InvalidSpec,
    401: Forbidden,
    403: Forbidden,
    409: Conflict,
    422: InvalidSpec,
}


class NotFound(FlotillaError):
    """HTTP 404."""


class Api:
    """Requests to one apiserver as one user; threads may share it."""

    def __init__(self, access: Access, *, timeout_s: float = 10.0) -> None:
        url = urlsplit(access.server)
        self._prefix = url.path.rstrip("/")
        self._headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if access.token:
            self._headers["Authorization"] = f"Bearer {access.token}"
        self._pool = _pool(access, url.hostname or "", url.port, timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: object | None = None,
        *,
        content_type: str = "application/json",
        **query: str,
    ) -> Any:
        """The decoded JSON answer, or its text where it is not JSON.

        Raises NotFound, Forbidden, Conflict, InvalidSpec (400, 422) or Transient (any other failure).
        """
        target = f"{self._prefix}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {**self._headers, "Content-Type": content_type}
        sent = None if body is None else json.dumps(body).encode()
        try:
            response = self._pool.request(method, target, body=sent, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise Transient(f"{method} {path} got no answer: {error!r}.") from error
        text = response.data.decode(errors="replace")
        if response.status >= 400:
            raise _error(response.status, f"{method} {path} was answered {response.status}: {_message(text)}")
        return json.loads(text) if text.startswith(("{", "[")) else text

    def get(self, path: str, **query: str) -> dict[str, Any] | None:
        """The object at `path`, None when it does not exist."""
        try:
            answer: dict[str, Any] = self.request("GET", path, **query)
        except NotFound:
            return None
        return answer

    def apply(self, path: str, body: object, *, manager: str = USER_AGENT) -> dict[str, Any]:
        """Server-side apply with force."""
        answer: dict[str, Any] = self.request(
            "PATCH", path, body, content_type=APPLY, fieldManager=manager, force="true"
        )
        return answer

    def healthy(self, path: str = "/readyz") -> bool:
        """Whether a health endpoint answers 2xx."""
        try:
            self.request("GET", path)
        except FlotillaError:
            return False
        return True


def _pool(access: Access, host: str, port: int | None, timeout_s: float) -> urllib3.HTTPConnectionPool:
    if not access.server.startswith("https:"):
        return urllib3.HTTPConnectionPool(host, port, timeout=timeout_s, retries=False)
    return urllib3.HTTPSConnectionPool(host, port, timeout=timeout_s, retries=False, ssl_context=_tls(access))


def _error(status: int, message: str) -> FlotillaError:
    if status == 404:
        return NotFound(message)
    return _ERRORS.get(status, Transient)(message)


def _message(text: str) -> str:
    try:
        status = json.loads(text)
    except ValueError:
        return text.strip()
    return str(status.get("message", text)) if isinstance(status, dict) else text


def _tls(access: Access) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=access.authority.decode() or None)
    if access.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if access.certificate:
        # ssl reads a client certificate from a file only.
        with tempfile.NamedTemporaryFile(prefix="flotilla-client-", suffix=".pem") as file:
            file.write(access.certificate + access.key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def read_crds(directory: Path) -> list[dict[str, Any]]:
    """Every CustomResourceDefinition in the folder's YAML files; raises NotReady when there is none."""
    documents = [
        document
        for path in sorted(directory.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document and document.get("kind") == "CustomResourceDefinition"
    ]
    if not documents:
        raise NotReady(
            f"The folder {directory} holds no CustomResourceDefinition. Run `python -m flotilla.api.crd` to"
            " write Flotilla's, or name another folder."
        )
    return documents


def apply_crds(api: Api, documents: list[dict[str, Any]], *, timeout_s: float = 20.0) -> None:
    """Apply all, then wait until each is Established and a list of it succeeds.

    A new kind answers 429 for about a second while its storage starts, so only a list proves that it is
    served.
    """
    for document in documents:
        name = document["metadata"]["name"]
        call = partial(api.apply, f"{_PATH}/{name}", document)
        until(call, what=f"the server to take the CRD {name}", timeout_s=timeout_s)
    for document in documents:
        _wait_served(api, document, timeout_s)


def _wait_served(api: Api, document: dict[str, Any], timeout_s: float) -> None:
    name, spec = document["metadata"]["name"], document["spec"]
    until(lambda: _established(api, name), what=f"the CRD {name} to be Established", timeout_s=timeout_s)
    for version in spec["versions"]:
        if version["served"]:
            path = f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}"
            until(partial(api.get, path, limit="1"), what=f"a first list of {path}", timeout_s=timeout_s)


def _established(api: Api, name: str) -> bool:
    crd = api.get(f"{_PATH}/{name}") or {}
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


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
