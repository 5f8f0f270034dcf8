"""Which quantization a checkpoint can be served with on an engine and an accelerator."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from flotilla.catalog.accelerators import Accelerator
from flotilla.catalog.engines import Profile, Support, at_least
from flotilla.catalog.models import KnownModel
from flotilla.errors import InvalidSpec
from flotilla.planning.memory_fit import Weights

_PREQUANTIZED = (
    ("awq", r"[-_.]awq\b"),
    ("gptq", r"[-_.]gptq\b"),
    ("nvfp4", r"[-_.](nvfp4|fp4)\b"),
    ("mxfp4", r"\bgpt-oss\b"),
    ("int8-w8a8", r"[-_.](w8a8|int8)\b"),
    ("compressed-tensors", r"[-_.](w4a16|w8a16)\b"),
    ("gguf", r"[-_.]gguf\b"),
    ("fp8", r"[-_.]fp8\b"),
    ("bitsandbytes", r"[-_.](bnb|bitsandbytes)\b"),
)
"""Publishers mark pre-quantized checkpoints in the name; a row of the model catalogue takes precedence."""

_OTHER = re.compile(
    r"[-_.](quark|auto-?round|int4|hqq|4bit|bitnet|exl[23]|torchao|mlx|fp6|int2|2bit|3bit)\b|/.*-[48]bit\b"
)
"""Names of checkpoints that were quantized in a way that only the engine finds out."""
_BITS = {
    "none": Decimal(16),
    "fp8": Decimal("8.1"),
    "fp8-per-channel": Decimal("8.1"),
    "awq": Decimal("4.25"),
    "gptq": Decimal("4.25"),
    "compressed-tensors": Decimal("4.25"),
    "nvfp4": Decimal("4.5"),
    "mxfp4": Decimal("4.25"),
    "int8-w8a8": Decimal("8.1"),
    "bitsandbytes": Decimal("4.5"),
    "gguf": Decimal("4.85"),
}
"""Bits per parameter with scales, at the usual group size of 128; GGUF as Q4_K_M."""
_BITS_BY_NAME = (
    (r"(?i)(gptq|w\d+a16|gptq)[-_.]?(int)?8\b|w8a16|w8a8|fp8|int8|q8_0", Decimal("8.5")),
    (r"(?i)q6_k", Decimal("6.56")),
    (r"(?i)q5_k", Decimal("5.69")),
    (r"(?i)q3_k", Decimal("3.91")),
    (r"(?i)q2_k", Decimal("3.35")),
    (r"(?i)(bf16|f16)\.gguf", Decimal(16)),
)
"""Checkpoints of the methods that come in several widths state theirs in the name."""
_SEVERAL_WIDTHS = frozenset({"gguf", "gptq", "compressed-tensors"})
_GENERATE = "generate"
_TRITON_MXFP4, _FLASHINFER_MXFP4 = 9.0, 10.0
"""Compute capabilities."""
_ONLINE_NOTE_FREE = frozenset({"none", "fp8", "fp8-per-channel", "bitsandbytes"})


@dataclass(frozen=True, slots=True)
class Quantization:
    """What was decided. The engine values are empty where the flag is left out."""

    method: str
    engine_value: str
    kv_cache: str
    kv_engine_value: str
    note: str
    weights: Weights


_UNKNOWN_NOTE = (
    "The catalogue does not know this checkpoint, so the engine takes its weights as they are stored. Where they have "
    "16 bits, {method} as spec.quantization.method would save memory."
)


def checkpoint_method(source: str, known: KnownModel | None = None) -> str | None:
    """The method that a checkpoint was quantized with before, by the catalogue or its name; None: 16-bit weights."""
    if known is not None:
        return known.method or None
    name = source.lower()
    return next((method for method, pattern in _PREQUANTIZED if re.search(pattern, name)), None)


def choose(
    *,
    method: str,
    kv_cache: str,
    source: str,
    known: KnownModel | None = None,
    profile: Profile,
    version: str,
    accelerator: Accelerator,
    alternatives: Sequence[str] = (),
) -> Quantization:
    """Resolve both wishes; raises InvalidSpec(UnsupportedQuantization) with field, cause and remedy.

    `alternatives` are checkpoints of the same model that were quantized with `method`.
    """
    checkpoint = checkpoint_method(source, known)
    stored = ""
    if method == "auto":
        method = checkpoint or _automatic(profile, version, accelerator)
        if checkpoint is None and method != "none" and (known is None or known.task != _GENERATE):
            # A flag that differs from what the checkpoint is stops the engine; encoders gain nothing.
            stored, method = ("" if known else _UNKNOWN_NOTE.format(method=method)), "none"
    elif checkpoint is None and known is None and _OTHER.search(source.lower()):
        raise _refuse(
            "spec.quantization.method",
            f"The name of the checkpoint {source} says that it is quantized already, and {method} may differ from "
            "that. Use auto, with which the engine reads it from the checkpoint.",
        )
    elif method == "none" and checkpoint is not None:
        raise _refuse(
            "spec.quantization.method",
            f"The checkpoint {source} is quantized with {checkpoint} already, so none cannot be had. "
            f"Use auto, or name a 16-bit checkpoint in spec.model.source.",
        )
    support = profile.quantization.get(method, Support(refused="is not known to this engine"))
    _admit(support, method, "spec.quantization.method", profile, version, accelerator)
    prequantized = checkpoint is not None and checkpoint == method
    if known is not None and checkpoint is None and method not in _ONLINE_NOTE_FREE and not support.online:
        remedy = f"Use auto, or name such a checkpoint in spec.model.source: {', '.join(alternatives[:3])}"
        raise _refuse(
            "spec.quantization.method",
            f"{method} needs a checkpoint that was quantized with it, and {known.id} has 16-bit weights. "
            + (f"{remedy}." if alternatives else "Use auto, or name a checkpoint that was, in spec.model.source."),
        )
    if checkpoint is not None and not prequantized and method != "compressed-tensors":
        raise _refuse(
            "spec.quantization.method",
            f"The checkpoint {source} is quantized with {checkpoint}, and {method} differs from it. "
            f"Use auto or {checkpoint}, or name another checkpoint in spec.model.source.",
        )
    # The checkpoint's own configuration states it; a flag that differs in detail is an error in most engines.
    explicit = support.told or (support.online and not prequantized)
    kv = profile.kv_cache.get(kv_cache, Support(refused="is not known to this engine"))
    _admit(kv, kv_cache, "spec.quantization.kvCache", profile, version, accelerator)
    return Quantization(
        method=method,
        engine_value=support.value if explicit else "",
        kv_cache=kv_cache,
        kv_engine_value=kv.value,
        note=stored or _note(method, support, accelerator, prequantized=prequantized),
        weights=_weights(method, source, known, accelerator, kv_element_bytes=2 if kv_cache == "auto" else 1),
    )


def _weights(
    method: str, source: str, known: KnownModel | None, accelerator: Accelerator, *, kv_element_bytes: int
) -> Weights:
    bits = _bits(method, source, known)
    units = _expert_units(accelerator) if method == "mxfp4" else (1, 1)
    if known is None or known.recipe is None:
        return Weights(bits, kv_element_bytes, expert_units=units)
    recipe = known.recipe
    return Weights(bits, kv_element_bytes, recipe.keeps, recipe.group_size, recipe.block_size, units)


def _expert_units(accelerator: Accelerator) -> tuple[int, int]:
    """Multiples of hidden size and expert width in vLLM's MXFP4 kernels (quantization/mxfp4.py): Triton on Hopper,
    FlashInfer from compute capability 10.0 on and on AMD, Marlin elsewhere."""
    if accelerator.vendor == "nvidia" and accelerator.compute_capability == _TRITON_MXFP4:
        return 64, 64
    if accelerator.vendor == "nvidia" and accelerator.compute_capability < _FLASHINFER_MXFP4:
        return 256, 128
    return 256, 256


def _bits(method: str, source: str, known: KnownModel | None) -> Decimal:
    recipe = known.recipe if known is not None else None
    if recipe is not None and recipe.method == method and method != "gguf":
        return recipe.bits
    # A GGUF file states its width in its name.
    if method in _SEVERAL_WIDTHS:
        return next((bits for pattern, bits in _BITS_BY_NAME if re.search(pattern, source)), _BITS[method])
    return _BITS[method]


def _automatic(profile: Profile, version: str, accelerator: Accelerator) -> str:
    fp8 = profile.quantization.get("fp8")
    if fp8 is None or not _exists(fp8, version) or accelerator.vendor in fp8.not_on:
        return "none"
    # An Instinct computes fp8 natively too, but in a format of its own before gfx950: only on request.
    return "fp8" if accelerator.compute_capability >= max(fp8.native, 0.1) else "none"


def _exists(support: Support, version: str) -> bool:
    if support.refused and (support.until is None or at_least(version, support.until)):
        return False
    return support.since is None or at_least(version, support.since)


def _admit(support: Support, method: str, field: str, profile: Profile, version: str, accelerator: Accelerator) -> None:
    engine, gpu = f"{profile.name} {version}", accelerator.class_name
    if not _exists(support, version):
        why = support.refused
        if support.since is not None and not at_least(version, support.since):
            why = f"came with {support.since}"
        raise _refuse(field, f"{method} {why} ({engine}). Use auto, or another spec.engine.")
    if accelerator.vendor in support.not_on:
        raise _refuse(
            field,
            f"{method} on {engine} does not run on {gpu} (vendor {accelerator.vendor}). "
            "Use auto, or another spec.accelerator.class.",
        )
    capability = accelerator.compute_capability
    if accelerator.vendor == "nvidia" and capability < support.minimum:
        raise _refuse(
            field,
            f"{method} on {engine} needs compute capability {support.minimum}, and {gpu} has {capability}. "
            "Use auto, or another spec.accelerator.class.",
        )


def _note(method: str, support: Support, accelerator: Accelerator, *, prequantized: bool) -> str:
    capability = accelerator.compute_capability
    if accelerator.vendor == "nvidia" and capability < support.native:
        return (
            f"{accelerator.class_name} has no native {method} (compute capability {capability}, "
            f"native from {support.native}): it saves memory and is not faster."
        )
    if support.warn_from and accelerator.vendor == "nvidia" and capability >= support.warn_from:
        return f"{method} on {accelerator.class_name}: {support.warning}."
    if method not in _ONLINE_NOTE_FREE and not prequantized:
        return (
            f"{method} needs a checkpoint that was quantized with it, and neither the catalogue nor this one's name "
            "says so; the engine will refuse it if it is not."
        )
    return ""


def _refuse(field: str, message: str) -> InvalidSpec:
    return InvalidSpec(message, field=field, reason="UnsupportedQuantization")
