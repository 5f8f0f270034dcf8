"""The closed form of the KV cache against vLLM's own planner, and against what users' servers printed at start."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from flotilla.catalog.models import Architecture
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
