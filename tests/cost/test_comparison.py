"""Rules about rates, GPU shares and nodes."""

from decimal import Decimal
from fractions import Fraction

import pytest

from flotilla.catalog.accelerators import gpu_units, load_accelerators, parse_share, time_slice
from flotilla.cost.gpu_prices import capacity_type
from flotilla.cost.hosted_prices import usd_per_million, usd_per_request

D = Decimal


def mig_share(compute_slices: int, memory_slices: int) -> Fraction:
    """A MIG slice counts as the greater of its two shares, because no other slice can use the rest of that resource."""
    return max(Fraction(compute_slices, 7), Fraction(memory_slices, 8))


def test_units_of_whole_and_shared_gpus() -> None:
    assert gpu_units(8) == 8
    assert gpu_units(1, time_slice(4)) == D("0.25")
    assert round(gpu_units(2, Fraction(1, 7)), 6) == D("0.285714")
    assert gpu_units(1, Fraction(1, 2)) * 2 == 1


def test_the_packaged_slices_have_the_share_of_their_profile_and_that_share_of_the_price() -> None:
    table = load_accelerators()
    slices = {name: row for name, row in table.items() if row.resource.startswith("nvidia.com/mig-")}
    assert len(slices) == 12
    for name, row in slices.items():
        whole = table[name.partition("-mig-")[0]]
        compute = int(row.resource.removeprefix("nvidia.com/mig-").partition("g.")[0])
        memory = min((1, 2, 4, 8), key=lambda slices: abs(row.memory_gib / whole.memory_gib - D(slices) / 8))
        assert row.share == mig_share(compute, memory), name
        assert row.price is not None
        assert whole.price is not None
        assert abs(row.price.usd - whole.price.usd * row.share.numerator / row.share.denominator) < D("0.0001"), name


@pytest.mark.parametrize("text", ["0/3", "8/7", "1", "a/b", "1/0", "-1/7"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a share of a GPU"):
        parse_share(text)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"karpenter.sh/capacity-type": "reserved"}, "reserved"),
        ({"karpenter.sh/capacity-type": "spot", "eks.amazonaws.com/capacityType": "ON_DEMAND"}, "spot"),
        ({"eks.amazonaws.com/capacityType": "ON_DEMAND"}, "on-demand"),
        ({"cloud.google.com/gke-spot": "true"}, "spot"),
        ({"cloud.google.com/gke-spot": "false"}, "unknown"),
        ({"cloud.google.com/gke-provisioning": "standard"}, "on-demand"),
        ({"kubernetes.azure.com/scalesetpriority": "spot"}, "spot"),
        ({}, "unknown"),
    ],
)
def test_node_labels_say_how_a_node_was_bought(labels: dict[str, str], found: str) -> None:
    assert capacity_type(labels) == found


def test_without_tokens_or_requests_there_is_no_figure_rather_than_zero() -> None:
    assert usd_per_million(D(5), D(0)) is None
    assert usd_per_request(D(5), D(0)) is None
