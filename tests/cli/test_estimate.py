"""`flotilla estimate`, as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flotilla.api.model_deployment import ArchitectureSpec
from flotilla.catalog.models import load_models
from flotilla.cli import app


def run(*arguments: str, columns: int = 160) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["estimate", *arguments], env={"COLUMNS": str(columns)})
    return result.exit_code, result.stdout, result.stderr


def answers(*arguments: str) -> list[dict[str, Any]]:
    code, out, _ = run(*arguments, "--json")
    assert code in (0, 1)
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_it_prints_the_fit_and_the_choices_as_a_table() -> None:
    code, out, _ = run("Qwen/Qwen2.5-7B-Instruct", "--accelerator", "L4", "--context", "8192")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("nvidia-l4"))
    assert row.split() == [
        "nvidia-l4",
        "Fits",
        "fp8",
        "1",
        "8.2",
        "1.6",
        "10.5",
        "8,192",
        "32,768",
        "23.9",
        "350",
        "0.80",
    ]
    assert "--max-model-len 8192" in out


def test_it_prints_the_same_as_json() -> None:
    (answer,) = answers("Qwen/Qwen2.5-7B-Instruct", "-a", "L4", "--context", "8192")
    assert (answer["verdict"], answer["gpus"], answer["context_length"], answer["quantization"]) == (
        "Fits",
        1,
        8192,
        "fp8",
    )
    assert answer["argv"][0] == "Qwen/Qwen2.5-7B-Instruct"
    assert answer["price_as_of"] == "2026-11-09"


def test_it_says_how_fast_the_model_is_and_what_that_rests_on() -> None:
    _, out, _ = run("Qwen/Qwen2.5-7B-Instruct", "-a", "L4")
    said = " ".join(out.split())
    assert "Speed with 1000 tokens in and 150 out: 2.3 requests/s at saturation (1.7 to 3.2)" in said
    assert "Computed, and compared with public measurements on this class" in said
    assert "as of 2026-11-09" in said
    (short,), (long,) = (
        answers("Qwen/Qwen2.5-7B-Instruct", "-a", "L4", "--input-tokens", tokens) for tokens in ("100", "4000")
    )
    assert short["speed"]["tasks_per_second"]["expected"] > 5 * long["speed"]["tasks_per_second"]["expected"]
    assert short["speed"]["tasks_per_second"]["low"] < short["speed"]["tasks_per_second"]["expected"]
    (uncompared,) = answers("Qwen/Qwen2.5-7B-Instruct", "-a", "nvidia-a30")
    assert not uncompared["speed"]["compared_with_measurements"]


def test_a_class_without_published_figures_and_an_unknown_model_have_no_speed() -> None:
    (cpu,) = answers("Qwen/Qwen2.5-0.5B-Instruct", "-a", "cpu-amd64")
    assert cpu["verdict"] in ("Fits", "Tight")
    (unknown,) = answers("acme/unknown", "-a", "L4")
    for answer in (cpu, unknown):
        assert "speed" not in answer
        assert "output_tokens_per_second" not in answer


def test_a_class_has_the_name_that_people_use() -> None:
    assert answers("Qwen/Qwen3-8B", "-a", "H100")[0]["accelerator"] == "nvidia-h100-80gb"
    code, _, err = run("Qwen/Qwen3-8B", "-a", "A100")
    assert code == 2
    assert "nvidia-a100-40gb" in err
    assert "nvidia-a100-80gb" in err


def test_without_a_class_it_ranks_all_by_price() -> None:
    found = [answer for answer in answers("Qwen/Qwen3-14B") if answer["verdict"] == "Fits" and "usd_per_hour" in answer]
    prices = [float(answer["usd_per_hour"]) for answer in found]
    assert len(prices) > 5
    assert prices == sorted(prices)
    code, out, _ = run("Qwen/Qwen3-14B", columns=80)
    assert code == 0
    assert "other classes" in out
    assert "DoesNotFit" not in out


def test_what_does_not_fit_ends_with_one_and_says_why() -> None:
    code, out, _ = run("meta-llama/Llama-3.3-70B-Instruct", "-a", "l4", "--count", "1")
    assert code == 1
    assert "cannot hold the model" in " ".join(out.split())


def test_a_config_json_gives_the_architecture_to_paste(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(load_models().rows["meta-llama/Llama-3.1-8B-Instruct"]["config"]))
    code, out, _ = run("--config", str(file), "-a", "L4", "-q", "none")
    assert code == 0
    facts = yaml.safe_load(out.partition("spec.model of a ModelDeployment:")[2])["architecture"]
    assert ArchitectureSpec.model_validate(facts).parameters_millions == 8030
    known = answers("meta-llama/Llama-3.1-8B-Instruct", "-a", "L4", "-q", "none")
    assert answers("--config", str(file), "-a", "L4", "-q", "none")[0]["context_length"] == known[0]["context_length"]
    assert answers("--config", str(file), "--parameters", "3B", "-a", "L4")[0]["weights_gib"] < known[0]["weights_gib"]


def written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_is_read_by_its_config_json_like_the_model_of_the_catalogue(tmp_path: Path) -> None:
    folder = written(tmp_path / "llama", dict(load_models().rows["meta-llama/Llama-3.1-8B-Instruct"]["config"]))
    found, known = answers(str(folder), "-a", "L4"), answers("meta-llama/Llama-3.1-8B-Instruct", "-a", "L4")
    for key in ("quantization", "weights_gib", "context_length", "concurrent_requests", "output_tokens_per_second"):
        assert found[0][key] == known[0][key], key


def test_a_quantization_config_counts(tmp_path: Path) -> None:
    whole = dict(load_models().rows["Qwen/Qwen2.5-7B-Instruct"]["config"])
    packed = {**whole, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    found = answers(str(written(tmp_path / "awq", packed)), "-a", "L4")[0]
    assert found["quantization"] == "awq"
    assert found["weights_gib"] == answers("Qwen/Qwen2.5-7B-Instruct-AWQ", "-a", "L4")[0]["weights_gib"]
    odd = {**whole, "quantization_config": {"quant_method": "quokka"}}
    code, _, err = run(str(written(tmp_path / "odd", odd)), "-a", "L4")
    assert code == 2
    assert "quant_method 'quokka' is not understood" in err


def test_an_official_hybrid_file_is_judged_and_described(tmp_path: Path) -> None:
    # As Qwen publishes it: nested, with one entry for each layer.
    text = {
        "model_type": "qwen3_5_text", "hidden_size": 2560, "intermediate_size": 9216, "num_hidden_layers": 32,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320,
        "tie_word_embeddings": True, "max_position_embeddings": 262144, "mamba_ssm_dtype": "float32",
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8,
    }  # fmt: skip
    folder = written(tmp_path / "hybrid", {"model_type": "qwen3_5", "text_config": text})
    found = answers(str(folder), "-a", "L4", "-q", "none", "--context", "32768")[0]
    # 8.17 in the log of vLLM 0.29, whose share of the card was 0.9.
    assert 8 < found["concurrent_requests"] < 10
    code, out, _ = run(str(folder), "-a", "L4")
    assert code == 0
    facts = yaml.safe_load(out.partition("spec.model of a ModelDeployment:")[2])["architecture"]
    assert (facts["layers"], facts["recurrentLayers"], facts["recurrentStateBytes"]) == (8, 24, 2_146_304)


def test_layers_that_the_spec_has_no_words_for_are_not_described(tmp_path: Path) -> None:
    gemma = {**load_models().rows["google/gemma-4-E2B-it"]["config"]}
    code, out, _ = run(str(written(tmp_path / "gemma", gemma)), "-a", "L4")
    assert code == 0
    assert "Fits" in out
    assert "spec.model of a ModelDeployment" not in out


def test_a_cache_that_is_not_known_says_why_and_an_engine_that_dropped_the_model_is_refused() -> None:
    (unknown,) = answers("unsloth/Llama-3.2-11B-Vision-Instruct", "-a", "L40S", "--engine", "sglang")
    assert unknown["verdict"] == "Unknown"
    assert "the cache of its cross-attention depends on the images of a request" in unknown["message"]
    (dropped,) = answers("unsloth/Llama-3.2-11B-Vision-Instruct", "-a", "L40S")
    assert dropped["verdict"] == "UnsupportedModel"
    assert "up to 0.10.2, and 0.33.0 refuses them" in dropped["message"]


def test_a_model_that_embeds_needs_no_cache_and_writes_no_tokens() -> None:
    (found,) = answers("BAAI/bge-m3", "-a", "L4")
    assert (found["verdict"], found["context_length"]) == ("Fits", 8192)
    assert "speed" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL: Name a model"),
        (["x/y", "-a", "l5"], "--accelerator: 'l5' is not a class"),
        (["--config", "/nowhere/config.json"], "--config: /nowhere/config.json"),
        (["--config", "{broken}"], "--config: "),
        (["--config", "{empty}"], "num_hidden_layers is None"),
        (["--config", "{good}", "--parameters", "many"], "--parameters: 'many' is not a number"),
        (["x/y", "-q", "fp3"], "--quantization: It must be 'auto', 'none',"),
        (["x/y", "--context=-5"], "--context: It must be at least 256, not -5."),
        (["x/y", "--engine", "vlm"], "--engine: There is no engine 'vlm'. Did you mean vllm?"),
    ],
)
def test_a_wrong_question_ends_with_two_and_names_what_is_wrong(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    good = json.dumps(load_models().rows["Qwen/Qwen3-8B"]["config"])
    for name, text in (("broken", "{"), ("empty", "{}"), ("good", good)):
        (tmp_path / name).write_text(text)
    given = [a.replace("{", f"{tmp_path}/").replace("}", "") if a.startswith("{") else a for a in arguments]
    code, _, err = run(*given)
    assert code == 2
    assert message in err
    assert "pydantic" not in err
