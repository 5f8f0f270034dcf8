"""What the catalogue of hosted prices says of a model."""

from datetime import UTC, datetime

from flotilla.cost.hosted_prices import find

MORNING = datetime(2026, 11, 29, 9, tzinfo=UTC)
NIGHT = datetime(2026, 11, 29, 20, tzinfo=UTC)


def test_a_price_that_differs_by_the_hour_says_so_with_all_of_them() -> None:
    morning, night = (find("deepseek", "deepseek-chat", field="--small", at=at) for at in (MORNING, NIGHT))

    assert morning.input.base != night.input.base
    for text in ("0.27/1.1 from 00:30", "0.135/0.55 from 16:30"):
        assert text in morning.note
        assert text in night.note


def test_a_price_that_is_the_same_all_day_says_nothing_of_hours() -> None:
    assert find("openai", "gpt-5-mini", field="--small", at=MORNING).note == ""
