"""From spec.cost to the basis of a deployment's dollars: its own price, and hosted models with their terms."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from flotilla.api.conditions import Verdict
from flotilla.api.cost import BillingMode, ComparatorSpec, CostSpec, OwnedHardware
from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.config import HostedModel
from flotilla.control.price_book import PriceBook
from flotilla.domain import cost_known
from flotilla.domain.cost.hosted import Terms
from flotilla.domain.cost.rates import Owned
from flotilla.domain.cost.tokens import Weights
from flotilla.domain.cost_known import Priced
from flotilla.domain.prices import Comparator, HostedPrice, Tiers, token_factor
from flotilla.domain.pricing import CostBasis, Rate
from flotilla.domain.resolve import Resolved
from flotilla.errors import InvalidSpec
from flotilla.telemetry.price_desk import PriceDesk

_HUNDRED = Decimal(100)


@dataclass(frozen=True, slots=True)
class Basis:
    """What a spec says, and which of its comparators cannot be used."""

    basis: CostBasis
    problems: tuple[InvalidSpec, ...]


class Pricing:
    """Never raises InvalidSpec: a wrong comparator must not stop a model from serving."""

    def __init__(
        self,
        desk: PriceDesk,
        book: PriceBook,
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

    @property
    def version(self) -> str:
        """A basis holds for as long as this stays."""
        return self._book.version

    async def basis(self, spec: ModelDeploymentSpec, resolved: Resolved) -> Basis:
        """For one generation of a spec."""
        comparators, problems = await self._comparators(spec.cost)
        cost = spec.cost
        return Basis(
            CostBasis(
                accelerator=resolved.accelerator,
                override=_override(cost),
                comparators=comparators,
                weights=Weights(
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

    def verdict(self, of: Basis, node_names: Iterable[str]) -> tuple[Priced, Verdict]:
        """With what is known now, for pods on these nodes. One that was not looked at yet changes nothing."""
        nodes = [node for name in sorted(set(node_names)) if (node := self._book.node(name)) is not None]
        notes = [node.problem for node in nodes if node.problem]
        if self._book.problem:
            notes.append(self._book.problem)
        priced = cost_known.priced(of.basis, nodes, self._book.sources)
        return priced, cost_known.verdict(
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
