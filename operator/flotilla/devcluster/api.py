"""A small blocking client of the apiserver, for what must happen before anything else runs.

The operator's own client is asyncio and costs 0.7 s of CPU to import, while starting a cluster is one thread
that waits. Each call opens a connection of its own, so a restarted apiserver needs no care.
"""

import http.client
import json
import ssl
import tempfile
from typing import Any
from urllib.parse import urlencode, urlsplit

from flotilla.devcluster.kubeconfig import Access
from flotilla.errors import Conflict, FlotillaError, Forbidden, InvalidSpec, Transient

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
    """Requests to one apiserver as one user."""

    def __init__(self, access: Access, *, timeout_s: float = 10.0) -> None:
        url = urlsplit(access.server)
        self._host, self._port, self._prefix = url.hostname or "", url.port, url.path.rstrip("/")
        self._tls = _tls(access) if url.scheme == "https" else None
        self._token = access.token
        self._timeout_s = timeout_s

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
        headers = {"User-Agent": USER_AGENT, "Accept": "application/json", "Content-Type": content_type}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connection()
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise Transient(f"{method} {path} got no answer: {error!r}.") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise _error(response.status, f"{method} {path} was answered {response.status}: {_message(text)}")
        return json.loads(text) if text.startswith(("{", "[")) else text

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)

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
