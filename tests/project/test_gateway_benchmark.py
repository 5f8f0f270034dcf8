"""What the soak of the gateway makes of its samples."""

import pytest
from benchmarks.gateway import growth


def test_warming_up_is_told_from_growth() -> None:
    warming = [(n * 100, 50_000 + min(n, 10) * 40.0) for n in range(20)]
    growing = [(n * 100, 50_000 + n * 40.0) for n in range(20)]
    first, second = growth(warming)
    assert first == pytest.approx(400)
    assert second == pytest.approx(0, abs=1)
    assert growth(growing) == pytest.approx((400, 400))


def test_a_soak_too_short_to_tell_says_so() -> None:
    first, second = growth([(100, 1.0), (200, 2.0)])
    assert first != first
    assert second != second
