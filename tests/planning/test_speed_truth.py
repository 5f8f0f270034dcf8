"""What docs/reference/truth.md states: every prediction is computed anew from the published measurements' settings."""

import math
import statistics

import pytest
from benchmarks import speed
from benchmarks.speed_points import Point, predict, throughput_points

from flotilla.planning.speed import SPREAD_MEASURED


@pytest.fixture(scope="module")
def ratios() -> list[tuple[Point, float]]:
    return [(point, predict(point) / point.value) for point in throughput_points()]


def median_error(ratios: list[float]) -> float:
    return statistics.median(abs(ratio - 1) for ratio in ratios)


def test_there_are_at_least_forty_points_with_sources_and_as_many_held_out_as_fitted_on() -> None:
    points = throughput_points()

    assert len(points) >= 40
    assert all(point.source for point in points)
    assert sum(not point.fit for point in points) >= sum(point.fit for point in points)


def test_the_median_error_is_within_a_fifth_also_on_the_points_that_were_held_out(
    ratios: list[tuple[Point, float]],
) -> None:
    assert median_error([ratio for _, ratio in ratios]) <= 0.1
    assert median_error([ratio for point, ratio in ratios if not point.fit]) <= 0.2
    assert median_error([ratio for point, ratio in ratios if point.engine == "vllm"]) <= 0.2


def test_no_prediction_is_further_off_than_a_factor_of_two(ratios: list[tuple[Point, float]]) -> None:
    off = [point.what for point, ratio in ratios if abs(math.log2(ratio)) > 1]

    assert off == []


def test_the_range_that_is_shown_has_nineteen_of_twenty_measurements(ratios: list[tuple[Point, float]]) -> None:
    inside = sum(1 / SPREAD_MEASURED <= ratio <= SPREAD_MEASURED for _, ratio in ratios)

    assert inside / len(ratios) >= 0.95


def test_the_page_is_what_the_model_says() -> None:
    assert speed.main(["--check"]) == 0, "run: python -m benchmarks.speed"
