"""Which way of serving a workload costs least: a hosted small model, a self-hosted one, a frontier model, or a mix.

The comparator's price is the variable: the same 100 000 tasks a day are a good reason for an L4 against one hosted
model and a bad one against another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Literal

from flotilla.cost.comparison import NEVER, break_even_tasks_per_day, own_usd_per_day, replica_tasks_per_day
from flotilla.cost.hosted_prices import HOURS_PER_DAY, HostedPrice, Usage, hosted_usd
from flotilla.errors import InvalidSpec

Kind = Literal["hosted small", "self-hosted small", "frontier", "mix"]
_ZERO, _ONE, _THOUSAND = Decimal(0), Decimal(1), Decimal(1000)

SECONDS_PER_INPUT_TOKEN, SECONDS_PER_OUTPUT_TOKEN = Decimal("2.2346e-5"), Decimal("6.3417e-5")
"""Of an H100 at saturation with an 8B model in FP8: SilyBench, Qwen3-8B, 1024/128 at 32.258 and 128/1024 at 14.749
requests/s."""
RELATIVE_SPEED = {
    "nvidia-h100-80gb": _ONE,
    "nvidia-a100-80gb": Decimal(2900) / 4800,
    "nvidia-a10g": Decimal(850) / 4800,
    "nvidia-l4": Decimal(620) / 4800,
}
"""Against the H100, by the tokens per second in one author's table (neelmishra: 4800, 2900, 850, 620)."""


def tasks_per_second(class_name: str, *, input_tokens: int, output_tokens: int) -> Decimal | None:
    """What one GPU of the class does at saturation with an 8B model; None for a class that nobody measured."""
    speed = RELATIVE_SPEED.get(class_name)
    if speed is None:
        return None
    return speed / (input_tokens * SECONDS_PER_INPUT_TOKEN + output_tokens * SECONDS_PER_OUTPUT_TOKEN)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked for in a day."""

    tasks_per_day: int
    input_tokens: int
    output_tokens: int
    cached_share: Decimal = _ZERO
    """Of the input, what a hosted model would find in its cache."""
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
        """What one task costs at a hosted model, at the tier of its size."""
        prompt = Decimal(self.input_tokens)
        usage = Usage(prompt, Decimal(self.output_tokens), prompt * self.cached_share)
        return hosted_usd(usage, price.at(float(prompt)))


@dataclass(frozen=True, slots=True)
class Machine:
    """What one replica runs on."""

    name: str
    usd_per_hour: Decimal
    source: str
    tasks_per_second: Decimal | None
    """At saturation; None where it is not known, and one replica is then taken to be enough."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How replicas are counted."""

    peak_factor: Decimal = Decimal(3)
    """The busiest hour against the mean."""
    target_utilization: Decimal = Decimal("0.7")
    """At the peak."""
    overhead_usd_per_day: Decimal = _ZERO
    min_replicas: int = 1
    max_replicas: int = 1000

    def replica_tasks(self, machine: Machine) -> Decimal:
        """Tasks a day that one replica may be given."""
        if machine.tasks_per_second is None:
            return NEVER
        return replica_tasks_per_day(
            machine.tasks_per_second, target_utilization=self.target_utilization, peak_factor=self.peak_factor
        )

    def usd_per_day(self, machine: Machine, tasks: Decimal) -> Decimal:
        """Of as many replicas as that many tasks need."""
        capacity = self.replica_tasks(machine)
        return own_usd_per_day(
            tasks,
            replica_usd_per_hour=machine.usd_per_hour,
            replica_tasks=capacity if capacity.is_finite() else max(tasks, _ONE),
            min_replicas=self.min_replicas,
            overhead_usd_per_day=self.overhead_usd_per_day,
        )

    def break_even(self, machine: Machine, usd_per_task: Decimal) -> Decimal:
        """Tasks a day from which on the machine costs no more than the hosted model; infinite: never."""
        return break_even_tasks_per_day(
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
    refused: str = ""
    """Why it cannot be taken; empty when it can."""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """One machine against one hosted model."""

    machine: str
    comparator: str
    usd_per_thousand_tasks: Decimal
    tasks_per_day: Decimal


@dataclass(frozen=True, slots=True)
class Advice:
    """Every option, the cheapest allowed one first; refused ones last."""

    options: tuple[Option, ...]
    break_even: tuple[BreakEven, ...]
    turning_usd_per_thousand: Decimal | None
    """Self-hosting pays against a hosted model that costs more for a thousand tasks; None without machines."""

    @property
    def decision(self) -> Option | None:
        """None where nothing is allowed."""
        return next((option for option in self.options if not option.refused), None)


def advise(
    work: Workload,
    terms: Terms,
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
    own = [(machine, terms.usd_per_day(machine, tasks), _replicas(machine, terms, tasks)) for machine in machines]
    options = [
        Option("hosted small", small.comparator, hosted_small, refused=leaves or beyond),
        *(Option("self-hosted small", machine.name, usd, count, beyond) for machine, usd, count in own),
        Option("frontier", frontier.comparator, top, refused=leaves),
    ]
    if _ZERO < work.escalation < _ONE:
        share = work.escalation * top
        name = f"{_percent(work.escalation)} to {frontier.comparator}"
        options.append(Option("mix", f"{small.comparator}, {name}", hosted_small + share, refused=leaves))
        options += [Option("mix", f"{machine.name}, {name}", usd + share, count, leaves) for machine, usd, count in own]
    hosted = {price.comparator: price for price in (small, frontier, *others)}.values()
    return Advice(
        options=tuple(sorted(options, key=lambda option: (bool(option.refused), option.usd_per_day))),
        break_even=tuple(
            BreakEven(machine.name, price.comparator, _THOUSAND * usd, terms.break_even(machine, usd))
            for price in hosted
            for machine in machines
            for usd in (work.usd_per_task(price),)
        ),
        turning_usd_per_thousand=_THOUSAND * min(usd for _, usd, _ in own) / tasks if own else None,
    )


def _replicas(machine: Machine, terms: Terms, tasks: Decimal) -> int:
    capacity = terms.replica_tasks(machine)
    needed = int((tasks / capacity).to_integral_value(ROUND_CEILING)) if capacity.is_finite() else 1
    return max(terms.min_replicas, needed)


def _percent(share: Decimal) -> str:
    return f"{(100 * share).normalize():f} %"


def assumptions(work: Workload, terms: Terms, machines: Sequence[Machine], prices: Sequence[HostedPrice]) -> list[str]:
    """What the figures stand on, each as a sentence."""
    told = [
        f"The busiest time has {terms.peak_factor.normalize():f} times the mean load, and replicas are given "
        f"{_percent(terms.target_utilization)} of what they can do then.",
        "Self-hosted and hosted small models are taken to answer equally well: test yours.",
        f"Overhead beside the GPUs: {terms.overhead_usd_per_day} USD/day.",
    ]
    if work.cached_share:
        told.append(f"{_percent(work.cached_share)} of the input is billed as cached where the provider does that.")
    for price in dict.fromkeys(prices):
        at = price.at(float(work.input_tokens))
        told.append(
            f"{price.comparator}: {at.input_usd_per_million} USD in, {at.output_usd_per_million} USD out per million "
            f"tokens ({price.source})."
        )
    for machine in machines:
        day = (machine.usd_per_hour * HOURS_PER_DAY).normalize()
        speed = (
            "an unknown speed, taken to be enough"
            if machine.tasks_per_second is None
            else (f"{machine.tasks_per_second:.1f} tasks/s at saturation")
        )
        told.append(f"{machine.name}: {machine.usd_per_hour} USD/h, {day:f} USD/day ({machine.source}); {speed}.")
    if any(machine.tasks_per_second is not None for machine in machines):
        told.append(
            "Speeds are of an 8B model (SilyBench's H100 figures, scaled to other GPUs by one author's table) unless "
            "--tasks-per-second gives yours."
        )
    return told
