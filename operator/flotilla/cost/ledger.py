"""The ledger: GPU-hours, dollars and tokens per pod and state, safe against counter resets and restarts. Pure."""

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import orjson

from flotilla.cost.hosted_prices import SECONDS_PER_HOUR, Comparator, TokenUsage, accrued_usd, hosted_usd_by_request

_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Totals:
    """Of an account at a time, or over a window."""

    usd: Decimal
    usage: TokenUsage
    requests: Decimal
    serving_s: Decimal = Decimal(0)
    """Pod-seconds with requests."""
    idle_s: Decimal = Decimal(0)
    """Pod-seconds of ready pods without."""

    @property
    def ready_s(self) -> Decimal:
        return self.serving_s + self.idle_s

    @property
    def active_ratio(self) -> Decimal | None:
        """The share of ready pods' time with requests; None without ready pods."""
        return self.serving_s / self.ready_s if self.ready_s > 0 else None

    def row(self) -> tuple[float, ...]:
        """As the trail keeps it; doubles are exact for tokens, and for dollars to far below a cent."""
        usage = self.usage
        parts = (self.usd, usage.prompt, usage.generated, usage.cached, self.requests, self.serving_s, self.idle_s)
        return tuple(map(float, parts))


class RollingWindow:
    """Steps of `step_s` over the last `span_s`."""

    __slots__ = ("_rows", "_span_s", "_step_s")

    def __init__(self, *, span_s: float, step_s: float) -> None:
        self._span_s = span_s
        self._step_s = step_s
        self._rows = array("d")

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._rows) // _WIDTH

    def add(self, at: float, totals: Totals, *, last: bool = False) -> Totals | None:
        """Note the totals where a step is due; returns what came in the step that ended.

        `last` ones are noted in any case: no others may follow for long.
        """
        rows, ended = self._rows, None
        if last and len(rows) > _WIDTH and rows[-_WIDTH] - rows[-2 * _WIDTH] < self._step_s:
            # Takes the place of a step that ended early, so that pods that come and go do not add steps without limit.
            del rows[-_WIDTH:]
        if last or not rows or at - rows[-_WIDTH] >= self._step_s:
            ended = self._since(totals, len(rows) - _WIDTH) if rows else None
            rows.extend((at, *totals.row()))
        self.advance(at)
        return ended

    def advance(self, now: float) -> None:
        """Drop the steps that the window has left behind at the second `now`."""
        rows = self._rows
        while len(rows) > _WIDTH and rows[_WIDTH] <= now - self._span_s:
            del rows[:_WIDTH]

    def since(self, totals: Totals) -> Totals | None:
        """What came since the window's begin; None where nothing was noted."""
        return self._since(totals, 0) if self._rows else None

    def _since(self, totals: Totals, start: int) -> Totals:
        before = self._rows[start + 1 : start + _WIDTH]
        usd, prompt, generated, cached, requests, serving_s, idle_s = (
            Decimal(repr(now - then)) for now, then in zip(totals.row(), before, strict=True)
        )
        return Totals(usd, TokenUsage(prompt, generated, cached), requests, serving_s, idle_s)


PodState = Literal["startup", "serving", "idle", "draining"]
STATES: tuple[PodState, ...] = ("startup", "serving", "idle", "draining")
WINDOWS: Mapping[str, tuple[float, float]] = {"1h": (3600.0, 60.0), "24h": (86_400.0, 900.0)}
"""Span and step in seconds."""
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod as it was charged last."""

    incarnation: int
    state: PodState
    gpus: Decimal
    """As first seen: a pod keeps what it was scheduled with, whatever the spec is now."""
    usd_per_hour: Decimal | None
    capacity_type: str
    counters: Mapping[str, float]
    counter_reset_seen: bool
    """Its counters fell in this incarnation, so that the restart which will be reported is counted already."""


def _trails() -> dict[str, RollingWindow]:
    return {name: RollingWindow(span_s=span_s, step_s=step_s) for name, (span_s, step_s) in WINDOWS.items()}


@dataclass(slots=True)
class Account:
    """The totals of one deployment; they only grow."""

    usd: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(STATES, _ZERO))
    estimated_usd: Decimal = _ZERO
    """The part of `usd` that accrued while no operator observed the pods."""
    gpu_hours: dict[str, Decimal] = field(default_factory=dict)
    """By capacity type."""
    pod_seconds: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(STATES, _ZERO))
    tokens: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(("prompt", "generated", "cached"), _ZERO))
    requests: Decimal = _ZERO
    failed: Decimal = _ZERO
    """Requests that ended without a whole answer."""
    known: set[str] = field(default_factory=set)
    """Counters that some pod has had; the others are unknown rather than 0."""
    cached_ahead: Decimal = _ZERO
    """Cache hits of prompts that are not counted yet: engines count the hit at admission, the prompt after prefill."""
    hosted: dict[str, Decimal] = field(default_factory=dict)
    """What each comparator would have billed, at its prices of the time."""
    peak_tokens_per_second: Decimal = _ZERO
    """The most output that a replica made over a minute."""
    priced: bool = False
    """Whether a price was ever known: a cost of 0 is then a fact."""
    pods: dict[str, PodRecord] = field(default_factory=dict)
    at: float | None = None
    rates: dict[tuple[str, str], Decimal] = field(default_factory=dict)
    """US dollars per hour of the pods that exist, by capacity type and source of the price."""
    trails: dict[str, RollingWindow] = field(default_factory=_trails)
    closed: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Pods that went: one that shows up again would be charged from its beginning."""

    @property
    def usage(self) -> TokenUsage:
        return TokenUsage(**self.tokens)

    @property
    def total_usd(self) -> Decimal:
        return sum(self.usd.values(), _ZERO)

    @property
    def usd_per_hour(self) -> Decimal | None:
        """None while no price is known."""
        return sum(self.rates.values(), _ZERO) if self.rates else None

    def totals(self) -> Totals:
        """Now."""
        seconds = self.pod_seconds
        return Totals(self.total_usd, self.usage, self.requests, seconds["serving"], seconds["idle"])

    def advance(self, now: float) -> None:
        """Move the windows on to the second `now`; an account without pods is seldom observed."""
        for trail in self.trails.values():
            trail.advance(now)

    def window(self, name: str) -> Totals | None:
        """The last hour or day, or since the operator's start if that is shorter; None before the first look.

        It ends at the last `Ledger.observe` or `advance`.
        """
        return self.trails[name].since(self.totals())


VERSION = 1
_SUMS = ("usd", "gpu_hours", "pod_seconds", "tokens", "hosted")


def dump_account(account: Account) -> str:
    """As JSON; decimals are strings. `at` must be known."""
    assert account.at is not None
    return orjson.dumps(
        {
            "version": VERSION,
            "at": account.at,
            **{name: {key: str(value) for key, value in getattr(account, name).items()} for name in _SUMS},
            "estimated_usd": str(account.estimated_usd),
            "requests": str(account.requests),
            "failed": str(account.failed),
            "cached_ahead": str(account.cached_ahead),
            "peak_tokens_per_second": str(account.peak_tokens_per_second),
            "priced": account.priced,
            "known": sorted(account.known),
            "pods": {uid: _pod(pod) for uid, pod in account.pods.items()},
        },
        option=orjson.OPT_SORT_KEYS,
    ).decode()


def _pod(pod: PodRecord) -> list[Any]:
    return [
        pod.incarnation,
        pod.state,
        str(pod.gpus),
        None if pod.usd_per_hour is None else str(pod.usd_per_hour),
        pod.capacity_type,
        dict(pod.counters),
        pod.counter_reset_seen,
    ]


def load_account(text: str) -> Account:
    """Raises ValueError for what `dump` did not write."""
    try:
        record = orjson.loads(text)
        if record["version"] != VERSION:
            raise ValueError(f"it has version {record['version']!r}, and this operator reads {VERSION}")
        account = Account(
            usd=_amounts(record["usd"]),
            estimated_usd=_decimal(record["estimated_usd"]),
            gpu_hours=_amounts(record["gpu_hours"]),
            pod_seconds=_amounts(record["pod_seconds"]),
            tokens=_amounts(record["tokens"]),
            requests=_decimal(record["requests"]),
            failed=_decimal(record["failed"]),
            known=set(record["known"]),
            cached_ahead=_decimal(record["cached_ahead"]),
            hosted=_amounts(record["hosted"]),
            peak_tokens_per_second=_decimal(record["peak_tokens_per_second"]),
            priced=bool(record["priced"]),
            pods={uid: _read_pod(*fields) for uid, fields in record["pods"].items()},
            at=float(record["at"]),
        )
    except (KeyError, TypeError, AttributeError, InvalidOperation) as error:
        raise ValueError(f"it is not what the operator writes: {error!r}") from error
    if set(account.usd) != set(STATES) or set(account.pod_seconds) != set(STATES):
        raise ValueError("its states are not those of this operator")
    if set(account.tokens) != {"prompt", "generated", "cached"}:
        raise ValueError("its tokens are not those of this operator")
    return account


def _read_pod(
    incarnation: int, state: Any, gpus: str, usd: str | None, capacity: str, counters: dict[str, float], fell: bool
) -> PodRecord:
    if state not in STATES:
        raise ValueError(f"{state!r} is no state of a pod")
    rate = None if usd is None else _decimal(usd)
    return PodRecord(int(incarnation), state, _decimal(gpus), rate, str(capacity), dict(counters), bool(fell))


def _amounts(record: dict[str, Any]) -> dict[str, Decimal]:
    return {str(key): _decimal(value) for key, value in record.items()}


def _decimal(text: Any) -> Decimal:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not a decimal number")
    value = Decimal(text)
    if not value.is_finite() or value < 0:
        raise ValueError(f"{text!r} is not an amount")
    return value


_PEAK_READY_S = Decimal(30)
"""A minute with less ready time is too short to measure the throughput of a replica."""
_CLOSED = 64


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
        self.with_pods: set[Hashable] = set()
        """Keys of the accounts that have pods, which are few in an idle fleet."""

    def restore(self, key: Hashable, account: Account) -> None:
        """Go on from an account that was written down, unless there is one."""
        if self.accounts.setdefault(key, account).pods:
            self.with_pods.add(key)

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
        last = bool(account.pods) and not present
        account.pods = present
        (self.with_pods.add if present else self.with_pods.discard)(key)
        account.rates = rates or ({("unknown", price_source): _ZERO} if price_source and not present else {})
        account.priced = account.priced or bool(account.rates)
        _settle_hits(account, before.usage.prompt)
        _accrue_hosted_cost(account, comparators, before)
        _remember(account, now, last=last)
        return account

    def forget(self, key: Hashable) -> None:
        """Drop the account of a deployment that was deleted, and its series with it."""
        self.accounts.pop(key, None)
        self.with_pods.discard(key)

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
    """Time before a pod was ready counts as startup; the rest counts as its present state."""
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
        counters = known.counters if known.counter_reset_seen else {}
        return replace(now, incarnation=pod.incarnation, counters=counters, counter_reset_seen=False)
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
    return replace(now, counters={**before, **values}, counter_reset_seen=known.counter_reset_seen or fell)


def _settle_hits(account: Account, prompt_before: Decimal) -> None:
    # So that neither cached nor uncached input ever shrinks.
    hits = min(account.cached_ahead, account.tokens["prompt"] - prompt_before)
    account.tokens["cached"] += hits
    account.cached_ahead -= hits


def _accrue_hosted_cost(account: Account, comparators: Sequence[Comparator], before: Totals) -> None:
    """Bill what was just served at each comparator; one that left the spec takes its sum with it."""
    now = account.totals()
    moved = TokenUsage(
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


def _remember(account: Account, now: float, *, last: bool) -> None:
    totals = account.totals()
    minute = account.trails["1h"].add(now, totals, last=last)
    if minute is not None and minute.ready_s >= _PEAK_READY_S:
        account.peak_tokens_per_second = max(account.peak_tokens_per_second, minute.usage.generated / minute.ready_s)
    account.trails["24h"].add(now, totals, last=last)
