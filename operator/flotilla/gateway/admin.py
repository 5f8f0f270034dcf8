"""The admin server: /healthz, /readyz, /metrics, /config, /guard and /held.

It has a port and threads of its own, so that probes are answered while the event loop is busy.
"""

import json
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import CollectorRegistry

from flotilla.gateway.http.server import open_socket
from flotilla.gateway.pending import MAX_WAIT_S

log = logging.getLogger(__name__)

_TIMEOUT_S = 10
_COUNT = re.compile(r"[0-9]{1,18}")
_POLL_S = 0.1
"""How long `close` may wait. The default of half a second would slow each test down."""


@dataclass(frozen=True, slots=True)
class Probes:
    """What the server reports. Each function is called on a thread of the server, not of the event loop."""

    live: Callable[[], Mapping[str, bool]]
    ready: Callable[[], Mapping[str, bool]]
    config: Callable[[], Mapping[str, Any]]
    registry: CollectorRegistry
    held: Callable[[int, float], int | None]
    """See `HeldCounter.poll`."""
    guard: Callable[[], Mapping[str, Any]] = dict
    """See `GuardCounts.report`."""


class AdminServer:
    """Serves from its construction until `close`."""

    def __init__(self, host: str, port: int, probes: Probes) -> None:
        self._server = _Server(host, port, probes)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="admin", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Close the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, probes: Probes) -> None:
        self.probes = probes
        listening = open_socket(host, port)
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """Answer one request."""
        probes = self.server.probes
        match self.path.partition("?")[0]:
            case "/healthz":
                self._checks(probes.live())
            case "/readyz":
                self._checks(probes.ready())
            case "/config":
                self._send(200, "application/json", json.dumps(probes.config()).encode())
            case "/guard":
                self._send(200, "application/json", json.dumps(probes.guard()).encode())
            case "/held":
                self._held(urllib.parse.parse_qs(self.path.partition("?")[2]))
            case "/metrics":
                self._send(200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(probes.registry))
            case _:
                self._send(404, "application/json", b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        """Probes are not logged."""

    def _checks(self, results: Mapping[str, bool]) -> None:
        body = json.dumps({name: "ok" if good else "failed" for name, good in results.items()}).encode()
        self._send(200 if all(results.values()) else 503, "application/json", body)

    def _held(self, query: Mapping[str, list[str]]) -> None:
        """Answer when the counter differs from `after`, or after `timeoutSeconds`."""
        values: dict[str, int] = {}
        for name, default in (("after", "0"), ("timeoutSeconds", f"{MAX_WAIT_S:g}")):
            text = query.get(name, [default])[-1]
            if not _COUNT.fullmatch(text):
                problem = f"{name} must be a whole number of at most 18 digits, such as {name}={default}"
                self._send(400, "application/json", json.dumps({"error": problem}).encode())
                return
            values[name] = int(text)
        count = self.server.probes.held(values["after"], values["timeoutSeconds"])
        if count is None:
            problem = "too many polls wait; try again later"
            self._send(503, "application/json", json.dumps({"error": problem}).encode())
        else:
            self._send(200, "application/json", json.dumps({"count": count}).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
