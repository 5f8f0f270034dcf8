"""A small blocking client of the apiserver, for what must happen before anything else runs.

The operator's own client is asyncio and costs 0.7 s of CPU to import, while starting a cluster is one thread
that waits. Connections are kept: a handshake costs either side more than the request. One that a restarted
apiserver has closed is noticed before it is used.
"""

import json
import ssl
import tempfile
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from flotilla.errors import Conflict, FlotillaError, Forbidden, InvalidSpec, Transient
from flotilla_devcluster.kubeconfig import Access

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
