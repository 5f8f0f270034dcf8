"""The table of accelerator classes: what a GPU can do, which nodes have it, what it costs."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from importlib.resources import files
from typing import Any

import yaml

from flotilla.errors import InvalidSpec

_LABELS = {
    "gfd": "nvidia.com/gpu.product",
    "gke": "cloud.google.com/gke-accelerator",
    "karpenter": "karpenter.k8s.aws/instance-gpu-name",
    "amd": "amd.com/gpu.product-name",
}
_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}


@dataclass(frozen=True, slots=True)
class GpuPrice:
    """US dollars for one GPU for one hour, the host's share included."""

    usd: Decimal
    source: str
    as_of: date


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One class. `compute_capability` is CUDA's, 0 for other vendors."""

    class_name: str
    vendor: str
    resource: str
    memory_gib: Decimal
    compute_capability: float
    node_labels: tuple[tuple[str, tuple[str, ...]], ...]
    """Label key and the values that mean this class; any one of the pairs on a node is enough."""
    price: GpuPrice | None

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16: from Ampere on, and every AMD Instinct."""
        return self.vendor != "nvidia" or self.compute_capability >= 8.0


def load_accelerators() -> dict[str, Accelerator]:
    """The packaged table by class name."""
    text = files(__package__).joinpath("accelerators.yaml").read_text()
    return {row["class"]: _accelerator(row) for row in yaml.safe_load(text)}


def _accelerator(row: Mapping[str, Any]) -> Accelerator:
    price = row.get("price")
    return Accelerator(
        class_name=row["class"],
        vendor=row["vendor"],
        resource=_RESOURCES[row["vendor"]],
        memory_gib=Decimal(row["memoryGib"]),
        compute_capability=float(row["computeCapability"]),
        node_labels=tuple((label, tuple(row[key])) for key, label in _LABELS.items() if key in row),
        price=GpuPrice(Decimal(price["usd"]), price["source"], price["asOf"]) if price else None,
    )


def find(table: Mapping[str, Accelerator], class_name: str) -> Accelerator:
    """The class; raises InvalidSpec with the nearest names."""
    found = table.get(class_name)
    if found is None:
        near = difflib.get_close_matches(class_name, table, n=3, cutoff=0.5) or sorted(table)
        raise InvalidSpec(
            f"{class_name!r} is not a class of the operator's accelerator table. Did you mean {', '.join(near)}?",
            field="spec.accelerator.class",
            reason="UnknownAccelerator",
        )
    return found
