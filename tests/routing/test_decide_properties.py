"""Sovereignty never widens, splits are stable and proportional, and a covered rule really never applies."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.routing import (
    CLASSES,
    FAILURES,
    FEATURES,
    SIGNALS,
    SOUND,
    compile_document,
    compiled,
    policies,
    resource,
)

from flotilla.api.routing_policy import MatchSpec, Signal
from flotilla.routing.check import check
from flotilla.routing.classify import question
from flotilla.routing.decide import (
    Attempt,
    Decider,
    Decision,
    Permit,
    SovereigntyBreach,
    covers,
    data_class,
    decide,
    decision_header,
    escalate,
    matches,
    next_step,
    restrict,
)
from flotilla.routing.document import GatewayDocument, load_document
from flotilla.routing.request import Features

BODY = {"messages": [{"role": "user", "content": "Which one?"}]}


def independent(spec: dict[str, Any], names: list[str]) -> set[str]:
    """The targets that every one of the classes allows, read from the spec and not by the product's functions."""
    classes = {c["name"]: c for c in spec["dataPolicy"]["classes"]}
    chosen = [classes.get(name, classes[spec["dataPolicy"]["unknownClass"]]) for name in names]
    return {
        target["name"]
        for target in spec["targets"]
        if all(
            ("External" if "external" in target else "Cluster") in c["allowBoundaries"]
            and (not c["allowRegions"] or target.get("region") in c["allowRegions"])
            for c in chosen
        )
    }


def bound(spec: dict[str, Any], features: Features) -> set[str]:
    """Where the request's data may go at the most."""
    own = [features.client.removeprefix("of-")] if features.client else []
    said = [features.data_class] if features.data_class else ([] if own else [spec["dataPolicy"]["unknownClass"]])
    return independent(spec, [*said, *own])


@settings(max_examples=200)
@given(spec=policies(), features=FEATURES, data=st.data())
def test_no_request_ever_dials_a_target_outside_of_its_allowed_set(
    spec: dict[str, Any], features: Features, data: st.DataObject
) -> None:
    """The gateway's attempt loop with everything that can go wrong in it, and each dial compared with the spec."""
    policy, limit = compiled(spec), bound(spec, features)
    dialled: list[Permit] = []
    asked = question(policy, features, BODY)
    if asked is not None:
        assert asked.permit.target.name in limit
        features = features.with_task(data.draw(st.none() | st.sampled_from(["classification", "drafting"])))
    down = data.draw(st.frozensets(st.sampled_from([t.name for t in policy.targets]), max_size=2))
    decision = decide(policy, features, "seed", down)
    if isinstance(decision, Decision) and data.draw(st.booleans()):
        narrower = restrict(decision, policy.hosted, "The budget is spent")
        assert narrower is None or narrower.allowed <= decision.allowed
        limit -= policy.hosted
        decision = (
            narrower if narrower is not None else decide(policy, features, "seed", {t.name for t in policy.targets})
        )
    if isinstance(decision, Decision):
        ledger: list[Attempt] = []
        step: Permit | None = decision.first
        while step is not None:
            dialled.append(step)
            failure = data.draw(st.none() | FAILURES)
            ledger.append(Attempt(step.target.name, failure))
            step = None if failure is None else next_step(decision, ledger, failure, down)
        if ledger[-1].failure is None:
            better = escalate(decision, ledger, data.draw(SIGNALS), escalated_percent=data.draw(st.floats(0, 100)))
            if better.permit is not None:
                dialled.append(better.permit)
                ledger.append(Attempt(better.permit.target.name, escalated=True))
        assert len(ledger) <= decision.route.max_attempts
        assert len({attempt.target for attempt in ledger}) == len(ledger)
        assert f"class={decision.data_class}" in decision_header(decision, ledger)
    assert {permit.target.name for permit in dialled} <= limit


@given(spec=policies(), features=FEATURES)
def test_what_a_client_says_of_its_data_never_widens_what_its_key_allows(
    spec: dict[str, Any], features: Features
) -> None:
    policy = compiled(spec)
    for name in CLASSES:
        keyed = replace(features, client=f"of-{name}")
        _, allowed = data_class(policy, keyed)
        assert allowed <= policy.allowed[name]
        assert allowed <= data_class(policy, replace(keyed, data_class=None))[1]


@given(spec=policies(), features=FEATURES)
def test_a_class_that_nobody_knows_counts_as_the_unknown_one(spec: dict[str, Any], features: Features) -> None:
    policy = compiled(spec)
    nobody = replace(features, client=None)
    unknown = data_class(policy, replace(nobody, data_class=spec["dataPolicy"]["unknownClass"]))
    assert data_class(policy, replace(nobody, data_class="no-such-class")) == unknown
    assert data_class(policy, replace(nobody, data_class="free, strict")) == unknown
    assert data_class(policy, replace(nobody, data_class=None)) == unknown


@given(spec=policies(), features=FEATURES, seed=st.text(max_size=5))
def test_the_first_rule_that_matches_decides(spec: dict[str, Any], features: Features, seed: str) -> None:
    policy = compiled(spec)
    decision = decide(policy, features, seed)
    first = next((rule.name for rule in policy.rules if matches(rule.match, features)), "default")
    if isinstance(decision, Decision):
        assert decision.rule == first
        assert decision.candidates
        assert set(decision.candidates) <= decision.allowed
    else:
        assert decision.status in (400, 403, 503)
        assert decision.rule in ("", first)
    assert decision.why
    assert all(line.isprintable() and line.endswith(".") for line in decision.why)


@given(spec=policies(), features=FEATURES, seeds=st.lists(st.text(max_size=8), min_size=2, max_size=5))
def test_a_session_stays_on_its_target(spec: dict[str, Any], features: Features, seeds: list[str]) -> None:
    policy = compiled(spec)
    pinned = replace(features, session="s1")
    assert len({str(getattr(decide(policy, pinned, seed), "candidates", None)) for seed in seeds}) == 1


NEAR_A_BOUND = st.integers(95, 103) | st.integers(8185, 8200) | st.integers(0, 20_000)


@given(
    spec=policies(),
    asked=st.lists(
        st.tuples(
            FEATURES, NEAR_A_BOUND, st.none() | st.sampled_from(CLASSES), st.frozensets(st.sampled_from(["t0", "t1"]))
        ),
        max_size=30,
    ),
)
def test_a_remembered_decision_is_the_one_that_would_be_made(
    spec: dict[str, Any], asked: list[tuple[Features, int, str | None, frozenset[str]]]
) -> None:
    policy = compiled(spec)
    decider = Decider(policy)
    for number, (drawn, prompt_tokens, client_class, unavailable) in enumerate(asked):
        features = replace(drawn, prompt_tokens=prompt_tokens, client_class=client_class)
        found = decider.decide(features, str(number), unavailable)
        made = decide(policy, features, str(number), unavailable)
        assert replace(found, why=()) == replace(made, why=())


SPLIT = {
    **SOUND,
    "rules": [],
    "defaultRoute": {"split": [{"target": "small", "weight": 90}, {"target": "medium", "weight": 10}]},
}


def chosen(spec: dict[str, Any], count: int, unavailable: frozenset[str] = frozenset()) -> list[str]:
    policy = compiled(spec)
    decisions = [decide(policy, Features(session=f"session-{n}"), "", unavailable) for n in range(count)]
    return [decision.candidates[0] for decision in decisions if isinstance(decision, Decision)]


def test_a_split_is_proportional_to_its_weights() -> None:
    share = Counter(chosen(SPLIT, 4000))["medium"] / 4000
    assert 0.08 < share < 0.12


def test_a_changed_weight_moves_only_the_sessions_that_must_move() -> None:
    before = chosen(SPLIT, 2000)
    wider = {
        **SPLIT,
        "defaultRoute": {"split": [{"target": "small", "weight": 80}, {"target": "medium", "weight": 20}]},
    }
    after = chosen(wider, 2000)
    assert all(new == "medium" for old, new in zip(before, after, strict=True) if old == "medium")
    assert 100 < sum(old != new for old, new in zip(before, after, strict=True)) < 300


def test_sessions_of_a_target_that_fails_move_and_come_back() -> None:
    before = chosen(SPLIT, 200)
    assert set(chosen(SPLIT, 200, frozenset({"medium"}))) == {"small"}
    assert chosen(SPLIT, 200) == before


def test_a_permit_for_a_target_outside_of_the_set_cannot_be_made() -> None:
    policy = compiled(SOUND)
    decision = decide(policy, Features(data_class="sovereign"), "seed")
    assert isinstance(decision, Decision)
    with pytest.raises(SovereigntyBreach, match="frontier"):
        decision.permit("frontier")


@given(spec=policies())
def test_a_document_survives_the_way_to_the_gateway(spec: dict[str, Any]) -> None:
    document = compile_document("team", [resource(spec)], {})
    read = load_document(document.text)
    assert (read, read.hash) == (document, document.hash)
    assert read.policies[0].revision == document.policies[0].revision


@given(specs=st.lists(policies(), min_size=1, max_size=3), order=st.randoms())
def test_the_order_of_policies_makes_no_other_document(specs: list[dict[str, Any]], order: Any) -> None:
    resources = [resource(spec, name=f"p{n}") for n, spec in enumerate(specs)]
    shuffled = resources.copy()
    order.shuffle(shuffled)
    one, other = compile_document("team", resources, {}), compile_document("team", shuffled, {})
    assert isinstance(one, GatewayDocument)
    assert one.hash == other.hash


@given(spec=policies())
def test_every_spec_that_the_schema_admits_can_be_checked(spec: dict[str, Any]) -> None:
    for finding in check(resource(spec).spec, {}):
        assert finding.path.startswith("spec.")
        assert finding.message.endswith(".")


@given(signals=SIGNALS)
def test_only_signals_that_the_route_asks_for_escalate(signals: frozenset[Signal]) -> None:
    decision = decide(compiled(SOUND), Features(data_class="public", task="classification"), "seed")
    assert isinstance(decision, Decision)
    better = escalate(decision, [Attempt("small")], signals, escalated_percent=0)
    assert (better.permit is not None) == bool(signals & {Signal.SCHEMA_INVALID, Signal.EMPTY_ANSWER})


@st.composite
def ranges(draw: st.DrawFn) -> MatchSpec:
    low = draw(st.none() | st.integers(0, 3))
    high = draw(st.none() | st.integers(low or 0, 4))
    tokens = {key: value for key, value in (("min", low), ("max", high)) if value is not None}
    return MatchSpec.model_validate(
        {
            "models": draw(st.lists(st.sampled_from("mn"), max_size=2, unique=True)),
            "tasks": draw(st.lists(st.sampled_from("tu"), max_size=2, unique=True)),
            "headers": draw(st.sampled_from([[], [{"name": "h", "value": "1"}], [{"name": "h", "value": "2"}]])),
            "promptTokens": tokens or None,
            "streaming": draw(st.sampled_from([None, "Streamed", "Whole"])),
        }
    )


REQUESTS = [
    Features(model=model, task=task, headers={"h": header}, prompt_tokens=tokens, stream=stream)
    for model in "mn"
    for task in ("t", "u", None)
    for header in ("1", "2", "")
    for tokens in range(6)
    for stream in (True, False)
]


@given(wide=ranges(), narrow=ranges())
def test_a_covered_rule_matches_nothing_that_the_earlier_one_leaves(wide: MatchSpec, narrow: MatchSpec) -> None:
    if covers(wide, narrow):
        assert all(matches(wide, request) for request in REQUESTS if matches(narrow, request))


@given(match=ranges())
def test_a_rule_covers_itself_and_the_empty_one_covers_all(match: MatchSpec) -> None:
    assert covers(match, match)
    assert covers(MatchSpec(), match)
