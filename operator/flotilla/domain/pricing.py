"""What one GPU costs per hour on a node, and which of five sources says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from flotilla.constants import GROUP
from flotilla.domain.accelerators import Accelerator
from flotilla.domain.cost.rates import SPOT_FACTOR, CapacityType, capacity_type, node_inclusive
from flotilla.domain.cost.tokens import MEASURED, Weights
from flotilla.domain.cost.units import gpu_units, time_slice
from flotilla.domain.price_catalog import EMPTY, PriceCatalog
from flotilla.domain.prices import Comparator

RateSource = Literal["resource", "owned", "node", "catalog", "opencost", "built-in"]
"""The greatest precedence first."""

ANNOTATION_GPU_PRICE = f"{GROUP}/gpu-hourly-price"
"""Of a node: US dollars per hour of one of its GPUs, the host's share included."""
ANNOTATION_NODE_PRICE = f"{GROUP}/node-hourly-price"
"""Of a node: US dollars per hour of all of it; divided by its GPUs."""

_REGION = "topology.kubernetes.io/region"
_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_GPU_REPLICAS = "nvidia.com/gpu.replicas"


@dataclass(frozen=True, slots=True)
class Rate:
    """The price of one whole GPU for one hour in US dollars, the host's share included."""

    gpu_usd_per_hour: Decimal
    source: RateSource
    detail: str
    as_of: date | None = None
    """None: whoever gave the price keeps it up to date."""
    estimated: bool = False
    """A list price, or one that was derived from another: what is really paid may differ much."""

    def __str__(self) -> str:
        return f"{self.source}: {self.detail}"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node tells about prices."""

    name: str
    capacity_type: CapacityType = "unknown"
    instance_type: str = ""
    region: str = ""
    gpu_replicas: int = 1
    """Units that the device plugin advertises for one GPU without renaming the resource."""
    gpu_usd_per_hour: Decimal | None = None
    """By annotation."""
    problem: str = ""
    """An annotation that cannot be read: which, its value, and what to write."""


def node_facts(obj: Mapping[str, Any], resources: frozenset[str]) -> NodeFacts:
    """Reduce a v1 Node; `resources` are those that are whole GPUs."""
    meta = obj["metadata"]
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    capacity = (obj.get("status") or {}).get("capacity") or {}
    replicas = labels.get(_GPU_REPLICAS, "1")
    shares = max(1, int(replicas)) if replicas.isdigit() else 1
    gpus = sum(int(count) for name, count in capacity.items() if name in resources and str(count).isdigit())
    usd, problem = None, ""
    for annotation in (ANNOTATION_GPU_PRICE, ANNOTATION_NODE_PRICE):
        if annotation not in annotations or usd is not None:
            continue
        given = _usd(annotations[annotation])
        if given is None:
            problem = (
                f"Node {meta['name']}: annotation {annotation} is {annotations[annotation]!r}; "
                'write US dollars per hour, such as "2.10".'
            )
        elif annotation == ANNOTATION_GPU_PRICE:
            usd = given
        elif gpus:
            usd = node_inclusive(given, node_gpus=Decimal(gpus) / shares, gpu_units=Decimal(1))
        else:
            problem = (
                f"Node {meta['name']}: annotation {annotation} cannot be divided, for the node has no whole GPUs; "
                f"write {ANNOTATION_GPU_PRICE}."
            )
    return NodeFacts(
        name=meta["name"],
        capacity_type=capacity_type(labels),
        instance_type=labels.get(_INSTANCE_TYPE, ""),
        region=labels.get(_REGION, ""),
        gpu_replicas=shares,
        gpu_usd_per_hour=usd,
        problem=problem,
    )


def _usd(text: str) -> Decimal | None:
    try:
        usd = Decimal(text)
    except InvalidOperation:
        return None
    return usd if usd.is_finite() and usd > 0 else None


@dataclass(frozen=True, slots=True)
class PriceSources:
    """What the operator knows about prices now, beside the resource, its node and the built-in table."""

    catalog: PriceCatalog = EMPTY
    opencost: Mapping[str, Decimal] | None = None
    """US dollars per GPU-hour by node name."""


NO_SOURCES = PriceSources()


def rate(
    accelerator: Accelerator,
    *,
    override: Rate | None = None,
    node: NodeFacts | None = None,
    sources: PriceSources = NO_SOURCES,
) -> Rate | None:
    """The first source that knows: resource, node, catalogue, OpenCost, built-in table. None where none does."""
    if override is not None:
        return override
    if node is not None and node.gpu_usd_per_hour is not None:
        return Rate(node.gpu_usd_per_hour, "node", "annotation of the node")
    row = sources.catalog.find(
        accelerator.class_name,
        instance_type=node.instance_type if node else "",
        region=node.region if node else "",
        capacity_type=node.capacity_type if node else "unknown",
    )
    if row is not None:
        return Rate(row.gpu_usd_per_hour, "catalog", row.source, row.as_of)
    measured = (sources.opencost or {}).get(node.name) if node is not None else None
    if measured is not None:
        return Rate(measured, "opencost", "node_total_hourly_cost / node_gpu_count")
    listed = accelerator.price
    if listed is None:
        return None
    # A row's price is that of a unit, which may be a share.
    usd = listed.usd * accelerator.share.denominator / accelerator.share.numerator
    if node is not None and node.capacity_type == "spot":
        detail = f"{SPOT_FACTOR} of {listed.source}, for spot"
        return Rate(usd * SPOT_FACTOR, "built-in", detail, listed.as_of, estimated=True)
    return Rate(usd, "built-in", listed.source, listed.as_of, estimated=True)


def pod_units(accelerator: Accelerator, count: int, node: NodeFacts | None) -> Decimal:
    """Whole GPUs that a replica holds; on a node with unnamed time-slicing each unit is a share of one."""
    if accelerator.share == 1 and not accelerator.shared and node is not None and node.gpu_replicas > 1:
        return gpu_units(count, time_slice(node.gpu_replicas))
    return gpu_units(count, accelerator.share)


@dataclass(frozen=True, slots=True)
class CostBasis:
    """What a spec says about its dollars; rates also depend on the nodes."""

    accelerator: Accelerator
    override: Rate | None = None
    comparators: tuple[Comparator, ...] = ()
    weights: Weights = MEASURED
    tokens_per_second: Decimal | None = None
    """Output tokens that one replica can make; None: the most that was seen."""
    overhead_usd_per_day: Decimal = Decimal(0)
    budget_usd_per_month: Decimal | None = None
    unknown_comparators: int = 0

    def rate(self, node: NodeFacts | None, sources: PriceSources) -> Rate | None:
        """As `rate`."""
        return rate(self.accelerator, override=self.override, node=node, sources=sources)
