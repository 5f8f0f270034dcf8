"""How fast the pods of one deployment are, from the counters of the samples that scaling reads anyway. Pure.

The engines count times from arrival to first token and between tokens. Here they are added up over the last hour, by
minutes, with the requests that were in flight meanwhile, so that planning/speed.py can compare them with what it
computes for the same load.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields

from flotilla.planning.speed import ObservedSpeed
from flotilla.scaling.scrape_client import EngineSample, ScrapeError

_MINUTE_S = 60.0
_MINUTES = 60
_LONGEST_STEP_S = 120.0
"""Between two samples of a pod; what lies further apart is not compared."""
_PER_REQUEST = ("prompt_tokens", "cached_tokens", "generation_tokens", "requests_success")
_TIMES = ("first_token_seconds", "first_tokens", "token_interval_seconds", "token_intervals")


@dataclass(slots=True)
class _Sums:
    """Of one minute, over all pods."""

    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    generation_tokens: float = 0.0
    requests_success: float = 0.0
    first_token_seconds: float = 0.0
    first_tokens: float = 0.0
    token_interval_seconds: float = 0.0
    token_intervals: float = 0.0
    request_seconds: float = 0.0
    """Requests that ran, times seconds."""
    busy_seconds: float = 0.0
    """Of pods with requests that ran."""

    def add(self, name: str, value: float) -> None:
        """`value` more of `name`."""
        setattr(self, name, getattr(self, name) + value)


class SpeedObserver:
    """Keeps one deployment's last hour: `add` each reading of its pods, `observed` for the sums."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, EngineSample]] = {}
        self._minutes: deque[tuple[int, _Sums]] = deque(maxlen=_MINUTES)
        self._last_s = 0.0

    def add(self, answers: Mapping[str, EngineSample | ScrapeError], at_s: float) -> None:
        """A reading of every pod, by uid; pods that are gone or have not answered are forgotten."""
        now = {uid: (at_s, one) for uid, one in answers.items() if isinstance(one, EngineSample)}
        for uid, (_, sample) in now.items():
            before = self._before.get(uid)
            if before is not None and 0 < at_s - before[0] <= _LONGEST_STEP_S:
                self._count(before[1], sample, at_s, at_s - before[0])
        self._before = now

    def observed(self, at_s: float) -> ObservedSpeed | None:
        """Of the hour before `at_s`; None without an answer of more than one token."""
        first = int(at_s // _MINUTE_S) - _MINUTES
        total = _Sums()
        for minute, sums in self._minutes:
            if minute > first:
                for one in fields(_Sums):
                    total.add(one.name, getattr(sums, one.name))
        if not total.token_intervals or not total.requests_success or not total.busy_seconds:
            return None
        return ObservedSpeed(
            requests=int(total.requests_success),
            input_tokens=total.prompt_tokens / total.requests_success,
            output_tokens=total.generation_tokens / total.requests_success,
            cached_share=min(1.0, total.cached_tokens / total.prompt_tokens) if total.prompt_tokens else 0.0,
            in_flight=total.request_seconds / total.busy_seconds,
            token_intervals=int(total.token_intervals),
            token_interval_s=total.token_interval_seconds / total.token_intervals,
            first_tokens=int(total.first_tokens),
            first_token_s=total.first_token_seconds / total.first_tokens if total.first_tokens else None,
            age_s=max(0.0, at_s - self._last_s),
        )

    def _count(self, before: EngineSample, now: EngineSample, at_s: float, seconds: float) -> None:
        grown = {name: _grown(getattr(before, name), getattr(now, name)) for name in (*_PER_REQUEST, *_TIMES)}
        if any(value < 0 for value in grown.values()):
            # The engine has started again between the two.
            return
        sums = self._of_minute(at_s)
        for name, value in grown.items():
            sums.add(name, value)
        running = (before.running + now.running) / 2
        if running:
            sums.add("request_seconds", running * seconds)
            sums.add("busy_seconds", seconds)
        if grown["token_intervals"]:
            self._last_s = at_s

    def _of_minute(self, at_s: float) -> _Sums:
        minute = int(at_s // _MINUTE_S)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, _Sums()))
        return self._minutes[-1][1]


def _grown(before: float | None, now: float | None) -> float:
    return 0.0 if before is None or now is None else now - before
