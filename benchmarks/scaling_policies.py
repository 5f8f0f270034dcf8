"""Other autoscalers as policies of the simulation, after their published formulas and defaults, and a bound.

Each is given the same target and sees what it would see of the same fleet. Kind in what is not published: no
component of theirs fails, their metrics adapters answer at once, and scrapes are as fresh as their intervals allow.
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
    """HPA v2's defaults: out at most by 100 % or 4 pods per 15 s; in by the highest wish of the last 300 s."""

    least: int
    most: int
    wishes: deque[tuple[float, int]] = field(default_factory=deque)
    outs: deque[tuple[float, int]] = field(default_factory=deque)

    def limit(self, now_s: float, current: int, wish: int) -> int:
        wish = max(self.least, min(wish, self.most))
        if not self.wishes:
            # Its window begins with what it finds.
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
    """HPA v2 on a Pods metric, waiting + running of each pod, read fresh at each sync of 15 s.

    Pods that start have no metric: 0 where it would scale out, the target where it would scale in
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
    """KEDA's ScaledObject with a Prometheus trigger: the HPA that it makes on the total, AverageValue.

    The total is what Prometheus scraped last, every 30 s (the default of the Prometheus operator; KEDA's own polling
    interval of 30 s decides on zero only). No metric of pods that are not ready is in it.
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
    """The mean of the active requests at its proxies over 10 minutes, looked at every 10 s.

    It starts full of zeros; `before` is what the proxies held where it has run for a while. In only after so many
    agreeing looks in a row as `scaleDownDelaySeconds` (30, its default) has intervals.
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
    """No autoscaler: it knows when requests will come, and has replicas in proportion to their rate when they do.

    The rate is the mean over `window_s`: the highest until what is asked for now would serve.
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
