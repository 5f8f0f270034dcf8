"""The closed form of the KV cache against vLLM's own planner, and against what users' servers printed at start."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from flotilla.catalog.model_config import LayerKind
from flotilla.catalog.models import Architecture, RecurrentState, from_config, load_models
from flotilla.planning.kv_cache import KvLayout, layout

GIB = 2**30
VECTORS = yaml.safe_load((Path(__file__).parent / "data" / "kv_vectors.yaml").read_text())


def architecture(**facts: Any) -> Architecture:
    every = facts.get("fullAttentionEvery", 0)
    full = facts["layers"] // every if every else facts["layers"]
    return Architecture(
        parameters=0,
        embedding_parameters=0,
        hidden_size=1,
        intermediate_size=1,
        vocab_size=1,
        heads=64,
        kv_heads=facts["kvHeads"],
        head_dim=facts["headDim"],
        full_layers=full,
        sliding_layers=facts["layers"] - full,
        sliding_window=facts.get("slidingWindow", 0),
        latent_width=facts["headDim"] if facts.get("latent") else 0,
    )


@pytest.mark.parametrize("vector", VECTORS["planner"], ids=lambda vector: f"{vector['case']}-{vector['contextLength']}")
def test_the_cache_is_exactly_what_vllm_plans(vector: dict[str, Any]) -> None:
    of: KvLayout = layout(architecture(**vector), gpus=1, element_bytes=vector["elementBytes"])
    budget, length = vector["budgetGib"] * GIB, vector["contextLength"]
    fits = of.concurrency(budget, length, batched_tokens=vector["batchedTokens"])
    assert of.blocks(budget) == vector["blocks"]
    assert int(fits * length) == vector["tokens"]
    assert f"{float(fits):.2f}" == f"{float(vector['concurrency']):.2f}"


def logged(*keys: str) -> list[dict[str, Any]]:
    return [row for row in VECTORS["logs"] if all(key in row for key in keys)]


def layout_of(row: dict[str, Any]) -> KvLayout:
    layers = row.get("full_attention_layers", row.get("layers"))
    facts = {"layers": layers, "kvHeads": row["kv_heads"], "headDim": row["head_dim"]}
    return layout(architecture(**facts), gpus=row.get("tp", 1), element_bytes=row["kv_dtype_bytes"])


def budget_of(row: dict[str, Any]) -> int:
    return int(row.get("available_kv_gib", row.get("available_kv_gib_per_rank", 0)) * GIB)


TOKENS = [row for row in logged("tokens", "kv_heads") if budget_of(row)]


@pytest.mark.parametrize("row", TOKENS, ids=lambda row: f"{row['model']}-{row['tokens']}")
def test_the_tokens_of_published_logs_are_met_within_a_tenth(row: dict[str, Any]) -> None:
    of = layout_of(row)
    predicted = of.concurrency(budget_of(row), 16, batched_tokens=8192) * 16
    assert abs(predicted / row["tokens"] - 1) < Fraction(1, 10)
    if "concurrency" in row:
        requests = of.concurrency(budget_of(row), row["max_model_len"], batched_tokens=8192)
        assert abs(float(requests) / row["concurrency"] - 1) < 0.1


@pytest.mark.parametrize(
    "row", [r for r in VECTORS["logs"] if "refused" in r.get("verdict", "")], ids=lambda r: r["model"]
)
def test_what_vllm_refused_to_start_does_not_fit(row: dict[str, Any]) -> None:
    longest = layout_of(row).longest(budget_of(row), batched_tokens=8192, at_most=row["max_model_len"])
    assert longest < row["max_model_len"]


def test_there_are_as_many_vectors_as_were_collected() -> None:
    assert (len(VECTORS["planner"]), len(VECTORS["logs"]), len(TOKENS)) == (28, 18, 8)


@pytest.mark.parametrize(
    ("name", "gpus", "element_bytes", "gib", "context", "requests"),
    [
        ("Qwen/Qwen3.5-4B", 1, 2, "9.10", 32768, 8.17),  # vLLM 0.29 on an L4
        ("Qwen/Qwen3.5-2B", 1, 2, "5.95", 262144, 1.97),  # within the rounding of the GiB that was printed
        # Qwen3.8-27B, of the same shapes, on two RTX 3090 with an FP8 cache: mitchross/talos-argocd-proxmox#1995.
        ("Qwen/Qwen3.6-27B", 2, 1, "4.99", 131072, 2.31),
        ("Qwen/Qwen3.6-35B-A3B", 1, 1, "5.98", 131072, 4.33),  # vLLM 0.24 on an RTX 5090: noonghunna/club-3090#612
        ("Qwen/Qwen3.5-122B-A10B", 1, 1, "21.43", 131072, 11.79),  # NVFP4, an FP8 cache
    ],
)
def test_the_cache_of_hybrids_is_that_of_published_logs(
    name: str, gpus: int, element_bytes: int, gib: str, context: int, requests: float
) -> None:
    known = load_models().find(name)
    assert known is not None
    plan = layout(known.architecture, gpus=gpus, element_bytes=element_bytes)
    fits = plan.concurrency(int(Decimal(gib) * GIB), context, batched_tokens=2048)
    assert abs(float(fits) / requests - 1) < 0.008


def test_states_of_recurrent_layers_are_divided_over_gpus_down_to_one_group_each() -> None:
    state = RecurrentState(LayerKind.MAMBA2, 36, 9984, 393216, groups=1, group_elements=768)
    assert state.bytes_per_layer(1) == 2 * 9984 + 2 * 393216
    assert state.bytes_per_layer(2) == 2 * ((9984 - 768) // 2 + 768) + 393216


def test_a_hybrid_takes_the_same_number_of_blocks_for_its_state_whatever_the_length() -> None:
    known = load_models().find("ibm-granite/granite-4.0-h-tiny")
    assert known is not None
    plan = layout(known.architecture, gpus=1, element_bytes=2)
    short, long = (plan.blocks_per_request(tokens, batched_tokens=2048) for tokens in (1, 10 * plan.block_tokens))
    assert long - short == 9
    assert short == 1 + 2 * 9  # 4 layers of attention are one group, 36 recurrent ones are nine


def known_layout(name: str, gpus: int = 1, element_bytes: int = 2) -> KvLayout:
    known = load_models().find(name)
    assert known is not None
    return layout(known.architecture, gpus=gpus, element_bytes=element_bytes)


def test_layers_with_narrower_rows_get_longer_blocks_of_the_same_size() -> None:
    """Gemma 4's full layers have 4 heads of 512 where the others have 16 of 256."""
    one = known_layout("google/gemma-4-31B-it")
    assert (one.block_tokens, one.near_block_tokens) == (32, 16)
    assert (one.full_groups, one.sliding_groups, one.block_bytes) == (1, 5, 10 * 2 * 16 * 16 * 256 * 2)
    small = known_layout("google/gemma-4-E4B-it")
    assert (small.block_tokens, small.near_block_tokens) == (16, 32)


def test_gemma_4_holds_what_a_published_log_says() -> None:
    """Two cards of 32 GB: 10.12 GiB each, 169,314 tokens and 1.03 requests of 163,840 (stored file 67213347492)."""
    holds = known_layout("google/gemma-4-31B-it", gpus=2).concurrency(
        int(Decimal("10.12") * GIB), 163840, batched_tokens=8192
    )
    assert abs(float(holds) * 163840 / 169314 - 1) < 0.005


def test_a_chunk_begins_with_a_block() -> None:
    """Llama 4: three of four layers keep a chunk of 8192 tokens, and what one step adds."""
    scout = known_layout("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert (scout.full_groups, scout.sliding_groups) == (1, 3)
    long = scout.blocks_per_request(100_000, batched_tokens=2048)
    assert long == 100_000 // 16 + 3 * (8192 + 2048) // 16
    assert scout.blocks_per_request(4096, batched_tokens=2048) == 4 * 4096 // 16


def test_states_beside_latent_attention_make_blocks_of_whole_kernel_blocks() -> None:
    """Kimi-Linear: a state of 32 heads of 128 x 128 in 32 bits, and a latent row of 576."""
    kimi = known_layout("moonshotai/Kimi-Linear-48B-A3B-Instruct")
    state = 2 * 3 * 32 * 128 * 3 + 4 * 32 * 128 * 128
    assert kimi.block_tokens % 64 == 0
    assert 0 <= kimi.block_tokens * 576 * 2 - state < 64 * 576 * 2
    assert (kimi.full_groups, kimi.state_groups) == (1, 3)


def test_the_state_of_lightning_attention_is_one_matrix_for_each_head() -> None:
    pattern = ["linear_attention"] * 7 + ["full_attention"]
    of = from_config(
        {
            "model_type": "minimax", "hidden_size": 6144, "intermediate_size": 9216, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 200064,
            "layer_types": pattern * 10, "tie_word_embeddings": False,
        },
        parameters=456_000_000_000,
    )  # fmt: skip
    assert of.kv_known
    assert of.recurrent is not None
    assert of.recurrent.bytes_per_layer(8) == 2 * 8 * 128 * 128
