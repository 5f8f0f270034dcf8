"""Between the scaler's loop and the ledger: what each pod did since the last tick, and the fleet as metrics show it."""

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal

from flotilla.control.keys import Key
from flotilla.control.scaler import Scaler, Tracked
from flotilla.domain import observed
from flotilla.kube.kinds import POD
from flotilla.kube.store import Store
from flotilla.telemetry.collector import DeploymentView
from flotilla.telemetry.ledger import Counters, Ledger, PodObservation, PodState
from flotilla.telemetry.scrape import EngineSample, ScrapeError


class Fleet:
    """Charges pods and describes deployments; both read the scaler's table."""

    def __init__(self, store: Store, scaler: Scaler, ledger: Ledger, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._scaler = scaler
        self._ledger = ledger
        self._clock = clock

    def account(self) -> None:
        """Charge the time since the last call; called after each scrape."""
        now = self._clock()
        for key, entry in self._scaler.tracked.items():
            pods = [observed.pod(obj) for obj in self._store.owned_by(POD, key)]
            price = None if entry.cost is None else entry.cost.gpu_usd_per_hour
            self._ledger.observe(key, _observations(entry, pods), gpu_usd_per_hour=price, now=now)
        self._ledger.retain(self._scaler.tracked)

    def view(self) -> Iterator[DeploymentView]:
        """Every deployment now."""
        for key, entry in self._scaler.tracked.items():
            yield self._deployment(key, entry)

    def _deployment(self, key: Key, entry: Tracked) -> DeploymentView:
        cost, sample = entry.cost, entry.sample
        ready = sum(observed.pod(obj).ready for obj in self._store.owned_by(POD, key))
        return DeploymentView(
            namespace=key.namespace,
            name=key.name,
            gpu_type=entry.resolved.accelerator.class_name,
            price_source="" if cost is None else cost.source,
            comparators=() if cost is None else cost.comparators,
            account=self._ledger.accounts.get(key),
            window=self._ledger.window(key),
            desired_replicas=entry.state.desired,
            ready_replicas=ready,
            waiting=None if sample is None or not sample.answered else sample.waiting,
            running=None if sample is None or not sample.answered else sample.running,
            kv_usage=_kv_usage(entry),
            demand=None if sample is None or sample.demand is None else sample.demand.requests,
        )


def _kv_usage(entry: Tracked) -> float | None:
    known = [a.kv_usage for a in entry.answers.values() if isinstance(a, EngineSample) and a.kv_usage is not None]
    return sum(known) / len(known) if known else None


def _observations(entry: Tracked, pods: Iterable[observed.Pod]) -> Iterator[PodObservation]:
    for pod in pods:
        if not pod.scheduled:
            continue
        answer = entry.answers.get(pod.uid)
        yield PodObservation(
            uid=pod.uid,
            incarnation=pod.restarts,
            state=_state(pod, answer),
            gpus=Decimal(entry.resolved.gpus),
            counters=_counters(answer) if isinstance(answer, EngineSample) else None,
        )


def _state(pod: observed.Pod, answer: EngineSample | ScrapeError | None) -> PodState:
    if pod.terminating:
        return "draining"
    if not pod.ready:
        return "startup"
    busy = isinstance(answer, EngineSample) and answer.running + answer.waiting > 0
    return "serving" if busy else "idle"


def _counters(sample: EngineSample) -> Counters:
    return Counters(
        prompt=sample.prompt_tokens,
        generated=sample.generation_tokens,
        cached=sample.cached_tokens,
        requests=sample.requests_success,
    )
