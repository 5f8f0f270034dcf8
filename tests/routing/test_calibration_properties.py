"""A calibration never rises with the margin, changes nothing when fitted again, and is refused on too little."""

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flotilla.api.routing_policy import CalibrationPoint, Confidence
from flotilla.errors import InvalidSpec
from flotilla.routing.classify import (
    MAX_POINTS,
    MIN_OF_EACH,
    MIN_SAMPLES,
    Judged,
    error_probability,
    expected_calibration_error,
    fit,
)

MARGINS = st.floats(0, 1, allow_nan=False)


@st.composite
def judged(draw: st.DrawFn) -> list[Judged]:
    """Enough answers, of which those with a large margin are wrong more seldom, or not."""
    # A generator of our own: each number drawn by hypothesis costs a hundred times as much.
    random = Random(draw(st.integers(0, 2**32)))
    slope = draw(st.floats(-1, 1))
    samples = []
    for _ in range(draw(st.integers(MIN_SAMPLES, 600))):
        margin = random.random()
        samples.append(Judged(margin, random.random() < 0.5 + slope * (0.5 - margin)))
    wrong = sum(sample.wrong for sample in samples)
    assume(MIN_OF_EACH <= wrong <= len(samples) - MIN_OF_EACH)
    return samples


@settings(max_examples=50)
@given(samples=judged(), a=MARGINS, b=MARGINS)
def test_a_surer_answer_is_never_held_for_more_often_wrong(samples: list[Judged], a: float, b: float) -> None:
    points = fit(samples)
    low, high = sorted((a, b))
    assert 0 <= error_probability(points, high) <= error_probability(points, low) <= 1


@settings(max_examples=50)
@given(samples=judged())
def test_the_points_are_what_a_policy_takes(samples: list[Judged]) -> None:
    points = fit(samples)
    margins = [point.margin_permille for point in points]
    assert margins == sorted(set(margins))
    assert 2 <= len(points) <= MAX_POINTS
    assert Confidence(escalate_above_error_permille=100, calibration=points)


@settings(max_examples=50)
@given(samples=judged())
def test_it_predicts_as_many_errors_as_there_were(samples: list[Judged]) -> None:
    points = fit(samples)
    predicted = sum(error_probability(points, round(sample.margin, 3)) for sample in samples)
    assert predicted == pytest.approx(sum(sample.wrong for sample in samples), abs=0.002 * len(samples))


@settings(max_examples=5)
@given(samples=judged())
def test_fitted_to_its_own_steps_it_stays_as_it_is(samples: list[Judged]) -> None:
    points = fit(samples)
    again = [
        Judged(point.margin_permille / 1000, number < point.error_permille)
        for point in points
        for number in range(1000)
    ]
    wrong = sum(sample.wrong for sample in again)
    assume(MIN_OF_EACH <= wrong <= len(again) - MIN_OF_EACH)
    refitted = fit(again)
    for point in points:
        assert error_probability(refitted, point.margin_permille / 1000) * 1000 == pytest.approx(
            point.error_permille, abs=0.51
        )


def test_too_few_answers_are_refused_and_so_are_answers_that_are_all_right() -> None:
    with pytest.raises(InvalidSpec, match="199 judged answers"):
        fit([Judged(0.5, number % 2 == 0) for number in range(MIN_SAMPLES - 1)])
    with pytest.raises(InvalidSpec, match="19 of them wrong"):
        fit([Judged(0.5, number < MIN_OF_EACH - 1) for number in range(1000)])


def test_calibrating_lowers_the_calibration_error_of_a_raw_threshold() -> None:
    # Nine of ten answers are right whatever the margin says: the raw 1 - margin is far off.
    samples = [Judged(number % 100 / 100, number % 10 == 3) for number in range(1000)]
    raw = [CalibrationPoint(margin_permille=m, error_permille=1000 - m) for m in (0, 1000)]
    assert expected_calibration_error(raw, samples) > 0.3
    assert expected_calibration_error(fit(samples), samples) < 0.02


def test_a_margin_that_separates_right_from_wrong_gives_a_step() -> None:
    samples = [Judged(margin, margin < 0.5) for margin in (number / 400 for number in range(400))]
    points = fit(samples)
    assert error_probability(points, 0.3) == 1
    assert error_probability(points, 0.7) == 0
