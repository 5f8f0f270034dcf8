"""The ledger under any sequence of ticks, and under any crash."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flotilla.cost.hosted_prices import Comparator, HostedPrice, Terms, Tiers, TokenUsage
from flotilla.cost.ledger import (
    STATES,
    WINDOWS,
    Account,
    Counters,
    Ledger,
    PodObservation,
    PodState,
    Totals,
    dump_account,
    load_account,
)

D = Decimal
TINY = D("1e-9")
PODS = st.lists(
    st.builds(
        PodObservation,
        uid=st.sampled_from("abc"),
        incarnation=st.just(0),
        state=st.sampled_from(STATES),
        gpus=st.just(D(1)),
        counters=st.none() | st.builds(Counters, prompt=st.integers(0, 50), generated=st.integers(0, 50)),
        usd_per_hour=st.sampled_from([None, D(1), D(2)]),
        capacity_type=st.sampled_from(["spot", "on-demand"]),
    ),
    max_size=3,
    unique_by=lambda pod: pod.uid,
)
TICKS = st.lists(st.tuples(PODS, st.integers(1, 20)), max_size=15)


def play(ticks: Sequence[Any], *, reverse: bool = False) -> tuple[Account, list[tuple[Decimal, ...]]]:
    ledger, now = Ledger(), 0.0
    seen: list[tuple[Decimal, ...]] = []
    for pods, seconds in ticks:
        now += seconds
        account = ledger.observe("k", reversed(pods) if reverse else pods, now=now)
        hours = sum(account.gpu_hours.values(), D(0))
        seen.append((account.total_usd, hours, account.usage.prompt, account.usage.generated))
    return ledger.accounts.get("k", Account()), seen


def pod(
    state: PodState = "serving",
    *,
    incarnation: int = 0,
    prompt: float | None = None,
    usd: str | None = "1",
    **more: Any,
) -> PodObservation:
    counters = None if prompt is None else Counters(prompt=prompt)
    return PodObservation("a", incarnation, state, D(1), counters, None if usd is None else D(usd), **more)


@given(ticks=TICKS)
def test_totals_only_grow_and_split_into_states(ticks: Any) -> None:
    account, seen = play(ticks)
    for before, after in itertools.pairwise(seen):
        assert all(b <= a for b, a in zip(before, after, strict=True))
    assert sum(account.usd.values()) == account.total_usd


@given(ticks=TICKS)
def test_the_order_of_pods_in_a_tick_does_not_matter(ticks: Any) -> None:
    for one, other in zip(play(ticks)[1], play(ticks, reverse=True)[1], strict=True):
        assert all(abs(a - b) < TINY for a, b in zip(one, other, strict=True))


@given(ticks=TICKS)
def test_gpu_hours_are_the_time_between_two_sightings_of_a_pod_and_half_of_that_to_its_absence(ticks: Any) -> None:
    account, _ = play(ticks)
    wanted, before, gone = D(0), set[str](), set[str]()
    for pods, seconds in ticks:
        present = {pod.uid for pod in pods} - gone
        wanted += D(len(present & before)) * D(seconds) / D(3600)
        wanted += D(len(before - present)) * D(seconds) / D(7200)
        gone |= before - present
        before = present
    assert abs(sum(account.gpu_hours.values()) - wanted) < TINY


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_counters_that_fall_begin_again_and_nothing_is_negative(counts: list[int]) -> None:
    account, _ = play([([pod(prompt=count)], 1) for count in counts])
    wanted, last = 0, 0
    for count in counts:
        wanted += count - last if count >= last else count
        last = count
    assert account.usage.prompt == wanted


def test_a_price_change_never_reprices_the_past() -> None:
    ledger = Ledger(gap_s=1e9)
    for now, usd in ((1, None), (3601, "1"), (7201, "5"), (10_801, "5")):
        ledger.observe("k", [pod("idle", usd=usd)], now=now)
    account = ledger.accounts["k"]
    # An hour that ended with the first price known, one that began at it, and one at the new price.
    assert account.usd["idle"] == 1 + 1 + 5
    assert account.usd_per_hour == 5


def test_a_new_pod_is_charged_from_its_scheduling_and_starts_until_it_is_ready() -> None:
    ledger = Ledger()
    ledger.observe("k", [], now=0.0)
    ledger.observe("k", [pod("startup", scheduled_at=8.0)], now=10.0)
    ledger.observe("k", [pod("idle", scheduled_at=8.0, ready_at=15.0)], now=20.0)
    account = ledger.accounts["k"]
    assert account.pod_seconds == {"startup": 7, "idle": 5, "serving": 0, "draining": 0}
    assert account.estimated_usd == 0


def test_a_pod_that_went_is_not_charged_again_when_it_shows_up_again() -> None:
    ledger = Ledger()
    ledger.observe("k", [pod(scheduled_at=0.0, prompt=50)], now=10.0)
    ledger.observe("k", [], now=12.0)
    before = ledger.accounts["k"].totals()
    ledger.observe("k", [pod(scheduled_at=0.0, prompt=60)], now=14.0)
    assert ledger.accounts["k"].totals() == before


def test_what_happened_while_nobody_looked_is_marked() -> None:
    ledger = Ledger(gap_s=30, record_interval_s=300)
    ledger.observe("k", [pod(scheduled_at=0.0), replace(pod(), uid="gone")], now=0.0)
    ledger.observe("k", [pod(scheduled_at=0.0)], now=3600.0)
    account = ledger.accounts["k"]
    assert account.usd["serving"] == 1 + D(300) / 3600
    assert account.estimated_usd == account.total_usd


def test_a_pod_without_a_price_holds_gpus_and_costs_nothing_that_is_known() -> None:
    ledger = Ledger()
    for now in (0.0, 10.0):
        ledger.observe("k", [pod(usd=None)], now=now)
    account = ledger.accounts["k"]
    assert not account.priced
    assert account.usd_per_hour is None
    assert account.total_usd == 0
    assert account.gpu_hours["unknown"] > 0


def test_windows_forget_and_totals_do_not() -> None:
    ledger = Ledger()
    for minute in range(200):
        ledger.observe("k", [pod(prompt=minute * 100.0)], now=minute * 60.0)
    account = ledger.accounts["k"]
    hour, day = account.window("1h"), account.window("24h")
    assert hour is not None
    assert day is not None
    assert hour.usage.prompt == 6000
    assert day.usage.prompt == account.usage.prompt == 19_900
    assert round(hour.usd, 6) == 1


@given(lifetimes=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=60))
def test_windows_of_a_deployment_without_pods_become_empty_although_it_is_not_observed(
    lifetimes: list[tuple[int, int]],
) -> None:
    ledger, now, seconds = Ledger(gap_s=1e9), 0.0, 0.0
    for present_s, absent_s in lifetimes:
        seen = replace(pod(), uid=f"from {now:g}")
        ledger.observe("k", [seen], now=now)
        ledger.observe("k", [seen], now=now + present_s)
        ledger.observe("k", [], now=now + present_s)
        now, seconds = now + present_s + absent_s, seconds + present_s
    account = ledger.accounts["k"]
    assert account.pod_seconds["serving"] == seconds
    ended = now - absent_s
    for name, (span_s, step_s) in WINDOWS.items():
        account.advance(ended + span_s - 1)
        window = account.window(name)
        assert window is not None
        assert window.serving_s > 0
        account.advance(ended + span_s)
        assert account.window(name) == Totals(D(0), TokenUsage(D(0), D(0), D(0)), D(0))
        assert len(account.trails[name]) <= 2 * (span_s / step_s + 2)


def test_the_peak_is_the_best_minute_of_a_replica() -> None:
    ledger, made = Ledger(), 0.0
    for second in range(0, 601, 10):
        made += 500.0 if 240 <= second < 360 else 10.0
        seen = PodObservation("a", 0, "serving", D(1), Counters(generated=made), D(1))
        ledger.observe("k", [seen], now=float(second))
    assert ledger.accounts["k"].peak_tokens_per_second == 50


HOSTED = HostedPrice("openai", "mini", "test", Tiers(D(1)), Tiers(D(10)), Tiers(D("0.5")))


def test_a_comparator_is_billed_at_the_price_of_its_time() -> None:
    ledger = Ledger()
    dearer = Comparator(replace(HOSTED, input=Tiers(D(3))), Terms())
    for now, prompt, comparators in (
        (0.0, 0.0, [Comparator(HOSTED)]),
        (1.0, 1e6, [Comparator(HOSTED)]),
        (2.0, 2e6, [dearer]),
    ):
        ledger.observe("k", [pod(prompt=prompt)], now=now, comparators=comparators)
    assert ledger.accounts["k"].hosted == {"openai/mini": D(4)}
    ledger.observe("k", [pod(prompt=2e6)], now=3.0, comparators=[])
    assert ledger.accounts["k"].hosted == {}


@dataclass
class Life:
    """A pod of a simulated fleet: what a cluster shows of it at any time."""

    uid: str
    scheduled_at: int
    startup_s: int
    lives_s: int
    tokens_per_s: int
    restarts_at: int | None

    def seen(self, at: int, usd: Decimal) -> PodObservation | None:
        if not self.scheduled_at <= at < self.scheduled_at + self.lives_s:
            return None
        ready_at = self.scheduled_at + self.startup_s
        restarted = self.restarts_at is not None and at >= ready_at + self.restarts_at
        since = ready_at + (self.restarts_at or 0) if restarted else ready_at
        ready = at >= ready_at
        return PodObservation(
            self.uid, int(restarted), "serving" if ready else "startup", D(1),
            Counters(prompt=float(max(0, at - since) * self.tokens_per_s)) if ready else None, usd,
            scheduled_at=float(self.scheduled_at), ready_at=float(ready_at) if ready else None,
        )  # fmt: skip


@dataclass
class World:
    lives: list[Life]
    price_turns_at: int
    crashes: list[tuple[int, int]] = field(default_factory=list)
    """When the operator dies, and for how long it is away."""

    def pods(self, at: int) -> Iterator[PodObservation]:
        usd = D(2) if at < self.price_turns_at else D(3)
        return (seen for life in self.lives if (seen := life.seen(at, usd)) is not None)


END, TICK, RECORD = 600, 10, 100
LIVES = st.lists(
    st.builds(
        Life,
        uid=st.uuids().map(str),
        scheduled_at=st.integers(0, END),
        startup_s=st.integers(0, 200),
        lives_s=st.integers(1, END),
        tokens_per_s=st.integers(0, 9),
        restarts_at=st.none() | st.integers(1, END),
    ),
    max_size=4,
)
CRASHES = st.lists(st.tuples(st.integers(1, END), st.integers(1, 200)), max_size=3)


def run(world: World) -> Account:
    """Observe each tick and write down as the operator does."""
    ledger, text, written = Ledger(record_interval_s=RECORD), "", -RECORD
    pods_written: set[str] = set()
    away_until = 0
    for at in range(0, END + 240, TICK):
        for crash_at, away_s in world.crashes:
            if at - TICK < crash_at <= at:
                # Its memory is lost: what happened from the record on to its return is reconstructed.
                ledger, away_until = Ledger(record_interval_s=RECORD), max(away_until, at + away_s)
                if text:
                    ledger.restore("k", load_account(text))
        if at < away_until:
            continue
        account = ledger.observe("k", world.pods(at), now=float(at))
        if set(account.pods) != pods_written or at - written >= RECORD:
            text, written, pods_written = dump_account(account), at, set(account.pods)
    return ledger.accounts["k"]


def gaps(crashes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """From the last record that was surely written to the successor's first look; outages that touch are one."""
    found: list[tuple[int, int]] = []
    for crash_at, away_s in sorted(crashes):
        begin, end = crash_at - RECORD - TICK, crash_at + away_s + 2 * TICK
        if found and begin <= found[-1][1]:
            begin, end = found[-1][0], max(end, found[-1][1])
            found.pop()
        found.append((begin, end))
    return found


def doubt(world: World) -> tuple[Decimal, Decimal]:
    """GPU-seconds and tokens that nobody can know, of pods that went or restarted while nobody looked.

    One that went is charged for one record's interval, or the gap if that is shorter: the error is one interval, or
    what the gap was longer than it. Both runs miss half a tick of it.
    """
    seconds, tokens = D(0), D(0)
    for begin, end in gaps(world.crashes):
        for life in world.lives:
            went = life.scheduled_at + life.lives_s
            restarted = None if life.restarts_at is None else life.scheduled_at + life.startup_s + life.restarts_at
            if begin <= went <= end:
                seconds += max(RECORD, end - begin - RECORD) + TICK
            if any(moment is not None and begin <= moment <= end for moment in (went, restarted)):
                tokens += (end - begin) * life.tokens_per_s
    return seconds, tokens


@settings(max_examples=60)
@given(lives=LIVES, price_turns_at=st.integers(0, END), crashes=CRASHES)
def test_a_crash_anywhere_gives_the_totals_of_an_operator_that_never_crashed(
    lives: list[Life], price_turns_at: int, crashes: list[tuple[int, int]]
) -> None:
    whole = run(World(lives, price_turns_at))
    broken = run(World(lives, price_turns_at, crashes))
    seconds, tokens = doubt(World(lives, price_turns_at, crashes))
    hours = [sum(account.gpu_hours.values(), D(0)) for account in (whole, broken)]
    assert abs(hours[0] - hours[1]) * 3600 <= seconds + TINY
    assert abs(whole.usage.prompt - broken.usage.prompt) <= tokens
    # The price may have turned while nobody looked; it is then taken to have turned at the return.
    turned = sum(D(RECORD + away_s + 2 * TICK) * len(lives) for at, away_s in crashes
                 if at - RECORD - TICK <= price_turns_at <= at + away_s + 2 * TICK)  # fmt: skip
    assert abs(whole.total_usd - broken.total_usd) <= (3 * seconds + turned) / 3600 + TINY


@given(ticks=TICKS)
def test_an_account_is_read_back_as_it_was_written(ticks: Any) -> None:
    account, _ = play(ticks)
    if account.at is None:
        return
    again = load_account(dump_account(account))
    for name in ("usd", "estimated_usd", "gpu_hours", "pod_seconds", "tokens", "requests", "known", "cached_ahead",
                 "hosted", "peak_tokens_per_second", "priced", "pods", "at"):  # fmt: skip
        assert getattr(again, name) == getattr(account, name), name


@settings(max_examples=20)
@given(lives=LIVES)
def test_a_record_is_small_whatever_happened_before(lives: list[Life]) -> None:
    account = run(World(lives, END))
    assert len(dump_account(account)) < 2000 + 300 * len(account.pods)


RECORD_TEXT = dump_account(Ledger().observe("k", [pod(prompt=5)], now=1.0))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (RECORD_TEXT, "", "zero-length"),
        (RECORD_TEXT, "{}", "not what the operator writes"),
        (RECORD_TEXT, "[]", "not what the operator writes"),
        ('"version":1', '"version":2', "it has version 2"),
        ('"idle":"0"', '"idle":"-1"', "is not an amount"),
        ('"idle":"0"', '"idle":0', "is not a decimal number"),
        ('"idle":"0"', '"idle":"none"', "not what the operator writes"),
        ('"idle":"0"', '"asleep":"0"', "its states"),
        ('"serving","1"', '"resting","1"', "no state of a pod"),
        ('"prompt":"5.0"', '"prompts":"5"', "its tokens"),
    ],
)
def test_a_record_that_somebody_changed_is_refused_with_the_reason(before: str, after: str, reason: str) -> None:
    assert before in RECORD_TEXT
    with pytest.raises(ValueError, match=reason):
        load_account(RECORD_TEXT.replace(before, after))
