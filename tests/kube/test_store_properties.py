"""Events, answers and lists in any order end in the same store."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotilla.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, Kind
from flotilla.kube.store import Object, Store, owner, replicas_managers


def deployment(uid: str, version: int, model: str) -> dict[str, Any]:
    reference = {"apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelDeployment", "name": model, "controller": True}
    return {
        "metadata": {
            "name": "x",
            "namespace": "ns",
            "uid": uid,
            "resourceVersion": str(version),
            "ownerReferences": [reference],
            "managedFields": [{"manager": "flotilla-scaler", "fieldsV1": {"f:spec": {"f:replicas": {}}}}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"},
        },
        "spec": {"replicas": version},
    }


HISTORY = [deployment("one", version, model) for version, model in ((1, "a"), (2, "a"), (3, "b"), (4, "a"))]


@given(order=st.permutations(range(4)))
def test_the_newest_version_wins_in_any_order(order: list[int]) -> None:
    store = Store(owner)
    for index in order:
        store.put(DEPLOYMENT, HISTORY[index])
    live = store.get(DEPLOYMENT, "ns", "x")
    assert live is not None
    assert live["metadata"]["resourceVersion"] == "4"
    key_a, key_b = (owner(DEPLOYMENT, HISTORY[index]) for index in (0, 2))
    assert key_a is not None
    assert key_b is not None
    assert [obj["spec"]["replicas"] for obj in store.owned_by(DEPLOYMENT, key_a)] == [4]
    assert store.owned_by(DEPLOYMENT, key_b) == []


@given(order=st.permutations(range(4)), at=st.integers(0, 4))
def test_a_dropped_incarnation_never_comes_back(order: list[int], at: int) -> None:
    store = Store(owner)
    for step, index in enumerate(order):
        if step == at:
            store.drop(DEPLOYMENT, HISTORY[3])
        store.put(DEPLOYMENT, HISTORY[index])
    store.drop(DEPLOYMENT, HISTORY[3])
    assert store.get(DEPLOYMENT, "ns", "x") is None
    assert store.counts().get("deployments", 0) == 0


def test_what_a_list_lacks_is_dropped_unless_it_is_newer_than_the_list() -> None:
    store = Store(owner)
    store.put(DEPLOYMENT, HISTORY[3])
    assert not store.drop(DEPLOYMENT, HISTORY[3], resource_version="3")
    assert store.get(DEPLOYMENT, "ns", "x") is not None
    assert store.drop(DEPLOYMENT, HISTORY[3], resource_version="4")
    assert store.get(DEPLOYMENT, "ns", "x") is None


def test_an_object_that_left_the_watch_and_came_back_is_known_again() -> None:
    """As when its label was removed, and our own apply restored it."""
    store = Store(owner)
    store.put(DEPLOYMENT, HISTORY[0])
    store.drop(DEPLOYMENT, HISTORY[1])
    assert not store.put(DEPLOYMENT, HISTORY[1]), "no newer than when it left"
    assert store.put(DEPLOYMENT, HISTORY[2])
    assert not store.drop(DEPLOYMENT, HISTORY[1]), "the event of its leaving comes late"
    assert store.get(DEPLOYMENT, "ns", "x") is not None


def test_each_change_is_reported_once_with_its_writer_whether_by_answer_or_event() -> None:
    changes: list[tuple[int | None, int | None, object]] = []

    def changed(kind: Kind, before: Object | None, after: Object | None, writer: object) -> None:
        specs = (None if obj is None else obj["spec"]["replicas"] for obj in (before, after))
        changes.append((*specs, writer))  # type: ignore[arg-type]

    store = Store(owner, changed)
    store.put(DEPLOYMENT, HISTORY[0])
    store.put(DEPLOYMENT, HISTORY[1], writer="us")
    store.put(DEPLOYMENT, HISTORY[1])
    store.drop(DEPLOYMENT, HISTORY[2])
    store.drop(DEPLOYMENT, HISTORY[2])
    assert changes == [(None, 1, None), (1, 2, "us"), (2, None, None)]


def test_a_namesake_replaces_the_one_before() -> None:
    store = Store(owner)
    store.put(DEPLOYMENT, HISTORY[3])
    assert store.put(DEPLOYMENT, deployment("two", 2, "a"))
    live = store.get(DEPLOYMENT, "ns", "x")
    assert live is not None
    assert live["metadata"]["uid"] == "two"


def test_what_nobody_reads_is_not_kept() -> None:
    store = Store(owner)
    store.put(DEPLOYMENT, HISTORY[0])
    live = store.get(DEPLOYMENT, "ns", "x")
    assert live is not None
    assert "managedFields" not in live["metadata"]
    assert live["metadata"]["annotations"] == {"kept": "yes"}
    assert replicas_managers(live) == {"flotilla-scaler"}
    assert replicas_managers(None) == frozenset()


def test_an_echo_of_what_is_known_is_no_news() -> None:
    store = Store(owner)
    obj = {"metadata": {"name": "m", "namespace": "ns", "uid": "u", "resourceVersion": "7"}}
    assert store.put(MODEL_DEPLOYMENT, obj)
    assert not store.put(MODEL_DEPLOYMENT, obj)


@given(
    values=st.lists(st.sampled_from([1, True, 1.0, "1", None, {}, [], {"a": 1}, {"a": True}, [1], [True]]), max_size=6)
)
def test_sharing_parts_changes_no_value(values: list[Any]) -> None:
    store = Store(owner)
    for index, value in enumerate(values):
        meta = {"name": f"m{index}", "namespace": "ns", "uid": f"u{index}", "resourceVersion": "1"}
        store.put(MODEL_DEPLOYMENT, {"metadata": meta, "spec": {"x": {"y": value}, "z": [value]}})
    for index, value in enumerate(values):
        live = store.get(MODEL_DEPLOYMENT, "ns", f"m{index}")
        assert live is not None
        assert repr(live["spec"]) == repr({"x": {"y": value}, "z": [value]})
