"""Whether a deployment's dollars are known, from which source, and what a reader must know about them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from flotilla.api.conditions import Verdict
from flotilla.domain.pricing import CostBasis, NodeFacts, PriceSources, Rate
from flotilla.errors import InvalidSpec

TYPE = "CostKnown"
_SHOWN = Decimal("0.0001")


@dataclass(frozen=True, slots=True)
class Priced:
    """A basis and the rates of the nodes that its pods are on, the highest first; without pods the class's."""

    basis: CostBasis
    rates: tuple[Rate, ...]


def priced(basis: CostBasis, nodes: Iterable[NodeFacts], sources: PriceSources) -> Priced:
    """Every rate that is in force, once."""
    rates = {basis.rate(node, sources) for node in nodes} or {basis.rate(None, sources)}
    known = [rate for rate in rates if rate is not None]
    return Priced(basis, tuple(sorted(known, key=lambda rate: (rate.gpu_usd_per_hour, str(rate)), reverse=True)))


def verdict(
    of: Priced, problems: Sequence[InvalidSpec], *, notes: Sequence[str], today: date, stale_after_days: int
) -> Verdict:
    """`problems` are comparators that cannot be used; `notes` are added to whatever is said."""
    tail = "".join(f" {note}" for note in notes)
    if not of.rates:
        message = (
            f"The price of {of.basis.accelerator.class_name} is in none of the sources. Set spec.cost.gpuHourlyPrice, "
            f"or give the operator a price catalogue.{tail}"
        )
        return Verdict(TYPE, "False", "GpuPriceUnknown", message)
    if problems:
        return Verdict(TYPE, "False", problems[0].reason, f"{problems[0].field}: {problems[0]}{tail}")
    highest = of.rates[0]
    told = f"One GPU costs {_money(highest)} USD/h ({highest})"
    if len(of.rates) > 1:
        told = f"GPUs cost {_money(of.rates[-1])} ({of.rates[-1]}) to {_money(highest)} USD/h ({highest})"
    if any(rate.estimated for rate in of.rates):
        told += ", a list price: set your own where you pay another"
    names = ", ".join(comparator.name for comparator in of.basis.comparators)
    told += f"; compared with {names}." if names else "; without a hosted model to compare with there are no savings."
    stale = [rate for rate in of.rates if _stale(rate, today, stale_after_days)]
    if stale:
        told += (
            f" The price is of {stale[0].as_of} and older than {stale_after_days} days: check it, and give a newer one "
            "by the operator's catalogue or spec.cost.gpuHourlyPrice."
        )
    reason = "PriceStale" if stale else "Priced" if names else "NoComparator"
    return Verdict(TYPE, "True", reason, told + tail)


def _money(rate: Rate) -> str:
    return f"{rate.gpu_usd_per_hour.quantize(_SHOWN).normalize():f}"


def _stale(rate: Rate, today: date, stale_after_days: int) -> bool:
    return rate.as_of is not None and today - rate.as_of > timedelta(days=stale_after_days)
