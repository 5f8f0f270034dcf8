"""A bad policy never takes down a good one, its own last good form included; and judging again changes nothing."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.support.routing import FACTS, SOUND
from tests.support.schema import put

from flotilla.api.routing_policy import RoutingPolicy
from flotilla.errors import InvalidSpec
from flotilla.routing.budgets import Admitted, Candidate, admit
from flotilla.routing.document import GatewayDocument

NAMES = ("a", "b", "c")
BAD = [
    put(SOUND, ("defaultRoute", "split", 0, "target"), "nowhere"),
    put(SOUND, ("targets", 2, "external", "baseURL"), "https://127.0.0.1/v1"),
    put(SOUND, ("dataPolicy", "classes", 1, "allowBoundaries"), ["Cluster"]),
]


def candidate(name: str, spec: dict[str, Any] | None, *, generation: int = 1, incarnation: int = 0) -> Candidate:
    created = f"2026-01-0{1 + NAMES.index(name)}T00:00:00Z"
    uid = f"uid-{name}-{incarnation}"
    if spec is None:
        return Candidate(name, uid, created, None, InvalidSpec("odd", field="spec.x"))
    meta = {"name": name, "namespace": "team", "uid": uid, "generation": generation}
    return Candidate(name, uid, created, RoutingPolicy.model_validate({"metadata": meta, "spec": spec}))


SPECS: st.SearchStrategy[dict[str, Any] | None] = st.one_of(
    st.none(),
    st.sampled_from(BAD),
    st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=2, unique=True).map(
        lambda models: {**SOUND, "hostModels": models}
    ),
)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Candidate]]:
    """What the namespace looked like at some moments; names come, go, and come back as others."""
    moments = []
    for moment in range(draw(st.integers(1, 5))):
        present = draw(st.lists(st.sampled_from(NAMES), unique=True))
        moments.append(
            [
                candidate(name, draw(SPECS), generation=moment + 1, incarnation=draw(st.integers(0, 1)))
                for name in present
            ]
        )
    return moments


def run(history: list[list[Candidate]]) -> list[tuple[GatewayDocument | None, Admitted]]:
    steps: list[tuple[GatewayDocument | None, Admitted]] = []
    document: GatewayDocument | None = None
    for candidates in history:
        admitted = admit("team", candidates, FACTS, document)
        steps.append((document, admitted))
        document = admitted.document
    return steps


@given(history=histories())
def test_each_model_name_is_served_by_one_policy_and_judging_again_changes_nothing(
    history: list[list[Candidate]],
) -> None:
    for candidates, (_, admitted) in zip(history, run(history), strict=True):
        served = [model for policy in admitted.document.policies for model in policy.host_models]
        assert len(served) == len(set(served))
        again = admit("team", list(reversed(candidates)), FACTS, admitted.document)
        assert again.document.hash == admitted.document.hash


@given(history=histories())
def test_what_is_served_goes_only_with_its_policy_or_by_its_policys_own_sound_wish(
    history: list[list[Candidate]],
) -> None:
    for candidates, (before, admitted) in zip(history, run(history), strict=True):
        present = {(c.name, c.uid): c for c in candidates}
        for policy in before.policies if before else ():
            now = present.get((policy.name, policy.uid))
            if now is None:
                continue
            after = admitted.document.by_name.get(policy.name)
            wanted = set(policy.host_models if now.policy is None else now.policy.spec.host_models)
            kept = set(policy.host_models) & wanted
            assert after is not None or not kept
            assert after is None or kept <= set(after.host_models)


@given(history=histories())
def test_only_sound_policies_are_served_and_each_finding_is_told(history: list[list[Candidate]]) -> None:
    for candidates, (before, admitted) in zip(history, run(history), strict=True):
        for c in candidates:
            told = admitted.admissions[c.name]
            if told.served_generation is None:
                assert told.findings or told.unreadable
            elif c.policy is None or told.served_generation != c.policy.metadata.generation:
                assert before is not None
                assert before.by_name[c.name].generation == told.served_generation


def test_a_policy_that_turns_bad_is_served_as_it_was_and_as_it_is_once_it_is_good_again() -> None:
    good = admit("team", [candidate("a", SOUND)], FACTS, None)
    bad = admit("team", [candidate("a", BAD[0], generation=2)], FACTS, good.document)
    assert bad.document.hash == good.document.hash
    assert bad.admissions["a"].served_generation == 1
    assert bad.admissions["a"].findings
    repaired = admit("team", [candidate("a", SOUND, generation=3)], FACTS, bad.document)
    assert repaired.admissions["a"].served_generation == 3


def test_a_namesake_of_a_deleted_policy_inherits_nothing() -> None:
    good = admit("team", [candidate("a", SOUND)], FACTS, None)
    bad = admit("team", [candidate("a", BAD[0], incarnation=1)], FACTS, good.document)
    assert bad.document.policies == ()


def test_a_younger_policy_keeps_the_name_that_it_serves_already() -> None:
    first = admit("team", [candidate("b", SOUND)], FACTS, None)
    both = admit("team", [candidate("a", SOUND), candidate("b", SOUND)], FACTS, first.document)
    assert both.document.by_model["support"].name == "b"
    assert [finding.problem for finding in both.admissions["a"].findings] == ["HostModelTaken"]


def test_of_two_new_policies_the_older_one_gets_the_name() -> None:
    both = admit("team", [candidate("b", SOUND), candidate("a", SOUND)], FACTS, None)
    assert both.document.by_model["support"].name == "a"


def test_a_model_that_does_not_exist_yet_holds_nothing_up() -> None:
    admitted = admit("team", [candidate("a", SOUND)], {}, None)
    assert admitted.admissions["a"].served_generation == 1
    assert {finding.problem for finding in admitted.admissions["a"].findings} == {"ModelDeploymentNotFound"}
