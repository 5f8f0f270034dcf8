"""Specs over engines, quantizations, accelerators, sources and adapters; each has golden manifests."""

from typing import Any

from tests.support.whole import MODEL_DEPLOYMENT

Spec = dict[str, Any]

QWEN = "hf://Qwen/Qwen2.5-7B-Instruct"
LLAMA = "hf://meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "hf://meta-llama/Llama-3.3-70B-Instruct"
_ADAPTERS = [
    {"name": "triage", "source": "hf://acme/triage-lora", "rank": 8},
    {"name": "billing", "source": "pvc://adapters/billing/v2", "rank": 24},
]
_PULL_SECRET = {"credentialsSecret": {"name": "registry"}}
_GGUF = "hf://Qwen/Qwen2.5-7B-Instruct-GGUF"
_ARCHITECTURE = {
    "parametersMillions": 3100, "layers": 36, "hiddenSize": 2048, "intermediateSize": 11008, "attentionHeads": 16,
    "kvHeads": 2, "headDim": 128, "vocabSize": 151936, "embeddings": "Tied", "maxContextLength": 32768,
}  # fmt: skip


def spec(name: str, class_name: str, source: str = QWEN, method: str = "auto", **parts: Any) -> Spec:
    """A spec; `model`, `engine`, `accelerator` and others in `parts` add to it."""
    model = {"source": source, **parts.pop("model", {})}
    accelerators = {"class": class_name, **parts.pop("accelerator", {})}
    quantization = {"method": method, **parts.pop("quantization", {})}
    engines = {"name": name, **parts.pop("engine", {})}
    return {"model": model, "engine": engines, "quantization": quantization, "accelerator": accelerators, **parts}


_NODE_TERMS = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
_AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": _NODE_TERMS}}}

COMBINATIONS: dict[str, tuple[Spec, int]] = {
    "vllm-whole-two-replicas": (MODEL_DEPLOYMENT["spec"], 2),
    "vllm-minimal": (
        {"model": {"source": QWEN}, "engine": {"name": "vllm"}, "accelerator": {"class": "nvidia-l4"}},
        1,
    ),
    "vllm-user-affinity": (spec("vllm", "nvidia-l4", scheduling={"affinity": _AFFINITY}), 1),
    "vllm-t4": (spec("vllm", "nvidia-t4", "hf://Qwen/Qwen2.5-3B-Instruct"), 1),
    "vllm-a10-fp8-weights-only": (spec("vllm", "nvidia-a10", method="fp8"), 1),
    "vllm-a100-bf16": (spec("vllm", "nvidia-a100-80gb", LLAMA), 1),
    "vllm-h100-70b": (spec("vllm", "nvidia-h100-80gb", LLAMA_70B), 1),
    "vllm-h100-70b-fp8-per-channel": (spec("vllm", "nvidia-h100-80gb", LLAMA_70B, "fp8-per-channel"), 1),
    "vllm-h100-kv-fp8": (spec("vllm", "nvidia-h100-80gb", LLAMA, quantization={"kvCache": "fp8_e5m2"}), 1),
    "vllm-h200-mixture": (spec("vllm", "nvidia-h200", "hf://Qwen/Qwen3-30B-A3B"), 1),
    "vllm-b200-nvfp4": (spec("vllm", "nvidia-b200", "hf://nvidia/Llama-3.3-70B-Instruct-FP4"), 1),
    "vllm-b200-int8": (spec("vllm", "nvidia-b200", "hf://RedHatAI/x-quantized.w8a8"), 1),
    "vllm-l40s-gpt-oss": (spec("vllm", "nvidia-l40s", "hf://openai/gpt-oss-20b"), 1),
    "vllm-l4-awq": (spec("vllm", "nvidia-l4", "hf://Qwen/Qwen2.5-7B-Instruct-AWQ"), 1),
    "vllm-l4-gptq": (spec("vllm", "nvidia-l4", "hf://Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"), 1),
    "vllm-l4-w4a16": (spec("vllm", "nvidia-l4", "hf://RedHatAI/gemma-3-27b-it-quantized.w4a16"), 1),
    "vllm-l4-sliding-window": (spec("vllm", "nvidia-l4", "hf://google/gemma-3-12b-it"), 1),
    "vllm-l4-two-gpus": (spec("vllm", "nvidia-l4", "hf://microsoft/phi-4", "none"), 1),
    "vllm-l4-fixed-count": (spec("vllm", "nvidia-l4", accelerator={"count": 4}), 1),
    "vllm-l4-own-flags": (
        spec("vllm", "nvidia-l4", engine={"args": ["--max-num-seqs=64", "--gpu-memory-utilization", "0.8"]}),
        1,
    ),
    "vllm-rtx-5090": (spec("vllm", "nvidia-rtx-5090", "hf://Qwen/Qwen3-14B"), 1),
    "vllm-mig": (spec("vllm", "nvidia-h100-80gb-mig-1g-10gb", "hf://Qwen/Qwen2.5-1.5B-Instruct"), 1),
    "vllm-amd": (spec("vllm", "amd-mi300x", LLAMA_70B), 1),
    "vllm-amd-fp8": (spec("vllm", "amd-mi300x", LLAMA_70B, "fp8"), 1),
    "vllm-cpu": (
        spec("vllm", "cpu-amd64", "hf://Qwen/Qwen2.5-0.5B-Instruct", resources={"cpu": "8", "memory": "24Gi"}),
        1,
    ),
    "vllm-older-bitsandbytes": (
        spec("vllm", "nvidia-l4", LLAMA, "bitsandbytes", engine={"version": "0.27.0"}),
        1,
    ),
    "vllm-adapters": (spec("vllm", "nvidia-l4", LLAMA, model={"adapters": _ADAPTERS}), 1),
    "vllm-gated-with-cache": (
        spec(
            "vllm",
            "nvidia-l4",
            LLAMA,
            model={"credentialsSecret": {"name": "hf"}, "cache": {"claimName": "weights"}, "revision": "main"},
        ),
        1,
    ),
    "vllm-s3": (
        spec("vllm", "nvidia-l4", "s3://models/qwen2.5-3b", model={"credentialsSecret": {"name": "aws"}}),
        1,
    ),
    "vllm-gs": (spec("vllm", "nvidia-l4", "gs://models/qwen", model={"credentialsSecret": {"name": "gcp"}}), 1),
    "vllm-oci": (
        spec(
            "vllm", "nvidia-l4", "oci://registry.example.com/models/qwen:1", model={"credentialsSecret": {"name": "r"}}
        ),
        1,
    ),
    "vllm-pvc-own-architecture": (
        spec("vllm", "nvidia-l4", "pvc://weights/ours/v3", model={"architecture": _ARCHITECTURE}),
        1,
    ),
    "vllm-latent-attention": (spec("vllm", "nvidia-l40s", "hf://deepseek-ai/DeepSeek-V2-Lite-Chat"), 1),
    "vllm-recurrent": (spec("vllm", "nvidia-l40s", "hf://Qwen/Qwen3.5-9B"), 1),
    "sglang-minimal": (spec("sglang", "nvidia-l4"), 1),
    "sglang-t4": (spec("sglang", "nvidia-t4", "hf://Qwen/Qwen2.5-3B-Instruct", "none"), 1),
    "sglang-h100-70b": (spec("sglang", "nvidia-h100-80gb", LLAMA_70B, quantization={"kvCache": "fp8_e4m3"}), 1),
    "sglang-nvfp4": (spec("sglang", "nvidia-b200", "hf://nvidia/Llama-3.3-70B-Instruct-FP4"), 1),
    "sglang-int8": (spec("sglang", "nvidia-a100-80gb", "hf://RedHatAI/x-quantized.w8a8"), 1),
    "sglang-bitsandbytes": (spec("sglang", "nvidia-a10g", LLAMA, "bitsandbytes"), 1),
    "sglang-adapters": (spec("sglang", "nvidia-l4", LLAMA, model={"adapters": _ADAPTERS, "revision": "main"}), 1),
    "sglang-pvc": (spec("sglang", "nvidia-l4", "pvc://weights"), 1),
    "tgi-minimal": (spec("tgi", "nvidia-l4"), 1),
    "tgi-awq": (spec("tgi", "nvidia-l4", "hf://hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"), 1),
    "tgi-h100-fp8": (spec("tgi", "nvidia-h100-80gb", LLAMA_70B, quantization={"kvCache": "fp8"}), 1),
    "tgi-bitsandbytes": (spec("tgi", "nvidia-a10g", LLAMA, "bitsandbytes"), 1),
    "tgi-t4-adapters": (spec("tgi", "nvidia-t4", "hf://Qwen/Qwen2.5-3B-Instruct", model={"adapters": _ADAPTERS}), 2),
    "tgi-amd": (spec("tgi", "amd-mi300x", LLAMA), 1),
    "llamacpp-cpu": (
        spec("llamacpp", "cpu-arm64", _GGUF, model={"revision": "Q4_K_M"}),
        1,
    ),
    "llamacpp-l4": (
        spec("llamacpp", "nvidia-l4", _GGUF, engine={"version": "b7000"}),
        1,
    ),
    "llamacpp-pvc": (
        spec("llamacpp", "amd-mi300x", "pvc://weights/qwen-q8_0.gguf", model={"contextLength": 4096}),
        1,
    ),
}
"""Spec and replicas by name."""
