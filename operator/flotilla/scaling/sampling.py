"""From scrapes to the autoscaler's sample: rates of counters, blocked replicas, GPUs that others wait for. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flotilla.kube.observed import Pod, Workload
from flotilla.scaling.autoscaler import PODS, PROMETHEUS, QUOTA_EXCEEDED, UNSCHEDULABLE, Demand, Sample
from flotilla.scaling.engine_client import Answers
from flotilla.scaling.scrape_client import EngineSample, ScrapeError


def blocked(load: Workload) -> str:
    """Why replicas that are wanted already cannot be placed, as a reason of `ScalingActive`; empty where they can."""
    if "exceeded quota" in load.failure:
        return QUOTA_EXCEEDED
    return UNSCHEDULABLE if list(_waits(load)) else ""


def _waits(load: Workload) -> Iterable[int]:
    """Priorities of the pods that the scheduler has no node for."""
    return (pod.priority for pod in load.pods if pod.scheduling_message and not pod.terminating)


def pressing(loads: Iterable[tuple[str, Workload]]) -> dict[str, int]:
    """The highest priority of a pod without a node, by accelerator class."""
    found: dict[str, int] = {}
    for class_name, load in loads:
        for priority in _waits(load):
            found[class_name] = max(found.get(class_name, priority), priority)
    return found


def yields(class_name: str, load: Workload, pressing_: dict[str, int]) -> bool:
    """Whether idle replicas of this one are to go at once: something more important waits for their accelerators."""
    priority = pressing_.get(class_name)
    return priority is not None and any(pod.priority < priority for pod in load.pods if pod.scheduled)


@dataclass(frozen=True, slots=True)
class _Counters:
    indirect: bool
    rejected: float
    served: float


class Sampler:
    """Adds pods up. Counters fall when an engine restarts, and then count from 0."""

    def __init__(self) -> None:
        self._before: dict[str, _Counters] = {}

    def sample(
        self,
        pods: Iterable[Pod],
        answers: Answers,
        now: float,
        *,
        demand: Demand | None = None,
        blocked: str = "",
        wanted_elsewhere: bool = False,
    ) -> Sample:
        """`pods` are those that were asked: ready ones."""
        ready = answered = 0
        waiting = running = kv_full = rejected = served = 0.0
        indirect = False
        for pod in pods:
            ready += 1
            answer = answers.by_uid.get(pod.uid)
            if not isinstance(answer, EngineSample):
                continue
            answered += 1
            waiting += answer.waiting
            running += answer.running
            kv_full += answer.kv_usage or 0.0
            indirect = indirect or pod.uid in answers.indirect
            more = self._since(pod.uid, answer, pod.uid in answers.indirect)
            rejected += more[0]
            served += more[1]
        return Sample(
            at=now,
            ready=ready,
            answered=answered,
            waiting=waiting,
            running=running,
            kv_full=kv_full,
            rejected=rejected,
            served=served,
            demand=demand,
            blocked=blocked,
            wanted_elsewhere=wanted_elsewhere,
            source="" if not answered else PROMETHEUS if indirect else PODS,
        )

    def retain(self, answers: Mapping[str, EngineSample | ScrapeError]) -> None:
        """Forget pods that were not scraped."""
        self._before = {uid: counters for uid, counters in self._before.items() if uid in answers}

    def _since(self, uid: str, answer: EngineSample, indirect: bool) -> tuple[float, float]:
        counters = _Counters(indirect, answer.rejected or 0.0, answer.requests_success or 0.0)
        before = self._before.get(uid)
        self._before[uid] = counters
        # Samples of Prometheus are older: compared with the pod's own they would look like a restart.
        if before is None or before.indirect is not indirect:
            return 0.0, 0.0
        return _grown(before.rejected, counters.rejected), _grown(before.served, counters.served)


def _grown(before: float, now: float) -> float:
    return now - before if now >= before else now
