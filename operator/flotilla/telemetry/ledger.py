"""What each deployment cost and served: per pod from scheduled to gone, counters safe against resets.

Accounts are values that can be written down and taken up again (`telemetry.ledger_record`): what happened between is
charged from what the cluster still tells of it, the times at which pods were scheduled and ready and the engines' own
counters, and is marked as estimated.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from flotilla.domain.cost.hosted import hosted_usd_by_request
from flotilla.domain.cost.tokens import SECONDS_PER_HOUR, Usage, accrued_usd
from flotilla.domain.prices import Comparator
from flotilla.telemetry.account import Account, PodRecord, PodState
from flotilla.telemetry.trail import Totals

_PEAK_READY_S = Decimal(30)
"""A minute with less of ready pods tells nothing of what a replica can do."""
_CLOSED = 64
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Counters:
    """An engine's counters since its start; None is unknown."""

    prompt: float | None = None
    generated: float | None = None
    cached: float | None = None
    requests: float | None = None
    failed: float | None = None

    def items(self) -> Iterable[tuple[str, float | None]]:
        """By the names that accounts use."""
        return (
            ("prompt", self.prompt),
            ("generated", self.generated),
            ("cached", self.cached),
            ("requests", self.requests),
            ("failed", self.failed),
        )


@dataclass(frozen=True, slots=True)
class PodObservation:
    """A scheduled pod now. `incarnation` changes when its container restarts: counters begin again."""

    uid: str
    incarnation: int
    state: PodState
    gpus: Decimal
    """In whole GPUs."""
    counters: Counters | None
    usd_per_hour: Decimal | None = None
    """Of the pod; None while no price is known."""
    capacity_type: str = "unknown"
    price_source: str = ""
    scheduled_at: float | None = None
    """Unix seconds, as `now`."""
    ready_at: float | None = None


class Ledger:
    """Accounts by deployment. Times are Unix seconds of a clock that never steps back."""

    def __init__(self, *, gap_s: float = 30.0, record_interval_s: float = 300.0) -> None:
        """After more than `gap_s` between two looks, what happened between is an estimate.

        Accounts are written down each `record_interval_s`: a pod that went during a gap lived no longer than that after
        the record, as far as a predecessor of ours may have shown.
        """
        self._gap_s = gap_s
        self._record_interval_s = record_interval_s
        self.accounts: dict[Hashable, Account] = {}

    def restore(self, key: Hashable, account: Account) -> None:
        """Go on from an account that was written down, unless there is one."""
        self.accounts.setdefault(key, account)

    def observe(
        self,
        key: Hashable,
        pods: Iterable[PodObservation],
        *,
        now: float,
        comparators: Sequence[Comparator] = (),
        price_source: str = "",
    ) -> Account:
        """Charge the time since the last look, and count what was served in it.

        A pod that is new is charged from the time at which it was scheduled, and brings all that its counters show.
        One that went is charged until the middle between the look that saw it and this one, which errs neither way;
        after a gap, for one record's interval at most. A rate holds
        from the look that found it until the next: what is past is never priced again. `price_source` labels the rate
        of no pods; empty while no price is known.
        """
        account = self.accounts.setdefault(key, Account())
        since = now if account.at is None else min(account.at, now)
        account.at = max(now, account.at or now)
        before = account.totals()
        present: dict[str, PodRecord] = {}
        rates: dict[tuple[str, str], Decimal] = {}
        for pod in pods:
            if pod.uid in account.closed:
                continue
            known = account.pods.get(pod.uid)
            if known is None:
                start = now if pod.scheduled_at is None else min(pod.scheduled_at, now)
                known = PodRecord(pod.incarnation, pod.state, pod.gpus, pod.usd_per_hour, pod.capacity_type, {}, False)
            else:
                start = since
            _charge(account, known, pod, start, now, estimated=now - start > self._gap_s)
            present[pod.uid] = _count(account, known, pod)
            if pod.usd_per_hour is not None:
                label = (pod.capacity_type, pod.price_source)
                rates[label] = rates.get(label, _ZERO) + pod.usd_per_hour
        self._close(account, present, now - since)
        account.pods = present
        account.rates = rates or ({("unknown", price_source): _ZERO} if price_source and not present else {})
        account.priced = account.priced or bool(account.rates)
        _settle_hits(account, before.usage.prompt)
        _hold_against(account, comparators, before)
        _remember(account, now)
        return account

    def forget(self, key: Hashable) -> None:
        """The deployment is gone, and its series with it."""
        self.accounts.pop(key, None)

    def _close(self, account: Account, present: Mapping[str, PodRecord], elapsed_s: float) -> None:
        for uid, pod in account.pods.items():
            if uid in present:
                continue
            gap = elapsed_s > self._gap_s
            lived_s = min(elapsed_s, self._record_interval_s) if gap else elapsed_s / 2
            _accrue(account, pod, pod.state, lived_s, pod.usd_per_hour, estimated=gap)
            account.closed[uid] = None
        while len(account.closed) > _CLOSED:
            account.closed.popitem(last=False)


def _charge(
    account: Account, known: PodRecord, pod: PodObservation, start: float, now: float, *, estimated: bool
) -> None:
    """Until it was ready a pod started; the rest goes to what it does now."""
    rate = pod.usd_per_hour if known.usd_per_hour is None else known.usd_per_hour
    turned = start
    if pod.state in ("serving", "idle") and pod.ready_at is not None:
        turned = min(max(pod.ready_at, start), now)
        _accrue(account, known, "startup", turned - start, rate, estimated=estimated)
    _accrue(account, known, pod.state, now - turned, rate, estimated=estimated)


def _accrue(
    account: Account, pod: PodRecord, state: PodState, seconds: float, rate: Decimal | None, *, estimated: bool
) -> None:
    if seconds <= 0:
        return
    elapsed = Decimal(repr(seconds))
    account.pod_seconds[state] += elapsed
    hours = account.gpu_hours.get(pod.capacity_type, _ZERO)
    account.gpu_hours[pod.capacity_type] = hours + pod.gpus * elapsed / SECONDS_PER_HOUR
    if rate is not None:
        usd = accrued_usd(rate, elapsed)
        account.usd[state] += usd
        if estimated:
            account.estimated_usd += usd


def _count(account: Account, known: PodRecord, pod: PodObservation) -> PodRecord:
    """Add what the counters moved; returns the pod as it is charged from now on."""
    now = replace(known, state=pod.state, usd_per_hour=pod.usd_per_hour, capacity_type=pod.capacity_type)
    if pod.incarnation != known.incarnation:
        # What was read in this tick may still be the old container's; the next reading is the new one's, in full.
        counters = known.counters if known.fell else {}
        return replace(now, incarnation=pod.incarnation, counters=counters, fell=False)
    if pod.counters is None:
        return now
    values = {name: value for name, value in pod.counters.items() if value is not None}
    # A process loses all its counters or none. All that they show after a fall is new.
    fell = any(value < known.counters.get(name, 0.0) for name, value in values.items())
    before = {} if fell else known.counters
    for name, value in values.items():
        account.known.add(name)
        moved = value - before.get(name, 0.0)
        if not moved:
            continue
        delta = Decimal(repr(moved))
        if name == "requests":
            account.requests += delta
        elif name == "failed":
            account.failed += delta
        elif name == "cached":
            account.cached_ahead += delta
        else:
            account.tokens[name] += delta
    return replace(now, counters={**before, **values}, fell=known.fell or fell)


def _settle_hits(account: Account, prompt_before: Decimal) -> None:
    # So that neither cached nor uncached input ever shrinks.
    hits = min(account.cached_ahead, account.tokens["prompt"] - prompt_before)
    account.tokens["cached"] += hits
    account.cached_ahead -= hits


def _hold_against(account: Account, comparators: Sequence[Comparator], before: Totals) -> None:
    """Bill what was just served at each comparator; one that left the spec takes its sum with it."""
    now = account.totals()
    moved = Usage(
        now.usage.prompt - before.usage.prompt,
        now.usage.generated - before.usage.generated,
        now.usage.cached - before.usage.cached,
    )
    bills: dict[str, Decimal] = {}
    for comparator in comparators:
        bill = account.hosted.get(comparator.name, _ZERO)
        if moved.total > 0:
            # Tokens and requests are counted at different times: the mean is that of the whole account. So is the
            # first bill of a comparator that joins late: only for what is served from now on.
            share = moved.prompt / now.usage.prompt if now.usage.prompt > 0 else _ZERO
            bill += hosted_usd_by_request(moved, now.requests * share, comparator.price, comparator.terms)
        bills[comparator.name] = bill
    account.hosted = bills


def _remember(account: Account, now: float) -> None:
    totals = account.totals()
    minute = account.trails["1h"].add(now, totals)
    if minute is not None and minute.ready_s >= _PEAK_READY_S:
        account.peak_tokens_per_second = max(account.peak_tokens_per_second, minute.usage.generated / minute.ready_s)
    account.trails["24h"].add(now, totals)
