"""From the wish in the spec to an engine's flag, to nothing, or to a refusal before any GPU is taken."""

import re
from dataclasses import dataclass

from flotilla.domain.accelerators import Accelerator
from flotilla.engines.profile import Profile, Support
from flotilla.errors import InvalidSpec

_PREQUANTIZED = (
    ("awq", r"[-_.]awq\b"),
    ("gptq", r"[-_.]gptq\b"),
    ("nvfp4", r"[-_.](nvfp4|fp4)\b"),
    ("mxfp4", r"\bgpt-oss\b"),
    ("int8-w8a8", r"[-_.](w8a8|int8)\b"),
    ("compressed-tensors", r"[-_.](w4a16|w8a16)\b"),
    ("fp8", r"[-_.]fp8\b"),
    ("gguf", r"[-_.]gguf\b"),
    ("bitsandbytes", r"[-_.](bnb|bitsandbytes)\b"),
)
"""Publishers mark pre-quantized checkpoints in the name; the catalogue of models will know better."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """What was decided. The engine values are empty where the flag is left out."""

    method: str
    engine_value: str
    kv_cache: str
    kv_engine_value: str
    note: str


def checkpoint_method(source: str) -> str | None:
    """The method that a checkpoint was quantized with before, judging by its name; None: 16-bit weights."""
    name = source.lower()
    return next((method for method, pattern in _PREQUANTIZED if re.search(pattern, name)), None)


def choose(
    *, method: str, kv_cache: str, source: str, profile: Profile, version: str, accelerator: Accelerator
) -> Quantization:
    """Resolve both wishes; raises InvalidSpec(UnsupportedQuantization) with field, cause and remedy."""
    checkpoint = checkpoint_method(source)
    engine = f"{profile.name} {version}"
    if method == "auto":
        method = checkpoint or _automatic(profile, accelerator)
    elif method == "none" and checkpoint is not None:
        raise _refuse(
            "spec.quantization.method",
            f"The checkpoint {source} is quantized with {checkpoint} already, so none cannot be had. "
            f"Use auto, or name a 16-bit checkpoint in spec.model.source.",
        )
    support = profile.quantization.get(method, Support(refused="is not known to this engine"))
    _admit(support, method, "spec.quantization.method", engine, accelerator)
    prequantized = checkpoint is not None and checkpoint == method
    if checkpoint is not None and not prequantized and method != "compressed-tensors":
        raise _refuse(
            "spec.quantization.method",
            f"The checkpoint {source} is quantized with {checkpoint}, and {method} differs from it. "
            f"Use auto or {checkpoint}, or name another checkpoint in spec.model.source.",
        )
    value = support.value if support.online or profile.name != "vllm" else ""
    if prequantized and support.online and method == "fp8":
        value = ""  # the checkpoint's own configuration says it; a flag that differs in detail is an error
    kv = profile.kv_cache.get(kv_cache, Support(refused="is not known to this engine"))
    _admit(kv, kv_cache, "spec.quantization.kvCache", engine, accelerator)
    return Quantization(
        method=method,
        engine_value=value,
        kv_cache=kv_cache,
        kv_engine_value=kv.value,
        note=_note(method, support, accelerator, prequantized=prequantized),
    )


def _automatic(profile: Profile, accelerator: Accelerator) -> str:
    fp8 = profile.quantization.get("fp8")
    native = fp8 is not None and not fp8.refused and accelerator.compute_capability >= max(fp8.native, 0.1)
    return "fp8" if native else "none"


def _admit(support: Support, method: str, field: str, engine: str, accelerator: Accelerator) -> None:
    if support.refused:
        raise _refuse(field, f"{method} {support.refused} ({engine}). Use auto, or another spec.engine.")
    if accelerator.vendor != "nvidia":
        return
    capability, gpu = accelerator.compute_capability, accelerator.class_name
    if capability < support.minimum:
        raise _refuse(
            field,
            f"{method} on {engine} needs compute capability {support.minimum}, and {gpu} has {capability}. "
            "Use auto, or another spec.accelerator.class.",
        )
    if support.below and capability >= support.below:
        raise _refuse(
            field,
            f"{method} does not run on {gpu} (compute capability {capability}): {support.below_reason}. "
            "Use fp8, or another spec.accelerator.class.",
        )


def _note(method: str, support: Support, accelerator: Accelerator, *, prequantized: bool) -> str:
    if accelerator.vendor == "nvidia" and accelerator.compute_capability < support.native:
        return (
            f"{accelerator.class_name} has no native {method} (compute capability {accelerator.compute_capability}, "
            f"native from {support.native}): it saves memory and is not faster."
        )
    if method not in ("none", "fp8", "fp8-per-channel", "bitsandbytes") and not prequantized:
        return (
            f"{method} needs a checkpoint that was quantized with it, and the name of this one does not say so; "
            "the engine will refuse it if it is not."
        )
    return ""


def _refuse(field: str, message: str) -> InvalidSpec:
    return InvalidSpec(message, field=field, reason="UnsupportedQuantization")
