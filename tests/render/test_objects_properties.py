"""Whether an apply would change anything: the questions that no example list can exhaust."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.api.types import amount
from flotilla.constants import ANNOTATION_HASH
from flotilla.render.workload import needs_apply, within

Path = tuple[str | int, ...]

NAMES = st.sampled_from(["a", "b", "image", "spec", "labels", "args", "command", "operator", "values"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
CHANGED = "changed\N{SNOWMAN}"
"""Longer than any generated text."""


def _keyed(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists of objects with distinct names, such as env and volumes."""
    item = st.dictionaries(NAMES, values, max_size=3)
    return st.dictionaries(st.sampled_from(["x", "y", "z"]), item, max_size=3).map(
        lambda named: [{"name": name, **rest} for name, rest in named.items()]
    )


TREES = st.recursive(
    LEAVES,
    lambda sub: st.lists(sub, max_size=3) | st.dictionaries(NAMES, sub, max_size=4) | _keyed(sub),
    max_leaves=15,
)


def leaves(tree: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of scalars, and of empty lists and maps."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not isinstance(tree, dict | list) or not tree:
        yield path
    for key, value in items:
        yield from leaves(value, (*path, key))


def with_leaf(tree: Any, path: Path, value: object) -> Any:
    """A copy with one leaf replaced."""
    if not path:
        return value
    result = copy.deepcopy(tree)
    at = result
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return result


def with_additions(tree: Any) -> Any:
    """A copy as the apiserver and other managers complete it: a key more in each map."""
    if isinstance(tree, dict):
        return {**{key: with_additions(value) for key, value in tree.items()}, "addedByTheServer": 1}
    return [with_additions(item) for item in tree] if isinstance(tree, list) else tree


def manifest(spec: Any, digest: str = "1") -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "m", "annotations": {ANNOTATION_HASH: digest}},
        "spec": {"content": spec},
    }


@given(TREES)
def test_everything_is_within_itself(tree: Any) -> None:
    assert within(tree, copy.deepcopy(tree))


@given(TREES)
def test_what_is_only_in_the_live_object_does_not_matter(tree: Any) -> None:
    assert within(tree, with_additions(tree))
    assert not needs_apply(manifest(tree), with_additions(manifest(tree)))


@given(TREES, st.data())
def test_each_changed_leaf_is_noticed(tree: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(leaves(tree))))
    live = with_leaf(tree, path, CHANGED)
    assert not within(tree, live)
    assert needs_apply(manifest(tree), manifest(live))


@given(st.dictionaries(NAMES, st.integers() | st.text(min_size=1, max_size=5), min_size=1), st.data())
def test_each_missing_key_is_noticed(tree: dict[str, Any], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(tree)))
    assert not within(tree, {key: value for key, value in tree.items() if key != gone})


@given(st.dictionaries(NAMES, st.sampled_from(["", []])))
def test_the_server_may_drop_empty_strings_and_lists(tree: dict[str, Any]) -> None:
    assert within(tree, {})


@given(TREES, TREES)
def test_another_hash_is_always_applied(desired: Any, live: Any) -> None:
    assert needs_apply(manifest(desired, "new"), manifest(live, "old"))


@given(TREES)
def test_an_object_without_our_hash_is_always_applied(tree: Any) -> None:
    live = manifest(tree)
    live["metadata"]["annotations"] = None
    assert needs_apply(manifest(tree), live)


@given(TREES)
def test_items_of_a_list_without_kind_need_no_apply(tree: Any) -> None:
    live = {key: value for key, value in manifest(tree).items() if key in ("metadata", "spec")}
    assert not needs_apply(manifest(tree), live)


@given(st.permutations([{"name": "a", "value": "1"}, {"name": "b", "value": "2"}, {"name": "c", "value": "3"}]))
def test_named_items_are_found_in_any_order_and_beside_others(live: list[dict[str, str]]) -> None:
    ours = [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]
    assert within(ours, live)
    assert not within([*ours, {"name": "d", "value": "4"}], live)


@given(st.lists(st.text(max_size=5), min_size=2, max_size=5, unique=True))
def test_the_order_of_plain_lists_matters(args: list[str]) -> None:
    assert not within(args, args[::-1])
    assert not within(args, [*args, "--more"])


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["requests", "limits"]))
def test_quantities_of_the_same_value_are_the_same_in_resources(cores: int, field: str) -> None:
    desired, live = {field: {"cpu": f"{cores}"}}, {field: {"cpu": f"{cores * 1000}m"}}
    assert within(desired, live)
    assert within(live, desired)


@given(st.integers(min_value=1, max_value=10**4), st.sampled_from([("Ki", "Mi"), ("Mi", "Gi"), ("Gi", "Ti")]))
def test_binary_quantities_compare_by_value(number: int, units: tuple[str, str]) -> None:
    small, big = units
    assert amount(f"{number * 1024}{small}") == amount(f"{number}{big}")
    assert within({"sizeLimit": f"{number}{big}"}, {"sizeLimit": f"{number * 1024}{small}"})
    assert not within({"sizeLimit": f"{number}{big}"}, {"sizeLimit": f"{number}{small}"})


@given(st.integers(min_value=1, max_value=10**6), NAMES)
def test_elsewhere_equal_quantities_are_different_texts(cores: int, field: str) -> None:
    assert not within({field: f"{cores}"}, {field: f"{cores * 1000}m"})


@pytest.mark.parametrize(("a", "b"), [("1000m", "1"), ("1Gi", "1024Mi"), ("1k", "1000"), ("0.5", "500m"), ("1", 1)])
def test_named_pairs_of_equal_quantities(a: str, b: str | int) -> None:
    assert within({"limits": {"x": a}}, {"limits": {"x": b}})
    assert not within({"value": a}, {"value": b})


@pytest.mark.parametrize(("a", "b"), [("1G", "1Gi"), ("1", "1k"), ("100m", "100M")])
def test_suffixes_are_told_apart(a: str, b: str) -> None:
    assert not within({"limits": {"x": a}}, {"limits": {"x": b}})


def test_a_key_added_to_an_atomic_map_is_drift() -> None:
    service = {"spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}}
    assert not within(service, {"spec": {"selector": {"app": "a", "more": "b"}, "ports": [{"port": 80}]}})
    pods = {"selector": {"matchLabels": {"app": "a"}}, "nodeSelector": {"gpu": "l4"}}
    assert within(pods, copy.deepcopy(pods))
    assert not within(pods, {**pods, "selector": {"matchLabels": {"app": "a", "more": "b"}}})
    assert not within(pods, {**pods, "nodeSelector": {"gpu": "l4", "more": "b"}})
