"""An administrator's own prices of GPUs and hosted models: one YAML document with source and date."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from flotilla import yaml_text
from flotilla.domain.cost.rates import CapacityType, Owned
from flotilla.errors import InvalidSpec

REASON = "PriceCatalogRefused"
Dollars = Annotated[Decimal, Field(gt=0, le=10_000_000, allow_inf_nan=False)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class OwnedRow(_Row):
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


class GpuRow(_Row):
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
            raise ValueError("neither class nor instanceType says which GPUs cost this")
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


class HostedRow(_Row):
    """A hosted model's price, US dollars per million tokens; wins over genai-prices."""

    provider: Annotated[str, Field(pattern=r"^[a-z0-9][-_.a-z0-9]*$", max_length=63)]
    model: Annotated[str, Field(min_length=1, max_length=200)]
    input_usd_per_million: Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
    output_usd_per_million: Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
    cached_usd_per_million: Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)] | None = None
    source: str = ""
    as_of: date | None = None


class _Document(_Row):
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
    """Rows with source and date filled in; `version` tells one content from another."""

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


def load(file: Path | None) -> PriceCatalog:
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
        told = f"{first['msg']}" + ("" if isinstance(first["input"], dict) else f" (value: {first['input']!r})")
        raise InvalidSpec(f"{name}: {where}: {told}", field=where, reason=REASON) from error
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
