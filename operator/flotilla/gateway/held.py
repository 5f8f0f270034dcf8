"""The counter behind `GET /held` of the admin server, with which the operator learns at once of requests that wait.

The event loop increments it when requests begin to wait for a model without an endpoint. Each long poll waits on a
thread of the admin server until the counter differs from the value that the caller knows.
"""

import threading

MAX_POLLS = 8
"""Polls that may wait at the same time, each on a thread. One operator leads, so one is usual."""
MAX_WAIT_S = 25.0
"""Load balancers and proxies close connections that are silent for 30 to 60 s."""


class HeldCounter:
    """Counts from 0 at the start of the process; safe to use from several threads."""

    def __init__(self, *, max_polls: int = MAX_POLLS) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._polls = 0
        self._max_polls = max_polls
        self._closed = False

    @property
    def polls(self) -> int:
        """Polls that wait now."""
        return self._polls

    def increment(self) -> None:
        """Answer all polls."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def poll(self, after: int, timeout_s: float) -> int | None:
        """Block until the counter differs from `after`, at most `timeout_s`, and return it. None: too many polls wait.

        Different and not only greater: the counter of a restarted gateway is smaller than the one the caller knows.
        """
        with self._changed:
            if self._count == after and not self._closed:
                if self._polls >= self._max_polls:
                    return None
                self._polls += 1
                try:
                    self._changed.wait_for(lambda: self._closed or self._count != after, min(timeout_s, MAX_WAIT_S))
                finally:
                    self._polls -= 1
            return self._count

    def close(self) -> None:
        """Answer all polls; later ones do not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
