"""From results and requirements to Qualified, Disqualified or Inconclusive. Pure.

The confidence holds for the verdict as a whole. A target is Qualified when every requirement is shown to hold at the
confidence, so that the probability to qualify one that breaks any of them is at most 1 - confidence. It is Disqualified
when one requirement is shown to be broken; each test gets an equal part of 1 - confidence, because any of them may err.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from flotilla.api.evaluation import QualificationVerdict, Requirements
from flotilla.evaluation.statistics import (
    Observations,
    cases_for,
    lower_bound,
    shown_above,
    shown_below,
    upper_bound,
)

QUALIFIED = QualificationVerdict.QUALIFIED
DISQUALIFIED = QualificationVerdict.DISQUALIFIED
INCONCLUSIVE = QualificationVerdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of one target."""

    target: str
    scores: Observations
    """Of the cases."""
    differences: Observations | None = None
    """Of cases that the target of withinPermilleOf answered too: (own score - its score + 1) / 2."""
    malformed: Observations = field(default_factory=Observations)
    """Ones for malformed answers, weird inputs included."""
    late_first_token: Observations = field(default_factory=Observations)
    """Ones for answers that began later than firstTokenP99Milliseconds, or never."""
    late_total: Observations = field(default_factory=Observations)
    """Ones for answers that ended later than totalP99Milliseconds, or never."""
    usd_per_thousand: Decimal | None = None
    """None where a price or the usage is unknown."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """A verdict with its reason. The bounds are those of the quality that the verdict goes by."""

    verdict: QualificationVerdict
    reason: str
    message: str
    cases: int
    low: float
    """With the confidence, the quality is at least this."""
    high: float
    """With the confidence (its share of it), the quality is at most this."""
    cases_needed: int | None = None
    """Estimate of how many more cases would settle an Inconclusive verdict."""


@dataclass(frozen=True, slots=True)
class _Test:
    """One requirement: of a mean, `holds` and `broken` tell whether a sample shows it at a probability of error."""

    reason: str
    """Of the verdict if it is broken."""
    said: str
    sample: Observations
    holds: Callable[[Observations, float], bool]
    broken: Callable[[Observations, float], bool]


def rule(measured: Measured, requirements: Requirements) -> Ruling:
    """The verdict about one target. Whatever is not required is not judged."""
    error = (1000 - requirements.confidence_permille) / 1000
    tests = list(_tests(measured, requirements))
    share = error / max(1, len(tests))
    low = lower_bound(measured.scores, error=error)
    high = upper_bound(measured.scores, error=share)
    cases = round(measured.scores.size)

    def ruling(verdict: QualificationVerdict, reason: str, said: Sequence[str], needed: int | None = None) -> Ruling:
        return Ruling(verdict, reason, " ".join(said), cases, low, high, needed)

    quality = _quality_said(measured, low, high)
    too_expensive = _cost_problem(measured, requirements)
    broken, open_tests = _outcome(tests, error)
    if broken:
        return ruling(DISQUALIFIED, broken[0].reason, [quality, *(test.said for test in broken)])
    if too_expensive is not None and measured.usd_per_thousand is not None:
        return ruling(DISQUALIFIED, "TooExpensive", [quality, too_expensive])
    if open_tests:
        needed = _needed(open_tests, error, share)
        more = (
            "The distance to what is required is too small for any number of cases to settle it."
            if needed is None
            else f"About {needed} more cases like these would settle it."
        )
        return ruling(INCONCLUSIVE, "TooFewCases", [quality, *(test.said for test in open_tests), more], needed)
    if too_expensive is not None:
        return ruling(INCONCLUSIVE, "CostUnknown", [quality, too_expensive])
    if not tests and requirements.cost_per_thousand_tasks_usd is None:
        return ruling(QUALIFIED, "NothingRequired", [quality, "Nothing is required of this target."])
    return ruling(QUALIFIED, "RequirementsMet", [quality, *(test.said for test in tests)])


def shown(measured: Measured, requirements: Requirements) -> QualificationVerdict:
    """What the tests of `rule` come to, without the cost and the bounds: for many looks at a run."""
    broken, undecided = _outcome(list(_tests(measured, requirements)), (1000 - requirements.confidence_permille) / 1000)
    return DISQUALIFIED if broken else INCONCLUSIVE if undecided else QUALIFIED


def _outcome(tests: Sequence["_Test"], error: float) -> tuple[list["_Test"], list["_Test"]]:
    """The tests that show their requirement broken, and those that do not show that it holds."""
    share = error / max(1, len(tests))
    broken = [test for test in tests if test.broken(test.sample, share)]
    return broken, [test for test in tests if not test.holds(test.sample, error)]


def _tests(measured: Measured, requirements: Requirements) -> Iterator[_Test]:
    quality = requirements.quality
    if quality is not None and quality.min_permille is not None:
        least = quality.min_permille / 1000
        yield _Test(
            "QualityTooLow",
            f"Required: {_percent(least)}.",
            measured.scores,
            lambda sample, error: shown_above(sample, least, error=error),
            lambda sample, error: shown_below(sample, least, error=error),
        )
    within = quality.within_permille_of if quality is not None else None
    if within is not None and within.target != measured.target:
        differences = measured.differences or Observations()
        edge = (1 - within.permille / 1000) / 2
        apart = "" if differences.mean is None else f" It is {_points(2 * differences.mean - 1)} {within.target}."
        yield _Test(
            "QualityTooLow",
            f"Required: at most {_points_of(within.permille / 1000)} below {within.target}, case by case.{apart}",
            differences,
            lambda sample, error: shown_above(sample, edge, error=error),
            lambda sample, error: shown_below(sample, edge, error=error),
        )
    rates = (
        ("FirstTokenTooSlow", "first token", requirements.first_token_p99_milliseconds, measured.late_first_token),
        ("TotalTooSlow", "whole answer", requirements.total_p99_milliseconds, measured.late_total),
    )
    for reason, what, limit, late in rates:
        if limit is not None:
            said = f"{round(late.mean * late.size) if late.mean else 0} of {round(late.size)} answers were later than"
            yield _rate(reason, f"P99 of the {what}: {said} {limit} ms.", late, 0.01)
    if requirements.malformed_permille is not None:
        found = measured.malformed
        count = round(found.mean * found.size) if found.mean else 0
        said = f"Malformed: {count} of {round(found.size)} answers; at most {requirements.malformed_permille} permille."
        yield _rate("Malformed", said, found, requirements.malformed_permille / 1000)


def _rate(reason: str, said: str, sample: Observations, most: float) -> _Test:
    """A share that must not exceed `most`."""
    return _Test(
        reason,
        said,
        sample,
        lambda found, error: shown_below(found, most, error=error),
        lambda found, error: shown_above(found, most, error=error),
    )


def _needed(tests: Sequence[_Test], error: float, share: float) -> int | None:
    """The most that any of the tests needs to be decided one way or the other; None if one of them never is."""
    each = [
        cases_for(test.sample, lambda s, test=test: test.holds(s, error) or test.broken(s, share))  # type: ignore[misc]
        for test in tests
    ]
    return None if None in each else max(needed for needed in each if needed is not None)


def _cost_problem(measured: Measured, requirements: Requirements) -> str | None:
    limit = requirements.cost_per_thousand_tasks_usd
    if limit is None:
        return None
    usd = measured.usd_per_thousand
    if usd is None:
        return "What a task costs is not known: a price or the usage is missing."
    # What these cases have cost is counted and not inferred.
    return None if usd <= Decimal(limit) else f"A thousand tasks cost {usd:.4f} USD; at most {limit} USD is allowed."


def _quality_said(measured: Measured, low: float, high: float) -> str:
    mean, cases = measured.scores.mean, round(measured.scores.size)
    if mean is None:
        return "No case was scored."
    return f"Quality {_percent(mean)} over {cases} cases, between {_percent(low)} and {_percent(high)}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points_of(share: float) -> str:
    return f"{100 * share:.1f} points"


def _points(difference: float) -> str:
    if abs(difference) < 0.0005:
        return "level with"
    return f"{_points_of(abs(difference))} {'above' if difference > 0 else 'below'}"
