"""Starts simulated engines by forking: `python -m flotilla_devcluster.engine.forkserver NAME`.

Nine tenths of an engine's start are imports, which are done once here; and what they load is shared memory. (The
standard library's forkserver loads the program that asks into each child, and starts no session for it.)

NAME is that of an abstract Unix socket. Each connection is one engine: a line of JSON comes in, `{"arguments": [...],
"env": {...}, "log": PATH}`, and two go out, `{"pid": N}` and, when it has ended, `{"exit": N}`, negative for a signal.
Whoever closes the connection kills the engine.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from functools import partial
from typing import Any

from flotilla_devcluster.engine.__main__ import ENGINES, main
from flotilla_devcluster.launcher import die_with


class ForkServer:
    """One thread, and no event loop: nothing runs here that a fork could tear."""

    def __init__(self, name: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{name}")
        self._listener.listen(socket.SOMAXCONN)
        self._ended, self._wakeup = socket.socketpair()
        for end in (self._ended, self._wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._engines: dict[int, socket.socket] = {}
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._listener, selectors.EVENT_READ, self._start)
        self._ready.register(self._ended, selectors.EVENT_READ, self._collect)

    def serve(self) -> None:
        """Until killed."""
        while True:
            for key, _ in self._ready.select():
                key.data()

    def _start(self) -> None:
        connection, _ = self._listener.accept()
        with connection.makefile("rb") as file:
            line = file.readline() if is_ours(connection) else b""
        if not line:
            connection.close()
            return
        wanted, parent = json.loads(line), os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(wanted, parent)
        self._engines[pid] = connection
        self._ready.register(connection, selectors.EVENT_READ, partial(self._left, pid))
        _say(connection, pid=pid)

    def _left(self, pid: int) -> None:
        if pid in self._engines:
            self._ready.unregister(self._engines[pid])
            os.kill(pid, signal.SIGKILL)

    def _collect(self) -> None:
        self._ended.recv(4096)
        while self._engines:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._engines.pop(pid)
            with suppress(KeyError):
                self._ready.unregister(connection)
            _say(connection, exit=os.waitstatus_to_exitcode(status))
            connection.close()


def is_ours(connection: socket.socket) -> bool:
    """Another user of this machine may not have us write into our files."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(uid == os.getuid())


def _say(connection: socket.socket, **what: int) -> None:
    try:
        connection.sendall(json.dumps(what).encode() + b"\n")
    except OSError:
        return  # whoever asked is gone


def _become(wanted: dict[str, Any], parent: int) -> None:
    """Be the engine; does not return."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with(parent, wanted["arguments"][0])
        log = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for standard in (1, 2):
            os.dup2(log, standard)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(wanted["env"])
        code = main(wanted["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:  # noqa: BLE001  # what Python would do at the end of a program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for engine in ENGINES.values():
        importlib.import_module(f"flotilla_devcluster.engine.{engine}")
        importlib.import_module(f"flotilla_devcluster.engine.{engine}_config")
    server = ForkServer(sys.argv[1])
    gc.collect()
    gc.freeze()  # else the first collection of each engine would copy every page
    server.serve()
