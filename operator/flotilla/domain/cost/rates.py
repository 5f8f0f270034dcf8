"""What hardware costs per hour, rented by the node or owned; how a node was bought."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

HOURS_PER_YEAR = Decimal(8760)
_HUNDRED = Decimal(100)
_WATTS_PER_KILOWATT = Decimal(1000)

CapacityType = Literal["on-demand", "spot", "reserved", "unknown"]

SPOT_FACTOR = Decimal("0.42")
"""Spot over on-demand price where only the latter is known: Nebius sells H100 and H200 at 0.41 and 0.42, AWS
g6.12xlarge goes for 0.38 to 0.46 in us-east-1 and 0.64 in eu-north-1. Always an estimate."""

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
