"""What a decision on the number of replicas is made from, and what it leaves behind."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from flotilla.api import scaling as api
from flotilla.domain.scaling.reasons import LASTING, OBSTACLES, STEADY


@dataclass(frozen=True, slots=True)
class ScalingSpec:
    """The part of `spec.scaling` that decides, with the operator's tolerance for gaps."""

    min_replicas: int
    max_replicas: int
    queue_depth_per_replica: int = 8
    """Target of waiting + running requests of one replica."""
    scale_down_delay_s: float = 240.0
    stale_after_s: float = 15.0
    """Older samples are not believed, and a longer gap starts the scale-down delay again. It must be longer than the
    sampling interval, or the delay never ends."""
    up_limit_per_minute: int = 20
    """At most so many more than the fewest of the last minute."""
    down_percent_per_minute: int = 25
    """At most this share fewer, but one, than the most of the last minute."""
    zero_after_s: float = 900.0
    """Idle time before the last replica goes, where `min_replicas` is 0."""

    @classmethod
    def of(cls, wanted: api.ScalingSpec, *, stale_after_s: float) -> Self:
        """From a resource's own fields."""
        zero_after_s = wanted.scale_to_zero_after_seconds
        return cls(
            min_replicas=wanted.min_replicas,
            max_replicas=wanted.max_replicas,
            queue_depth_per_replica=wanted.queue_depth_per_replica,
            scale_down_delay_s=float(wanted.scale_down_delay_seconds),
            stale_after_s=stale_after_s,
            up_limit_per_minute=wanted.scale_up_limit_per_minute,
            down_percent_per_minute=wanted.scale_down_percent_per_minute,
            zero_after_s=float(api.SCALE_TO_ZERO_AFTER_S if zero_after_s is None else zero_after_s),
        )

    def clamp(self, replicas: int) -> int:
        """The nearest number that is allowed."""
        return max(self.min_replicas, min(replicas, self.max_replicas))


class Demand(NamedTuple):
    """Requests for the model that gateways hold or have under way; not `complete` where some did not answer."""

    requests: float
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """What the ready replicas that answered say together, at the second `at` of the same clock as `now`."""

    at: float
    ready: int
    """Replicas that are ready, whether or not they answered."""
    answered: int
    waiting: float
    running: float
    kv_full: float = 0.0
    """KV caches in use, in whole caches: two that are half full are 1."""
    rejected: float = 0.0
    """Requests that the engines turned away since the sample before."""
    served: float = 0.0
    """Requests that ended since the sample before: one that came and went between two samples is no idleness."""
    demand: Demand | None = None
    """None where nothing would tell of requests for a model without replicas."""
    blocked: str = ""
    """Reason why replicas that were asked for cannot be placed; more of them would not serve either."""
    wanted_elsewhere: bool = False
    """A more important model waits for accelerators of this class."""
    source: str = ""


class Need(NamedTuple):
    """A number of replicas that was asked for at the second `at`."""

    at: float
    replicas: int


class Queue(NamedTuple):
    """Requests have waited since the second `since` at so many replicas, at a load of no less than `load`."""

    since: float
    replicas: int
    load: float


@dataclass(frozen=True, slots=True)
class State:
    """All that the next decision depends on. `State.initial` rebuilds enough of it after a restart."""

    desired: int
    reason: str = STEADY
    known_since: float | None = None
    """Start of the time that is covered by complete samples without a gap; None: nothing was seen yet."""
    complete_at: float | None = None
    """The last complete sample; at first the first decision."""
    answered_at: float | None = None
    """The last sample with any answer; at first the first decision."""
    idle_since: float | None = None
    """Start of the time in which nothing was asked of the model and everybody said so."""
    demand_at: float | None = None
    """The last time at which every gateway told of its requests; at first the first decision."""
    over_at: float | None = None
    """The last time at which more than `max_replicas` were needed."""
    blocked_at: float | None = None
    """The last time at which more were needed, and those that exist could not be placed."""
    blocked: str = ""
    panicking: bool = False
    """Since a burst: no replica goes until there was none for a whole delay."""
    panic_at: float | None = None
    """The last time at which the burst was seen; at first, after a restart in panic, the first decision."""
    queue: Queue | None = None
    """The wait that goes on now."""
    crowded: Queue | None = None
    """The last wait that went on for too long: at its load, its number of replicas is too small."""
    carried: str = ""
    """The obstacle that the status showed before a restart, shown on until something new is known: else each restart
    would write every status twice."""
    source: str = ""
    """Where the engines' numbers come from."""
    other_since: float | None = None
    """Since when they have come from elsewhere only."""
    needs: tuple[Need, ...] = ()
    """The needs of the delay window, without those that a later, higher one makes irrelevant: at most one for each
    number of replicas, however long the window is."""
    levels: tuple[Need, ...] = ()
    """What was wanted from each second on, for the last minute and the moment before it."""

    @classmethod
    def initial(cls, desired: int, reason: str = STEADY, *, panicking: bool = False, source: str = "") -> Self:
        """After a (re)start: keep `desired`, the reason that the status shows, and a panic that was on."""
        lasting = reason in LASTING
        return cls(
            desired=desired,
            reason=reason if lasting else STEADY,
            carried=reason if reason in OBSTACLES else "",
            panicking=panicking,
            source=source,
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """`message` depends on `desired`, `reason`, the source and the spec only, so that writing it does not churn."""

    desired: int
    state: State
    reason: str
    message: str
