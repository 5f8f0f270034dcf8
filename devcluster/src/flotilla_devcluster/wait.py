"""Waiting for a condition with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

from flotilla.errors import NotReady, Transient

T = TypeVar("T")

_LONGEST_PAUSE_S = 0.25


def until(probe: Callable[[], T | None], *, what: str, timeout_s: float, interval_s: float = 0.05) -> T:
    """The first truthy value of `probe`; a Transient that it raises counts as "not yet".

    It is asked every `interval_s` seconds at first, then after a tenth of what was waited so far, four times a
    second at last: the answers cost a small cluster more than the wait does. `what` completes the sentence "Gave up
    waiting for ...". Raises NotReady after `timeout_s` seconds.
    """
    start = time.monotonic()
    deadline = start + timeout_s
    while True:
        reason = ""
        try:
            value = probe()
        except Transient as error:
            value, reason = None, f" The last answer: {error}"
        if value:
            return value
        now = time.monotonic()
        if now >= deadline:
            raise NotReady(f"Gave up waiting for {what} after {timeout_s:g} s.{reason}")
        time.sleep(max(interval_s, min((now - start) / 10, _LONGEST_PAUSE_S)))
