"""Clusters that a user runs by name: their folder, their lock, what is known about them from outside."""

import fcntl
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from flotilla.errors import Conflict, InvalidSpec, NotReady

DEFAULT_NAME = "default"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
_STOP_TIMEOUT_S = 20.0
_RETRY_S = 0.02
_ATTEMPTS = 10


class NamedCluster:
    """One folder under `$XDG_STATE_HOME/flotilla/devcluster`.

    A supervisor process holds an exclusive lock on `lock` for as long as the cluster lives and writes its
    PID into it. The kernel drops the lock with the process, so a held lock means "running" and a reused PID
    cannot mislead.
    """

    def __init__(self, name: str, *, environ: Mapping[str, str] = os.environ) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidSpec(
                f"The cluster name {name!r} is not usable. Take up to 40 lower-case letters, digits, dashes.",
                field="--name",
            )
        self.name = name
        base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".local" / "state"
        self.directory = Path(base) / "flotilla" / "devcluster" / name
        self.plane = self.directory / "plane"
        """The folder of the control plane itself."""
        self.log = self.directory / "supervisor.log"
        self._state = self.directory / "cluster.json"
        self._lock = self.directory / "lock"

    @property
    def kubeconfig(self) -> Path:
        return self.plane / "kubeconfig"

    def supervisor(self) -> int | None:
        """PID of the supervisor, None when the cluster does not run."""
        try:
            with self._lock.open() as file:
                while not _try_lock(file):
                    file.seek(0)
                    if pid := file.read():
                        return int(pid)
                    time.sleep(_RETRY_S)  # locked a moment ago, the PID comes next
        except FileNotFoundError:
            pass
        return None

    def state(self) -> dict[str, Any]:
        """What the supervisor published once all was ready; raises NotReady when the cluster does not run."""
        if self.supervisor() is None:
            raise NotReady(
                f"The cluster {self.name!r} does not run. Start it with `flotilla devcluster up --name {self.name}`."
            )
        try:
            content: dict[str, Any] = json.loads(self._state.read_text())
        except FileNotFoundError:
            raise NotReady(f"The cluster {self.name!r} is still starting. Its log is {self.log}.") from None
        return content

    def publish(self, state: Mapping[str, Any]) -> None:
        """Make the state visible to other processes, at once and whole."""
        temporary = self._state.with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=2))
        temporary.replace(self._state)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the supervisor: hold the lock, with the remains of a dead predecessor removed.

        The folder disappears after a clean end and stays, with its logs, after a failure. Raises Conflict
        when the cluster runs already.
        """
        with self._acquire() as file:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            shutil.rmtree(self.plane, ignore_errors=True)
            self._state.unlink(missing_ok=True)
            yield
            shutil.rmtree(self.directory)

    def stop(self, *, timeout_s: float = _STOP_TIMEOUT_S) -> bool:
        """End the supervisor (SIGTERM, SIGKILL after `timeout_s` seconds) and remove the folder.

        False when there was nothing. The supervisor's death takes all its processes with it.
        """
        if not self.directory.exists():
            return False
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            pid = self.supervisor()
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, wanted)
                self._wait_released(timeout_s)
        shutil.rmtree(self.directory, ignore_errors=True)
        return True

    def _wait_released(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.supervisor() is not None and time.monotonic() < deadline:
            time.sleep(0.05)

    @contextmanager
    def _acquire(self) -> Iterator[IO[str]]:
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._lock.open("a+") as file:
                if not _try_lock(file, attempts=_ATTEMPTS):
                    raise Conflict(
                        f"The cluster {self.name!r} runs already. Stop it with"
                        f" `flotilla devcluster down --name {self.name}`, or choose another --name."
                    )
                # Another process may have removed the folder between our open and our lock.
                if self._lock.exists() and os.path.samestat(os.fstat(file.fileno()), self._lock.stat()):
                    yield file
                    return


def _try_lock(file: IO[str], *, attempts: int = 1) -> bool:
    """Several attempts tell a supervisor, which stays, from somebody who only looks whether there is one."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(_RETRY_S)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
