"""The basis of a deployment's dollars: whose GPU price, and which hosted models it is held against."""

from collections.abc import Sequence
from decimal import Decimal

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.config import HostedModel
from flotilla.domain.prices import HostedPrice
from flotilla.domain.readiness import Verdict
from flotilla.domain.resolve import Resolved
from flotilla.domain.status import CostBasis
from flotilla.errors import InvalidSpec
from flotilla.telemetry.price_desk import PriceDesk


class Pricing:
    """Answers with a basis as far as it is known, and a CostKnown verdict that names what is missing."""

    def __init__(self, desk: PriceDesk, default: HostedModel | None) -> None:
        self._desk = desk
        self._default = default

    async def basis(self, spec: ModelDeploymentSpec, resolved: Resolved) -> tuple[CostBasis | None, Verdict]:
        """Never raises InvalidSpec: a wrong comparator must not stop a model from serving."""
        comparators, problems = await self._comparators(spec)
        if spec.cost.gpu_hourly_price is not None:
            basis = CostBasis(Decimal(spec.cost.gpu_hourly_price), "spec.cost.gpuHourlyPrice", "", comparators)
        elif resolved.accelerator.price is not None:
            price = resolved.accelerator.price
            basis = CostBasis(price.usd, f"built-in table: {price.source}", price.as_of.isoformat(), comparators)
        else:
            message = (
                f"The price of {resolved.accelerator.class_name} is not in the built-in table. "
                "Set spec.cost.gpuHourlyPrice."
            )
            return None, Verdict("CostKnown", "False", "GpuPriceUnknown", message)
        if problems:
            error = problems[0]
            return basis, Verdict("CostKnown", "False", error.reason, f"{error.field}: {error}")
        if not comparators:
            message = "The GPU's price is known; without a hosted model to compare with there are no savings to show."
            return basis, Verdict("CostKnown", "True", "NoComparator", message)
        names = ", ".join(price.comparator for price in comparators)
        message = f"One GPU costs {basis.gpu_usd_per_hour} USD/h ({basis.source}); compared with {names}."
        return basis, Verdict("CostKnown", "True", "Priced", message)

    async def _comparators(self, spec: ModelDeploymentSpec) -> tuple[tuple[HostedPrice, ...], Sequence[InvalidSpec]]:
        wanted = [(ref.provider, ref.model) for ref in spec.cost.compare_with]
        if not wanted and self._default is not None:
            wanted = [(self._default.provider, self._default.model)]
        found: list[HostedPrice] = []
        problems: list[InvalidSpec] = []
        for index, (provider, model) in enumerate(wanted):
            try:
                found.append(await self._desk.find(provider, model, field=f"spec.cost.compareWith[{index}]"))
            except InvalidSpec as error:
                problems.append(error)
        return tuple(dict.fromkeys(found)), problems
