"""The engines of an agent's pods, forked by a process of their own; see `engine.forkserver`."""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flotilla.errors import NotReady
from flotilla_devcluster.process import Process, tail

_START_S = 30.0
_RETRY_S = 0.05


class Engine:
    """A running engine, with what `Process` has of use to a container."""

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
    """The server that forks them."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self.name = name

    @classmethod
    def start(cls, directory: Path) -> "Engines":
        """Does not wait: whoever wants the first engine does."""
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
        """The engines end with it."""
        self._process.kill()
