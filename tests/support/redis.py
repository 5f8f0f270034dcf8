"""A real redis-server of the test's own, on a socket file, so that no port can be taken."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from flotilla.devcluster import debian

_START_S = 30


class RedisServer:
    """Every write is on disk before it is answered: what a kill -9 loses is then the client's fault."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{directory}/redis.sock"

    def start(self) -> None:
        """Start, with what is on disk, and wait until it answers."""
        keep = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        place = ("--dir", str(self._directory), "--unixsocket", str(self._directory / "redis.sock"), "--port", "0")
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(debian.find("redis-server")), *keep, *place],
                env=debian.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self._directory / "log").read_text()) from None
            time.sleep(0.02)

    def client(self) -> Redis:
        """A client for looking at what is stored."""
        return Redis.from_url(self.url, decode_responses=True, socket_timeout=5)

    def kill(self) -> None:
        """As a machine that fails: no shutdown, no farewell to clients."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Connections are accepted and nothing is answered meanwhile."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        # kill(2) returns before the process has stopped, and it could still answer.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A server with nothing in it."""
    # Not pytest's folder: the path of a socket may have 107 characters at most.
    directory = Path(tempfile.mkdtemp(prefix="flotilla-redis-"))
    server = RedisServer(directory)
    try:
        server.start()
        yield server
    finally:
        with suppress(AssertionError, ProcessLookupError):
            server.kill()
        shutil.rmtree(directory, ignore_errors=True)
