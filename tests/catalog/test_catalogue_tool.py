"""The tool that keeps the catalogue of models (hack/catalogue): it reads, merges, and refuses what breaks a rule."""

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hack.catalogue import __main__ as tool
from hack.catalogue import rows

from flotilla.catalog import recipes

QWEN = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 36,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
    "rope_theta": 1000000,
}
DECLARED = 8_190_735_360


@pytest.fixture
def empty() -> rows.Catalogue:
    return {
        "about": "",
        "sources": {"test": {"what": "made for a test", "date": "2026-11-29"}},
        "quantizations": {},
        "models": {},
    }


def add(catalogue: rows.Catalogue, name: str, config: dict[str, Any], declared: int = DECLARED) -> str:
    return tool.merge(catalogue, name, config, declared, source="test", task="")


def test_a_row_keeps_only_what_decides_memory(empty: rows.Catalogue) -> None:
    add(empty, "acme/big", QWEN)
    config = empty["models"]["acme/big"]["config"]
    assert "rope_theta" not in config
    assert "head_dim" not in config  # 4096 / 32 anyway
    assert "sliding_window" not in config
    assert rows.check(empty) == []


def test_checkpoints_with_the_same_facts_share_a_row_and_differ_in_context(empty: rows.Catalogue) -> None:
    add(empty, "acme/big", QWEN)
    assert add(empty, "acme/big-long", {**QWEN, "max_position_embeddings": 131072}) == "acme/big"
    assert add(empty, "acme/other", {**QWEN, "num_hidden_layers": 12}, 3_559_000_000) == "acme/other"
    assert empty["models"]["acme/big"]["checkpoints"] == {"acme/big-long": {"context": 131072}}


def test_a_checkpoint_that_is_there_stays_as_it_is(empty: rows.Catalogue) -> None:
    add(empty, "acme/big", QWEN)
    assert add(empty, "Acme/BIG", {**QWEN, "num_hidden_layers": 12}) == "acme/big"
    assert list(empty["models"]) == ["acme/big"]


@pytest.mark.parametrize(
    ("quantized", "name", "method", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", "awq", "4.156"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq-g64", "awq", "4.312"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "gptq-int8", "gptq", "8.188"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "gptq-int4-channel", "gptq", "4.01"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block", "fp8", "8.002"),
        ({"quant_method": "fp8"}, "fp8", "fp8", "8.01"),
        ({"quant_method": "mxfp4"}, "mxfp4", "mxfp4", "4.25"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "nvfp4", "4.5"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb-4bit", "bitsandbytes", "4.127"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}},
            },
            "w4a16",
            "compressed-tensors",
            "4.125",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}
                },
            },
            "w8a8",
            "int8-w8a8",
            "8.01",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
            },
            "fp8-dynamic",
            "fp8",
            "8.01",
        ),
    ],
)
def test_a_quantization_config_becomes_a_recipe(quantized: dict[str, Any], name: str, method: str, bits: str) -> None:
    found = recipes.recipe({"quantization_config": quantized})
    assert found is not None
    assert (found[0], found[1]["method"], found[1]["bits"]) == (name, method, bits)


@pytest.mark.parametrize(
    "quantized",
    [
        {"quant_method": "quokka"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}},
        {"quant_method": "fp8", "weight_block_size": [128, 64]},
    ],
)
def test_a_quantization_config_that_is_not_understood_is_refused(
    empty: rows.Catalogue, quantized: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"quokka|2 groups|no square"):
        add(empty, "acme/q", {**QWEN, "quantization_config": quantized})


def test_a_quantized_checkpoint_joins_the_row_of_its_base(empty: rows.Catalogue) -> None:
    add(empty, "acme/big", QWEN)
    packed = {**QWEN, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    assert add(empty, "acme/big-AWQ", packed, 2_000_000_000) == "acme/big"
    assert empty["models"]["acme/big"]["checkpoints"] == {"acme/big-AWQ": {"quantization": "awq"}}
    assert rows.check(empty) == []


def test_unknown_parameters_and_unknown_kinds_of_model_are_refused(empty: rows.Catalogue) -> None:
    with pytest.raises(ValueError, match="give --parameters"):
        add(empty, "acme/big", QWEN, 0)
    packed = {**QWEN, "model_type": "quokka", "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(ValueError, match="type quokka"):
        add(empty, "acme/big", packed)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda row: row.update(parameters=9_000_000_000), "parameters by its shapes"),
        (lambda row: row["config"].update(num_key_value_heads=5), "no multiple of 5 KV heads"),
        (lambda row: row["config"].update(model_type="quokka"), "quokka are not known"),
        (lambda row: row["config"].update(rope_theta=1), "rope_theta, which nothing reads"),
        (lambda row: row.update(quantization="magic"), "magic is not among"),
        (lambda row: row.update(source="hearsay"), "hearsay is not among"),
        (lambda row: row["checkpoints"].update({"no-owner": {}}), "not of the form OWNER/NAME"),
        (lambda row: row["checkpoints"].update({"ACME/big": {}}), "stands in the rows"),
    ],
)
def test_each_rule_finds_its_breach(empty: rows.Catalogue, change: Any, problem: str) -> None:
    add(empty, "acme/big", QWEN)
    broken = copy.deepcopy(empty)
    change(broken["models"]["acme/big"])
    assert any(problem in found for found in rows.check(broken))


def test_a_folder_is_read_with_the_parameters_that_the_weights_headers_tell(tmp_path: Path) -> None:
    model = tmp_path / "acme--big"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(QWEN))
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]},
            "b": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]},
        }
    ).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    nested = tmp_path / "acme" / "small"
    nested.mkdir(parents=True)
    (nested / "config.json").write_text(json.dumps(QWEN))

    assert [(name, declared) for name, _, declared in tool.folder(tmp_path)] == [("acme/small", 0), ("acme/big", 17)]


def test_the_hub_is_asked_for_the_config_and_the_declared_parameters() -> None:
    answers: dict[str, Any] = {
        "https://huggingface.co/api/models/acme/big": {"safetensors": {"total": DECLARED}},
        "https://huggingface.co/acme/big/resolve/main/config.json": QWEN,
    }
    assert tool.hub("acme/big", answers.__getitem__) == ("acme/big", QWEN, DECLARED)


def test_the_command_writes_nothing_where_a_checkpoint_breaks_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: rows.Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "models.json"
    file.write_text(rows.dump(empty))
    monkeypatch.setattr(tool, "MODELS", file)
    model = tmp_path / "in" / "acme" / "big"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(QWEN))
    command = ["add", str(tmp_path / "in"), "--source", "copies", "--what", "copies of config.json"]

    assert tool.main([*command, "--parameters", "7000000000"]) == 1
    assert "parameters by its shapes" in capsys.readouterr().err
    assert json.loads(file.read_text())["models"] == {}

    assert tool.main([*command, "--parameters", str(DECLARED)]) == 0
    assert json.loads(file.read_text())["models"]["acme/big"]["source"] == "copies"
    assert tool.main(["check"]) == 0
