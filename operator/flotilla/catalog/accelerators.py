"""Accelerator classes: memory, compute capability, node labels and list prices of GPUs

The packaged table is `data/accelerators.yaml`; an administrator's table adds to it.
"""

import difflib
import re
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from flotilla import yaml_text
from flotilla.errors import InvalidSpec

_SHARE = re.compile(r"^([1-9]\d{0,3})/([1-9]\d{0,3})$")


def gpu_units(count: int, share: Fraction = Fraction(1)) -> Decimal:
    """`count` units of a class, each of which is `share` of a GPU."""
    return Decimal(count) * share.numerator / share.denominator


def time_slice(replicas: int) -> Fraction:
    """One of `replicas` shares of a GPU by time-slicing or MPS."""
    return Fraction(1, replicas)


def parse_share(text: str) -> Fraction:
    """Read `1/7`; raises ValueError."""
    found = _SHARE.match(text)
    share = Fraction(int(found[1]), int(found[2])) if found else Fraction(0)
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is not a share of a GPU: write a fraction up to 1/1, such as 1/7")
    return share


_LABELS = {
    "gfd": "nvidia.com/gpu.product",
    "gke": "cloud.google.com/gke-accelerator",
    "eks": "node.kubernetes.io/instance-type",
    "aks": "node.kubernetes.io/instance-type",
    "karpenter": "karpenter.k8s.aws/instance-gpu-name",
    "amd": "amd.com/gpu.product-name",
    "arch": "kubernetes.io/arch",
}
_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "cpu": ""}
WHOLE_GPUS = frozenset(resource for resource in _RESOURCES.values() if resource)
"""Extended resources of which one unit is a GPU, unless the node's labels tell otherwise."""
_SHORT = ("", "nvidia-", "amd-")
"""What a user may leave out of a class on the command line."""
_MEMORY = re.compile(r"\d+gb")


class _AcceleratorRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class GpuPrice(_AcceleratorRow):
    """US dollars for one of the class's units for one hour, the host's share included."""

    usd: Annotated[Decimal, Field(gt=0)]
    source: str
    as_of: date


class PublishedSpeed(_AcceleratorRow):
    """What the maker of one unit publishes, for speeds that are computed (chips.yaml has the packaged classes)."""

    bandwidth_gb_per_s: Annotated[float, Field(gt=0, le=1e6)]
    """Of its memory."""
    tflops: Annotated[Mapping[Literal["bf16", "fp16", "fp8", "int8", "fp4"], Annotated[float, Field(gt=0)]], Field()]
    """Dense, by the type that is multiplied; bf16 or fp16 must be there."""
    link_gb_per_s: Annotated[float, Field(gt=0, le=1e6)] = 32
    """To the other GPUs of a node in one direction; by default PCIe 4.0's."""
    family: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")] = "other"
    """A family of chips.yaml whose share of the published figures it reaches."""
    source: Annotated[str, Field(min_length=1, max_length=253)] = "the operator's accelerator table"

    @model_validator(mode="after")
    def _has_16_bits(self) -> "PublishedSpeed":
        if not {"bf16", "fp16"} & set(self.tflops):
            raise ValueError("tflops has neither bf16 nor fp16: give one, in dense TFLOPS, such as {bf16: 121}")
        return self


class Accelerator(_AcceleratorRow):
    """One class. `compute_capability` is CUDA's, 0 for other vendors."""

    class_name: Annotated[str, Field(alias="class", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    vendor: Literal["nvidia", "amd", "cpu"]
    memory_gib: Annotated[Decimal, Field(ge=0)]
    """What the driver reports, of one unit; 0 for a CPU, whose memory is that of the pod."""
    compute_capability: Annotated[float, Field(ge=0)] = 0.0
    resource_name: Annotated[str, Field(alias="resource")] = ""
    """The extended resource, where it is not the vendor's own."""
    shared: bool = False
    """A slice or a share of a GPU: several of them do not make a larger one."""
    share: Annotated[Fraction, Field(alias="gpuShare"), BeforeValidator(lambda text: parse_share(str(text)))] = (
        Fraction(1)
    )
    """How much of a GPU one unit is: 1/7 of a MIG slice, 1/k where the device plugin makes k of one."""
    labels: Mapping[str, tuple[str, ...]] = {}
    """Label keys of nodes beside the well-known ones."""
    gfd: tuple[str, ...] = ()
    gke: tuple[str, ...] = ()
    eks: tuple[str, ...] = ()
    aks: tuple[str, ...] = ()
    karpenter: tuple[str, ...] = ()
    amd: tuple[str, ...] = ()
    arch: tuple[str, ...] = ()
    price: GpuPrice | None = None
    speed: PublishedSpeed | None = None
    """For a class that chips.yaml does not have, or another card of the same class."""

    @model_validator(mode="after")
    def _complete(self) -> "Accelerator":
        if self.vendor == "nvidia" and not self.compute_capability:
            raise ValueError("computeCapability is missing: NVIDIA lists it per GPU, such as 8.9 for an L4")
        if self.vendor != "cpu" and not self.memory_gib:
            raise ValueError("memoryGib is missing: nvidia-smi shows it")
        if self.vendor != "cpu" and not self.node_labels and not self.resource_name:
            raise ValueError("neither node labels (gfd, gke, labels, ...) nor resource say which nodes have it")
        return self

    @property
    def resource(self) -> str:
        """The extended resource that a pod asks for; empty for a CPU."""
        return self.resource_name or _RESOURCES[self.vendor]

    @property
    def taint(self) -> str:
        """Key of the taint that such nodes carry, as a rule; empty for none."""
        return _RESOURCES[self.vendor]

    @cached_property
    def node_labels(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Label key and the values that mean this class; any one of the pairs on a node is enough."""
        merged: dict[str, tuple[str, ...]] = {}
        for name, key in _LABELS.items():
            if values := getattr(self, name):
                merged[key] = (*merged.get(key, ()), *values)
        return tuple((merged | dict(self.labels)).items())

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16: from Ampere on, every AMD Instinct, and CPUs (slowly where not natively)."""
        return self.vendor != "nvidia" or self.compute_capability >= 8.0


def load_accelerators(extra: Path | None = None) -> dict[str, Accelerator]:
    """The packaged table by class name, and the rows of the file `extra`, which win.

    Raises InvalidSpec with file, class, field and reason when a row is broken.
    """
    table = parse("accelerators.yaml", files(__package__).joinpath("data/accelerators.yaml").read_text())
    if extra is not None:
        try:
            table |= parse(str(extra), extra.read_text())
        except OSError as error:
            raise InvalidSpec(f"{extra}: {error.strerror}", field="accelerators", reason="BrokenTable") from error
    return table


def parse(name: str, text: str) -> dict[str, Accelerator]:
    """Read a table; `name` is the file's, for the error."""
    try:
        rows: Any = yaml_text.load(text) or []
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{name}: {error}", reason="BrokenTable") from error
    if not isinstance(rows, list):
        raise InvalidSpec(f"{name}: a list of classes is needed, not a {type(rows).__name__}.", reason="BrokenTable")
    table: dict[str, Accelerator] = {}
    for index, row in enumerate(rows):
        try:
            accelerator = Accelerator.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            label = row.get("class", index) if isinstance(row, dict) else index
            field = ".".join(str(part) for part in first["loc"])
            message = f"{name}: {label}: {field + ': ' if field else ''}{first['msg']}"
            raise InvalidSpec(message, field=field, reason="BrokenTable") from error
        table[accelerator.class_name] = accelerator
    return table


def find(table: Mapping[str, Accelerator], class_name: str, *, field: str = "spec.accelerator.class") -> Accelerator:
    """The class; raises InvalidSpec with the nearest names."""
    found = table.get(class_name)
    if found is None:
        whole = sorted(name for name, row in table.items() if not row.shared)
        near = difflib.get_close_matches(class_name, table, n=3, cutoff=0.5) or whole
        raise InvalidSpec(
            f"{class_name!r} is not a class of the operator's accelerator table. Did you mean {', '.join(near)}?",
            field=field,
            reason="UnknownAccelerator",
        )
    return found


def find_loosely(table: Mapping[str, Accelerator], name: str) -> Accelerator:
    """As `find`, for the command line: L4 and l4 mean nvidia-l4, and so do the names that nodes have in their labels.

    Part of a name is enough where it means one whole GPU (4090, A100-80). H100 is the one of which only the memory is
    left out; A100, of which there are two, raises InvalidSpec that names both.
    """
    wanted = "-".join(name.lower().replace("_", "-").split())
    for prefix in _SHORT:
        if prefix + wanted in table:
            return table[prefix + wanted]
    whole = [row for row in table.values() if not row.shared]
    found = [row for row in whole if _has_parts(row.class_name.split("-"), wanted.split("-"))] or [
        row for row in whole if any(wanted == value.lower() for _, values in row.node_labels for value in values)
    ]
    if len(found) > 1:
        found = [row for row in found if _MEMORY.fullmatch(row.class_name.partition(wanted + "-")[2])] or found
    if len(found) > 1:
        sizes = " or ".join(row.class_name for row in found)
        raise InvalidSpec(
            f"{name!r} comes in several sizes: say {sizes}.", field="--accelerator", reason="UnknownAccelerator"
        )
    return found[0] if found else find(table, wanted, field="--accelerator")


def _has_parts(parts: list[str], wanted: list[str]) -> bool:
    """Whether the parts of a name have the wanted ones in a row, the last of them perhaps without its unit."""
    return any(
        parts[start : start + len(wanted) - 1] == wanted[:-1]
        and parts[start + len(wanted) - 1] in (wanted[-1], wanted[-1] + "gb")
        for start in range(len(parts) - len(wanted) + 1)
    )
