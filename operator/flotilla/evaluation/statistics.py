"""Statements about a mean that hold however often one looks, and Wilson's interval. Pure.

Observations are numbers of [0, 1]: a score, or whether an answer was malformed or late. A hypothesis "the mean is at
most m" is tested by betting against it (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", 2024): each observation x multiplies the capital by 1 + b(x - m), which is fair if the mean is m. If the
hypothesis holds, the probability that the capital ever reaches 1/a is at most a (Ville's inequality), so that one may
look after each observation and stop when one likes. No distribution is assumed; observations are independent draws of
the task.

The capital here is the mean over a fixed set of bets, each of which stays the same. It depends on how often each value
came and not on the order, which makes verdicts independent of the order of cases, and of how a run was interrupted.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

_BETS = tuple(1 / (1 + math.exp(-logit / 2)) for logit in range(-12, 15))
"""Shares of the largest bet that cannot lose all, a factor of 1.65 apart: the best one is near one of them."""
_PRECISION = 1e-5
_MOST_CASES = 10_000_000


@dataclass(frozen=True, slots=True)
class Observations:
    """How often each value of [0, 1] was observed. Counts may be fractions where a sample is extrapolated."""

    counts: Mapping[float, float] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Iterable[float]) -> "Observations":
        """Count the values; raises ValueError for one outside of [0, 1]."""
        counts: dict[float, float] = {}
        for value in values:
            if not 0 <= value <= 1:
                raise ValueError(f"{value!r} is not a value of [0, 1].")
            counts[value] = counts.get(value, 0) + 1
        return cls(counts)

    @classmethod
    def rate(cls, hits: float, of: float) -> "Observations":
        """`hits` ones among `of` observations, the others zero."""
        return cls({1.0: hits, 0.0: of - hits})

    @property
    def size(self) -> float:
        """The number of observations."""
        return math.fsum(self.counts.values())

    @property
    def mean(self) -> float | None:
        """Their mean; None without observations."""
        if not self.size:
            return None
        return math.fsum(value * count for value, count in self.counts.items()) / self.size

    def times(self, factor: float) -> "Observations":
        """The sample as it would be with so many times the observations, if they are distributed as these are."""
        return Observations({value: count * factor for value, count in self.counts.items()})


def log_evidence_above(sample: Observations, mean: float) -> float:
    """Logarithm of the capital of a bet against "the true mean is at most `mean`", where 0 < mean <= 1."""
    return _log_capital([(value / mean, count) for value, count in sample.counts.items()])


def log_evidence_below(sample: Observations, mean: float) -> float:
    """Logarithm of the capital of a bet against "the true mean is at least `mean`", where 0 <= mean < 1."""
    return _log_capital([((1 - value) / (1 - mean), count) for value, count in sample.counts.items()])


def _log_capital(relative: Iterable[tuple[float, float]]) -> float:
    """Of observations as multiples of their mean under the hypothesis, with counts."""
    pairs = [(value, count) for value, count in relative if count]
    logs = [math.fsum(count * math.log1p(bet * (value - 1)) for value, count in pairs) for bet in _BETS]
    top = max(logs)
    return top + math.log(math.fsum(math.exp(log - top) for log in logs) / len(logs))


def shown_above(sample: Observations, mean: float, *, error: float) -> bool:
    """Whether the sample shows that the true mean exceeds `mean`. If it does not, this is ever True with at most
    probability `error`, however often one asks while the sample grows."""
    return mean <= 0 or (mean < 1 and log_evidence_above(sample, mean) >= -math.log(error))


def shown_below(sample: Observations, mean: float, *, error: float) -> bool:
    """Whether the sample shows that the true mean is lower than `mean`; see `shown_above`."""
    return mean >= 1 or (mean > 0 and log_evidence_below(sample, mean) >= -math.log(error))


def lower_bound(sample: Observations, *, error: float) -> float:
    """The true mean is at least this, always, with probability 1 - `error`: the largest mean that is shown exceeded."""
    return _boundary(lambda mean: shown_above(sample, mean, error=error))


def upper_bound(sample: Observations, *, error: float) -> float:
    """The true mean is at most this, always, with probability 1 - `error`."""
    return 1 - _boundary(lambda distance: shown_below(sample, 1 - distance, error=error))


def _boundary(holds: Callable[[float], bool]) -> float:
    """The largest number of [0, 1] for which a statement holds that holds at 0 and for no larger number than some."""
    low, high = 0.0, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def cases_for(sample: Observations, decided: Callable[[Observations], bool]) -> int | None:
    """How many more observations would decide, if they are distributed as those so far; None if no number would.

    An estimate: a sample that is extrapolated has no chance in it.
    """
    if not sample.size:
        return None
    low, high = 1.0, 2.0
    while not decided(sample.times(high)):
        low, high = high, high * 2
        if sample.size * high > _MOST_CASES:
            return None
    while (high - low) * sample.size > 1:
        middle = (low + high) / 2
        low, high = (low, middle) if decided(sample.times(middle)) else (middle, high)
    return max(1, math.ceil(sample.size * (high - 1)))


def wilson(hits: float, of: float, *, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a rate, for one look at a sample whose size was fixed before."""
    if not of:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = hits / of
    middle = (rate + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(rate * (1 - rate) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def percentile(values: Iterable[float], permille: int) -> float | None:
    """The smallest value that at least so many thousandths of the values do not exceed; None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * permille / 1000) - 1)] if ordered else None
