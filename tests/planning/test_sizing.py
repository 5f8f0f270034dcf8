"""Whether a model fits, what is chosen where nothing was asked for, and the refusals with their remedies."""

from decimal import Decimal
from typing import Any

import pytest

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.errors import InvalidSpec
from flotilla.planning import memory_fit
from flotilla.planning.memory_fit import GIB, DoesNotFit
from flotilla.planning.resolve import Resolved, load_catalog, resolve
from flotilla.planning.speed import RequestShape, planned_model

CATALOG = load_catalog()


def fit_of(source: str, class_name: str, **parts: Any) -> Resolved:
    spec = {
        "model": {"source": source, **parts.pop("model", {})},
        "engine": {"name": "vllm", **parts.pop("engine", {})},
        "accelerator": {"class": class_name, **parts.pop("accelerator", {})},
        "quantization": {"method": "none"},
        **parts,
    }
    return resolve("m", ModelDeploymentSpec.model_validate(spec), CATALOG)


LLAMA_70B = "hf://meta-llama/Llama-3.3-70B-Instruct"


@pytest.mark.parametrize(
    ("class_name", "gpus"),
    [("nvidia-b200", 1), ("nvidia-h200", 2), ("nvidia-h100-80gb", 2), ("nvidia-l40s", 4), ("nvidia-l4", 8)],
)
def test_the_fewest_gpus_that_fit_are_taken(class_name: str, gpus: int) -> None:
    assert fit_of(LLAMA_70B, class_name).gpus == gpus


def test_what_does_not_fit_is_refused_with_figures_and_every_remedy() -> None:
    with pytest.raises(DoesNotFit) as refused:
        fit_of(LLAMA_70B, "nvidia-h100-80gb", accelerator={"count": 1})
    text = str(refused.value)
    assert "1 x nvidia-h100-80gb (79.1 GiB each) cannot hold the model with 4096 tokens" in text
    assert "weights take 131.4 GiB" in text
    assert "spec.accelerator.count above 1" in text
    assert "fewer bits" in text
    assert refused.value.reason == "DoesNotFit"
    with pytest.raises(DoesNotFit, match="contextLength of at most"):
        fit_of(
            "hf://microsoft/phi-4",
            "nvidia-a100-40gb",
            accelerator={"count": 1},
            model={"contextLength": 16_000},
            engine={"args": ["--gpu-memory-utilization=0.74"]},
        )


def test_the_estimates_own_error_is_admitted_and_not_refused() -> None:
    tight = fit_of(
        "hf://microsoft/phi-4",
        "nvidia-a100-40gb",
        accelerator={"count": 1},
        engine={"args": ["--gpu-memory-utilization", "0.75"]},
    )
    assert tight.fit is not None
    assert tight.fit.verdict == memory_fit.TIGHT


@pytest.mark.parametrize(
    ("class_name", "parts", "field", "message"),
    [
        ("nvidia-l4", {"accelerator": {"count": 3}}, "spec.accelerator.count", "Use one of 1, 2, 4, 8"),
        ("nvidia-h100-80gb-mig-1g-10gb", {"accelerator": {"count": 2}}, "spec.accelerator.count", "not one larger GPU"),
        ("nvidia-h200", {"model": {"contextLength": 200_000}}, "spec.model.contextLength", "131072 that the model"),
    ],
)
def test_counts_and_contexts_that_cannot_be_are_refused(
    class_name: str, parts: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        fit_of("hf://meta-llama/Llama-3.1-8B-Instruct", class_name, **parts)
    assert refused.value.field == field
    assert message in str(refused.value)


def test_a_context_that_was_lengthened_by_flag_is_taken() -> None:
    found = fit_of(
        "hf://Qwen/Qwen2.5-7B-Instruct",
        "nvidia-h200",
        model={"contextLength": 131072},
        engine={"args": ["--hf-overrides", '{"rope_scaling": {}}']},
    )
    assert found.argv[found.argv.index("--max-model-len") + 1] == "131072"


def test_users_flags_change_the_fit() -> None:
    usual = fit_of("hf://Qwen/Qwen2.5-7B-Instruct", "nvidia-l4").fit
    less = fit_of("hf://Qwen/Qwen2.5-7B-Instruct", "nvidia-l4", engine={"args": ["--gpu_memory_utilization=0.85"]}).fit
    more = fit_of("hf://Qwen/Qwen2.5-7B-Instruct", "nvidia-l4", engine={"args": ["--max-num-seqs", "16"]}).fit
    assert usual is not None
    assert less is not None
    assert more is not None
    assert less.kv_bytes < usual.kv_bytes < more.kv_bytes


def test_a_cpus_memory_is_that_of_its_pod() -> None:
    small = fit_of("hf://Qwen/Qwen2.5-0.5B-Instruct", "cpu-amd64").fit
    large = fit_of("hf://Qwen/Qwen2.5-0.5B-Instruct", "cpu-amd64", resources={"memory": "32Gi"}).fit
    assert small is not None
    assert large is not None
    assert (small.memory_bytes, large.memory_bytes) == (16 * GIB, 32 * GIB)


def test_an_unknown_model_takes_one_gpu_and_the_engines_own_context() -> None:
    found = fit_of("hf://nobody/knows-it", "nvidia-l4")
    assert (found.fit, found.gpus, found.startup_seconds) == (None, 1, 1800)
    assert "--max-model-len" not in found.argv


def test_a_described_model_is_judged_like_a_known_one() -> None:
    facts = {
        "parametersMillions": 8030, "layers": 32, "hiddenSize": 4096, "intermediateSize": 14336, "attentionHeads": 32,
        "kvHeads": 8, "headDim": 128, "vocabSize": 128256, "embeddings": "Untied", "maxContextLength": 131072,
    }  # fmt: skip
    described = fit_of("pvc://weights/llama", "nvidia-l4", model={"architecture": facts}).fit
    known = fit_of("hf://meta-llama/Llama-3.1-8B-Instruct", "nvidia-l4").fit
    assert described is not None
    assert known is not None
    assert described.context_length == known.context_length


def test_every_fact_of_a_description_counts() -> None:
    facts = {
        "parametersMillions": 8030, "layers": 32, "hiddenSize": 4096, "intermediateSize": 14336, "attentionHeads": 32,
        "kvHeads": 8, "headDim": 128, "vocabSize": 128256, "embeddings": "Untied", "maxContextLength": 131072,
        "slidingWindow": 1024, "slidingWindowLayers": 16, "latentWidth": 0, "recurrentLayers": 0,
        "recurrentStateBytes": 1_000_000, "experts": 8, "expertsPerToken": 2, "expertWidth": 1024, "expertLayers": 4,
    }  # fmt: skip
    others = {
        "parametersMillions": 7000, "layers": 34, "hiddenSize": 2048, "intermediateSize": 8192, "attentionHeads": 3,
        "kvHeads": 4, "headDim": 64, "vocabSize": 32000, "embeddings": "Tied", "maxContextLength": 4096,
        "slidingWindow": 4096, "slidingWindowLayers": 8, "latentWidth": 576, "recurrentLayers": 24,
    }  # fmt: skip

    def judged(**changes: Any) -> Any:
        wanted = {"architecture": {**facts, **changes}}
        try:
            return fit_of(
                "pvc://w/x", "nvidia-l4", model=wanted, accelerator={"count": 2}, quantization={"method": "fp8"}
            ).fit
        except InvalidSpec as error:
            return str(error)

    usual = judged()
    for name, value in others.items():
        assert judged(**{name: value}) != usual, name


@pytest.mark.parametrize(("name", "seconds"), [("Qwen/Qwen2.5-7B-Instruct", 600), ("Qwen/Qwen3-32B", 1080)])
def test_a_larger_model_may_take_longer_to_start(name: str, seconds: int) -> None:
    found = fit_of(f"hf://{name}", "nvidia-h100-80gb")
    assert found.startup_seconds == seconds
    assert dict(found.env)["VLLM_ENGINE_READY_TIMEOUT_S"] == str(seconds)


def test_a_hybrid_gets_a_context_on_vllm_and_none_on_an_engine_whose_pool_of_states_is_not_known() -> None:
    on_vllm = fit_of("hf://Qwen/Qwen3.5-9B", "nvidia-l40s").fit
    assert on_vllm is not None
    assert on_vllm.verdict == "Fits"
    assert on_vllm.most_sequences > 256
    on_sglang = fit_of("hf://Qwen/Qwen3.5-9B", "nvidia-l40s", engine={"name": "sglang"}).fit
    assert on_sglang is not None
    assert on_sglang.verdict == "Unknown"


def test_more_sequences_than_states_are_refused_with_the_flag_that_helps() -> None:
    with pytest.raises(DoesNotFit, match=r"Use --max-num-seqs=\d+ or less in spec.engine.args") as refused:
        fit_of("hf://Qwen/Qwen3.5-27B", "nvidia-h100-80gb", accelerator={"count": 1})
    most = refused.value.fit.most_sequences
    helped = fit_of(
        "hf://Qwen/Qwen3.5-27B",
        "nvidia-h100-80gb",
        accelerator={"count": 1},
        engine={"args": [f"--max-num-seqs={most}"]},
    )
    assert helped.fit is not None


def test_a_described_hybrid_is_judged_like_the_one_of_the_catalogue() -> None:
    facts = {
        "parametersMillions": 9653, "layers": 8, "hiddenSize": 4096, "intermediateSize": 12288, "attentionHeads": 16,
        "kvHeads": 4, "headDim": 256, "vocabSize": 248320, "embeddings": "Untied", "maxContextLength": 262144,
        "recurrentLayers": 24, "recurrentStateBytes": 2_146_304,
    }  # fmt: skip
    described = fit_of("pvc://weights/qwen", "nvidia-l40s", model={"architecture": facts}).fit
    known = fit_of("hf://Qwen/Qwen3.5-9B", "nvidia-l40s").fit
    assert described is not None
    assert known is not None
    assert abs(described.concurrency / known.concurrency - 1) < 0.05


@pytest.mark.parametrize(
    ("source", "legal", "refused", "why"),
    [
        # 13824 / 8 is no multiple of 128 (Qwen3-VL#831, vllm#5675).
        ("Qwen/Qwen2.5-14B-Instruct-AWQ", (1, 2, 4), 8, r"width of the MLP \(13824\) over 8 GPUs"),
        ("Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4", (2, 4), 8, r"multiple of the 128 weights"),
        # 9728 / 8 = 1216: no square of 128 x 128.
        ("Qwen/Qwen3-4B-FP8", (1, 2, 4), 8, r"width of the MLP \(9728\) over 8 GPUs"),
        ("Qwen/Qwen3-30B-A3B-FP8", (1, 2), 4, r"width of an expert \(768\) over 4 GPUs"),
        # Padded when it was quantized: 29696 instead of 29568.
        ("Qwen/Qwen2.5-72B-Instruct-AWQ", (2, 4, 8), 3, "64 attention heads and 8 KV heads"),
    ],
)
def test_a_quantized_checkpoint_is_not_split_within_weights_that_share_a_scale(
    source: str, legal: tuple[int, ...], refused: int, why: str
) -> None:
    for count in legal:
        wanted = {"accelerator": {"count": count}, "quantization": {"method": "auto"}}
        assert fit_of(f"hf://{source}", "nvidia-h100-80gb", **wanted).gpus == count
    with pytest.raises(InvalidSpec, match=why) as error:
        fit_of(f"hf://{source}", "nvidia-h100-80gb", accelerator={"count": refused}, quantization={"method": "auto"})
    assert error.value.field == "spec.accelerator.count"
    assert "Use one of 1, 2" in str(error.value)


def test_flags_that_save_graphs_or_images_leave_more_cache() -> None:
    def cache(*args: str) -> int:
        fit = fit_of("hf://Qwen/Qwen3-VL-8B-Instruct", "nvidia-l4", engine={"args": list(args)}).fit
        assert fit is not None
        return fit.kv_bytes

    usual = cache()
    assert cache("--enforce-eager") - usual == int(Decimal("1.0") * GIB) - int(Decimal("0.1") * GIB)
    assert cache("--language-model-only") > usual
    assert cache("--limit-mm-per-prompt={}") == usual
    assert cache("--limit-mm-per-prompt", '{"image": 0, "video": 0}') == cache("--language-model-only")


def test_a_vision_model_is_refused_with_the_context_that_its_images_leave() -> None:
    # A start-up log says 1.1 GiB for the cache, which is 8000 tokens (issue 16, C2).
    with pytest.raises(DoesNotFit, match=r"spec\.model\.contextLength of at most [78]\d\d\d\b"):
        fit_of(
            "hf://Qwen/Qwen3-VL-8B-Instruct",
            "nvidia-l4",
            model={"contextLength": 16384},
            engine={"args": ["--gpu-memory-utilization=0.9"]},
            accelerator={"count": 1},
        )


def test_a_model_that_is_tried_with_a_video_as_long_as_its_context_gets_more_cache_with_a_short_one_or_without() -> (
    None
):
    def fit(context: int | None, *args: str) -> Any:
        model = {"contextLength": context} if context else {}
        found = fit_of("hf://Qwen/Qwen2.5-VL-7B-Instruct", "nvidia-l40s", model=model, engine={"args": list(args)}).fit
        assert found is not None
        return found

    no_video = "--limit-mm-per-prompt=video=0"
    assert fit(16_000).kv_bytes > fit(64_000).kv_bytes + GIB
    assert fit(16_000).kv_bytes == fit(16_000, no_video).kv_bytes
    assert fit(64_000, no_video).kv_bytes == fit(16_000).kv_bytes
    # The context that is chosen is one with which the engine starts.
    chosen = fit(None)
    assert fit(chosen.context_length).verdict == "Fits"


def test_70b_in_8_bits_fit_one_card_of_80_gb_by_weights_of_8_bits_and_nothing_more() -> None:
    found = fit_of(
        "hf://RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8",
        "nvidia-h100-80gb",
        model={"contextLength": 16384},
        accelerator={"count": 1},
        quantization={"method": "auto", "kvCache": "fp8"},
        engine={"args": ["--gpu-memory-utilization=0.95"]},
    ).fit
    assert found is not None
    assert found.verdict == "Fits"
    assert abs(found.weights_bytes / GIB - 67.70) < 0.1


def test_a_described_mixture_of_experts_has_the_speed_of_the_one_of_the_catalogue() -> None:
    facts = {
        "parametersMillions": 30532, "layers": 48, "hiddenSize": 2048, "intermediateSize": 6144, "attentionHeads": 32,
        "kvHeads": 4, "headDim": 128, "vocabSize": 151936, "embeddings": "Untied", "maxContextLength": 40960,
        "experts": 128, "expertsPerToken": 8, "expertWidth": 768,
    }  # fmt: skip
    shape = RequestShape(1000, 150)

    def speed(found: Resolved) -> float:
        return planned_model(found).tasks_per_s(shape, 32)

    described = fit_of("pvc://weights/moe", "nvidia-h100-80gb", model={"architecture": facts})
    known = fit_of("hf://Qwen/Qwen3-30B-A3B", "nvidia-h100-80gb")
    assert abs(speed(described) / speed(known) - 1) < 0.02
    with pytest.raises(InvalidSpec, match="expertsPerToken from 1 to 128"):
        fit_of("pvc://w/x", "nvidia-h100-80gb", model={"architecture": {**facts, "expertsPerToken": 0}})
