"""What a run comes to: counts and figures of each target, small enough for a container's termination message. Pure.

The operator reads it from the pod's status, and `flotilla evaluate` prints it. Counts suffice for verdicts, which do
not depend on the order of cases.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError

from flotilla.api.evaluation import ScoringMethod
from flotilla.api.types import Model
from flotilla.errors import InvalidSpec
from flotilla.evaluation.dataset import Case
from flotilla.evaluation.plan import RunPlan
from flotilla.evaluation.results_store import CaseResult
from flotilla.evaluation.scorers import macro_f1
from flotilla.evaluation.statistics import Observations, percentile
from flotilla.evaluation.verdict import Measured

MESSAGE_BYTES = 4096
"""The most that Kubernetes keeps of a container's termination message."""
MAX_SLICES = 16

Counts = dict[int, int]


class _SummaryPart(Model):
    model_config = ConfigDict(extra="ignore")


class SliceSummary(_SummaryPart):
    """The cases of one slice."""

    name: Annotated[str, Field(alias="s")]
    cases: Annotated[int, Field(alias="n")]
    quality_permille: Annotated[int, Field(alias="q")]


class TargetSummary(_SummaryPart):
    """One target. Aliases are short, because eight targets must fit."""

    target: Annotated[str, Field(alias="t")]
    revision: Annotated[str, Field(alias="r")] = ""
    scores: Annotated[Counts, Field(alias="s")] = Field(default_factory=dict)
    """Cases by score in permille."""
    differences: Annotated[Counts, Field(alias="d")] = Field(default_factory=dict)
    """Cases by (own score - that of the target of withinPermilleOf), in permille."""
    asked: Annotated[int, Field(alias="n")] = 0
    """Cases and weird inputs."""
    malformed: Annotated[int, Field(alias="m")] = 0
    first_token_ms: Annotated[tuple[int, int] | None, Field(alias="f")] = None
    """Median and 99th percentile."""
    total_ms: Annotated[tuple[int, int] | None, Field(alias="e")] = None
    timed: Annotated[int, Field(alias="y")] = 0
    """Cases whose times count; without weird inputs."""
    late_first_token: Annotated[int, Field(alias="lf")] = 0
    late_total: Annotated[int, Field(alias="lt")] = 0
    prompt_tokens: Annotated[int, Field(alias="i")] = 0
    """Of the cases, as the other tokens."""
    cached_tokens: Annotated[int, Field(alias="k")] = 0
    generated_tokens: Annotated[int, Field(alias="o")] = 0
    usd: Annotated[str | None, Field(alias="u")] = None
    """Of a hosted target, without weird inputs; None where the usage of some cases is unknown."""
    macro_f1_permille: Annotated[int | None, Field(alias="f1")] = None
    slices: Annotated[list[SliceSummary], Field(alias="l")] = Field(default_factory=list)
    """The worst first."""

    @property
    def cases(self) -> int:
        """Cases that were scored."""
        return sum(self.scores.values())


class RunSummary(_SummaryPart):
    """A run that ended, or what it has so far."""

    dataset_digest: Annotated[str, Field(alias="digest")] = ""
    cases_total: Annotated[int, Field(alias="total")] = 0
    """Cases and weird inputs of all targets."""
    ended: str = ""
    """Why it ended before all cases were asked: SpendingLimit. Empty otherwise."""
    targets: list[TargetSummary] = Field(default_factory=list)
    error: str = ""
    """Why there is no result."""
    reason: str = ""
    """Of the error, in CamelCase."""

    @property
    def cases_done(self) -> int:
        """Cases and weird inputs of all targets that were asked."""
        return sum(target.asked for target in self.targets)


def summarize(
    plan: RunPlan,
    cases: Sequence[Case],
    weird: Collection[Case],
    results: Iterable[CaseResult],
    digest: str,
    ended: str,
) -> RunSummary:
    """Of the results so far. Results of cases that are not in the sample do not count."""
    known = {case.id: case for case in cases}
    strange = {case.id for case in weird}
    by_target: dict[str, dict[str, CaseResult]] = defaultdict(dict)
    for result in results:
        if result.case in known or result.case in strange:
            by_target[result.target][result.case] = result
    quality = plan.requirements.quality
    within = quality.within_permille_of if quality is not None else None
    measure = {} if within is None else by_target[within.target]
    summaries = []
    for target in plan.scored:
        found = by_target[target.name]
        compared = {} if within is None or within.target == target.name else measure
        summaries.append(_target(plan, target.name, target.revision, known, found, compared))
    total = (len(known) + len(strange)) * len(plan.scored)
    return RunSummary(dataset_digest=digest, cases_total=total, ended=ended, targets=summaries)


def _target(
    plan: RunPlan,
    name: str,
    revision: str,
    known: Mapping[str, Case],
    found: Mapping[str, CaseResult],
    measure: Mapping[str, CaseResult],
) -> TargetSummary:
    scored = {case: result for case, result in found.items() if case in known and result.permille is not None}
    differences = Counter(
        (result.permille or 0) - (measure[case].permille or 0) for case, result in scored.items() if case in measure
    )
    required = plan.requirements
    timed = [result for case, result in found.items() if case in known]
    hosted = next(target.hosted for target in plan.targets if target.name == name)
    usd = [result.usd for result in timed if not result.error]
    pairs = [(str(known[case].expected), result.said) for case, result in scored.items()]
    f1 = macro_f1(pairs) if plan.scorer.method is ScoringMethod.LABEL else None
    return TargetSummary(
        target=name,
        revision=revision,
        scores=dict(Counter(result.permille or 0 for result in scored.values())),
        differences=dict(differences),
        asked=len(found),
        malformed=sum(result.malformed for result in found.values()),
        first_token_ms=_quantiles([r.first_token_ms for r in timed]),
        total_ms=_quantiles([r.total_ms for r in timed]),
        timed=len(timed),
        late_first_token=_late([r.first_token_ms for r in timed], required.first_token_p99_milliseconds),
        late_total=_late([r.total_ms for r in timed], required.total_p99_milliseconds),
        prompt_tokens=sum(r.prompt_tokens or 0 for r in timed),
        cached_tokens=sum(r.cached_tokens for r in timed),
        generated_tokens=sum(r.generated_tokens or 0 for r in timed),
        usd=str(sum(map(Decimal, filter(None, usd)), Decimal(0))) if hosted and usd and None not in usd else None,
        macro_f1_permille=None if f1 is None else round(1000 * f1),
        slices=_slices(known, scored),
    )


def _slices(known: Mapping[str, Case], scored: Mapping[str, CaseResult]) -> list[SliceSummary]:
    by_name: dict[str, list[int]] = defaultdict(list)
    for case, result in scored.items():
        if known[case].slice:
            by_name[known[case].slice].append(result.permille or 0)
    found = [
        SliceSummary(name=name, cases=len(scores), quality_permille=round(sum(scores) / len(scores)))
        for name, scores in by_name.items()
    ]
    return sorted(found, key=lambda one: (one.quality_permille, one.name))[:MAX_SLICES]


def _quantiles(values: Sequence[float | None]) -> tuple[int, int] | None:
    """Median and 99th percentile of the answers that came, in whole milliseconds."""
    came = [value for value in values if value is not None]
    median, high = percentile(came, 500), percentile(came, 990)
    return None if median is None or high is None else (max(1, round(median)), max(1, round(high)))


def _late(values: Sequence[float | None], limit: int | None) -> int:
    """Answers later than the limit; one that did not come is late too."""
    return 0 if limit is None else sum(value is None or value > limit for value in values)


def measured(summary: TargetSummary, usd: Decimal | None) -> Measured:
    """What the verdict is made of. `usd` is what the cases have cost; None where that is unknown."""
    scores = Observations({permille / 1000: count for permille, count in summary.scores.items()})
    pairs = {(permille + 1000) / 2000: count for permille, count in summary.differences.items()}
    return Measured(
        target=summary.target,
        scores=scores,
        differences=Observations(pairs) if pairs else None,
        malformed=Observations.rate(summary.malformed, summary.asked),
        late_first_token=Observations.rate(summary.late_first_token, summary.timed),
        late_total=Observations.rate(summary.late_total, summary.timed),
        usd_per_thousand=None if usd is None or not summary.timed else 1000 * usd / summary.timed,
    )


def message(summary: RunSummary) -> str:
    """JSON of at most 4,096 bytes: slices are left out, the best first, until it fits."""
    shortened = summary
    while len(text := _dumped(shortened).encode()) > MESSAGE_BYTES:
        longest = max(shortened.targets, key=lambda target: len(target.slices), default=None)
        if longest is None or not longest.slices:
            return _dumped(RunSummary(error=summary.error[:2000] or "The summary is too long.", reason="RunFailed"))
        targets = [
            target.model_copy(update={"slices": target.slices[:-1]}) if target is longest else target
            for target in shortened.targets
        ]
        shortened = shortened.model_copy(update={"targets": targets})
    return text.decode()


def _dumped(summary: RunSummary) -> str:
    return summary.model_dump_json(by_alias=True, exclude_defaults=True)


def load_summary(text: str) -> RunSummary:
    """Read a termination message; raises InvalidSpec for anything else."""
    try:
        return RunSummary.model_validate_json(text)
    except ValidationError as error:
        raise InvalidSpec("The run's last message is no summary.", field="", reason="RunFailed") from error
