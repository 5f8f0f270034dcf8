"""The traces that come with Flotilla: made from a shape and a seed, the same ones each time."""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flotilla import yaml_text
from flotilla.domain.simulation.trace import Request, Trace, from_requests
from flotilla.errors import InvalidSpec

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
            (Request(at_s, *lengths.draw(dice)) for at_s in _poisson(shape, dice)),
            duration_s=shape.duration_s,
        )
    if name in AZURE:
        kind = name.removeprefix("azure-")
        counts: list[int] = _azure()[kind]["arrivals_per_10s"]
        lengths = _lengths(kind)
        return from_requests(
            name,
            (
                Request((index + dice.random()) * _AZURE_BIN_S, *lengths.draw(dice))
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
    data = _azure()
    return Lengths(data["shares"], data[kind]["prompt_tokens"], data[kind]["output_tokens"])


@cache
def _azure() -> Any:
    return yaml_text.load(files(__package__).joinpath("azure-llm-2023.yaml").read_text())
