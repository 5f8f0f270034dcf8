"""The table of accelerator classes, and an administrator's own rows."""

from pathlib import Path

import pytest

from flotilla.catalog.accelerators import find_loosely, load_accelerators, parse
from flotilla.catalog.chips import chip_of, find_chip
from flotilla.errors import InvalidSpec

TABLE = load_accelerators()


def test_every_gpu_class_says_which_nodes_have_it_and_what_a_pod_asks_for() -> None:
    for name, row in TABLE.items():
        assert row.class_name == name
        assert row.node_labels
        assert bool(row.resource) == (row.vendor != "cpu")
        assert bool(row.memory_gib) == (row.vendor != "cpu")


def test_labels_of_every_provider_mean_the_class() -> None:
    labels = dict(TABLE["nvidia-l4"].node_labels)
    assert labels["nvidia.com/gpu.product"] == ("NVIDIA-L4",)
    assert labels["cloud.google.com/gke-accelerator"] == ("nvidia-l4",)
    assert labels["karpenter.k8s.aws/instance-gpu-name"] == ("l4",)
    assert "g6.xlarge" in labels["node.kubernetes.io/instance-type"]
    types = dict(TABLE["nvidia-t4"].node_labels)["node.kubernetes.io/instance-type"]
    assert {"g4dn.xlarge", "Standard_NC4as_T4_v3"} <= set(types)
    assert dict(TABLE["amd-mi300x"].node_labels) == {"amd.com/gpu.product-name": ("AMD_Instinct_MI300X_OAM",)}


def test_a_slice_is_a_class_with_a_resource_a_memory_and_a_price_of_its_own() -> None:
    part, whole = TABLE["nvidia-a100-80gb-mig-2g-20gb"], TABLE["nvidia-a100-80gb"]
    assert part.resource == "nvidia.com/mig-2g.20gb"
    assert part.taint == "nvidia.com/gpu"
    assert part.shared
    assert part.memory_gib < whole.memory_gib
    assert part.price is not None
    assert whole.price is not None
    assert abs(part.price.usd * 7 / 2 - whole.price.usd) < 1


def test_an_administrators_rows_add_to_the_table_and_win(tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text("""
- {class: lab-a2-half, vendor: nvidia, memoryGib: "7.5", computeCapability: 8.6, shared: true,
   resource: nvidia.com/gpu.shared, labels: {nvidia.com/gpu.product: [NVIDIA-A2-SHARED]}}
- {class: nvidia-l4, vendor: nvidia, memoryGib: "22.0", computeCapability: 8.9, gfd: [NVIDIA-L4]}
""")
    table = load_accelerators(file)
    assert table["lab-a2-half"].resource == "nvidia.com/gpu.shared"
    assert dict(table["lab-a2-half"].node_labels) == {"nvidia.com/gpu.product": ("NVIDIA-A2-SHARED",)}
    assert float(table["nvidia-l4"].memory_gib) == 22
    assert "nvidia-t4" in table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {class: x, vendor: nvidia, memoryGib: 8, gfd: [X]}", "x: Value error, computeCapability is missing"),
        ("- {class: x, vendor: nvidia, computeCapability: 8, memoryGib: 0, gfd: [X]}", "memoryGib is missing"),
        ("- {class: x, vendor: nvidia, computeCapability: 8, memoryGib: 8}", "which nodes have it"),
        ("- {class: x, vendor: intel, memoryGib: 8, gfd: [X]}", "x: vendor: Input should be"),
        ("- {class: x, vendor: amd, memory: 8}", "x: memoryGib: Field required"),
        ("- {class: X Y, vendor: amd, memoryGib: 8, amd: [x]}", "class: String should match"),
        ("a: 1", "a list of classes is needed, not a dict"),
        ("- [", "mine.yaml: "),
    ],
)
def test_a_broken_row_is_refused_by_file_class_and_field(text: str, message: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse("mine.yaml", text)
    assert str(refused.value).startswith("mine.yaml")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("L4", "nvidia-l4"),
        ("mi300x", "amd-mi300x"),
        ("nvidia_t4", "nvidia-t4"),
        ("H100", "nvidia-h100-80gb"),
        ("h100 nvl", "nvidia-h100-nvl"),
        ("A100-80", "nvidia-a100-80gb"),
        ("4090", "nvidia-rtx-4090"),
        ("RTX 4090", "nvidia-rtx-4090"),
        ("L40S", "nvidia-l40s"),
        ("A10", "nvidia-a10"),
        ("NVIDIA-H100-80GB-HBM3", "nvidia-h100-80gb"),
        ("g6.xlarge", "nvidia-l4"),
    ],
)
def test_the_command_line_takes_the_names_that_people_use(name: str, found: str) -> None:
    assert find_loosely(TABLE, name).class_name == found


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("A100", "nvidia-a100-40gb or nvidia-a100-80gb"), ("v100", "nvidia-v100-16gb or nvidia-v100-32gb")],
)
def test_a_gpu_that_comes_in_several_sizes_is_asked_for_with_one(name: str, sizes: str) -> None:
    with pytest.raises(InvalidSpec, match=f"several sizes: say {sizes}"):
        find_loosely(TABLE, name)


def test_a_class_of_ones_own_has_the_speed_that_its_row_gives(tmp_path: Path) -> None:
    row = """
- {class: acme-g1, vendor: nvidia, memoryGib: "22.03", computeCapability: 8.9, gfd: [ACME-G1],
   speed: {bandwidthGbPerS: 300, tflops: {bf16: 121, fp8: 242.5}, family: ada-low-power}}
"""
    file = tmp_path / "classes.yaml"
    file.write_text(row)
    own = load_accelerators(file)["acme-g1"]
    like = find_chip("nvidia-l4")
    found = chip_of(own)
    assert (found.bandwidth_gb_per_s, found.wide_tflops, found.link_gb_per_s, found.family) == (
        like.bandwidth_gb_per_s,
        like.wide_tflops,
        32,
        like.family,
    )
    file.write_text(row.replace("bf16: 121, ", ""))
    with pytest.raises(InvalidSpec, match="neither bf16 nor fp16"):
        load_accelerators(file)
