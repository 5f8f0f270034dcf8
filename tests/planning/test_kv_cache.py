"""The closed form of the KV cache against vLLM's own planner, and against what users' servers printed at start."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from flotilla.catalog.model_config import LayerKind
from flotilla.catalog.models import Architecture, RecurrentState, load_models
from flotilla.planning.memory_fit import KvLayout, layout

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
