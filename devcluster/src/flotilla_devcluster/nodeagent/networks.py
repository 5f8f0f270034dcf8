"""Numbers of the nodes' pod networks, of which two node agents of one machine never have the same."""

import fcntl
import os
from pathlib import Path
from typing import IO

from flotilla.errors import NotReady

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
