"""Passes the events of a stream on as they come, whole ones only, so that an error can be told between two of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from flotilla.gateway.request import Answer
from flotilla.routing.budgets import Usage, usage_of
from flotilla.routing.check import Collector

_EVENT_LIMIT = 8 * 2**20
_DONE = (b"data: [DONE]", b"data:[DONE]")


@dataclass(slots=True)
class Judging:
    """Holds the first part of an answer back, for as long as it may still be asked again."""

    limit: int
    """Pieces of text, of about a token each."""
    collector: Collector


class Relay:
    """Takes events of one attempt. `commit` is called before the first of them goes to the client."""

    def __init__(
        self,
        answer: Answer,
        *,
        commit: Callable[[], None],
        strip_usage: bool,
        strip_logprobs: bool = False,
        judging: Judging | None = None,
    ) -> None:
        self._answer = answer
        self._commit = commit
        self._strip_usage = strip_usage
        self._strip_logprobs = strip_logprobs
        self._judging = judging
        self._carry = b""
        self._held: list[bytes] = []
        self.usage: Usage | None = None
        self.events = 0
        """That went to the client or are held: about the answer's tokens where it does not count them itself."""
        self.committed = False
        self.done = False
        """[DONE] has come."""

    def feed(self, data: bytes) -> str | None:
        """Take bytes of any cut. Returns why the stream must be taken for broken, None where it need not."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        if not data.endswith((b"\n\n", b"\r\n\r\n")):
            end = _last_end(data)
            if len(data) - end > _EVENT_LIMIT:
                return "an event without an end"
            self._carry = data[end:]
            data = data[:end]
            if not data:
                return None
        if self.done:
            return None
        if not self.committed:
            return self._first(data)
        self._pass(data)
        return None

    def flush(self) -> None:
        """Commit, and send what was held back."""
        self._judging = None
        held, self._held = self._held, []
        self._start()
        if held:
            self._answer.write(b"".join(held))

    @property
    def collected(self) -> Collector | None:
        """What was held back, read; None where nothing is judged."""
        return None if self._judging is None else self._judging.collector

    def _first(self, data: bytes) -> str | None:
        """Nothing has reached the client: comments do not count, and an error can still be answered elsewhere."""
        if data.startswith(b":") and b"\ndata:" not in data:
            return None
        if self.events == 0 and data.startswith((b'data: {"error"', b'data:{"error"')):
            return "an error instead of a stream"
        if self._judging is None:
            self._start()
        self._pass(data)
        return None

    def _start(self) -> None:
        self.committed = True
        self._commit()

    def _pass(self, data: bytes) -> None:
        if (
            b'"usage"' in data
            or b"[DONE]" in data
            or b"\r" in data
            or self._judging is not None
            or self._strip_logprobs
        ):
            data = self._looked_at(data)
            if not data:
                return
        else:
            self.events += data.count(b"\n\n")
        if self.committed:
            self._answer.write(data)
        else:
            self._hold(data)

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        assert self._judging is not None
        if self._judging.collector.pieces > self._judging.limit:
            self.flush()

    def _looked_at(self, data: bytes) -> bytes:
        kept = []
        for event in data.replace(b"\r\n", b"\n").split(b"\n\n"):
            if not event.strip():
                continue
            if event.startswith(_DONE):
                self.done = True
                kept.append(event)
                break
            changed = self._event(event)
            if changed:
                self.events += 1
                kept.append(changed)
        return b"\n\n".join(kept) + b"\n\n" if kept else b""

    def _event(self, event: bytes) -> bytes:
        """The event as the client gets it; empty where it was only for us."""
        if not event.startswith(b"data:") or b"\n" in event.strip():
            return event
        try:
            chunk = orjson.loads(event[5:])
        except orjson.JSONDecodeError:
            return event
        if not isinstance(chunk, dict):
            return event
        if self._judging is not None:
            self._judging.collector.add(chunk)
        changed = False
        if "usage" in chunk:
            self.usage = usage_of(chunk["usage"]) or self.usage
            if self._strip_usage:
                changed = True
                del chunk["usage"]
                if not chunk.get("choices"):
                    return b""
        if self._strip_logprobs:
            changed = without_logprobs(chunk) or changed
        return b"data: " + orjson.dumps(chunk) if changed else event


def without_logprobs(chunk: dict[str, Any]) -> bool:
    """Take out token probabilities that the client did not ask for; True where there were any."""
    found = False
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("logprobs") is not None:
            choice["logprobs"] = None
            found = True
    return found


def _last_end(data: bytes) -> int:
    """Where the last whole event ends."""
    plain, carriage = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, carriage + 4 if carriage >= 0 else 0)
