"""Addresses and ports of a simulated cluster, all of them on this machine.

Pods and Services have ordinary cluster addresses, which `local_address` maps to loopback ones; `PodNetworks` gives each
node a range that no other node agent of this machine has; `reserve` finds free ports for the control plane; and
`egress_proxy` is the apiserver's way to pods.
"""

import fcntl
import os
import socket
import socketserver
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from flotilla.errors import NotReady

POD_NETWORK = "10.244"
LOOPBACK = "127"
"""All of 127/8 is loopback on Linux: a pod 10.244.1.5 listens on 127.244.1.5, so pods can use the same port."""


def local_address(address: str) -> str:
    """The loopback address at which this machine finds a pod or a Service."""
    return f"{LOOPBACK}.{address.partition('.')[2]}"


POD_ADDRESS_MAP = f"{POD_NETWORK}.0.0/16={local_address(POD_NETWORK)}.0.0/16"
"""The same in the form of the operator's and the gateway's setting."""


def reserve(count: int) -> list[int]:
    """`count` distinct ports that no other `reserve`, of this or another process, returns for about a minute.

    Each port gets a connection whose server side closes first and so stays in TIME_WAIT: the kernel then
    gives the port to nobody who asks for a free one, while a server that sets SO_REUSEADDR (as Go's listeners
    and asyncio's do) can bind it. Merely binding port 0 and closing leaves a gap in which two clusters take
    the same port.
    """
    ports = []
    with ExitStack() as held:
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            address: tuple[str, int] = listener.getsockname()
            with socket.create_connection(address) as client:
                server, _ = listener.accept()
                server.close()
                client.recv(1)
            ports.append(address[1])
    return ports


_CONNECT_S = 5.0
_CHUNK = 1 << 16


@contextmanager
def egress_proxy() -> Iterator[str]:
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
    """Copy until either side ends, and end the other's direction too."""
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


_FOLDER = Path(f"/tmp/flotilla-pod-networks-{os.getuid()}")  # noqa: S108 - one place whatever TMPDIR says; locks only
_LAST = 250


class PodNetworks:
    """Claims last as long as this object: the locks go with the process, however it ends."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._folder = folder
        self._locks: list[IO[str]] = []

    def claim(self) -> int:
        """The third part of the addresses of one node's pods. Raises NotReady when all are in use."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in range(1, _LAST + 1):
            lock = (self._folder / str(number)).open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            self._locks.append(lock)
            return number
        raise NotReady(f"All {_LAST} pod networks of this machine are in use: end some local clusters.")

    def release(self) -> None:
        """Give all of them back."""
        while self._locks:
            self._locks.pop().close()
