"""Which way of serving a workload costs least: a hosted small model, a self-hosted one, a frontier model, or a mix.

The comparator's price is the variable: the same 100 000 tasks a day are a good reason for an L4 against one hosted
model and a bad one against another. How fast a machine is comes from planning.speed, or from the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from typing import Literal

from flotilla.cost.comparison import BreakEven, break_even, own_usd_per_day, replica_tasks_per_day
from flotilla.cost.hosted_prices import HOURS_PER_DAY, HostedPrice, TokenUsage, hosted_usd, token_factor
from flotilla.cost.hosted_prices import Terms as TokenTerms
from flotilla.errors import InvalidSpec

Kind = Literal["hosted small", "self-hosted small", "frontier", "mix"]
_ZERO, _ONE, _THOUSAND = Decimal(0), Decimal(1), Decimal(1000)


@dataclass(frozen=True, slots=True)
class TaskLoad:
    """What is asked for in a day. Tokens are those of a Llama 3 tokenizer."""

    tasks_per_day: int
    input_tokens: int
    output_tokens: int
    cached_share: Decimal = _ZERO
    """Of the input, what repeats: a hosted model bills it as cached, and an engine's prefix cache has it."""
    escalation: Decimal = _ZERO
    """Share of the tasks that are beyond a small model: 0 where it is good enough, 1 where it never is."""
    sovereign: bool = False
    """Whether data must stay in the cluster."""

    def __post_init__(self) -> None:
        for name in ("tasks_per_day", "input_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise InvalidSpec(f"{getattr(self, name)} is less than 1.", field=f"--{name.replace('_', '-')}")
        for name in ("cached_share", "escalation"):
            if not _ZERO <= getattr(self, name) <= _ONE:
                raise InvalidSpec(f"{getattr(self, name)} is not a share from 0 to 1.", field=name)

    def usd_per_task(self, price: HostedPrice) -> Decimal:
        """What one task costs at a hosted model, at the tier of its size, counted by that model's own tokenizer."""
        factor, prompt = token_factor(price.model), Decimal(self.input_tokens)
        usage = TokenUsage(prompt, Decimal(self.output_tokens), prompt * self.cached_share)
        return hosted_usd(usage, price.at(float(prompt * factor)), TokenTerms(factor, factor))


@dataclass(frozen=True, slots=True)
class Machine:
    """What one replica runs on."""

    name: str
    usd_per_hour: Decimal
    source: str
    """Of the price, with its date."""
    tasks_per_second: Decimal
    """At saturation."""
    slowest: Decimal
    """What it will hardly do less than; the same where somebody gave the speed."""
    fastest: Decimal
    basis: str
    """What the speed rests on, as a sentence."""
    first_token_tasks_per_second: Decimal | None = None
    """The most at which the time to the first token keeps to what was asked for; None: nothing was."""

    def at_peak(self, target_utilization: Decimal, tasks_per_second: Decimal) -> Decimal:
        """What it may be given in a second of the busiest time, if it did so many at saturation."""
        wanted = tasks_per_second * target_utilization
        if self.first_token_tasks_per_second is None:
            return wanted
        return min(wanted, self.first_token_tasks_per_second * tasks_per_second / self.tasks_per_second)


@dataclass(frozen=True, slots=True)
class AdviceTerms:
    """How replicas are counted."""

    peak_factor: Decimal = Decimal(3)
    """The busiest hour against the mean."""
    target_utilization: Decimal = Decimal("0.7")
    """At the peak."""
    overhead_usd_per_day: Decimal = _ZERO
    min_replicas: int = 1
    max_replicas: int = 1000

    def replica_tasks(self, machine: Machine, tasks_per_second: Decimal | None = None) -> Decimal:
        """Tasks a day that one replica may be given, at the machine's expected speed or another."""
        at_peak = machine.at_peak(self.target_utilization, tasks_per_second or machine.tasks_per_second)
        return replica_tasks_per_day(at_peak, peak_factor=self.peak_factor)

    def replicas(self, machine: Machine, tasks: Decimal, tasks_per_second: Decimal | None = None) -> int:
        """As many as that many tasks a day need."""
        needed = (tasks / self.replica_tasks(machine, tasks_per_second)).to_integral_value(ROUND_CEILING)
        return max(self.min_replicas, int(needed))

    def usd_per_day(self, machine: Machine, tasks: Decimal) -> Decimal:
        """Of as many replicas as that many tasks need."""
        return own_usd_per_day(
            tasks,
            replica_usd_per_hour=machine.usd_per_hour,
            replica_tasks=self.replica_tasks(machine),
            min_replicas=self.min_replicas,
            overhead_usd_per_day=self.overhead_usd_per_day,
        )

    def break_even(self, machine: Machine, usd_per_task: Decimal) -> BreakEven:
        """At which loads the machine costs no more than the hosted model."""
        return break_even(
            replica_usd_per_hour=machine.usd_per_hour,
            hosted_usd_per_task=usd_per_task,
            replica_tasks=self.replica_tasks(machine),
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            overhead_usd_per_day=self.overhead_usd_per_day,
        )


@dataclass(frozen=True, slots=True)
class Option:
    """One way, with its bill."""

    kind: Kind
    what: str
    usd_per_day: Decimal
    replicas: int | None = None
    fewest: int | None = None
    """Replicas, if the machine is as fast as it will hardly be; `most` if it is as slow."""
    most: int | None = None
    refused: str = ""
    """Why it cannot be taken; empty when it can."""


@dataclass(frozen=True, slots=True)
class OptionComparison:
    """One machine against one hosted model."""

    machine: str
    comparator: str
    usd_per_thousand_tasks: Decimal
    even: BreakEven


@dataclass(frozen=True, slots=True)
class Advice:
    """Every option, the cheapest allowed one first; refused ones last."""

    options: tuple[Option, ...]
    break_even: tuple[OptionComparison, ...]
    turning_usd_per_thousand: Decimal | None
    """Self-hosting pays against a hosted model that costs more for a thousand tasks; None without machines."""

    @property
    def decision(self) -> Option | None:
        """None where nothing is allowed."""
        return next((option for option in self.options if not option.refused), None)


def advise(
    work: TaskLoad,
    terms: AdviceTerms,
    *,
    machines: Sequence[Machine],
    small: HostedPrice,
    frontier: HostedPrice,
    others: Sequence[HostedPrice] = (),
) -> Advice:
    """Weigh all options. Hosted and self-hosted small models are taken to be of equal quality."""
    tasks = Decimal(work.tasks_per_day)
    hosted_small, top = tasks * work.usd_per_task(small), tasks * work.usd_per_task(frontier)
    beyond = "" if not work.escalation else f"{_percent(work.escalation)} of the tasks are beyond a small model"
    leaves = "data must stay in the cluster" if work.sovereign else ""
    own = [_own(machine, terms, tasks) for machine in machines]
    options = [
        Option("hosted small", small.comparator, hosted_small, refused=leaves or beyond),
        *(_refused(option, beyond) for option in own),
        Option("frontier", frontier.comparator, top, refused=leaves),
    ]
    if _ZERO < work.escalation < _ONE:
        share = work.escalation * top
        name = f"{_percent(work.escalation)} to {frontier.comparator}"
        options.append(Option("mix", f"{small.comparator}, {name}", hosted_small + share, refused=leaves))
        options += [_refused(_mixed(option, name, share), leaves) for option in own]
    hosted = {price.comparator: price for price in (small, frontier, *others)}.values()
    return Advice(
        options=tuple(sorted(options, key=lambda option: (bool(option.refused), option.usd_per_day))),
        break_even=tuple(
            OptionComparison(machine.name, price.comparator, _THOUSAND * usd, terms.break_even(machine, usd))
            for price in hosted
            for machine in machines
            for usd in (work.usd_per_task(price),)
        ),
        turning_usd_per_thousand=_THOUSAND * min(option.usd_per_day for option in own) / tasks if own else None,
    )


def _own(machine: Machine, terms: AdviceTerms, tasks: Decimal) -> Option:
    replicas = terms.replicas(machine, tasks)
    too_many = f"{replicas} replicas are more than the {terms.max_replicas} to plan with"
    return Option(
        "self-hosted small",
        machine.name,
        terms.usd_per_day(machine, tasks),
        replicas,
        fewest=terms.replicas(machine, tasks, machine.fastest),
        most=terms.replicas(machine, tasks, machine.slowest),
        refused=too_many if replicas > max(terms.max_replicas, terms.min_replicas) else "",
    )


def _refused(option: Option, why: str) -> Option:
    return replace(option, refused=why) if why else option


def _mixed(option: Option, name: str, usd: Decimal) -> Option:
    return replace(option, kind="mix", what=f"{option.what}, {name}", usd_per_day=option.usd_per_day + usd)


def _percent(share: Decimal) -> str:
    return f"{(100 * share).normalize():f} %"


def assumptions(
    work: TaskLoad, terms: AdviceTerms, machines: Sequence[Machine], prices: Sequence[HostedPrice]
) -> list[str]:
    """What the figures rest on, each as a sentence."""
    basis = [
        f"The busiest time has {terms.peak_factor.normalize():f} times the mean load, and replicas are given "
        f"{_percent(terms.target_utilization)} of what they can do then.",
        "Self-hosted and hosted small models are taken to answer equally well: test yours.",
        f"Overhead beside the GPUs: {terms.overhead_usd_per_day} USD/day.",
    ]
    if work.cached_share:
        basis.append(
            f"{_percent(work.cached_share)} of the input repeats: it is billed as cached where the provider does that, "
            "and not computed again where it is self-hosted."
        )
    for price in dict.fromkeys(prices):
        factor = token_factor(price.model)
        at = price.at(float(work.input_tokens * factor))
        basis.append(
            f"{price.comparator}: {at.input_usd_per_million} USD in, {at.output_usd_per_million} USD out per million "
            f"tokens ({price.source})"
            + (f", of which it counts {factor} for one of Llama 3's" if factor != 1 else "")
            + f".{' ' if price.note else ''}{price.note}"
        )
    for machine in machines:
        day = (machine.usd_per_hour * HOURS_PER_DAY).normalize()
        basis.append(
            f"{machine.name}: {machine.usd_per_hour} USD/h, {day:f} USD/day ({machine.source}). {machine.basis}"
        )
    return basis
