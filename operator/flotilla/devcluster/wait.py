"""Waiting for a condition with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

from flotilla.errors import NotReady, Transient

T = TypeVar("T")


def until(probe: Callable[[], T | None], *, what: str, timeout_s: float, interval_s: float = 0.05) -> T:
    """The first truthy value of `probe`; a Transient that it raises counts as "not yet".

    `what` completes the sentence "Gave up waiting for ...". Raises NotReady after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        reason = ""
        try:
            value = probe()
        except Transient as error:
            value, reason = None, f" The last answer: {error}"
        if value:
            return value
        if time.monotonic() >= deadline:
            raise NotReady(f"Gave up waiting for {what} after {timeout_s:g} s.{reason}")
        time.sleep(interval_s)
