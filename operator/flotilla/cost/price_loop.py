"""Keep prices current: nodes, the catalogue file, OpenCost; and the pricing plan of each deployment."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from flotilla.api.cost import BillingMode, ComparatorSpec, CostSpec, OwnedHardware
from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.api.types import Verdict
from flotilla.config import HostedModel
from flotilla.cost.gpu_prices import (
    NO_SOURCES,
    CostBasis,
    NodeFacts,
    Owned,
    PriceSources,
    Rate,
    load_price_catalog,
    node_facts,
)
from flotilla.cost.hosted_price_client import HostedPriceLookup
from flotilla.cost.hosted_prices import Comparator, HostedPrice, Terms, Tiers, TokenWeights, token_factor
from flotilla.errors import FlotillaError, Forbidden, InvalidSpec, Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import NODE, Key
from flotilla.planning.resolve import Resolved
from flotilla.prometheus.client import PrometheusClient

TYPE = "CostKnown"
_SHOWN = Decimal("0.0001")


@dataclass(frozen=True, slots=True)
class Priced:
    """A basis and the rates of the nodes that its pods are on, the highest first; without pods the class's."""

    basis: CostBasis
    rates: tuple[Rate, ...]


def price_in_force(basis: CostBasis, nodes: Iterable[NodeFacts], sources: PriceSources) -> Priced:
    """Every rate that is in force, once."""
    rates = {basis.rate(node, sources) for node in nodes} or {basis.rate(None, sources)}
    known = [rate for rate in rates if rate is not None]
    return Priced(basis, tuple(sorted(known, key=lambda rate: (rate.gpu_usd_per_hour, str(rate)), reverse=True)))


def verdict(
    of: Priced, problems: Sequence[InvalidSpec], *, notes: Sequence[str], today: date, stale_after_days: int
) -> Verdict:
    """`problems` are comparators that cannot be used; `notes` are appended to the message."""
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
    message_text = f"One GPU costs {_money(highest)} USD/h ({highest})"
    if len(of.rates) > 1:
        message_text = f"GPUs cost {_money(of.rates[-1])} ({of.rates[-1]}) to {_money(highest)} USD/h ({highest})"
    if any(rate.estimated for rate in of.rates):
        message_text += ", a list price: set your own where you pay another"
    names = ", ".join(comparator.name for comparator in of.basis.comparators)
    message_text += (
        f"; compared with {names}." if names else "; without a hosted model to compare with there are no savings."
    )
    stale = [rate for rate in of.rates if _stale(rate, today, stale_after_days)]
    if stale:
        message_text += (
            f" The price is of {stale[0].as_of} and older than {stale_after_days} days: check it, and give a newer one "
            "by the operator's catalogue or spec.cost.gpuHourlyPrice."
        )
    reason = "PriceStale" if stale else "Priced" if names else "NoComparator"
    return Verdict(TYPE, "True", reason, message_text + tail)


def _money(rate: Rate) -> str:
    return f"{rate.gpu_usd_per_hour.quantize(_SHOWN).normalize():f}"


def _stale(rate: Rate, today: date, stale_after_days: int) -> bool:
    return rate.as_of is not None and today - rate.as_of > timedelta(days=stale_after_days)


# Not node_gpu_hourly_cost: OpenCost divides a node's price over GPU, CPU and memory, and gives the GPU a third of it.
QUERY = "max by (node) (node_total_hourly_cost) / (max by (node) (node_gpu_count) > 0)"


async def opencost_prices(prometheus: PrometheusClient) -> dict[str, Decimal]:
    """US dollars per GPU-hour by node, the host included; a price of 0 or NaN is a missing one. Raises as a query."""
    return {
        series.labels["node"]: Decimal(str(series.value))
        for series in await prometheus.query(QUERY)
        if series.labels.get("node") and series.value is not None and series.value > 0
    }


log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Seconds between two checks of the catalogue's file, and the least time between two lists of nodes."""
_RETRY_S = 30.0
"""Until a failed list of nodes or a failed question to OpenCost is repeated."""


@dataclass(frozen=True, slots=True)
class NodeLister:
    """The nodes by name, where the operator may see them."""

    client: KubeClient
    resources: frozenset[str]
    """Those that are whole GPUs."""

    async def __call__(self, wanted: frozenset[str]) -> dict[str, NodeFacts]:
        """The wanted ones that exist. Raises as a call does."""
        found: dict[str, NodeFacts] = {}
        async for page in self.client.pages(NODE):
            for obj in page.items:
                if obj["metadata"]["name"] in wanted:
                    found[obj["metadata"]["name"]] = node_facts(obj, self.resources)
        return found


Nodes = Callable[[frozenset[str]], Awaitable[Mapping[str, NodeFacts]]]
OpenCost = Callable[[], Awaitable[Mapping[str, Decimal]]]


@dataclass(slots=True)
class PriceCache:
    """What is known now; `run` keeps it so and calls `changed` when something is new."""

    changed: Callable[[], None]
    clock: Callable[[], float]
    interval_s: float
    """Between two lists of nodes, and between two questions to OpenCost."""
    nodes: Nodes | None = None
    """None: the operator may not see nodes."""
    catalog_file: Path | None = None
    opencost: OpenCost | None = None
    sources: PriceSources = NO_SOURCES
    problem: str = ""
    """Why the catalogue's newest content is not in force; empty when it is."""
    _facts: dict[str, NodeFacts] = field(default_factory=dict)
    _wanted: set[str] = field(default_factory=set)
    _missing: set[str] = field(default_factory=set)
    """Asked for since the last list that succeeded."""
    _read: tuple[int, int, int] | None = None
    _no_list_before: float = -math.inf
    """When a list of nodes may be tried again after one that failed."""
    _list_due: float = -math.inf
    """When the nodes that are known are read again."""
    _opencost_due: float = -math.inf

    @property
    def version(self) -> str:
        """Changes with the catalogue's content."""
        return self.sources.catalog.version

    def node(self, name: str) -> NodeFacts | None:
        """What is known of a node; None until it was listed, which is soon after the first question."""
        if name and name not in self._wanted:
            self._wanted.add(name)
            self._missing.add(name)
        return self._facts.get(name)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(LOOK_S)

    async def refresh(self) -> None:
        """Read each source that is due."""
        self.reread()
        now = self.clock()
        if now >= self._no_list_before and (self._missing or (self._wanted and now >= self._list_due)):
            await self._list(now)
        if self.opencost is not None and now >= self._opencost_due:
            await self._ask(self.opencost, now)

    def reread(self) -> None:
        """Take the catalogue's content if it changed; keep the last good one if it is wrong, and set `problem`."""
        if self.catalog_file is None:
            return
        stamp = self._stamp(self.catalog_file)
        if stamp is not None and stamp == self._read:
            return
        self._read = stamp
        try:
            catalog, problem = load_price_catalog(self.catalog_file), ""
        except InvalidSpec as error:
            catalog = self.sources.catalog
            problem = f"The new price catalogue is refused and the last good one stays in force: {error}"
        if (catalog.version, problem) == (self.version, self.problem):
            return
        if problem:
            log.error("price catalogue refused", extra={"cause": problem})
        else:
            log.info("price catalogue", extra={"version": catalog.version})
        self.problem = problem
        self.sources = replace(self.sources, catalog=catalog)
        self.changed()

    @staticmethod
    def _stamp(file: Path) -> tuple[int, int, int] | None:
        # A mounted ConfigMap is a link that the kubelet points to another folder, which changes the inode.
        try:
            stat = file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    async def _list(self, now: float) -> None:
        asked, self._missing = self._missing, set()
        if self.nodes is None:
            return
        try:
            found = dict(await self.nodes(frozenset(self._wanted)))
        except Forbidden as refused:
            log.warning(
                "no permission to list nodes; spot prices and node annotations are ignored",
                extra={"cause": str(refused)},
            )
            self.nodes = None
            return
        except Transient as failure:
            self._missing |= asked
            self._no_list_before = now + min(_RETRY_S, self.interval_s)
            log.info("the list of nodes failed and will be retried", extra={"cause": str(failure)})
            return
        self._list_due = now + self.interval_s
        self._wanted &= found.keys()
        if found != self._facts:
            self._facts = found
            self.changed()

    async def _ask(self, opencost: OpenCost, now: float) -> None:
        try:
            prices = dict(await opencost())
        except FlotillaError as failure:
            self._opencost_due = now + min(_RETRY_S, self.interval_s)
            log.warning("the OpenCost query failed; the last prices stay in use", extra={"cause": str(failure)})
            return
        self._opencost_due = now + self.interval_s
        if prices != (self.sources.opencost or {}):
            self.sources = replace(self.sources, opencost=prices)
            self.changed()


_HUNDRED = Decimal(100)


@dataclass(frozen=True, slots=True)
class PricingPlan:
    """What a generation of a spec is priced at, and which of its comparators cannot be used."""

    cost_basis: CostBasis
    problems: tuple[InvalidSpec, ...]


class Pricing:
    """Never raises InvalidSpec: a wrong comparator must not stop a model from serving."""

    def __init__(
        self,
        desk: HostedPriceLookup,
        book: PriceCache,
        default: HostedModel | None,
        *,
        today: Callable[[], date],
        stale_after_days: int,
    ) -> None:
        self._desk = desk
        self._book = book
        self._default = default
        self._today = today
        self._stale_after_days = stale_after_days
        self.bases: dict[Key, CostBasis] = {}
        """What each ModelDeployment is priced at now; the accounting reads it."""

    def adopt(self, key: Key, plan: PricingPlan) -> None:
        """Charge the ModelDeployment by this plan from now on."""
        self.bases[key] = plan.cost_basis

    def forget(self, key: Key) -> None:
        """Drop a ModelDeployment that was deleted."""
        self.bases.pop(key, None)

    @property
    def version(self) -> str:
        """A basis holds for as long as this stays."""
        return self._book.version

    async def basis(self, spec: ModelDeploymentSpec, resolved: Resolved) -> PricingPlan:
        """For one generation of a spec."""
        comparators, problems = await self._comparators(spec.cost)
        cost = spec.cost
        return PricingPlan(
            CostBasis(
                accelerator=resolved.accelerator,
                override=_override(cost),
                comparators=comparators,
                weights=TokenWeights(
                    output=cost.output_token_weight_percent / _HUNDRED,
                    cached=cost.cached_token_weight_percent / _HUNDRED,
                ),
                tokens_per_second=None if cost.max_tokens_per_second is None else Decimal(cost.max_tokens_per_second),
                overhead_usd_per_day=Decimal(cost.overhead_usd_per_day or 0),
                budget_usd_per_month=None if cost.monthly_budget_usd is None else Decimal(cost.monthly_budget_usd),
                unknown_comparators=len(problems),
            ),
            tuple(problems),
        )

    def verdict(self, of: PricingPlan, node_names: Iterable[str]) -> tuple[Priced, Verdict]:
        """With what is known now, for pods on these nodes. One that was not looked at yet changes nothing."""
        nodes = [node for name in sorted(set(node_names)) if (node := self._book.node(name)) is not None]
        notes = [node.problem for node in nodes if node.problem]
        if self._book.problem:
            notes.append(self._book.problem)
        priced = price_in_force(of.cost_basis, nodes, self._book.sources)
        return priced, verdict(
            priced, of.problems, notes=notes, today=self._today(), stale_after_days=self._stale_after_days
        )

    async def _comparators(self, cost: CostSpec) -> tuple[tuple[Comparator, ...], Sequence[InvalidSpec]]:
        wanted = list(cost.compare_with)
        if not wanted and self._default is not None:
            wanted = [ComparatorSpec(provider=self._default.provider, model=self._default.model)]
        found: list[Comparator] = []
        problems: list[InvalidSpec] = []
        for index, spec in enumerate(wanted):
            try:
                price = await self._price(spec, f"spec.cost.compareWith[{index}]")
            except InvalidSpec as error:
                problems.append(error)
            else:
                found.append(Comparator(price, _terms(spec, price), batch=spec.mode is BillingMode.BATCH))
        # Two names may mean one model of the catalogue.
        return tuple({comparator.name: comparator for comparator in found}.values()), problems

    async def _price(self, spec: ComparatorSpec, field: str) -> HostedPrice:
        """The spec's own prices, else the catalogue's, else those of genai-prices."""
        batch = spec.mode is BillingMode.BATCH
        if spec.prices is not None:
            own = spec.prices
            cached = own.cached_usd_per_million
            return HostedPrice(
                provider=spec.provider,
                model=spec.model,
                source="spec.cost.compareWith",
                input=Tiers(Decimal(own.input_usd_per_million)),
                output=Tiers(Decimal(own.output_usd_per_million)),
                cached=None if cached is None else Tiers(Decimal(cached)),
            )
        row = None if batch else self._book.sources.catalog.find_hosted(spec.provider, spec.model)
        if row is not None:
            return HostedPrice(
                provider=row.provider,
                model=row.model,
                source=f"catalog: {row.source}",
                input=Tiers(row.input_usd_per_million),
                output=Tiers(row.output_usd_per_million),
                cached=None if row.cached_usd_per_million is None else Tiers(row.cached_usd_per_million),
            )
        return await self._desk.find(spec.provider, spec.model, field=field, batch=batch)


def _override(cost: CostSpec) -> Rate | None:
    if cost.gpu_hourly_price is not None:
        return Rate(Decimal(cost.gpu_hourly_price), "resource", "spec.cost.gpuHourlyPrice")
    if cost.owned is not None:
        return Rate(_owned(cost.owned).gpu_usd_per_hour, "owned", "spec.cost.owned")
    return None


def _owned(spec: OwnedHardware) -> Owned:
    return Owned(
        purchase_usd=Decimal(spec.purchase_usd),
        gpus=spec.gpus,
        years=spec.years,
        maintenance_percent_per_year=spec.maintenance_percent_per_year,
        power_watts=spec.power_watts,
        usd_per_kwh=Decimal(spec.usd_per_kwh or 0),
        pue_percent=spec.pue_percent,
    )


def _terms(spec: ComparatorSpec, price: HostedPrice) -> Terms:
    factor = token_factor(price.model)
    given = spec.input_tokens_percent
    tokens_in = factor if given is None else given / _HUNDRED
    percent = spec.output_tokens_percent
    return Terms(
        input_factor=tokens_in,
        output_factor=tokens_in if percent is None else percent / _HUNDRED,
        cache_credit=spec.cache_credit.value,
        cached_share=Decimal(spec.cached_percent or 0) / _HUNDRED,
    )
