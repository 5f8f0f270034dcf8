"""What an engine loads beside the model: LoRA slots and a draft for speculative decoding."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.catalog.models import Architecture, load_models
from flotilla.errors import InvalidSpec
from flotilla.planning.additions import NO_DRAFT, DraftModel, LoraSlots, draft, lora_bytes
from flotilla.planning.kv_cache import layout
from flotilla.planning.memory_fit import GIB, Fit
from flotilla.planning.resolve import load_catalog, resolve

CATALOG, MODELS = load_catalog(), load_models()
FLAGS = CATALOG.profiles["vllm"].memory.speculation
LLAMA, QWEN, HYBRID = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B"


def architecture(name: str) -> Architecture:
    known = MODELS.find(name)
    assert known is not None
    return known.architecture


def config(**facts: Any) -> list[str]:
    return ["--speculative-config", json.dumps(facts)]


def drafted(name: str, args: list[str]) -> DraftModel:
    return draft(architecture(name), args, FLAGS, MODELS.find)


def test_slots_take_what_a_start_up_log_says() -> None:
    """Llama-3.1-8B with LoRA: 15.1749 GiB instead of 14.9888, vLLM 0.8.2 (stored file 29487628864)."""
    of_rank_32 = lora_bytes(architecture(LLAMA), LoraSlots(1, 32), gpus=1) / GIB
    assert abs(of_rank_32 / (15.1749 - 14.9888) - 1) < 0.08


@given(st.integers(1, 32), st.sampled_from([8, 16, 64, 256]), st.sampled_from([1, 2, 4, 8]))
def test_more_slots_a_higher_rank_or_fewer_gpus_never_take_less(count: int, rank: int, gpus: int) -> None:
    of = architecture(QWEN)
    usual = lora_bytes(of, LoraSlots(count, rank), gpus=gpus)
    assert lora_bytes(of, LoraSlots(count + 1, rank), gpus=gpus) > usual
    assert lora_bytes(of, LoraSlots(count, 2 * rank), gpus=gpus) == 2 * usual
    assert lora_bytes(of, LoraSlots(count, rank), gpus=2 * gpus) < usual
    assert lora_bytes(of, LoraSlots(0, rank), gpus=gpus) == 0


def test_methods_without_weights_take_none() -> None:
    assert drafted(QWEN, []) == NO_DRAFT
    ngram = drafted(QWEN, config(method="ngram", num_speculative_tokens=5))
    assert (ngram.weights_bytes(1), ngram.layers, ngram.tokens) == (0, 0, 5)


def test_a_draft_of_the_catalogue_is_counted_whole() -> None:
    small = drafted(QWEN, config(model="Qwen/Qwen3-0.6B", num_speculative_tokens=4))
    assert small.weights_bytes(1) == 2 * architecture("Qwen/Qwen3-0.6B").parameters
    assert (small.layers, small.row_elements(1)) == (28, 2 * 8 * 128)
    same = drafted(QWEN, ["--spec-method=draft_model", "--spec-model=Qwen/Qwen3-0.6B", "--spec-tokens", "4"])
    assert same == small


def test_an_eagle_head_is_one_layer_of_the_models_shape() -> None:
    """EAGLE3-LLaMA3.1-Instruct-8B has 425 M parameters."""
    head = drafted(LLAMA, config(model="yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", num_speculative_tokens=3))
    assert abs(head.parameters / 425e6 - 1) < 0.01
    assert (head.layers, head.row_elements(2)) == (1, 2 * 4 * 128)


def test_layers_for_multi_token_prediction_are_those_of_the_checkpoint() -> None:
    """Two cards, 0.89 GiB each with an FP8 cache, three tokens: 30,400 tokens, 1.00 requests (file 63112642521)."""
    found = drafted(HYBRID, config(method="mtp", num_speculative_tokens=3))
    parts = architecture(HYBRID).parts
    assert parts is not None
    assert found.parameters == parts.draft
    plan = layout(architecture(HYBRID), gpus=2, element_bytes=1, draft=found)
    holds = plan.concurrency(int(Decimal("0.89") * GIB), 30_400, batched_tokens=2048)
    assert f"{float(holds):.2f}" == "1.00"


def test_what_is_not_known_says_so() -> None:
    assert "not in the catalogue" in drafted(QWEN, config(model="acme/draft", num_speculative_tokens=2)).unknown
    assert "multi-token prediction" in drafted(QWEN, config(method="mtp", num_speculative_tokens=2)).unknown
    assert "recurrent" in drafted(QWEN, config(model=HYBRID, num_speculative_tokens=2)).unknown


@pytest.mark.parametrize("value", ["{broken", "[]", '{"method": "ngram", "num_speculative_tokens": 0}'])
def test_what_the_engine_would_not_understand_is_refused(value: str) -> None:
    with pytest.raises(InvalidSpec, match="does not understand") as refused:
        drafted(QWEN, ["--speculative-config", value])
    assert refused.value.field == "spec.engine.args"


def fit(args: list[str] | None = None, adapters: int = 0, rank: int = 16) -> Fit:
    lora = [{"name": f"a{index}", "source": "hf://acme/adapter", "rank": rank} for index in range(adapters)]
    spec = {
        "model": {"source": f"hf://{QWEN}", "adapters": lora},
        "engine": {"name": "vllm", "args": args or []},
        "accelerator": {"class": "nvidia-l40s"},
        "quantization": {"method": "none"},
    }
    found = resolve("m", ModelDeploymentSpec.model_validate(spec), CATALOG).fit
    assert found is not None
    return found


def test_the_fit_has_less_cache_with_them_and_unknown_drafts_are_not_said_to_fit() -> None:
    usual = fit()
    with_adapters, with_draft = fit(adapters=4, rank=64), fit(config(model="Qwen/Qwen3-0.6B", num_speculative_tokens=4))
    assert usual.kv_bytes - with_adapters.kv_bytes == with_adapters.beside_bytes
    assert with_adapters.beside_bytes == lora_bytes(architecture(QWEN), LoraSlots(4, 64), gpus=1)
    assert usual.kv_bytes - with_draft.kv_bytes == 2 * architecture("Qwen/Qwen3-0.6B").parameters
    # The draft's 28 layers keep the context too, beside the model's 36.
    assert abs(with_draft.concurrency * with_draft.context_length * (36 + 28) * 4096 / with_draft.kv_bytes - 1) < 0.01
    unknown = fit(config(model="acme/draft", num_speculative_tokens=4))
    assert (unknown.verdict, unknown.longest_context) == ("Unknown", 0)
    assert "acme/draft" in unknown.why_unknown
