"""What a GPU-hour costs: resource override, node annotation, administrator's catalogue, OpenCost, built-in table."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from flotilla import yaml_text
from flotilla.catalog.accelerators import Accelerator, gpu_units, time_slice
from flotilla.constants import GROUP
from flotilla.cost.hosted_prices import MEASURED, Comparator, TokenWeights
from flotilla.errors import InvalidSpec

HOURS_PER_YEAR = Decimal(8760)
_HUNDRED = Decimal(100)
_WATTS_PER_KILOWATT = Decimal(1000)

CapacityType = Literal["on-demand", "spot", "reserved", "unknown"]

SPOT_FACTOR = Decimal("0.42")
"""Spot over on-demand price where only the latter is known: Nebius sells H100 and H200 at 0.41 and 0.42, AWS
g6.12xlarge costs 0.38 to 0.46 in us-east-1 and 0.64 in eu-north-1. Always an estimate."""

_CAPACITY_LABELS: tuple[tuple[str, Mapping[str, CapacityType]], ...] = (
    ("karpenter.sh/capacity-type", {"spot": "spot", "on-demand": "on-demand", "reserved": "reserved"}),
    ("eks.amazonaws.com/capacityType", {"SPOT": "spot", "ON_DEMAND": "on-demand", "CAPACITY_BLOCK": "reserved"}),
    ("cloud.google.com/gke-spot", {"true": "spot"}),
    ("cloud.google.com/gke-provisioning", {"spot": "spot", "preemptible": "spot", "standard": "on-demand"}),
    ("kubernetes.azure.com/scalesetpriority", {"spot": "spot", "regular": "on-demand"}),
)


def capacity_type(labels: Mapping[str, str]) -> CapacityType:
    """How a node was bought, by the labels of Karpenter, EKS, GKE and AKS."""
    for key, known in _CAPACITY_LABELS:
        if (found := known.get(labels.get(key, ""))) is not None:
            return found
    return "unknown"


def node_inclusive(node_usd_per_hour: Decimal, *, node_gpus: Decimal, gpu_units: Decimal) -> Decimal:
    """The pod's part of a node that is rented whole: CPU and memory are in the price and not added."""
    return node_usd_per_hour / node_gpus * gpu_units


@dataclass(frozen=True, slots=True)
class Owned:
    """A machine that was bought. Maintenance is due in each year, so it is not divided by the years."""

    purchase_usd: Decimal
    gpus: int
    years: int
    maintenance_percent_per_year: int = 0
    power_watts: int = 0
    usd_per_kwh: Decimal = Decimal(0)
    pue_percent: int = 100

    @property
    def capital_usd_per_hour(self) -> Decimal:
        """Purchase and maintenance of the whole machine."""
        maintenance = self.purchase_usd * self.maintenance_percent_per_year / _HUNDRED
        return (self.purchase_usd / self.years + maintenance) / HOURS_PER_YEAR

    @property
    def power_usd_per_hour(self) -> Decimal:
        """Electricity of the whole machine, the data centre's overhead included."""
        return self.power_watts / _WATTS_PER_KILOWATT * self.usd_per_kwh * self.pue_percent / _HUNDRED

    @property
    def gpu_usd_per_hour(self) -> Decimal:
        """One GPU's part of both."""
        return (self.capital_usd_per_hour + self.power_usd_per_hour) / self.gpus


REASON = "PriceCatalogRefused"
Dollars = Annotated[Decimal, Field(gt=0, le=10_000_000, allow_inf_nan=False)]


class _PriceRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class OwnedRow(_PriceRow):
    """A machine that was bought."""

    purchase_usd: Dollars
    gpus: Annotated[int, Field(ge=1, le=1024)]
    years: Annotated[int, Field(ge=1, le=20)]
    maintenance_percent_per_year: Annotated[int, Field(ge=0, le=100)] = 0
    power_watts: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    usd_per_kwh: Annotated[Decimal, Field(ge=0, le=100, allow_inf_nan=False)] = Decimal(0)
    pue_percent: Annotated[int, Field(ge=100, le=500)] = 100

    def owned(self) -> Owned:
        """The formula's values."""
        return Owned(**self.model_dump())


class GpuRow(_PriceRow):
    """What one GPU costs, where all that is named matches; exactly one of usd, nodeUsd with gpus, and owned."""

    class_name: Annotated[str, Field(alias="class")] = ""
    instance_type: str = ""
    region: str = ""
    capacity_type: Literal["on-demand", "spot", "reserved"] | None = None
    usd: Dollars | None = None
    node_usd: Dollars | None = None
    gpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    owned: OwnedRow | None = None
    source: str = ""
    as_of: date | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.class_name and not self.instance_type:
            raise ValueError("neither class nor instanceType is set, so it is unknown which GPUs cost this")
        if sum(given is not None for given in (self.usd, self.node_usd, self.owned)) != 1:
            raise ValueError("exactly one of usd (of a GPU), nodeUsd (of a node, with gpus) and owned is needed")
        if (self.node_usd is None) != (self.gpus is None):
            raise ValueError("nodeUsd and gpus belong together: the node's price is divided by its GPUs")
        return self

    @property
    def gpu_usd_per_hour(self) -> Decimal:
        if self.owned is not None:
            return self.owned.owned().gpu_usd_per_hour
        if self.node_usd is not None and self.gpus is not None:
            return self.node_usd / self.gpus
        assert self.usd is not None
        return self.usd

    def matches(self, wanted: "_Wanted") -> int:
        """How many of its conditions hold; 0 when one does not."""
        conditions = (
            (self.class_name, wanted.class_name),
            (self.instance_type, wanted.instance_type),
            (self.region, wanted.region),
            (self.capacity_type or "", wanted.capacity_type),
        )
        named = [(mine, theirs) for mine, theirs in conditions if mine]
        return len(named) if all(mine == theirs for mine, theirs in named) else 0


class HostedRow(_PriceRow):
    """A hosted model's price, US dollars per million tokens; wins over genai-prices."""

    provider: Annotated[str, Field(pattern=r"^[a-z0-9][-_.a-z0-9]*$", max_length=63)]
    model: Annotated[str, Field(min_length=1, max_length=200)]
    input_usd_per_million: Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
    output_usd_per_million: Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
    cached_usd_per_million: Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)] | None = None
    source: str = ""
    as_of: date | None = None


class _Document(_PriceRow):
    source: str
    as_of: date
    gpus: tuple[GpuRow, ...] = ()
    hosted: tuple[HostedRow, ...] = ()


@dataclass(frozen=True, slots=True)
class _Wanted:
    class_name: str
    instance_type: str
    region: str
    capacity_type: CapacityType


@dataclass(frozen=True, slots=True)
class PriceCatalog:
    """Rows with source and date filled in; `version` changes with the content."""

    version: str = ""
    source: str = ""
    as_of: date | None = None
    gpus: tuple[GpuRow, ...] = ()
    hosted: tuple[HostedRow, ...] = field(default=())

    def find(self, class_name: str, *, instance_type: str, region: str, capacity_type: CapacityType) -> GpuRow | None:
        """The row with the most conditions that all hold, the first among equals; None without one."""
        wanted = _Wanted(class_name, instance_type, region, capacity_type)
        best = max(self.gpus, key=lambda row: row.matches(wanted), default=None)
        return best if best is not None and best.matches(wanted) else None

    def find_hosted(self, provider: str, model: str) -> HostedRow | None:
        """None where genai-prices has to know."""
        return next((row for row in self.hosted if (row.provider, row.model) == (provider, model)), None)


EMPTY = PriceCatalog()


def load_price_catalog(file: Path | None) -> PriceCatalog:
    """The catalogue of a file; an empty one without a file. Raises InvalidSpec as `parse`."""
    if file is None:
        return EMPTY
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{file}: {error}", field="price_catalog", reason=REASON) from error
    return parse(str(file), text)


def parse(name: str, text: str) -> PriceCatalog:
    """Read a catalogue; `name` is the file's. Raises InvalidSpec with file, row, field and reason."""
    try:
        content: Any = yaml_text.load(text)
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{name}: {error}", reason=REASON) from error
    if not isinstance(content, dict):
        message = f"{name}: a mapping with source, asOf, gpus and hosted is needed, not a {type(content).__name__}."
        raise InvalidSpec(message, reason=REASON)
    try:
        document = _Document.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem_text = f"{first['msg']}" + ("" if isinstance(first["input"], dict) else f" (value: {first['input']!r})")
        raise InvalidSpec(f"{name}: {where}: {problem_text}", field=where, reason=REASON) from error
    return PriceCatalog(
        version=hashlib.sha256(text.encode()).hexdigest()[:8],
        source=document.source,
        as_of=document.as_of,
        gpus=_dated(document.gpus, document),
        hosted=_dated(document.hosted, document),
    )


def _dated(rows: Iterable[Any], document: _Document) -> tuple[Any, ...]:
    return tuple(
        row.model_copy(update={"source": row.source or document.source, "as_of": row.as_of or document.as_of})
        for row in rows
    )


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
    """None: the price has no date, because its owner keeps it up to date."""
    estimated: bool = False
    """A list price, or one that was derived from another: what is really paid may differ much."""

    def __str__(self) -> str:
        return f"{self.source}: {self.detail}"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The labels and annotations of a node that its price depends on."""

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
    """The price from the first source that has one: resource, node, catalogue, OpenCost, built-in table; else None."""
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
    """The parts of a spec that prices are computed from; rates also depend on the nodes."""

    accelerator: Accelerator
    override: Rate | None = None
    comparators: tuple[Comparator, ...] = ()
    weights: TokenWeights = MEASURED
    tokens_per_second: Decimal | None = None
    """Output tokens that one replica can make; None: the most that was seen."""
    overhead_usd_per_day: Decimal = Decimal(0)
    budget_usd_per_month: Decimal | None = None
    unknown_comparators: int = 0

    def rate(self, node: NodeFacts | None, sources: PriceSources) -> Rate | None:
        """As `rate`."""
        return rate(self.accelerator, override=self.override, node=node, sources=sources)
