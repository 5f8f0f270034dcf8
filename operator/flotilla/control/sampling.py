"""From what single pods answered to what a deployment asks for; remembers the counters of the tick before."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flotilla.domain.observed import Pod
from flotilla.domain.scaling import Demand, Sample
from flotilla.domain.scaling.reasons import PODS, PROMETHEUS
from flotilla.telemetry.scrape import EngineSample, ScrapeError
from flotilla.telemetry.sources import Answers


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
        """Forget pods that were not even asked."""
        self._before = {uid: counters for uid, counters in self._before.items() if uid in answers}

    def _since(self, uid: str, answer: EngineSample, indirect: bool) -> tuple[float, float]:
        counters = _Counters(indirect, answer.rejected or 0.0, answer.requests_success or 0.0)
        before = self._before.get(uid)
        self._before[uid] = counters
        # What Prometheus says is older: against what the pod said itself, it looks like a restart.
        if before is None or before.indirect is not indirect:
            return 0.0, 0.0
        return _grown(before.rejected, counters.rejected), _grown(before.served, counters.served)


def _grown(before: float, now: float) -> float:
    return now - before if now >= before else now
