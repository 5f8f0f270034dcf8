"""A verdict names what it goes by; both kinds of mistake are as rare as the requirements ask."""

import random
from decimal import Decimal
from functools import cache
from typing import Any

import pytest

from flotilla.api.evaluation import Requirements
from flotilla.evaluation.statistics import Observations
from flotilla.evaluation.verdict import DISQUALIFIED, INCONCLUSIVE, QUALIFIED, Measured, Ruling, rule, shown


def ruled(measured: Measured, **wanted: Any) -> Ruling:
    return rule(measured, Requirements.model_validate(wanted))


def scored(hits: float, of: float, **more: Any) -> Measured:
    return Measured("small", Observations.rate(hits, of), **more)


WITHIN = {"quality": {"withinPermilleOf": {"target": "frontier", "permille": 50}}}


COST = {"costPerThousandTasksUSD": "0.20"}


@pytest.mark.parametrize(
    ("measured", "wanted", "verdict", "reason"),
    [
        (scored(990, 1000), {"quality": {"minPermille": 950}}, QUALIFIED, "RequirementsMet"),
        (scored(900, 1000), {"quality": {"minPermille": 950}}, DISQUALIFIED, "QualityTooLow"),
        (scored(19, 20), {"quality": {"minPermille": 950}}, INCONCLUSIVE, "TooFewCases"),
        (scored(0, 0), {"quality": {"minPermille": 950}}, INCONCLUSIVE, "TooFewCases"),
        (scored(500, 1000, differences=Observations({0.5: 300})), WITHIN, QUALIFIED, "RequirementsMet"),
        (scored(500, 1000, differences=Observations({0.5: 50, 0.0: 50})), WITHIN, DISQUALIFIED, "QualityTooLow"),
        (scored(500, 1000), WITHIN, INCONCLUSIVE, "TooFewCases"),
        (
            scored(9, 10, late_total=Observations.rate(0, 600)),
            {"totalP99Milliseconds": 1500},
            QUALIFIED,
            "RequirementsMet",
        ),
        (
            scored(9, 10, late_total=Observations.rate(60, 600)),
            {"totalP99Milliseconds": 1500},
            DISQUALIFIED,
            "TotalTooSlow",
        ),
        (
            scored(9, 10, late_first_token=Observations.rate(0, 100)),
            {"firstTokenP99Milliseconds": 400},
            INCONCLUSIVE,
            "TooFewCases",
        ),
        (scored(9, 10, malformed=Observations.rate(200, 1000)), {"malformedPermille": 50}, DISQUALIFIED, "Malformed"),
        (scored(9, 10, usd_per_thousand=Decimal("0.3")), COST, DISQUALIFIED, "TooExpensive"),
        (scored(9, 10, usd_per_thousand=Decimal("0.2")), COST, QUALIFIED, "RequirementsMet"),
        (scored(9, 10), COST, INCONCLUSIVE, "CostUnknown"),
        (scored(9, 10), {}, QUALIFIED, "NothingRequired"),
    ],
)  # fmt: skip
def test_each_requirement_decides(measured: Measured, wanted: dict[str, Any], verdict: str, reason: str) -> None:
    found = ruled(measured, **wanted)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert found.message.endswith(".")


def test_the_target_that_others_are_compared_with_is_not_compared_with_itself() -> None:
    assert ruled(Measured("frontier", Observations.rate(1, 2)), **WITHIN).reason == "NothingRequired"


def test_an_inconclusive_verdict_says_how_many_more_cases_it_needs() -> None:
    found = ruled(scored(392, 400), quality={"minPermille": 950})
    assert found.verdict is INCONCLUSIVE
    assert found.cases_needed is not None
    grown = 1 + found.cases_needed / 400
    assert ruled(scored(392 * grown, 400 * grown), quality={"minPermille": 950}).verdict is QUALIFIED
    assert "more cases" in found.message


def test_what_is_exactly_the_requirement_is_never_settled() -> None:
    found = ruled(scored(95, 100), quality={"minPermille": 950})
    assert (found.verdict, found.cases_needed) == (INCONCLUSIVE, None)
    assert "too small for any number of cases" in found.message


def test_the_bounds_lie_on_the_side_of_the_verdict() -> None:
    good, bad = (ruled(scored(hits, 1000), quality={"minPermille": 950}) for hits in (990, 900))
    assert good.low > 0.95
    assert bad.high < 0.95


@cache
def verdict_of(hits: int, malformed: int, late: int, cases: int) -> str:
    measured = scored(
        hits, cases, malformed=Observations.rate(malformed, cases), late_total=Observations.rate(late, cases)
    )
    wanted = {"quality": {"minPermille": 900}, "malformedPermille": 50, "totalP99Milliseconds": 1500}
    return shown(measured, Requirements.model_validate({"confidencePermille": 900, **wanted}))


@pytest.mark.parametrize(
    ("quality", "malformed", "late", "wrong"),
    [
        (0.9, 0.0, 0.0, QUALIFIED),  # one requirement is just broken
        (1.0, 0.05, 0.0, QUALIFIED),
        (0.9, 0.05, 0.01, DISQUALIFIED),  # all requirements just hold
    ],
)
def test_a_verdict_of_several_requirements_is_wrong_as_rarely_as_is_asked(
    quality: float, malformed: float, late: float, wrong: str
) -> None:
    """A look after every tenth case of 200, in 2,000 runs, at a confidence of 90 %."""
    rng, runs, mistakes = random.Random(f"{quality} {malformed} {late}"), 2000, 0
    for _ in range(runs):
        hits = bad = slow = 0
        for cases in range(1, 201):
            hits += rng.random() < quality
            bad += rng.random() < malformed
            slow += rng.random() < late
            if cases % 10 == 0 and verdict_of(hits, bad, slow, cases) == wrong:
                mistakes += 1
                break
    assert mistakes / runs <= 0.1
