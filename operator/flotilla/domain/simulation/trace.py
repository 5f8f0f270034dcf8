"""Load traces: what arrives when, and how long its prompt and answer are."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from flotilla.errors import InvalidSpec

_MOST_REQUESTS = 2_000_000
_LONGEST_TOKENS = 10_000_000


class Request(NamedTuple):
    """One request, `at_s` seconds after the trace's start."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival. `duration_s` may reach beyond the last one."""

    name: str
    requests: tuple[Request, ...]
    duration_s: float

    def scaled(self, factor: float) -> "Trace":
        """The same shape with `factor` times the requests: each comes so many times as the share says, spread evenly.

        The copies of one request follow it before the next one comes, so that bursts stay bursts.
        """
        if factor == 1:
            return self
        made: list[Request] = []
        owed = 0.0
        for index, request in enumerate(self.requests):
            owed += factor
            copies, owed = int(owed), owed - int(owed)
            after = self.requests[index + 1].at_s if index + 1 < len(self.requests) else request.at_s
            gap_s = (after - request.at_s) / max(1, copies)
            made += (request._replace(at_s=request.at_s + gap_s * copy) for copy in range(copies))
        return Trace(self.name, tuple(made), self.duration_s)


def parse_csv(text: str, name: str) -> Trace:
    """Read one of three kinds of rows, known by the heading:

    `at_s,prompt_tokens,output_tokens` is a request per row, `second,requests,prompt_tokens,output_tokens` the requests
    of a second and their mean lengths, `TIMESTAMP,ContextTokens,GeneratedTokens` the Azure LLM inference traces.
    Raises InvalidSpec with the line and the column.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), skipinitialspace=True)
    heading = set(reader.fieldnames or ())
    kind = next((kind for kind in _KINDS if set(kind) <= heading), None)
    if kind is None:
        kinds = " or ".join(",".join(kind) for kind in _KINDS)
        raise InvalidSpec(f"{name}: the first line must name the columns {kinds}.", field="--trace")
    read = _KINDS[kind]
    found: list[Request] = []
    for row in reader:
        found += read(_Row(row, name, reader.line_num))
        if len(found) > _MOST_REQUESTS:
            raise InvalidSpec(f"{name}: more than {_MOST_REQUESTS:,} requests; take a part of them.", field="--trace")
    if not found:
        raise InvalidSpec(f"{name}: no request in it.", field="--trace")
    return from_requests(name, found)


def from_requests(name: str, requests: Iterable[Request], *, duration_s: float | None = None) -> Trace:
    """In order and from second 0 on, where no duration says that 0 is the start."""
    ordered = sorted(requests)
    if duration_s is None:
        start_s = ordered[0].at_s
        ordered = [request._replace(at_s=request.at_s - start_s) for request in ordered]
        duration_s = float(math.floor(ordered[-1].at_s) + 1)
    return Trace(name, tuple(ordered), duration_s)


@dataclass(frozen=True, slots=True)
class _Row:
    cells: Mapping[str, str | None]
    name: str
    line: int

    def number(self, column: str, *, most: float = math.inf) -> float:
        text = self.cells[column]
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        if not 0 <= value <= most or math.isinf(value):
            raise self.wrong(column, f"a number from 0 to {most:g}" if most < math.inf else "a number of 0 or more")
        return value

    def tokens(self, column: str) -> int:
        return max(1, round(self.number(column, most=_LONGEST_TOKENS)))

    def wrong(self, column: str, wanted: str) -> InvalidSpec:
        return InvalidSpec(
            f"{self.name}: line {self.line}: {column} is {self.cells[column]!r}; {wanted} is wanted.", field="--trace"
        )


def _single(row: _Row) -> Iterator[Request]:
    yield Request(row.number("at_s"), row.tokens("prompt_tokens"), row.tokens("output_tokens"))


def _second(row: _Row) -> Iterator[Request]:
    second, count = row.number("second"), round(row.number("requests", most=1_000_000))
    for index in range(count):
        yield Request(second + index / count, row.tokens("prompt_tokens"), row.tokens("output_tokens"))


def _azure(row: _Row) -> Iterator[Request]:
    text = (row.cells["TIMESTAMP"] or "")[:26]
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise row.wrong("TIMESTAMP", "a time like 2023-11-16 18:15:46.680590") from None
    yield Request(at.timestamp(), row.tokens("ContextTokens"), row.tokens("GeneratedTokens"))


_KINDS: Mapping[tuple[str, ...], Callable[[_Row], Iterator[Request]]] = {
    ("at_s", "prompt_tokens", "output_tokens"): _single,
    ("second", "requests", "prompt_tokens", "output_tokens"): _second,
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure,
}
