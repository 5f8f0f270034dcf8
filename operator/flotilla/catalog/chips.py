"""What the makers of GPUs publish: memory bandwidth and dense throughput by data type (chips.yaml)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from importlib.resources import files
from typing import Any

from flotilla import yaml_text
from flotilla.catalog.accelerators import Accelerator
from flotilla.errors import InvalidSpec

WIDE_TYPES = ("bf16", "fp16")
"""Types of 16 bits; they run at the same rate where a card has both."""


@dataclass(frozen=True, slots=True)
class Chip:
    """One GPU, or one MIG slice of it."""

    class_name: str
    family: str
    """Cards that reach about the same share of what their data sheets promise."""
    bandwidth_gb_per_s: float
    tflops: Mapping[str, float]
    """Dense multiply-adds, by type: bf16, fp16, fp8, int8, fp4."""
    link_gb_per_s: float
    """To the other GPUs of a node, in one direction."""
    source: str
    slice_of: str = ""
    """The whole GPU that this is a slice of; empty for a whole one."""

    @property
    def wide_tflops(self) -> float:
        """At 16 bits."""
        return max(self.tflops.get(name, 0.0) for name in WIDE_TYPES)

    def slice(self, class_name: str, *, compute: Fraction, memory: Fraction) -> "Chip":
        """A part of it with so much of its compute and of its memory bandwidth."""
        return replace(
            self,
            class_name=class_name,
            bandwidth_gb_per_s=self.bandwidth_gb_per_s * float(memory),
            tflops={name: value * float(compute) for name, value in self.tflops.items()},
            source=f"{compute} of the compute and {memory} of the bandwidth of {self.class_name} ({self.source})",
            slice_of=self.class_name,
        )


@cache
def load_chips() -> Mapping[str, Chip]:
    """The packaged table by class name; read once."""
    rows: list[dict[str, Any]] = yaml_text.load(files(__package__).joinpath("data/chips.yaml").read_text())
    table: dict[str, Chip] = {}
    for row in rows:
        name = row["class"]
        if whole := row.get("of"):
            parts = {key: Fraction(row[key]) for key in ("compute", "memory")}
            table[name] = table[whole].slice(name, **parts)
        else:
            table[name] = Chip(
                class_name=name,
                family=row["family"],
                bandwidth_gb_per_s=float(row["bandwidth"]),
                tflops={key: float(value) for key, value in row["tflops"].items()},
                link_gb_per_s=float(row["link"]),
                source=row["source"],
            )
    return table


def chip_of(accelerator: Accelerator) -> Chip:
    """What is published of a class, by its own row or by the packaged table; raises InvalidSpec where nothing is."""
    told = accelerator.speed
    if told is None:
        return find_chip(accelerator.class_name)
    return Chip(
        class_name=accelerator.class_name,
        family=told.family,
        bandwidth_gb_per_s=told.bandwidth_gb_per_s,
        tflops={str(name): value for name, value in told.tflops.items()},
        link_gb_per_s=told.link_gb_per_s,
        source=told.source,
    )


def find_chip(class_name: str, *, field: str = "--accelerator") -> Chip:
    """What is published of a class; raises InvalidSpec where nothing is."""
    chip = load_chips().get(class_name)
    if chip is None:
        raise InvalidSpec(f"no speed is known for {class_name}: give --tasks-per-second", field=field)
    return chip
