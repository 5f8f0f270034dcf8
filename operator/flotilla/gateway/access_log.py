"""One line of JSON for each request; never a word of prompt or answer."""

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import orjson

_EVERY_S = 0.2
_KEPT_LINES = 50_000


class AccessLog:
    """Lines are written by a thread: a slow reader must not hold up requests. What it cannot take is counted."""

    def __init__(self, descriptor: int | None, *, on_lost: Callable[[int], None]) -> None:
        self._descriptor = descriptor
        self._on_lost = on_lost
        self._lines: deque[bytes] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        if descriptor is not None:
            self._thread.start()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Take one line."""
        if self._descriptor is None:
            return
        if len(self._lines) >= _KEPT_LINES:
            self._on_lost(1)
            return
        self._lines.append(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Write what is left, for a second at most."""
        self._stop.set()
        if self._descriptor is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        count = len(self._lines)
        if not count:
            return
        data = memoryview(b"".join([self._lines.popleft() for _ in range(count)]))
        assert self._descriptor is not None
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._on_lost(count)
                return
