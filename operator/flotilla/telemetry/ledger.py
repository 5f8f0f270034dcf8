"""What each deployment cost and served: per pod from scheduled to gone, counters safe against resets.

Kept in memory. After a restart it starts at zero, as Prometheus counters may; persistence is later work.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from flotilla.domain.cost.tokens import SECONDS_PER_HOUR, Usage, accrued_usd

PodState = Literal["startup", "serving", "idle", "draining"]
STATES: tuple[PodState, ...] = ("startup", "serving", "idle", "draining")
_BUCKET_S = 30.0


@dataclass(frozen=True, slots=True)
class Counters:
    """An engine's counters since its start; None is unknown."""

    prompt: float | None = None
    generated: float | None = None
    cached: float | None = None
    requests: float | None = None

    def items(self) -> Iterable[tuple[str, float | None]]:
        """By the names that accounts use."""
        return (
            ("prompt", self.prompt),
            ("generated", self.generated),
            ("cached", self.cached),
            ("requests", self.requests),
        )


@dataclass(frozen=True, slots=True)
class PodObservation:
    """A scheduled pod now. `incarnation` changes when its container restarts: counters begin again."""

    uid: str
    incarnation: int
    state: PodState
    gpus: Decimal
    counters: Counters | None


@dataclass(frozen=True, slots=True)
class _Pod:
    incarnation: int
    gpus: Decimal
    """As first seen: a pod keeps what it was scheduled with, whatever the spec says by now."""
    counters: Mapping[str, float]
    inherited: bool
    """It worked before this ledger watched and has not answered since: its first counters are old work."""
    fell: bool
    """Its counters fell in this incarnation, so that the restart which will be reported is counted already."""


@dataclass(frozen=True, slots=True)
class Window:
    """Sums over the last hour, or since the start if that is shorter."""

    usd: Decimal
    usage: Usage
    requests: Decimal


@dataclass(slots=True)
class Account:
    """The totals of one deployment; they only grow."""

    usd: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(STATES, Decimal(0)))
    gpu_hours: Decimal = Decimal(0)
    tokens: dict[str, Decimal] = field(
        default_factory=lambda: dict.fromkeys(("prompt", "generated", "cached"), Decimal(0))
    )
    requests: Decimal = Decimal(0)
    known: set[str] = field(default_factory=set)
    """Counters that some pod has had; the others are unknown rather than 0."""
    cached_ahead: Decimal = Decimal(0)
    """Cache hits of prompts that are not counted yet: engines count the hit at admission, the prompt after prefill."""
    usd_per_hour: Decimal | None = None
    """Of the pods that exist now; None while the GPU's price is unknown."""
    pods: dict[str, _Pod] = field(default_factory=dict)
    at: float | None = None
    history: deque[tuple[float, Decimal, Usage, Decimal]] = field(default_factory=deque)

    @property
    def usage(self) -> Usage:
        return Usage(**self.tokens)

    @property
    def total_usd(self) -> Decimal:
        return sum(self.usd.values(), Decimal(0))


class Ledger:
    """Accounts by deployment. Times are seconds of one clock that only grows."""

    def __init__(self, *, window_s: float = 3600.0) -> None:
        self._window_s = window_s
        self.accounts: dict[Hashable, Account] = {}

    def observe(
        self, key: Hashable, pods: Iterable[PodObservation], *, gpu_usd_per_hour: Decimal | None, now: float
    ) -> None:
        """Charge the time since the last observation to the pods that were there then and are there now.

        A pod is charged from its first observation on; one that worked before the deployment's first observation,
        such as before a restart of the operator, brings no old tokens with it, as it brings no old dollars. The price
        holds for the interval that ends now; what is past is never priced again.
        """
        account = self.accounts.setdefault(key, Account())
        first = account.at is None
        elapsed_s = Decimal(str(max(0.0, now - account.at))) if account.at is not None else Decimal(0)
        account.at = now
        present: dict[str, _Pod] = {}
        rate, prompt = Decimal(0), account.tokens["prompt"]
        for pod in pods:
            known = account.pods.get(pod.uid)
            if known is None:
                inherited = first and pod.state != "startup"
                known = _Pod(pod.incarnation, pod.gpus, counters={}, inherited=inherited, fell=False)
            else:
                self._charge(account, known, pod.state, elapsed_s, gpu_usd_per_hour)
            present[pod.uid] = self._count(account, known, pod)
            rate += known.gpus * (gpu_usd_per_hour or Decimal(0))
        # So that neither cached nor uncached input ever shrinks.
        hits = min(account.cached_ahead, account.tokens["prompt"] - prompt)
        account.tokens["cached"] += hits
        account.cached_ahead -= hits
        account.pods = present
        account.usd_per_hour = None if gpu_usd_per_hour is None else rate
        self._remember(account, now)

    def forget(self, key: Hashable) -> None:
        """The deployment is gone, and its series with it."""
        self.accounts.pop(key, None)

    def retain(self, keys: Iterable[Hashable]) -> None:
        """Forget every deployment but these."""
        kept = set(keys)
        for key in [key for key in self.accounts if key not in kept]:
            self.forget(key)

    def window(self, key: Hashable) -> Window | None:
        """The last hour of a deployment; None when nothing was observed."""
        account = self.accounts.get(key)
        if account is None or not account.history:
            return None
        _, usd, usage, requests = account.history[0]
        mine = account.usage
        return Window(
            usd=account.total_usd - usd,
            usage=Usage(
                prompt=mine.prompt - usage.prompt,
                generated=mine.generated - usage.generated,
                cached=mine.cached - usage.cached,
            ),
            requests=account.requests - requests,
        )

    @staticmethod
    def _charge(account: Account, pod: _Pod, state: PodState, elapsed_s: Decimal, price: Decimal | None) -> None:
        account.gpu_hours += pod.gpus * elapsed_s / SECONDS_PER_HOUR
        if price is not None:
            account.usd[state] += accrued_usd(pod.gpus * price, elapsed_s)

    @staticmethod
    def _count(account: Account, known: _Pod, pod: PodObservation) -> _Pod:
        if pod.incarnation != known.incarnation:
            # What was read in this tick may still be the old container's; the next reading is the new one's, in full.
            counters = known.counters if known.fell else {}
            return replace(known, incarnation=pod.incarnation, counters=counters, inherited=False, fell=False)
        if pod.counters is None:
            return known
        values = {name: value for name, value in pod.counters.items() if value is not None}
        # A process loses all its counters or none. All that they show after a fall is new.
        fell = any(value < known.counters.get(name, 0.0) for name, value in values.items())
        before = {} if fell else known.counters
        for name, value in values.items():
            account.known.add(name)
            delta = Decimal(0) if known.inherited else Decimal(str(value - before.get(name, 0.0)))
            if name == "requests":
                account.requests += delta
            elif name == "cached":
                account.cached_ahead += delta
            else:
                account.tokens[name] += delta
        return replace(known, counters={**before, **values}, inherited=False, fell=known.fell or fell)

    def _remember(self, account: Account, now: float) -> None:
        history = account.history
        if not history or now - history[-1][0] >= _BUCKET_S:
            history.append((now, account.total_usd, account.usage, account.requests))
        while len(history) > 1 and history[1][0] <= now - self._window_s:
            history.popleft()
