"""Lengths of time as people write them, and the UTC days of a period."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from flotilla.errors import InvalidSpec

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_S = 366 * 86_400
_SHORTEST_S = 60


def seconds(text: str, *, field: str, shortest: str = "1m") -> int:
    """`90m`, `24h`, `7d`, `4w`; raises InvalidSpec. From a minute, where no other bound is given, to a year."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip())
    if match is None:
        raise InvalidSpec(f"{field} {text!r} is no length of time: give 90m, 24h, 7d or 4w.", field=field)
    found = int(match[1]) * _UNITS_S[match[2]]
    shortest_s = int(shortest[:-1]) * _UNITS_S[shortest[-1]]
    if not shortest_s <= found <= _LONGEST_S:
        raise InvalidSpec(f"{field} {text!r} is not between {shortest} and 366d.", field=field)
    return found


def days(start: float, end: float) -> Iterator[tuple[float, float]]:
    """The parts of a period, cut at midnight UTC; a part of less than a minute at an end is left out."""
    at = start
    while at < end:
        midnight = datetime.fromtimestamp(at, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        until = min((midnight + timedelta(days=1)).timestamp(), end)
        if until - at >= _SHORTEST_S:
            yield at, until
        at = until
