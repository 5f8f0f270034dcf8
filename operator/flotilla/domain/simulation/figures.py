"""A run in a few numbers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from flotilla.domain.cost.tokens import SECONDS_PER_HOUR
from flotilla.domain.simulation.fleet import Run
from flotilla.domain.simulation.replica import Asked


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a whole run. Times in seconds; None: there was no request.

    `wait` is from the arrival to a place in a batch, at the gateway and in the engine's queue, of every request: one
    that was dropped has waited until then. `first_token` and `end` are from the arrival too, of those that got so far.
    """

    arrived: int
    served: int
    dropped: int
    rejected: int
    in_flight: int
    wait_p50_s: float | None
    wait_p99_s: float | None
    first_token_p50_s: float | None
    first_token_p99_s: float | None
    end_p50_s: float | None
    replicas_mean: float
    replicas_most: int
    changes: int
    """How often the wanted number changed."""
    replica_hours: Decimal


def figures(run: Run) -> Figures:
    """Sum a run up."""
    waits = [wait for asked in run.asked if (wait := _wait_s(asked, run.horizon_s)) is not None]
    served = [asked for asked in run.asked if asked.served]
    firsts = [s.first_token_s - a.request.at_s for a in run.asked if (s := a.sequence) and s.first_token_s is not None]
    ends = [s.ended_s - a.request.at_s for a in served if (s := a.sequence) and s.ended_s is not None]
    seconds = sum(
        (run.horizon_s if one.gone_s is None else min(one.gone_s, run.horizon_s)) - one.created_s
        for one in run.replicas
    )
    wanted = [row.wanted for row in run.rows]
    return Figures(
        arrived=len(run.asked),
        served=len(served),
        dropped=run.dropped,
        rejected=run.rejected,
        in_flight=sum(not asked.served and asked.dropped_s is None for asked in run.asked),
        wait_p50_s=percentile(waits, 50),
        wait_p99_s=percentile(waits, 99),
        first_token_p50_s=percentile(firsts, 50),
        first_token_p99_s=percentile(firsts, 99),
        end_p50_s=percentile(ends, 50),
        replicas_mean=seconds / run.horizon_s,
        replicas_most=max((row.ready + row.starting + row.draining for row in run.rows), default=0),
        changes=sum(a != b for a, b in itertools.pairwise(wanted)),
        replica_hours=Decimal(str(round(seconds, 3))) / SECONDS_PER_HOUR,
    )


def _wait_s(asked: Asked, horizon_s: float) -> float | None:
    """None: refused at once."""
    if asked.admitted_s is not None:
        return asked.admitted_s - asked.request.at_s
    until_s = horizon_s if asked.dropped_s is None else asked.dropped_s
    refused = asked.sequence is None and until_s == asked.request.at_s
    return None if refused else until_s - asked.request.at_s


def percentile(values: Sequence[float], percent: int) -> float | None:
    """By nearest rank: one of the values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(Fraction(percent, 100) * len(values)) - 1)]
