"""The ledger under any sequence of ticks."""

import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotilla.telemetry.ledger import STATES, Account, Counters, Ledger, PodObservation

D = Decimal
PODS = st.lists(
    st.builds(
        PodObservation,
        uid=st.sampled_from("abc"),
        incarnation=st.just(0),
        state=st.sampled_from(STATES),
        gpus=st.just(D(1)),
        counters=st.none() | st.builds(Counters, prompt=st.integers(0, 50), generated=st.integers(0, 50)),
    ),
    max_size=3,
    unique_by=lambda pod: pod.uid,
)
TICKS = st.lists(st.tuples(PODS, st.sampled_from([None, D(1), D(2)]), st.integers(1, 100)), max_size=15)


def play(ticks: Sequence[Any], *, reverse: bool = False) -> tuple[Account, list[tuple[Decimal, ...]]]:
    ledger, now = Ledger(), 0.0
    seen: list[tuple[Decimal, ...]] = []
    for pods, price, seconds in ticks:
        now += seconds
        ledger.observe("k", reversed(pods) if reverse else pods, gpu_usd_per_hour=price, now=now)
        account = ledger.accounts["k"]
        seen.append((account.total_usd, account.gpu_hours, account.usage.prompt, account.usage.generated))
    return ledger.accounts.get("k", Account()), seen


@given(ticks=TICKS)
def test_totals_only_grow_and_split_into_states(ticks: Any) -> None:
    account, seen = play(ticks)
    for before, after in itertools.pairwise(seen):
        assert all(b <= a for b, a in zip(before, after, strict=True))
    assert sum(account.usd.values()) == account.total_usd


@given(ticks=TICKS)
def test_the_order_of_pods_in_a_tick_does_not_matter(ticks: Any) -> None:
    assert play(ticks)[1] == play(ticks, reverse=True)[1]


@given(ticks=TICKS)
def test_gpu_hours_are_the_time_between_two_sightings_of_a_pod(ticks: Any) -> None:
    account, _ = play(ticks)
    wanted, before = D(0), set[str]()
    for index, (pods, _, seconds) in enumerate(ticks):
        present = {pod.uid for pod in pods}
        if index:
            wanted += D(len(present & before)) * D(seconds) / D(3600)
        before = present
    assert abs(account.gpu_hours - wanted) < D("1e-20")


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_counters_that_fall_begin_again_and_nothing_is_negative(counts: list[int]) -> None:
    ticks = [([PodObservation("a", 0, "startup", D(1), None)], D(1), 1)]
    ticks += [([PodObservation("a", 0, "serving", D(1), Counters(prompt=n))], D(1), 1) for n in counts]
    account, _ = play(ticks)
    wanted, last = 0, 0
    for count in counts:
        wanted += count - last if count >= last else count
        last = count
    assert account.usage.prompt == wanted


def test_a_price_change_never_reprices_the_past() -> None:
    pod = [PodObservation("a", 0, "idle", D(2), None)]
    account, _ = play([(pod, D(1), 1), (pod, D(1), 3600), (pod, D(5), 3600)])
    assert account.usd["idle"] == D(2) * 1 + D(2) * 5
    assert account.usd_per_hour == D(10)


def test_work_from_before_the_first_look_is_not_counted() -> None:
    old = [PodObservation("a", 0, "serving", D(1), Counters(prompt=900))]
    more = [PodObservation("a", 0, "serving", D(1), Counters(prompt=1000))]
    account, _ = play([(old, D(1), 1), (more, D(1), 1)])
    assert account.usage.prompt == 100


def test_a_forgotten_deployment_has_no_account() -> None:
    ledger = Ledger()
    ledger.observe("gone", [], gpu_usd_per_hour=None, now=0.0)
    ledger.retain(["other"])
    assert ledger.accounts == {}
    assert ledger.window("gone") is None
