"""A breaker: after failures in a row nothing more is sent for a while, then one request tries. Pure; time is given."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Whether requests are let through."""

    CLOSED = "Closed"
    OPEN = "Open"
    HALF_OPEN = "HalfOpen"


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When to open, and for how long."""

    failures: int = 5
    """In a row."""
    open_s: float = 5.0
    """The first time; doubled each time that the trial fails."""
    open_limit_s: float = 60.0
    trial_s: float = 30.0
    """A trial that has not ended after so long is taken for lost, and another is let through."""


class Breaker:
    """The state of one endpoint or target. Times are of any clock that only rises, in seconds."""

    __slots__ = ("_failures", "_opened", "_settings", "_trial_until_s", "_until_s")

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._failures = 0
        self._opened = 0
        """Times in a row that it opened."""
        self._until_s = 0.0
        self._trial_until_s = 0.0

    def state(self, now_s: float) -> State:
        """Closed, open, or open with a trial due or under way."""
        if not self._opened:
            return State.CLOSED
        return State.OPEN if now_s < self._until_s else State.HALF_OPEN

    def admits(self, now_s: float) -> bool:
        """Whether a request may be sent. Changes nothing: `sent` tells that one was."""
        if not self._opened:
            return True
        return now_s >= self._until_s and now_s >= self._trial_until_s

    def sent(self, now_s: float) -> None:
        """A request goes out: half open, it is the trial, and no other goes until it has ended."""
        if self._opened and now_s >= self._until_s:
            self._trial_until_s = now_s + self._settings.trial_s

    def succeeded(self) -> None:
        """A request was answered."""
        self._failures = self._opened = 0
        self._trial_until_s = 0.0

    def gave_no_verdict(self) -> None:
        """A request ended and says nothing about the other side: its client left."""
        self._trial_until_s = 0.0

    def failed(self, now_s: float, *, at_once: bool = False) -> None:
        """A request failed; `at_once` opens by this one alone."""
        self._failures += 1
        trial = self._opened > 0 and now_s >= self._until_s
        if trial or (not self._opened and (at_once or self._failures >= self._settings.failures)):
            self._opened += 1
            wait_s = min(self._settings.open_s * 2 ** (self._opened - 1), self._settings.open_limit_s)
            self._until_s = now_s + wait_s
            self._trial_until_s = 0.0
            self._failures = 0
