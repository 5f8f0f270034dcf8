"""Load over time: traces read from CSV, packaged or made of named shapes."""

import csv
import io
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from flotilla import yaml_text
from flotilla.errors import InvalidSpec
from flotilla.planning import speed

_MOST_REQUESTS = 2_000_000
_LONGEST_TOKENS = 10_000_000


class TraceRequest(NamedTuple):
    """One request, `at_s` seconds after the trace's start."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival. `duration_s` may reach beyond the last one."""

    name: str
    requests: tuple[TraceRequest, ...]
    duration_s: float

    def mean_shape(self) -> speed.RequestShape:
        """The mean request; one token in and out for an empty trace."""
        count = len(self.requests)
        if not count:
            return speed.RequestShape(1, 1)
        prompt, output = (sum(request[place] for request in self.requests) / count for place in (1, 2))
        return speed.RequestShape(max(1, round(prompt)), max(1, round(output)))

    def scaled(self, factor: float) -> "Trace":
        """The same shape with `factor` times the requests: each is repeated `factor` times, spread evenly.

        The copies of one request follow it before the next one comes, so that bursts stay bursts.
        """
        if factor == 1:
            return self
        made: list[TraceRequest] = []
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
    found: list[TraceRequest] = []
    for row in reader:
        found += read(_Row(row, name, reader.line_num))
        if len(found) > _MOST_REQUESTS:
            raise InvalidSpec(f"{name}: more than {_MOST_REQUESTS:,} requests; take a part of them.", field="--trace")
    if not found:
        raise InvalidSpec(f"{name}: no request in it.", field="--trace")
    return from_requests(name, found)


def from_requests(name: str, requests: Iterable[TraceRequest], *, duration_s: float | None = None) -> Trace:
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


def _single(row: _Row) -> Iterator[TraceRequest]:
    yield TraceRequest(row.number("at_s"), row.tokens("prompt_tokens"), row.tokens("output_tokens"))


def _second(row: _Row) -> Iterator[TraceRequest]:
    second, count = row.number("second"), round(row.number("requests", most=1_000_000))
    for index in range(count):
        yield TraceRequest(second + index / count, row.tokens("prompt_tokens"), row.tokens("output_tokens"))


def _azure(row: _Row) -> Iterator[TraceRequest]:
    text = (row.cells["TIMESTAMP"] or "")[:26]
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise row.wrong("TIMESTAMP", "a time like 2023-11-16 18:15:46.680590") from None
    yield TraceRequest(at.timestamp(), row.tokens("ContextTokens"), row.tokens("GeneratedTokens"))


_KINDS: Mapping[tuple[str, ...], Callable[[_Row], Iterator[TraceRequest]]] = {
    ("at_s", "prompt_tokens", "output_tokens"): _single,
    ("second", "requests", "prompt_tokens", "output_tokens"): _second,
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure,
}


_HOUR_S = 3600.0
_AZURE_BIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens by quantiles: each share of the requests is at most so long."""

    shares: Sequence[float]
    prompt: Sequence[int]
    output: Sequence[int]

    def draw(self, dice: random.Random) -> tuple[int, int]:
        """Prompt and output of one request; they do not depend on each other."""
        return self._at(self.prompt, dice.random()), self._at(self.output, dice.random())

    def _at(self, quantiles: Sequence[int], share: float) -> int:
        index = min(bisect_right(self.shares, share), len(self.shares) - 1)
        low, high = quantiles[index - 1], quantiles[index]
        part = (share - self.shares[index - 1]) / (self.shares[index] - self.shares[index - 1])
        return round(math.exp(math.log(low) + part * math.log(high / low)))


@dataclass(frozen=True, slots=True)
class Shape:
    """Mean requests per second over the time of a trace; around it they come at random (a Poisson process)."""

    about: str
    duration_s: float
    per_s: Callable[[float], float]
    most_per_s: float


def _diurnal(at_s: float) -> float:
    """A day in two hours: quiet, up, a dip at noon, quiet again."""
    day = at_s / (2 * _HOUR_S)
    dip = 0.25 * math.exp(-(((day - 0.5) / 0.06) ** 2))
    return 0.4 + 5.6 * float(math.sin(math.pi * day)) ** 2 * (1 - dip)


def _burst(at_s: float) -> float:
    """Five minutes of four times the load, twice."""
    return 6.0 if 900 <= at_s < 1200 or 2100 <= at_s < 2400 else 1.5


def _flash_crowd(at_s: float) -> float:
    """Within seconds ten times the load, then a long tail."""
    return 0.8 if at_s < 900 else 0.8 + 7.2 * math.exp(-(at_s - 900) / 600)


def _slow_ramp(at_s: float) -> float:
    return 0.5 + 5.5 * at_s / (1.5 * _HOUR_S)


def _on_off(at_s: float) -> float:
    """Six minutes on, six minutes off: a batch job that comes again and again."""
    return 5.0 if at_s % 720 < 360 else 0.0


SHAPES: Mapping[str, Shape] = {
    "diurnal": Shape("a day in two hours, from 0.4 to 6 requests/s", 2 * _HOUR_S, _diurnal, 6.0),
    "burst": Shape("1.5 requests/s, twice five minutes of 6", _HOUR_S, _burst, 6.0),
    "flash-crowd": Shape("0.8 requests/s, suddenly 8, falling slowly", _HOUR_S, _flash_crowd, 8.0),
    "slow-ramp": Shape("from 0.5 to 6 requests/s in 90 minutes", 1.5 * _HOUR_S, _slow_ramp, 6.0),
    "on-off": Shape("6 minutes of 5 requests/s, 6 minutes of none", _HOUR_S, _on_off, 5.0),
}
AZURE: Mapping[str, str] = {
    "azure-conversation": "arrivals and lengths of the Azure LLM inference trace 2023, conversation",
    "azure-code": "arrivals and lengths of the Azure LLM inference trace 2023, code",
}
NAMES = (*SHAPES, *AZURE)


def about(name: str) -> str:
    """What a trace is, in a line."""
    return SHAPES[name].about if name in SHAPES else AZURE[name]


def make(name: str, *, seed: int = 0) -> Trace:
    """A trace by its name; raises InvalidSpec with the names there are."""
    dice = random.Random(f"{name}/{seed}")  # noqa: S311 - repeatable, and no secret
    if name in SHAPES:
        shape, lengths = SHAPES[name], _lengths("conversation")
        return from_requests(
            name,
            (TraceRequest(at_s, *lengths.draw(dice)) for at_s in _poisson(shape, dice)),
            duration_s=shape.duration_s,
        )
    if name in AZURE:
        kind = name.removeprefix("azure-")
        counts: list[int] = _azure_shape()[kind]["arrivals_per_10s"]
        lengths = _lengths(kind)
        return from_requests(
            name,
            (
                TraceRequest((index + dice.random()) * _AZURE_BIN_S, *lengths.draw(dice))
                for index, count in enumerate(counts)
                for _ in range(count)
            ),
            duration_s=len(counts) * _AZURE_BIN_S,
        )
    raise InvalidSpec(f"No trace is called {name!r}. There are {', '.join(NAMES)}.", field="--trace")


def _poisson(shape: Shape, dice: random.Random) -> Iterator[float]:
    """Arrivals at the highest rate, of which each is kept with the share that the rate then has (thinning)."""
    at_s = dice.expovariate(shape.most_per_s)
    while at_s < shape.duration_s:
        if dice.random() * shape.most_per_s < shape.per_s(at_s):
            yield at_s
        at_s += dice.expovariate(shape.most_per_s)


def _lengths(kind: str) -> Lengths:
    data = _azure_shape()
    return Lengths(data["shares"], data[kind]["prompt_tokens"], data[kind]["output_tokens"])


@cache
def _azure_shape() -> Any:
    return yaml_text.load(files(__package__).joinpath("azure-llm-2023.yaml").read_text())
