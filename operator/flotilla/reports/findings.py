"""What to change, from what was spent: each finding names the model, the figures and the step to take."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from flotilla.cost.comparison import break_even_tasks_per_day
from flotilla.cost.spending import SpendingGroup, Spent

Kind = Literal["waste", "hosted", "risk", "good"]
HOURS_PER_MONTH = Decimal(730)
_ZERO = Decimal(0)
_IDLE, _STARTUP, _ESTIMATED = Decimal("0.3"), Decimal("0.2"), Decimal("0.05")
_FULL, _EMPTY = Decimal("0.85"), Decimal("0.15")


@dataclass(frozen=True, slots=True)
class Finding:
    """`usd` is what is at stake in the period; None where that is not a sum of money. The title follows a colon."""

    subject: str
    kind: Kind
    title: str
    text: str
    usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class BreakEvenFinding:
    """One deployment against one hosted model, at the size of its mean request."""

    comparator: str
    own_usd_per_day: Decimal
    hosted_usd_per_task: Decimal
    tasks_per_day: Decimal
    """Served."""
    capacity_per_day: Decimal | None
    """Of the replicas that the period had on average; None: not known."""

    @property
    def at(self) -> Decimal:
        """From how many tasks a day on self-hosting costs no more; infinite where these replicas cannot do as many."""
        even = break_even_tasks_per_day(
            replica_usd_per_hour=self.own_usd_per_day / 24, hosted_usd_per_task=self.hosted_usd_per_task
        )
        return Decimal("Infinity") if self.capacity_per_day is not None and even > self.capacity_per_day else even


def break_evens(of: Spent, hours: Decimal) -> tuple[BreakEvenFinding, ...]:
    """With each hosted model; empty without a price or requests."""
    if not of.usd or not of.requests or hours <= 0:
        return ()
    day = Decimal(24) / hours
    tasks = of.requests * day
    return tuple(
        BreakEvenFinding(
            comparator=name,
            own_usd_per_day=of.usd * day,
            hosted_usd_per_task=hosted / of.requests,
            tasks_per_day=tasks,
            capacity_per_day=tasks / of.saturation if of.saturation else None,
        )
        for name, hosted in sorted(of.hosted_usd.items(), key=lambda pair: (pair[1], pair[0]))
        if hosted > 0
    )


def findings(deployments: Iterable[Spent], hours: Decimal) -> tuple[Finding, ...]:
    """What costs most comes first; what is well comes last."""
    found = [finding for of in deployments for finding in _findings(of, hours)]
    return tuple(sorted(found, key=lambda f: (f.kind == "good", -(f.usd or _ZERO), f.subject, f.title)))


def _findings(of: Spent, hours: Decimal) -> Iterator[Finding]:
    name = f"{of.namespace}/{of.name}"
    if of.usd is None:
        if of.gpu_hours:
            yield Finding(
                name,
                "risk",
                "no price",
                f"It held accelerators for {of.gpu_hours:,.1f} GPU-hours that are in no sum. Set "
                "spec.cost.gpuHourlyPrice, or add the accelerator to the price catalogue.",
            )
        return
    if of.usd <= 0:
        return
    yield from _waste(of, name, of.usd)
    yield from _hosted(of, name, of.usd, hours)
    yield from _risks(of, name, of.usd, hours)


def _waste(of: Spent, name: str, usd: Decimal) -> Iterator[Finding]:
    idle, startup = of.usd_by_state.get("idle", _ZERO), of.usd_by_state.get("startup", _ZERO)
    if not of.requests:
        yield Finding(
            name,
            "waste",
            "no requests",
            f"It cost {usd:,.2f} USD and no request was counted. Delete it if it is not used, or let it scale to zero.",
            usd,
        )
    elif idle / usd >= _IDLE:
        step = (
            "Its replicas wait for requests: let it scale to zero (spec.scaling.minReplicas: 0)"
            if of.min_replicas == 1
            else f"Lower spec.scaling.minReplicas, which is {of.min_replicas}"
            if of.min_replicas
            else "Lower spec.scaling.scaleDownDelaySeconds and scaleToZeroAfterSeconds"
        )
        yield Finding(
            name,
            "waste",
            "mostly idle" if idle / usd > Decimal("0.5") else "often idle",
            f"{idle:,.2f} of {usd:,.2f} USD ({idle / usd:.0%}) paid for replicas without a request. {step}, or put "
            "more work on it. This sum is the most that can be saved.",
            idle,
        )
    if startup / usd >= _STARTUP:
        yield Finding(
            name,
            "waste",
            "starts too often, or for too long",
            f"{startup:,.2f} of {usd:,.2f} USD ({startup / usd:.0%}) paid for replicas that were not ready. Raise "
            "spec.scaling.scaleDownDelaySeconds, and keep the weights on a claim (spec.model.cache).",
            startup,
        )


def _hosted(of: Spent, name: str, usd: Decimal, hours: Decimal) -> Iterator[Finding]:
    cheapest = SpendingGroup(name, (of,)).cheapest
    if cheapest is None:
        return
    if cheapest.savings_usd >= 0:
        yield Finding(
            name,
            "good",
            "cheaper than hosted",
            f"It cost {usd:,.2f} USD; {cheapest.comparator}, the cheapest hosted model that it is compared with, would "
            f"have cost {cheapest.hosted_usd:,.2f} USD for the same tokens.",
            cheapest.savings_usd,
        )
        return
    busy = usd - of.usd_by_state.get("idle", _ZERO)
    reason = (
        "Without its idle time it would be the cheaper one."
        if busy <= cheapest.hosted_usd
        else "Even without idle time it would cost more: only a cheaper accelerator or larger batches change that."
    )
    even = next((b for b in break_evens(of, hours) if b.comparator == cheapest.comparator), None)
    need = "" if even is None else _need(even)
    yield Finding(
        name,
        "hosted",
        "a hosted model costs less",
        f"{cheapest.comparator} would have cost {cheapest.hosted_usd:,.2f} instead of {usd:,.2f} USD for the same "
        f"tokens.{need} {reason} Keep it where data may not leave, where latency decides or where it is tuned.",
        -cheapest.savings_usd,
    )


def _need(even: BreakEvenFinding) -> str:
    served = f"it served {even.tasks_per_day:,.0f}"
    if even.at.is_finite():
        return f" Self-hosting is cheaper from {even.at:,.0f} requests a day on; {served}."
    return f" Its replicas cannot serve as many requests as it would need to be cheaper; {served} a day."


def _risks(of: Spent, name: str, usd: Decimal, hours: Decimal) -> Iterator[Finding]:
    if of.saturation is not None and of.saturation > _FULL:
        yield Finding(
            name,
            "risk",
            "close to its capacity",
            f"It makes {of.saturation:.0%} of the tokens that its replicas can make. Raise spec.scaling.maxReplicas"
            f"{'' if of.max_replicas is None else f' ({of.max_replicas})'} before requests wait.",
        )
    elif of.saturation is not None and of.saturation < _EMPTY and of.requests:
        yield Finding(
            name,
            "risk",
            "a large accelerator for little work",
            f"It makes {of.saturation:.0%} of the tokens that its replicas can make. A smaller accelerator or a MIG "
            "slice may do; flotilla estimate shows which fit and what they cost.",
        )
    if of.estimated_usd is not None and of.estimated_usd / usd > _ESTIMATED:
        yield Finding(
            name,
            "risk",
            "estimated in part",
            f"{of.estimated_usd:,.2f} of {usd:,.2f} USD accrued while no operator watched. Run two operators.",
        )
    if of.budget_usd_per_month is not None and hours > 0:
        month = usd / hours * HOURS_PER_MONTH
        if month > of.budget_usd_per_month:
            yield Finding(
                name,
                "risk",
                "over its budget",
                f"At this pace a month costs {month:,.2f} USD; spec.cost.monthlyBudgetUsd is "
                f"{of.budget_usd_per_month:,.2f}. Lower spec.scaling.maxReplicas or raise the budget.",
                month - of.budget_usd_per_month,
            )
