"""What the catalogue of hosted prices says of a model."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path

from flotilla.cost.hosted_prices import catalogue_date, find

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


def test_the_date_of_the_price_catalogue_is_that_of_the_locked_version() -> None:
    lock = tomllib.loads((Path(__file__).parents[2] / "uv.lock").read_text())
    locked = next(package for package in lock["package"] if package["name"] == "genai-prices")

    assert str(catalogue_date(locked["version"])) == locked["wheels"][0]["upload-time"][:10], (
        "CATALOGUE_PUBLISHED lacks the version of uv.lock"
    )
    assert catalogue_date("0.0.1") is None
