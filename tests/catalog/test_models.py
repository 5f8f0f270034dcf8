"""The catalogue of models: every row by rules, the families that users run, and a config.json as it is published."""

import json
from typing import Any

import pytest
from hack.catalogue import rows
from hack.catalogue.__main__ import MODELS as FILE
from hack.catalogue.__main__ import load

from flotilla.catalog.model_config import LayerKind, flat
from flotilla.catalog.models import Architecture, from_config, load_models
from flotilla.catalog.parameters import ENCODERS, count
from flotilla.errors import InvalidSpec

MODELS = load_models()


def architecture(name: str) -> Architecture:
    found = MODELS.find(name)
    assert found is not None, name
    return found.architecture


def test_every_row_keeps_the_rules() -> None:
    assert rows.check(load()) == []


def test_the_file_is_as_the_tool_writes_it() -> None:
    assert rows.dump(load()) == FILE.read_text()
    assert FILE.stat().st_size < 600_000


def test_the_catalogue_has_the_models_and_checkpoints_that_users_run() -> None:
    found = [known for name in MODELS.ids if (known := MODELS.find(name)) is not None]
    methods = {method: sum(known.method == method for known in found) for method in {known.method for known in found}}

    assert methods[""] >= 1800
    assert len(found) >= 3800
    assert len(MODELS.rows) >= 550
    assert sum(known.verified for known in found) >= 2600
    assert methods["gguf"] >= 700
    assert methods["bitsandbytes"] >= 300
    assert methods["awq"] >= 190
    assert methods["gptq"] >= 150
    assert methods["fp8"] >= 200
    assert methods["nvfp4"] >= 100
    assert methods["compressed-tensors"] >= 90
    assert sum(known.task == "embed" for known in found) >= 150
    assert sum(known.architecture.multimodal != "" for known in found) >= 600


def test_most_parameter_counts_from_shapes_are_the_declared_ones_to_the_last_parameter() -> None:
    exact = [name for name, row in MODELS.rows.items() if count(row["config"]).total == row["parameters"]]
    assert len(exact) >= 400


def test_every_id_is_found_whatever_its_case() -> None:
    for name in MODELS.ids:
        found = MODELS.find(name.upper())
        assert found is not None
        assert found.id == name
    assert MODELS.find("nobody/knows-it") is None


def test_what_was_not_read_says_from_what_it_was_derived() -> None:
    derived = [known for name in MODELS.ids if (known := MODELS.find(name)) and not known.verified]
    assert derived
    assert all(known.source for known in derived)


@pytest.mark.parametrize(
    ("name", "task", "method"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "generate", ""),
        ("Qwen/Qwen3-VL-8B-Instruct", "generate", ""),
        ("Qwen/Qwen3-8B-Base", "generate", ""),
        ("Qwen/Qwen3.5-4B", "generate", ""),
        ("Qwen/Qwen3-Reranker-0.6B", "embed", ""),
        ("Qwen/Qwen3-Embedding-8B", "embed", ""),
        ("google/gemma-2-9b-it", "generate", ""),
        ("google/gemma-3-27b-it", "generate", ""),
        ("google/gemma-3n-E4B-it", "generate", ""),
        ("google/gemma-4-E2B-it", "generate", ""),
        ("microsoft/Phi-4-multimodal-instruct", "generate", ""),
        ("microsoft/phi-4", "generate", ""),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "generate", ""),
        ("ibm-granite/granite-4.1-3b", "generate", ""),
        ("ibm-granite/granite-4.0-h-tiny", "generate", ""),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "generate", ""),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "generate", ""),
        ("mistralai/Ministral-3-8B-Instruct-2512", "generate", "fp8"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "generate", ""),
        ("HuggingFaceTB/SmolLM3-3B", "generate", ""),
        ("intfloat/e5-base-v2", "embed", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", "embed", ""),
        ("nomic-ai/nomic-embed-text-v1.5", "embed", ""),
        ("Alibaba-NLP/gte-multilingual-base", "embed", ""),
        ("BAAI/bge-m3", "embed", ""),
        ("openbmb/MiniCPM4-8B", "generate", ""),
        ("LiquidAI/LFM2-1.2B", "generate", ""),
        ("ai21labs/AI21-Jamba2-3B", "generate", ""),
        ("tiiuae/falcon-7b-instruct", "generate", ""),
        ("tiiuae/Falcon-H1-7B-Instruct", "generate", ""),
        ("openai/gpt-oss-20b", "generate", "mxfp4"),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", "generate", ""),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "generate", ""),
        ("allenai/OLMo-2-1124-7B-Instruct", "generate", ""),
        ("OpenGVLab/InternVL3-8B", "generate", ""),
        ("internlm/internlm3-8b-instruct", "generate", ""),
        ("zai-org/GLM-4-9B-0414", "generate", ""),
        ("LGAI-EXAONE/EXAONE-4.0-32B", "generate", ""),
        ("01-ai/Yi-1.5-9B-Chat", "generate", ""),
        ("stabilityai/stablelm-zephyr-3b", "generate", ""),
        ("codellama/CodeLlama-7b-Instruct-hf", "generate", ""),
        ("bigcode/starcoder2-7b", "generate", ""),
        ("Qwen/Qwen2.5-14B-Instruct-AWQ", "generate", "awq"),
        ("RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8", "generate", "fp8"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8", "generate", "fp8"),
        ("nvidia/Qwen3-8B-NVFP4", "generate", "nvfp4"),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "generate", "bitsandbytes"),
        ("unsloth/Qwen3-8B-GGUF", "generate", "gguf"),
    ],
)
def test_the_families_are_there(name: str, task: str, method: str) -> None:
    found = MODELS.find(name)
    assert found is not None
    assert (found.task, found.method) == (task, method)


def test_layers_of_hybrids_are_told_apart_and_their_state_has_the_shape_that_vllm_gives_it() -> None:
    qwen = architecture("Qwen/Qwen3.5-4B")
    assert qwen.full_layers == 8
    assert qwen.recurrent is not None
    # 16 key heads and 32 value heads of 128: a convolution over 8192 channels, and a 128 x 128 matrix for each head.
    assert (qwen.recurrent.kind, qwen.recurrent.layers) == (LayerKind.DELTA, 24)
    assert (qwen.recurrent.conv_elements, qwen.recurrent.state_elements) == (8192 * 3, 32 * 128 * 128)
    # vLLM 0.29's log of this model on an L4 says 9.10 GiB of cache and 8.17 requests of 32,768 tokens.
    granite = architecture("ibm-granite/granite-4.0-h-tiny")
    assert granite.full_layers == 4
    assert granite.recurrent is not None
    assert (granite.recurrent.layers, granite.recurrent.state_elements) == (36, 48 * 64 * 128)
    assert architecture("ai21labs/Jamba-v0.1").full_layers == 4
    assert architecture("LiquidAI/LFM2-1.2B").full_layers == 6
    assert architecture("moonshotai/Kimi-Linear-48B-A3B-Instruct").full_layers == 7
    assert architecture("nvidia/NVIDIA-Nemotron-Nano-9B-v2").full_layers == 4


def test_layers_that_share_a_cache_are_not_counted() -> None:
    gemma = architecture("google/gemma-3n-E4B-it")
    assert (gemma.full_layers, gemma.sliding_layers, gemma.shared_kv_layers) == (4, 16, 15)


def test_parameters_by_part_tell_what_a_quantized_checkpoint_keeps_in_16_bits() -> None:
    gpt = MODELS.find("openai/gpt-oss-20b")
    assert gpt is not None
    assert gpt.recipe is not None
    parts = gpt.architecture.parts
    assert parts is not None
    assert gpt.recipe.keeps == {"attention"}
    quantized = parts.experts * float(gpt.recipe.bits) / 8
    # vllm 0.10 printed 12.88 GiB for what it loads.
    assert abs((quantized + 2 * (parts.total - parts.experts)) / 2**30 / 12.88 - 1) < 0.02


OFFICIAL_GEMMA_3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "image_size": 896,
    },
}
"""Without vocab_size, max_position_embeddings, the pattern of windows: those are transformers' defaults."""


def test_an_official_gemma_3_file_is_read_with_the_defaults_of_transformers() -> None:
    gemma = from_config(OFFICIAL_GEMMA_3)
    assert gemma.vocab_size == 262208
    assert (gemma.full_layers, gemma.sliding_layers, gemma.sliding_window) == (10, 52, 1024)
    assert gemma.parameters == architecture("google/gemma-3-27b-it").parameters == 27_432_406_640
    assert gemma.tower is not None
    assert gemma.multimodal == "gemma3"


def test_gemma_2_attends_in_full_every_other_layer_by_its_own_file() -> None:
    own = {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_attention_heads": 16,
        "num_hidden_layers": 42,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 4096,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
    }
    gemma = from_config(own)
    assert (gemma.full_layers, gemma.sliding_layers) == (21, 21)
    assert gemma.parameters == architecture("google/gemma-2-9b-it").parameters


def test_falcon_with_multi_query_attention_has_one_kv_head() -> None:
    falcon = from_config(
        {
            "model_type": "falcon",
            "hidden_size": 4544,
            "num_attention_heads": 71,
            "num_hidden_layers": 32,
            "vocab_size": 65024,
            "multi_query": True,
        },
        parameters=7_217_189_760,
    )
    assert falcon.kv_heads == 1


def test_a_window_that_is_switched_off_does_not_count_and_one_from_a_layer_on_does() -> None:
    text = {**MODELS.rows["Qwen/Qwen3-8B"]["config"]}
    layers = ["sliding_attention", "full_attention"] * 18
    nested = from_config({"model_type": "x", "text_config": {**text, "sliding_window": 512, "layer_types": layers}})
    assert (nested.full_layers, nested.sliding_layers, nested.sliding_window) == (18, 18, 512)
    off = from_config({**text, "sliding_window": 512, "use_sliding_window": False})
    assert (off.full_layers, off.sliding_layers) == (36, 0)
    late = from_config({**text, "sliding_window": 512, "use_sliding_window": True, "max_window_layers": 30})
    assert (late.full_layers, late.sliding_layers) == (30, 6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "num_hidden_layers is None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 2, "num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ({"num_hidden_layers": 1, "layer_types": ["holographic"]}, "layer of kind 'holographic'"),
    ],
)
def test_a_broken_config_json_is_refused_by_key_and_value(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        from_config(config)


def test_parameters_that_no_formula_knows_are_asked_for() -> None:
    unknown = {**MODELS.rows["Qwen/Qwen3-8B"]["config"], "model_type": "quokka"}
    with pytest.raises(InvalidSpec, match="Give their number"):
        from_config(unknown)
    assert from_config(unknown, parameters=8_000_000_000).parts is None


def test_a_row_reads_like_the_config_json_that_it_was_made_from() -> None:
    """Defaults of transformers must not creep into rows, which are complete: Mistral's would be a window."""
    for name, row in MODELS.rows.items():
        if row["config"]["model_type"] in ENCODERS:
            continue
        assert rows.facts(row["config"]) == row["config"], name
    assert architecture("mistralai/Mistral-7B-Instruct-v0.3").sliding_layers == 0
    assert flat({"model_type": "mistral"})["sliding_window"] == 4096
    assert json.loads(FILE.read_text())["about"]


def test_experts_that_only_a_familys_defaults_name_are_none() -> None:
    """Nemotron-H: its configuration class has experts, and Nemotron Nano 12B v2 has none."""
    known = MODELS.find("nvidia/NVIDIA-Nemotron-Nano-12B-v2")
    assert known is not None
    row = MODELS.rows["nvidia/NVIDIA-Nemotron-Nano-12B-v2"]["config"]
    read = from_config(row)
    assert (read.experts, read.parameters) == (0, known.architecture.parameters)


def test_the_config_json_of_mpt_is_read_by_its_own_names() -> None:
    file = {
        "model_type": "mpt",
        "d_model": 4096,
        "n_heads": 32,
        "n_layers": 32,
        "max_seq_len": 2048,
        "vocab_size": 50432,
    }
    found = from_config(file)
    assert (found.parameters, found.kv_heads, found.context_length) == (6_649_286_656, 32, 2048)
