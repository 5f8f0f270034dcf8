"""How an attempt ended."""

from dataclasses import dataclass

from flotilla.api.routing_policy import Failure


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole answer: the target's success, or its refusal of what the client asked for (4xx)."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """No byte has reached the client: another attempt may be made."""

    failure: Failure
    detail: str
    """For the log and the client; never the target's own words, which may hold the prompt."""
    status: int = 502
    """What the client gets where this was the last attempt."""
    retry_after: str | None = None
    nothing_sent: bool = False
    """The target has not seen the request."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """The client has the whole stream."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """The whole stream is here, and the client has nothing of it."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The client has a part of the stream, and no more will come."""

    detail: str
    by_client: bool = False
    """It read too slowly: that says nothing about the target."""


Outcome = Whole | Failed | Streamed | HeldBack | Broken
