"""Sovereignty never widens, and a covered rule really never applies."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotilla.api.routing_policy import Match, RoutingPolicySpec
from flotilla.domain.routing import allowed_targets, covers

BOUNDARIES = st.lists(st.sampled_from(["Cluster", "External"]), min_size=1, max_size=2, unique=True)
REGIONS = st.lists(st.sampled_from(["eu", "us"]), max_size=2, unique=True)
EXTERNAL = {"baseURL": "https://x/v1", "model": "m", "secretRef": {"name": "s", "key": "k"}}


@st.composite
def specs(draw: st.DrawFn) -> RoutingPolicySpec:
    targets: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 4))):
        place: dict[str, Any] = draw(st.sampled_from([{"modelDeploymentRef": {"name": "m"}}, {"external": EXTERNAL}]))
        region = draw(st.sampled_from([{}, {"region": "eu"}, {"region": "us"}]))
        targets.append({"name": f"t{index}", **place, **region})
    classes = [
        {"name": name, "allowBoundaries": draw(BOUNDARIES), "allowRegions": draw(REGIONS)}
        for name in ("strict", "free")
    ]
    return RoutingPolicySpec.model_validate(
        {
            "hostModels": ["m"],
            "targets": targets,
            "dataPolicy": {"unknownClass": "strict", "classes": classes},
            "defaultRoute": {"target": "t0"},
        }
    )


@given(spec=specs(), name=st.text("abc", max_size=3))
def test_an_unknown_class_gets_what_the_unknown_class_gets(spec: RoutingPolicySpec, name: str) -> None:
    assert allowed_targets(spec, name) == allowed_targets(spec, "strict")


@given(spec=specs(), name=st.sampled_from(["strict", "free"]))
def test_no_target_outside_of_the_boundaries_and_regions_is_allowed(spec: RoutingPolicySpec, name: str) -> None:
    wanted = next(c for c in spec.data_policy.classes if c.name == name)
    by_name = {target.name: target for target in spec.targets}
    for allowed in allowed_targets(spec, name):
        target = by_name[allowed]
        assert ("External" if target.external else "Cluster") in [str(b) for b in wanted.allow_boundaries]
        assert not wanted.allow_regions or target.region in wanted.allow_regions


@st.composite
def matches(draw: st.DrawFn) -> Match:
    low = draw(st.none() | st.integers(0, 3))
    high = draw(st.none() | st.integers(low or 0, 4))
    tokens = {key: value for key, value in (("min", low), ("max", high)) if value is not None}
    return Match.model_validate(
        {
            "models": draw(st.lists(st.sampled_from("mn"), max_size=2, unique=True)),
            "tasks": draw(st.lists(st.sampled_from("tu"), max_size=2, unique=True)),
            "headers": draw(st.sampled_from([[], [{"name": "h", "value": "1"}], [{"name": "h", "value": "2"}]])),
            "promptTokens": tokens or None,
            "streaming": draw(st.sampled_from([None, "Streamed", "Whole"])),
        }
    )


REQUESTS = [
    (model, task, header, tokens, streaming)
    for model in "mn"
    for task in ("t", "u", "")
    for header in ("1", "2", "")
    for tokens in range(6)
    for streaming in ("Streamed", "Whole")
]


def accepts(match: Match, request: tuple[str, str, str, int, str]) -> bool:
    model, task, header, tokens, streaming = request
    limits = match.prompt_tokens
    return (
        (not match.models or model in match.models)
        and (not match.tasks or task in match.tasks)
        and all(header == wanted.value for wanted in match.headers)
        and (limits is None or (limits.min or 0) <= tokens <= (6 if limits.max is None else limits.max))
        and match.streaming in (None, streaming)
    )


@given(wide=matches(), narrow=matches())
def test_a_covered_rule_matches_nothing_that_the_earlier_one_leaves(wide: Match, narrow: Match) -> None:
    if covers(wide, narrow):
        assert all(accepts(wide, request) for request in REQUESTS if accepts(narrow, request))


@given(match=matches())
def test_a_rule_covers_itself_and_the_empty_one_covers_all(match: Match) -> None:
    assert covers(match, match)
    assert covers(Match(), match)
