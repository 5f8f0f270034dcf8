"""A target's result in the form of an Evaluation's status, for the operator and for `flotilla evaluate`. Pure."""

import math
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from flotilla.api.evaluation import QualificationVerdict, Requirements
from flotilla.evaluation.summary import RunSummary, TargetSummary, measured
from flotilla.evaluation.verdict import Ruling, rule

_USD = Decimal("0.000001")
_MESSAGE = 1024


def ruled(summary: TargetSummary, requirements: Requirements, usd: Decimal | None) -> Ruling:
    """The verdict. `usd` is what the target's cases have cost; None where that is unknown."""
    return rule(measured(summary, usd), requirements)


def target_result(
    summary: TargetSummary,
    requirements: Requirements,
    usd: Decimal | None,
    *,
    ended: str = "",
    finished: str | None = None,
) -> dict[str, Any]:
    """An item of status.results; what is unknown is left out. `ended` is why the run ended early."""
    figures, ruling = measured(summary, usd), ruled(summary, requirements, usd)
    mean = figures.scores.mean
    reason, message = str(ruling.reason), ruling.message
    if ended and ruling.verdict is QualificationVerdict.INCONCLUSIVE:
        reason, message = ended, f"The run ended at its limit on dollars, spec.limits.maxHostedUSD. {message}"
    values: dict[str, Any] = {
        "target": summary.target,
        "revision": summary.revision or None,
        "verdict": str(ruling.verdict),
        "reason": reason,
        "message": message[:_MESSAGE],
        "cases": summary.cases,
        "casesNeeded": ruling.cases_needed,
        "qualityPermille": None if mean is None else round(1000 * mean),
        # Rounded away from the mean, so that the interval is never narrower than what is shown.
        "lowPermille": int(1000 * ruling.low),
        "highPermille": min(1000, math.ceil(round(1000 * ruling.high, 3))),
        "macroF1Permille": summary.macro_f1_permille,
        "malformedPermille": round(1000 * summary.malformed / summary.asked) if summary.asked else None,
        "finishedTime": finished,
        "slices": [
            {"name": one.name, "cases": one.cases, "qualityPermille": one.quality_permille} for one in summary.slices
        ]
        or None,
    }
    if figures.usd_per_thousand is not None:
        values["costPerThousandTasksUSD"] = usd_text(figures.usd_per_thousand)
    for name, pair in (("firstToken", summary.first_token_ms), ("total", summary.total_ms)):
        if pair is not None:
            values |= {f"{name}P50Milliseconds": pair[0], f"{name}P99Milliseconds": pair[1]}
    return {name: value for name, value in values.items() if value is not None}


def usd_text(usd: Decimal) -> str:
    """A decimal number without an exponent and without zeros at its end."""
    text = f"{usd.quantize(_USD, ROUND_HALF_UP):f}"
    return text.rstrip("0").rstrip(".") or "0"


def verdict_line(results: list[dict[str, Any]]) -> str:
    """The verdicts in one line, for kubectl get."""
    parts = [f"{result['target']}: {result.get('verdict', '?')}" for result in results]
    return ", ".join(parts)[:512]


def hosted_usd(summary: RunSummary) -> dict[str, Decimal]:
    """What the cases of hosted targets have cost, by target."""
    return {target.target: Decimal(target.usd) for target in summary.targets if target.usd is not None}
