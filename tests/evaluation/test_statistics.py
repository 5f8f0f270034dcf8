"""What the bounds promise, by simulation with a look after every case; seeded, so that a failure can be repeated."""

import random
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flotilla.evaluation.statistics import (
    Observations,
    cases_for,
    lower_bound,
    percentile,
    shown_above,
    shown_below,
    upper_bound,
    wilson,
)

RUNS, CASES, ERROR = 2000, 400, 0.05


@cache
def above(hits: int, cases: int, mean: float) -> bool:
    return shown_above(Observations.rate(hits, cases), mean, error=ERROR)


@cache
def below(hits: int, cases: int, mean: float) -> bool:
    return shown_below(Observations.rate(hits, cases), mean, error=ERROR)


@cache
def paired(wins: int, losses: int, cases: int, edge: float) -> tuple[bool, bool]:
    sample = Observations({1.0: wins, 0.0: losses, 0.5: cases - wins - losses})
    return shown_above(sample, edge, error=ERROR), shown_below(sample, edge, error=ERROR)


def ever(rate: float, shown: Callable[[int, int, float], bool], mean: float) -> float:
    """The share of runs in which a look after any case finds it shown."""
    rng, found = random.Random(f"{rate} {mean}"), 0
    for _ in range(RUNS):
        hits = 0
        for cases in range(1, CASES + 1):
            hits += rng.random() < rate
            if shown(hits, cases, mean):
                found += 1
                break
    return found / RUNS


@pytest.mark.parametrize("mean", [0.5, 0.8, 0.95, 0.99])
def test_a_rate_at_the_edge_is_called_better_or_worse_by_mistake_as_rarely_as_is_promised(mean: float) -> None:
    assert ever(mean, above, mean) <= ERROR
    assert ever(mean, below, mean) <= ERROR


def test_a_rate_that_is_clearly_better_or_worse_is_seen() -> None:
    assert ever(0.99, above, 0.9) > 0.95
    assert ever(0.8, below, 0.9) > 0.95


@pytest.mark.parametrize(("discordant", "step"), [(0.02, 1), (0.1, 4), (0.4, 20)])
def test_a_pair_at_the_edge_of_the_margin_errs_as_rarely_as_is_promised(discordant: float, step: int) -> None:
    """`step` cases from one look to the next."""
    margin = 0.02
    rng, better, worse = random.Random(str(discordant)), 0, 0
    lose = (discordant + margin) / 2
    for _ in range(RUNS):
        wins = losses = 0
        seen_better = seen_worse = False
        for cases in range(1, CASES + 1):
            at = rng.random()
            losses += at < lose
            wins += lose <= at < discordant
            if cases % step == 0:
                up, down = paired(wins, losses, cases, (1 - margin) / 2)
                seen_better, seen_worse = seen_better or up, seen_worse or down
        better, worse = better + seen_better, worse + seen_worse
    assert better / RUNS <= ERROR
    assert worse / RUNS <= ERROR


SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=60)


@given(SCORES, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_bounds_enclose_the_mean_and_do_not_depend_on_the_order(values: list[float], rng: random.Random) -> None:
    sample = Observations.of(values)
    low, high = lower_bound(sample, error=ERROR), upper_bound(sample, error=ERROR)
    assert sample.mean is not None
    assert 0 <= low <= sample.mean + 1e-4
    assert sample.mean - 1e-4 <= high <= 1
    shuffled = values[:]
    rng.shuffle(shuffled)
    assert lower_bound(Observations.of(shuffled), error=ERROR) == pytest.approx(low, abs=1e-4)


@given(SCORES, st.floats(0.01, 0.99))
@settings(max_examples=60)
def test_a_bound_is_where_the_test_turns(values: list[float], mean: float) -> None:
    sample = Observations.of(values)
    low, high = lower_bound(sample, error=ERROR), upper_bound(sample, error=ERROR)
    if abs(mean - low) > 1e-4:
        assert shown_above(sample, mean, error=ERROR) is (mean < low)
    if abs(mean - high) > 1e-4:
        assert shown_below(sample, mean, error=ERROR) is (mean > high)


@given(st.integers(0, 300), st.integers(1, 300))
def test_one_more_hit_never_lowers_a_bound(hits: int, misses: int) -> None:
    fewer, more = Observations.rate(hits, hits + misses), Observations.rate(hits + 1, hits + misses)
    assert lower_bound(more, error=ERROR) >= lower_bound(fewer, error=ERROR) - 1e-4


def test_the_estimate_of_more_cases_is_where_the_test_turns() -> None:
    sample = Observations.rate(390, 400)
    more = cases_for(sample, lambda grown: shown_above(grown, 0.95, error=ERROR))
    assert more is not None
    assert shown_above(sample.times(1 + more / 400), 0.95, error=ERROR)
    assert not shown_above(sample.times(1 + (more - 3) / 400), 0.95, error=ERROR)


def test_no_number_of_cases_settles_a_rate_that_is_exactly_what_is_required() -> None:
    sample = Observations.rate(95, 100)
    decided = lambda grown: shown_above(grown, 0.95, error=ERROR) or shown_below(grown, 0.95, error=ERROR)  # noqa: E731
    assert cases_for(sample, decided) is None
    assert cases_for(Observations(), decided) is None


@pytest.mark.parametrize(
    ("hits", "of", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (29, 29, (0.8830, 1.0))],
)
def test_wilsons_interval_is_that_of_newcombe_1998(hits: int, of: int, interval: tuple[float, float]) -> None:
    assert wilson(hits, of, confidence=0.95) == pytest.approx(interval, abs=2e-4)


def test_without_observations_everything_is_possible() -> None:
    assert wilson(0, 0, confidence=0.95) == (0.0, 1.0)
    assert (lower_bound(Observations(), error=ERROR), round(upper_bound(Observations(), error=ERROR), 3)) == (0.0, 1.0)
    assert percentile([], 990) is None


def test_a_value_outside_of_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.5 is not a value"):
        Observations.of([0.2, 1.5])


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, permille) for permille in (0, 500, 990, 1000)] == [1.0, 50.0, 99.0, 100.0]
