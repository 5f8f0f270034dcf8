"""The apiserver's way to pods, by an HTTP CONNECT proxy (EgressSelectorConfiguration, KEP-1281).

A real one reaches them through the cluster's network, for `kubectl get --raw .../pods/NAME:PORT/proxy/`. Here their
addresses are on this machine's loopback, and only a proxy can say so.
"""

import socket
import socketserver
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flotilla_devcluster.addresses import POD_NETWORK, local_address

_CONNECT_S = 5.0
_CHUNK = 1 << 16


@contextmanager
def serving() -> Iterator[str]:
    """Runs the proxy in a thread of this process; yields its Unix socket, as Go writes it.

    The socket is an abstract one: no killed process leaves a file, and no folder's path is too long for it. (By TCP
    without TLS kube-apiserver 1.36.4 ends with a nil pointer.)
    """
    name = f"flotilla-egress-{uuid.uuid4()}"
    with _Server(f"\0{name}", _Tunnel) as server:
        thread = threading.Thread(target=server.serve_forever, name="egress", daemon=True)
        thread.start()
        try:
            yield f"@{name}"
        finally:
            server.shutdown()
            thread.join()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class _Tunnel(socketserver.StreamRequestHandler):
    """One connection of the apiserver, to the address that its first line names."""

    def handle(self) -> None:
        method, _, rest = self.rfile.readline().decode("latin-1").partition(" ")
        while self.rfile.readline().strip():
            pass
        host, _, port = rest.partition(" ")[0].rpartition(":")
        if method != "CONNECT" or not port.isdecimal():
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return
        try:
            far = socket.create_connection((_reached(host), int(port)), timeout=_CONNECT_S)
        except OSError:
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        with far:
            far.settimeout(None)
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_pump, args=(far, self.connection), daemon=True)
            back.start()
            _pump(self.connection, far)
            back.join()


def _reached(host: str) -> str:
    return local_address(host) if host.startswith(f"{POD_NETWORK}.") else host


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Until either side ends; the other is told."""
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
