"""Self-hosted against hosted: utilization, unit costs, savings, break-even."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum

from flotilla.cost.hosted_prices import HOURS_PER_DAY, TokenUsage, TokenWeights

_ONE = Decimal(1)


def saturation_ratio(tokens: Decimal, *, seconds: Decimal, tokens_per_second: Decimal) -> Decimal | None:
    """Served over what `tokens_per_second` could have served in that time; None without either. 1 at most."""
    capacity = tokens_per_second * seconds
    return min(tokens / capacity, _ONE) if capacity > 0 else None


def at_full_load(effective_usd: Decimal, saturation: Decimal) -> Decimal:
    """The unit cost that the same hardware has when it is saturated."""
    return effective_usd * saturation


NEVER = Decimal("Infinity")
_ZERO, _COMPARISON_ONE = Decimal(0), Decimal(1)
_SECONDS_PER_DAY = Decimal(86_400)


def cost_ratio(hosted_usd: Decimal, own_usd: Decimal) -> Decimal | None:
    """Hosted over own: below 1 hosted is cheaper. None without both."""
    return hosted_usd / own_usd if own_usd > 0 and hosted_usd > 0 else None


def replica_tasks_per_day(
    tasks_per_second: Decimal, *, target_utilization: Decimal = _COMPARISON_ONE, peak_factor: Decimal = _COMPARISON_ONE
) -> Decimal:
    """What one replica may be given in a day whose peak is `peak_factor` times its mean."""
    return _SECONDS_PER_DAY * tasks_per_second * target_utilization / peak_factor


def own_usd_per_day(
    tasks_per_day: Decimal,
    *,
    replica_usd_per_hour: Decimal,
    replica_tasks: Decimal,
    min_replicas: int = 1,
    overhead_usd_per_day: Decimal = _ZERO,
) -> Decimal:
    """Whole replicas for a day's tasks, and the overhead."""
    needed = (tasks_per_day / replica_tasks).to_integral_value(ROUND_CEILING)
    return HOURS_PER_DAY * replica_usd_per_hour * max(Decimal(min_replicas), needed) + overhead_usd_per_day


def break_even_tasks_per_day(
    *,
    replica_usd_per_hour: Decimal,
    hosted_usd_per_task: Decimal,
    replica_tasks: Decimal = NEVER,
    min_replicas: int = 1,
    max_replicas: int = 1,
    overhead_usd_per_day: Decimal = _ZERO,
) -> Decimal:
    """From how many tasks a day on self-hosting costs no more; infinite where it never does.

    A step per replica: m replicas are even at (24 h * rate * m + overhead) / hosted price, if they can do that many.
    The first m that can is found in closed form. `replica_tasks` infinite: one replica does them all.
    """
    if hosted_usd_per_task <= 0:
        return NEVER
    replica_usd, least = HOURS_PER_DAY * replica_usd_per_hour, Decimal(max(1, min_replicas))
    replicas = least
    if replica_tasks.is_finite():
        gain = replica_tasks * hosted_usd_per_task - replica_usd
        if gain < 0 or (gain == 0 and overhead_usd_per_day > 0):
            return NEVER
        if gain > 0:
            replicas = max(least, (overhead_usd_per_day / gain).to_integral_value(ROUND_CEILING))
    if replicas > max(Decimal(max_replicas), least):
        return NEVER
    return (replica_usd * replicas + overhead_usd_per_day) / hosted_usd_per_task


@dataclass(frozen=True, slots=True)
class BreakEven:
    """At which loads self-hosting with whole replicas costs no more than a hosted model, in tasks a day.

    Replicas come in steps, so self-hosting can be cheaper from `first` on, dearer again just after a step, and cheaper
    at every load only from `for_good` on. Both are infinite where that never happens.
    """

    first: Decimal
    for_good: Decimal
    """Up to what the most replicas can do; infinite also where they are too few."""
    dearer: tuple[tuple[Decimal, Decimal], ...] = ()
    """Loads between the two at which the hosted model is cheaper again: above the first number and below the second."""


_MOST_BANDS = 10_000


def break_even(
    *,
    replica_usd_per_hour: Decimal,
    hosted_usd_per_task: Decimal,
    replica_tasks: Decimal,
    min_replicas: int = 1,
    max_replicas: int = 1000,
    overhead_usd_per_day: Decimal = _ZERO,
) -> BreakEven:
    """Against `own_usd_per_day` at the same terms, exactly.

    m replicas are even at (24 h * rate * m + overhead) / hosted price, and can be given at most m * `replica_tasks`.
    """
    least, most = max(1, min_replicas), max(1, min_replicas, max_replicas)
    replica_usd = HOURS_PER_DAY * replica_usd_per_hour
    gain = replica_tasks * hosted_usd_per_task - replica_usd
    if hosted_usd_per_task <= 0 or gain <= 0:
        return BreakEven(NEVER, NEVER)

    def even(replicas: int) -> Decimal:
        return (replica_usd * replicas + overhead_usd_per_day) / hosted_usd_per_task

    first = max(least, int((overhead_usd_per_day / gain).to_integral_value(ROUND_CEILING)))
    # From this many replicas on, the load at which the last of them becomes necessary pays for it already.
    steady = (overhead_usd_per_day + replica_tasks * hosted_usd_per_task) / gain
    last = max(first, int(steady.to_integral_value(ROUND_CEILING)) - 1)
    if first > most:
        return BreakEven(NEVER, NEVER)
    steps = range(first, min(last, most, first + _MOST_BANDS))
    dearer = tuple((m * replica_tasks, even(m + 1)) for m in steps if even(m + 1) > m * replica_tasks)
    return BreakEven(even(first), even(last) if last <= most else NEVER, dearer)


def break_even_utilization(full_load_usd: Decimal, hosted_usd: Decimal) -> Decimal | None:
    """The saturation above which self-hosting is cheaper, both per million tokens; above 1 never. None if unpriced."""
    return full_load_usd / hosted_usd if hosted_usd > 0 else None


class IdleRule(StrEnum):
    """How the cost of idle time is split over the teams that share a deployment."""

    PROPORTIONAL = "proportional"
    """Who works it most keeps it most."""
    EVEN = "even"
    """All that worked it at all, alike."""
    OWNER = "owner"
    """Whose deployment it is."""


def attribute(
    usd: Decimal, usages: Mapping[str, TokenUsage], weights: TokenWeights, *, owner: str = ""
) -> dict[str, Decimal]:
    """Divide a deployment's cost over adapters, tenants or policies by their work; the shares add up exactly.

    Idle time too; `idle_shares` has other rules. Without any work all is the owner's, who need not be among `usages`.
    """
    work = {name: weights.work(usage) for name, usage in usages.items()}
    total = sum(work.values(), _ZERO)
    if total <= 0:
        return {owner: usd}
    shares = {name: usd * mine / total for name, mine in work.items()}
    largest = max(shares, key=lambda name: (shares[name], name))
    shares[largest] += usd - sum(shares.values(), _ZERO)
    return shares


def idle_shares(work: Mapping[str, Decimal], rule: IdleRule, *, owner: str) -> dict[str, Decimal]:
    """Who carries what a deployment cost without work, where `work` are shares that add up to 1; so do these."""
    workers = [name for name, share in work.items() if share > 0]
    if rule is IdleRule.OWNER or not workers:
        return {owner: _COMPARISON_ONE}
    if rule is IdleRule.PROPORTIONAL:
        return dict(work)
    even = _COMPARISON_ONE / len(workers)
    return {**dict.fromkeys(workers, even), workers[0]: _COMPARISON_ONE - even * (len(workers) - 1)}
