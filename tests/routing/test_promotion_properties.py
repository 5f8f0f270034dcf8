"""Promotion by evidence: shares add up, rise step by step, fall at once, and never reach what has not qualified."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.routing import FACTS, SOUND, compiled, resource

from flotilla.api.preference import Guard, OnInconclusive, PreferredTarget, Promotion, PromotionStep, RouteStatus
from flotilla.routing.check import Problem, check
from flotilla.routing.decide import Decision, Refusal, decide
from flotilla.routing.document import GatewayDocument, load_document
from flotilla.routing.promotion import (
    EvidenceState,
    GuardFigures,
    RouteAdvance,
    TargetEvidence,
    advance,
    breach,
    combine,
    served,
)
from flotilla.routing.request import Features

NAMES = ("small", "medium", "frontier")
PREFERENCE = [
    PreferredTarget(target="small", evaluations=["triage"]),
    PreferredTarget(target="medium", evaluations=["triage", "weird"]),
    PreferredTarget(target="frontier"),
]
GUARD = Guard(error_permille=50, escalation_permille=200, first_token_p99_milliseconds=400, min_requests=20)
PROMOTION = Promotion(
    steps=[PromotionStep(percent=5, minutes=1), PromotionStep(percent=25, minutes=2)],
    guard=GUARD,
)
QUALIFIED = TargetEvidence(EvidenceState.QUALIFIED, "r1", "triage says so.", 1.0)
HEALTHY = GuardFigures(requests=100, answers=100, timed=100, step_requests=100)


@dataclass
class Route:
    """A route as the operator has it between two looks."""

    promotion: Promotion = PROMOTION
    status: RouteStatus | None = None
    now_s: float = 1_000_000.0
    evidence: dict[str, TargetEvidence] = field(default_factory=dict)
    figures: dict[str, GuardFigures] = field(default_factory=dict)

    def look(self, after_s: float = 0.0) -> dict[str, int]:
        """Look again after so many seconds; the shares by target."""
        self.now_s += after_s
        self.status = self.advance().status
        return {share.target: share.percent for share in self.status.shares}

    def advance(self) -> RouteAdvance:
        return advance("tasks", PREFERENCE, self.promotion, self.status, self.evidence, self.figures, self.now_s)


def promoted(target: str = "small") -> Route:
    """A route whose target took all traffic."""
    route = Route(evidence={target: QUALIFIED}, figures={target: HEALTHY})
    for _ in range(4):
        route.look(120)
    assert route.look() == {target: 100}
    return route


def test_without_evidence_the_pilot_takes_all() -> None:
    route = Route()
    assert route.look() == {"frontier": 100}
    assert route.status is not None
    assert route.status.reason == "Pilot"


def test_a_target_that_qualifies_takes_the_traffic_step_by_step() -> None:
    route = Route()
    route.look()
    route.evidence["small"], route.figures["small"] = QUALIFIED, HEALTHY
    seen = [route.look()]
    seen += [route.look(30) for _ in range(7)]
    assert [shares.get("small") for shares in seen] == [5, 5, 25, 25, 25, 25, 100, 100]


def test_a_step_waits_for_requests_and_for_figures() -> None:
    route = Route(evidence={"small": QUALIFIED})
    assert route.look() == {"small": 5, "frontier": 95}
    assert route.look(3600) == {"small": 5, "frontier": 95}
    route.figures["small"] = replace(HEALTHY, step_requests=19)
    assert route.look(3600) == {"small": 5, "frontier": 95}
    route.figures["small"] = replace(HEALTHY, step_requests=20)
    assert route.look() == {"small": 25, "frontier": 75}


@pytest.mark.parametrize(
    "bad",
    [
        GuardFigures(requests=2, errors=2),
        GuardFigures(requests=100, errors=6),
        GuardFigures(requests=100, answers=100, escalations=21),
        GuardFigures(requests=100, timed=100, slow=2),
    ],
)
def test_a_breached_guard_takes_the_share_back_at_once_until_a_newer_verdict(bad: GuardFigures) -> None:
    route = Route(evidence={"small": QUALIFIED})
    route.look()
    route.figures["small"] = bad
    assert route.look(2) == {"frontier": 100}
    assert route.status is not None
    assert route.status.reason == "GuardBreached"
    assert [one.target for one in route.status.withdrawn] == ["small"]
    route.figures["small"] = HEALTHY
    assert route.look(86_400) == {"frontier": 100}
    route.evidence["small"] = replace(QUALIFIED, finished_s=route.now_s)
    assert route.look(1) == {"small": 5, "frontier": 95}


def test_the_guard_still_holds_after_the_last_step() -> None:
    route = promoted()
    route.figures["small"] = GuardFigures(requests=100, errors=100)
    assert route.look(2) == {"frontier": 100}


def test_few_bad_requests_of_few_are_no_breach() -> None:
    assert breach(GUARD, GuardFigures(requests=3, errors=1, timed=3, slow=0)) is None
    assert breach(GUARD, None) is None


def test_an_edit_voids_the_verdict_and_the_traffic_goes_to_the_next_qualified_target() -> None:
    route = promoted()
    route.evidence = {
        "small": TargetEvidence(EvidenceState.UNKNOWN, "r2", "No evaluation has judged it."),
        "medium": replace(QUALIFIED, revision="m1"),
    }
    assert route.look(2) == {"medium": 100}
    assert route.status is not None
    assert route.status.reason == "VerdictLost"


def test_a_new_revision_that_qualified_already_starts_with_the_first_step_again() -> None:
    route = promoted()
    route.evidence["small"] = replace(QUALIFIED, revision="r2")
    assert route.look(2) == {"small": 5, "frontier": 95}


def test_an_inconclusive_verdict_holds_the_share_or_takes_it_back() -> None:
    for wanted, expected in ((OnInconclusive.HOLD, 5), (OnInconclusive.WITHDRAW, None)):
        route = Route(PROMOTION.model_copy(update={"on_inconclusive": wanted}), evidence={"small": QUALIFIED})
        route.look()
        route.figures["small"] = HEALTHY
        route.evidence["small"] = replace(QUALIFIED, state=EvidenceState.INCONCLUSIVE)
        assert route.look(3600).get("small") == expected


def test_without_steps_a_target_that_qualifies_takes_all_at_once() -> None:
    route = Route(Promotion(steps=[]), evidence={"small": QUALIFIED})
    assert route.look() == {"small": 100}


def test_a_cheaper_target_is_promoted_beside_the_one_that_holds_the_traffic() -> None:
    route = promoted("medium")
    route.evidence["small"] = QUALIFIED
    assert route.look() == {"small": 5, "medium": 95}
    route.evidence["medium"] = replace(QUALIFIED, state=EvidenceState.DISQUALIFIED)
    assert route.look() == {"small": 5, "frontier": 95}


def test_an_edited_preference_keeps_what_is_still_in_it() -> None:
    route = promoted("medium")
    status = advance("tasks", PREFERENCE[::2], PROMOTION, route.status, {}, {}, route.now_s).status
    assert [(share.target, share.percent) for share in status.shares] == [("frontier", 100)]
    assert status.reason == "PolicyChanged"


def test_the_worst_of_several_evaluations_counts() -> None:
    doubtful = TargetEvidence(EvidenceState.INCONCLUSIVE, "r1", "40 more cases are needed.", 5.0)
    both = combine([QUALIFIED, doubtful])
    assert (both.state, both.message, both.finished_s) == (EvidenceState.INCONCLUSIVE, doubtful.message, 5.0)


STATES = st.sampled_from(list(EvidenceState))
EVIDENCE = st.dictionaries(
    st.sampled_from(NAMES[:2]),
    st.builds(TargetEvidence, STATES, st.sampled_from(["r1", "r2"]), st.just("why"), st.floats(0, 2_000_000)),
)
FIGURES = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(
        GuardFigures,
        requests=st.integers(0, 200),
        errors=st.integers(0, 20),
        answers=st.integers(0, 200),
        escalations=st.integers(0, 40),
        timed=st.integers(0, 200),
        slow=st.integers(0, 4),
        step_requests=st.integers(0, 40),
    ),
)
LOOKS = st.lists(st.tuples(EVIDENCE, FIGURES, st.integers(0, 200)), min_size=1, max_size=12)
PROMOTIONS = st.builds(
    Promotion,
    steps=st.lists(st.integers(1, 100), max_size=4, unique=True).map(
        lambda percents: [PromotionStep(percent=percent, minutes=1) for percent in sorted(percents)]
    ),
    guard=st.just(GUARD),
    on_inconclusive=st.sampled_from(list(OnInconclusive)),
)


@settings(max_examples=300)
@given(promotion=PROMOTIONS, looks=LOOKS, crashed=st.lists(st.booleans(), min_size=12, max_size=12))
def test_whatever_happens_traffic_goes_to_qualified_revisions_in_rising_steps(
    promotion: Promotion,
    looks: list[tuple[dict[str, TargetEvidence], dict[str, GuardFigures], int]],
    crashed: list[bool],
) -> None:
    """A crash is a look whose state was not written: the next look starts from the state before."""
    now_s, status = 1_000_000.0, None
    for (evidence, figures, wait_s), lost in zip(looks, crashed, strict=False):
        now_s += wait_s
        step = advance("tasks", PREFERENCE, promotion, status, evidence, figures, now_s)
        after = step.status
        assert sum(share.percent for share in after.shares) == 100
        for share in after.shares:
            _may_have(share.target, share.revision, promotion, status, evidence)
        _rises(status, after)
        again = advance("tasks", PREFERENCE, promotion, after, evidence, {}, now_s).status
        # Nothing moves when nothing happens, but for the next candidate after one that was promoted or fell.
        assert again.shares == after.shares or _fresh_candidate(after, again)
        if not lost:
            status = after


def _may_have(
    target: str,
    revision: str,
    promotion: Promotion,
    before: RouteStatus | None,
    evidence: Mapping[str, TargetEvidence],
) -> None:
    """The share is the pilot's, or its revision qualified, or it did and the newest verdict is inconclusive."""
    if target == NAMES[-1]:
        return
    mine = evidence[target]
    assert revision == mine.revision
    if mine.state is not EvidenceState.QUALIFIED:
        assert mine.state is EvidenceState.INCONCLUSIVE
        assert promotion.on_inconclusive is OnInconclusive.HOLD
        assert before is not None
        assert (target, revision) in {(share.target, share.revision) for share in before.shares}


def _rises(before: RouteStatus | None, after: RouteStatus) -> None:
    """The share of a candidate never falls while it stays one."""
    if before is None or before.candidate is None or before.candidate not in (after.candidate, after.holder):
        return
    old = {share.target: share.percent for share in before.shares}
    new = {share.target: share.percent for share in after.shares}
    if after.reason not in ("GuardBreached", "VerdictLost"):
        assert new[before.candidate] >= old[before.candidate]


def _fresh_candidate(first: RouteStatus, second: RouteStatus) -> bool:
    """Whether the second look began with another candidate, after the first had promoted one or had let one fall."""
    return first.candidate is None and second.candidate is not None


def with_preference(**route: Any) -> dict[str, Any]:
    preference = [{"target": "small", "evaluations": ["triage"]}, {"target": "frontier"}]
    return {**SOUND, "rules": [], "defaultRoute": {"preference": preference, **route}}


def test_a_policy_without_state_sends_everything_to_its_pilot() -> None:
    decision = decide(compiled(with_preference()), Features(model="support", data_class="public"), "seed")
    assert isinstance(decision, Decision)
    assert decision.candidates == ("frontier",)


def test_a_class_that_only_an_unqualified_target_may_serve_is_refused_and_may_retry() -> None:
    decision = decide(compiled(with_preference()), Features(model="support", data_class="sovereign"), "seed")
    assert isinstance(decision, Refusal)
    assert (decision.status, decision.code, decision.retryable) == (503, "no_qualified_target", True)


def test_the_document_holds_state_and_shares_and_is_read_back() -> None:
    policy = compiled(with_preference(fallback={"targets": ["small", "medium"]}))
    route = policy.default_route
    status = advance("default", route.preference, None, None, {"small": QUALIFIED}, {}, 1_000_000).status
    document = GatewayDocument(namespace="team", policies=(policy.with_routes({"default": status}),))
    read = load_document(document.text).policies[0]
    assert read.route_status["default"] == status
    assert [(share.target, share.weight) for share in read.default_route.split] == [("small", 5), ("frontier", 95)]
    assert read.default_route.fallback is not None
    assert read.default_route.fallback.targets == ["small", "frontier", "medium"]
    again = read.with_routes({"default": status})
    assert again.default_route == read.default_route
    decisions = [decide(read, Features(model="support", data_class="public"), str(n)) for n in range(400)]
    firsts = [one.candidates[0] for one in decisions if isinstance(one, Decision)]
    assert 5 <= firsts.count("small") <= 40
    assert len(firsts) == 400


def test_a_target_that_lost_its_verdict_is_no_fallback_either() -> None:
    policy = compiled(with_preference(fallback={"targets": ["small", "medium"]}))
    fallback = policy.default_route.fallback
    assert fallback is not None
    assert fallback.targets == ["frontier", "medium"]


def test_a_withdrawn_target_is_the_last_fallback() -> None:
    route = Route(evidence={"small": QUALIFIED}, figures={})
    route.look()
    route.figures["small"] = GuardFigures(requests=100, errors=100)
    route.look(2)
    assert route.status is not None
    given_ = compiled(with_preference()).default_route
    fallback = served(given_, route.status).fallback
    assert fallback is not None
    assert fallback.targets == ["frontier", "small"]


@pytest.mark.parametrize(
    ("preference", "path"),
    [
        ([{"target": "small"}, {"target": "frontier"}], "spec.defaultRoute.preference[0].evaluations"),
        (
            [{"target": "small", "evaluations": ["a"]}, {"target": "frontier", "evaluations": ["a"]}],
            "spec.defaultRoute.preference[1].evaluations",
        ),
    ],
)
def test_every_target_but_the_last_needs_evaluations(preference: list[dict[str, Any]], path: str) -> None:
    spec = with_preference(preference=preference)
    findings = check(resource(spec).spec, FACTS)
    assert [(finding.problem, finding.path) for finding in findings] == [(Problem.BAD_PREFERENCE, path)]


def test_steps_must_rise() -> None:
    spec = with_preference(promotion={"steps": [{"percent": 25, "minutes": 1}, {"percent": 5, "minutes": 1}]})
    findings = check(resource(spec).spec, FACTS)
    assert [finding.path for finding in findings] == ["spec.defaultRoute.promotion.steps"]
