"""Simulated engines as forks of one process, which the node agent runs: both ends of its protocol.

Nine tenths of an engine's start are imports. `ForkServer` (`python -m flotilla_devcluster.engine.forkserver NAME`)
does them once, and what they load is shared memory. (The standard library's forkserver loads the client's program
into each child, and starts no session for it.) `Engines` starts that process and asks it for engines; an `Engine` is
one that runs.

NAME is that of an abstract Unix socket. Each connection is one engine: a line of JSON comes in, `{"arguments": [...],
"env": {...}, "log": PATH}`, and two go out, `{"pid": N}` and, when it has ended, `{"exit": N}`, negative for a
signal. A client that closes its connection kills its engine.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from flotilla.errors import NotReady
from flotilla_devcluster.engine.__main__ import ENGINES, main
from flotilla_devcluster.launcher import die_with
from flotilla_devcluster.process import Process, tail

_START_S = 30.0
_RETRY_S = 0.05


class ForkServer:
    """One thread and no event loop, so that a fork copies a process at rest."""

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
        _send(connection, pid=pid)

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
            _send(connection, exit=os.waitstatus_to_exitcode(status))
            connection.close()


def is_ours(connection: socket.socket) -> bool:
    """Whether this user connected: another one must not be able to write files as us."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(uid == os.getuid())


def _send(connection: socket.socket, **what: int) -> None:
    try:
        connection.sendall(json.dumps(what).encode() + b"\n")
    except OSError:
        return  # the client has left


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


class Engine:
    """A running engine, with the part of `Process`'s interface that a container uses."""

    def __init__(self, pid: int, log: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._log = log
        self._writer = writer
        self._end = asyncio.create_task(self._wait(reader))

    @property
    def running(self) -> bool:
        return self.exit_code is None

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, without waiting."""
        self._signal(signal.SIGKILL)

    def log_tail(self, lines: int = 15) -> str:
        return tail(self._log, lines)

    def _signal(self, number: int) -> None:
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _wait(self, reader: asyncio.StreamReader) -> None:
        line = b""
        with suppress(ConnectionError):
            line = await reader.readline()
        # Without a server the kernel has killed its engines.
        self.exit_code = json.loads(line)["exit"] if line else -signal.SIGKILL
        self._writer.close()


class Engines:
    """The process that forks them, started and stopped by the node agent."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self.name = name

    @classmethod
    def start(cls, directory: Path) -> Engines:
        """Does not wait until it is ready; the first `run` does."""
        name = f"flotilla-engines-{uuid.uuid4()}"
        command = [sys.executable, "-m", "flotilla_devcluster.engine.forkserver", name]
        return cls(Process.start("engines", command, log=directory / "engines.log"), name)

    async def run(self, arguments: Sequence[str], *, env: Mapping[str, str], log: Path) -> Engine:
        """Start one with the arguments of `python -m flotilla_devcluster.engine`; raises NotReady without a server."""
        log.parent.mkdir(parents=True, exist_ok=True)
        reader, writer = await self._connect()
        wanted = {"arguments": list(arguments), "env": dict(env), "log": str(log)}
        try:
            writer.write(json.dumps(wanted).encode() + b"\n")
            line = await reader.readline()
            if not line:
                raise NotReady(f"No engine was started. The end of {self._process.log}:\n{self._process.log_tail()}")
        except BaseException:
            writer.close()
            raise
        return Engine(json.loads(line)["pid"], log, reader, writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                return await asyncio.open_unix_connection(f"\0{self.name}")
            except OSError as error:
                self._process.check()
                if time.monotonic() > deadline:
                    raise NotReady(f"No engine can be started for {_START_S:g} s: {error}.") from error
            await asyncio.sleep(_RETRY_S)

    def stop(self) -> None:
        """End the process, and with it all engines."""
        self._process.kill()


if __name__ == "__main__":
    for engine in ENGINES.values():
        importlib.import_module(f"flotilla_devcluster.engine.{engine}")
        importlib.import_module(f"flotilla_devcluster.engine.{engine}_config")
    server = ForkServer(sys.argv[1])
    gc.collect()
    gc.freeze()  # without this the first collection of each engine would copy every page
    server.serve()
