"""Other autoscalers as policies of the simulation, by their published formulas and defaults, and a best case.

Each gets the same target and the data that it would have about the same fleet. Where nothing is published, the best
case is assumed: none of their components fails, their metrics adapters answer at once, and scrapes are as recent
as their intervals allow.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from flotilla.simulation.fleet import Observation

_TOLERANCE = 0.1
_STABILIZATION_S = 300.0
_POLICY_PERIOD_S = 15.0
_KUBEAI_WINDOW_S = 600.0
_KUBEAI_DELAY_S = 30.0


@dataclass
class _Behaviour:
    """HPA v2's defaults: out by at most 100 % or 4 pods per 15 s; in to the highest recommendation of 300 s."""

    least: int
    most: int
    wishes: deque[tuple[float, int]] = field(default_factory=deque)
    outs: deque[tuple[float, int]] = field(default_factory=deque)

    def limit(self, now_s: float, current: int, wish: int) -> int:
        wish = max(self.least, min(wish, self.most))
        if not self.wishes:
            # The window begins with the current number of replicas.
            self.wishes.append((now_s, current))
        self.wishes.append((now_s, wish))
        while self.wishes[0][0] < now_s - _STABILIZATION_S:
            self.wishes.popleft()
        if wish < current:
            return min(current, max(wanted for _, wanted in self.wishes))
        while self.outs and self.outs[0][0] <= now_s - _POLICY_PERIOD_S:
            self.outs.popleft()
        start = current - sum(added for _, added in self.outs)
        allowed = min(wish, max(2 * start, start + 4))
        if allowed > current:
            self.outs.append((now_s, allowed - current))
        return max(current, allowed)


class HorizontalPodAutoscaler:
    """HPA v2 on a Pods metric, waiting + running requests of each pod, read at each sync, every 15 s.

    Starting pods have no metric: they count as 0 if it would scale out, and as the target if it would scale in
    (kubernetes: pkg/controller/podautoscaler/replica_calculator.go).
    """

    interval_s = 15.0

    def __init__(self, *, target: int, least: int, most: int) -> None:
        self._target = target
        self._behaviour = _Behaviour(least, most)

    def decide(self, seen: Observation) -> int:
        """See `Policy`."""
        return self._behaviour.limit(seen.now_s, seen.wanted, self._wish(seen))

    def _wish(self, seen: Observation) -> int:
        if not seen.ready:
            return seen.wanted
        total, missing = seen.waiting + seen.running, seen.wanted - seen.ready
        usage = total / seen.ready / self._target
        if not missing:
            return seen.wanted if abs(1 - usage) <= _TOLERANCE else math.ceil(usage * seen.ready)
        filled = total + (missing * self._target if usage < 1 else 0)
        ratio = filled / seen.wanted / self._target
        if abs(1 - ratio) <= _TOLERANCE or (usage < 1 < ratio) or (ratio < 1 < usage):
            return seen.wanted
        wish = math.ceil(ratio * seen.wanted)
        return seen.wanted if (wish - seen.wanted) * (ratio - 1) < 0 else wish


class Keda:
    """KEDA's ScaledObject with a Prometheus trigger: the HPA that it creates on the total, with AverageValue.

    The total is what Prometheus scraped last, every 30 s (the default of the Prometheus operator; KEDA's own polling
    interval of 30 s matters only for scaling to zero). It does not contain metrics of pods that are not ready.
    """

    interval_s = 15.0

    def __init__(self, *, target: int, least: int, most: int, scrape_s: float = 30.0) -> None:
        self._target, self._scrape_s = target, scrape_s
        self._behaviour = _Behaviour(least, most)
        self._scraped: tuple[float, int] | None = None

    def decide(self, seen: Observation) -> int:
        """See `Policy`."""
        if self._scraped is None or seen.now_s - self._scraped[0] >= self._scrape_s:
            self._scraped = (seen.now_s, seen.waiting + seen.running)
        total = self._scraped[1]
        usage = total / (self._target * seen.wanted) if seen.wanted else math.inf
        wish = seen.wanted if abs(1 - usage) <= _TOLERANCE else math.ceil(total / self._target)
        return self._behaviour.limit(seen.now_s, seen.wanted, wish)


class KubeAI:
    """The mean of the active requests at KubeAI's proxies over 10 minutes, evaluated every 10 s.

    The window starts with zeros; `before` is the number of requests at the proxies if it has run for a while. It scales
    in only after `scaleDownDelaySeconds` (30, its default) in which every evaluation allowed it.
    """

    interval_s = 10.0

    def __init__(self, *, target: int, least: int, most: int, before: int = 0) -> None:
        self._target, self._least, self._most = target, least, most
        looks = round(_KUBEAI_WINDOW_S / self.interval_s)
        self._active = deque([before] * looks, maxlen=looks)
        self._needed_votes = math.ceil(_KUBEAI_DELAY_S / self.interval_s)
        self._votes = 0

    def decide(self, seen: Observation) -> int:
        """See `Policy`."""
        self._active.append(seen.active)
        mean = sum(self._active) / len(self._active)
        wish = max(self._least, min(math.ceil(mean / self._target), self._most))
        if wish >= seen.wanted:
            self._votes = 0
            return wish
        self._votes += 1
        return wish if self._votes >= self._needed_votes else seen.wanted


class Foresight:
    """Not an autoscaler: it knows when requests will arrive, and has replicas in proportion to their rate at that time.

    The rate is the highest mean over `window_s` up to the time at which a replica that is requested now would serve.
    """

    interval_s = 15.0

    def __init__(
        self,
        arrivals: Sequence[float],
        *,
        per_replica: float,
        least: int,
        most: int,
        startup_s: float,
        window_s: float = 120.0,
    ) -> None:
        """`arrivals` are the times in order; `per_replica` is in requests per second."""
        self._arrivals, self._per_replica = arrivals, per_replica
        self._least, self._most, self._startup_s, self._window_s = least, most, startup_s, window_s

    def decide(self, seen: Observation) -> int:
        """See `Policy`."""
        looks = math.ceil(self._startup_s / self.interval_s) + 1
        rate = max(self._rate(seen.now_s + number * self.interval_s) for number in range(looks + 1))
        return max(self._least, min(math.ceil(rate / self._per_replica), self._most))

    def _rate(self, at_s: float) -> float:
        start, end = max(0.0, at_s - self._window_s / 2), at_s + self._window_s / 2
        return (bisect_left(self._arrivals, end) - bisect_left(self._arrivals, start)) / (end - start)
