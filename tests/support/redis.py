"""A real redis-server of the test's own, on a socket file, so that no port can be taken."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from flotilla_devcluster import programs
from flotilla_devcluster.process import Process, until

_START_S = 30


class RedisServer:
    """Every write is on disk before it is answered: what a kill -9 loses is then the client's fault."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: Process | None = None
        self.url = f"unix://{directory}/redis.sock"

    def start(self) -> None:
        """Start, with what is on disk, and wait until it answers."""
        keep = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        place = ("--dir", str(self._directory), "--unixsocket", str(self._directory / "redis.sock"), "--port", "0")
        argv = [str(programs.find_debian("redis-server")), *keep, *place]
        process = Process.start("redis-server", argv, log=self._directory / "log", env=programs.debian_environment())
        self._process = process

        def answers() -> bool:
            process.check()
            with suppress(RedisError), self.client() as client:
                return bool(client.ping())
            return False

        until(answers, what="redis-server to answer", timeout_s=_START_S, interval_s=0.02)

    def client(self) -> Redis:
        """A client for looking at what is stored."""
        return Redis.from_url(self.url, decode_responses=True, socket_timeout=5)

    def kill(self) -> None:
        """As a machine that fails: no shutdown, no farewell to clients."""
        if self._process is not None:
            self._process.kill()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Connections are accepted and nothing is answered meanwhile."""
        assert self._process is not None
        self._process.pause()
        try:
            yield
        finally:
            self._process.resume()


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
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)
