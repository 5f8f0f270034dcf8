"""From the quantization_config of a config.json to how its weights are stored. Pure."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from flotilla.errors import InvalidSpec

_SCALE_BITS, _BLOCK_SCALE_BITS = 16, 32
_CHANNEL = Decimal("8.01")
"""8 bits and a scale for each output channel, for the widths that models have."""


class NotUnderstood(InvalidSpec):
    """A quantization_config that no recipe describes; the message names method and value."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}, so what its weights take is not known.",
            field="quantization_config",
            reason="UnsupportedQuantization",
        )


def recipe(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and facts of the recipe; None for weights in 16 bits. Raises NotUnderstood."""
    quantized = config.get("quantization_config") or config.get("compression_config")
    if not quantized:
        return None
    method = str(quantized.get("quant_method", "")).lower()
    if method in ("awq", "gptq"):
        return _grouped(method, int(quantized.get("bits") or quantized.get("w_bit") or 4), _group(quantized))
    if method == "fp8" or (method == "modelopt" and str(quantized.get("quant_algo", "")).upper().startswith("FP8")):
        block = quantized.get("weight_block_size")
        if not block:
            return "fp8", {"method": "fp8", "bits": str(_CHANNEL), "what": "one scale per tensor or channel"}
        if len(set(block)) != 1:
            raise NotUnderstood(f"weight_block_size {block} is no square")
        return "fp8-block", {
            "method": "fp8",
            "bits": str(8 + (Decimal(_BLOCK_SCALE_BITS) / block[0] ** 2).quantize(Decimal("0.001"))),
            "block_size": block[0],
            "what": f"blocks of {block[0]} x {block[0]}",
        }
    if method == "mxfp4":
        return "mxfp4", {
            "method": "mxfp4",
            "bits": "4.25",
            "group_size": 32,
            "what": "experts in 4 bits in groups of 32, everything else in 16 bits",
            "keeps": ["attention"],
        }
    if method == "modelopt" and "NVFP4" in str(quantized.get("quant_algo", "")).upper():
        return "nvfp4", {"method": "nvfp4", "bits": "4.5", "group_size": 16, "what": "4 bits in groups of 16"}
    if method == "bitsandbytes":
        if quantized.get("load_in_8bit"):
            return "bnb-8bit", {"method": "bitsandbytes", "bits": str(_CHANNEL), "what": "LLM.int8()"}
        return "bnb-4bit", {
            "method": "bitsandbytes",
            "bits": "4.127",
            "group_size": 64,
            "what": "NF4 with double quantization",
        }
    if method == "compressed-tensors":
        return _compressed(quantized)
    raise NotUnderstood(f"quant_method {quantized.get('quant_method')!r} is not understood")


def _group(quantized: Mapping[str, Any]) -> int:
    return int(quantized.get("group_size") or quantized.get("q_group_size") or 128)


def _grouped(method: str, bits: int, group: int) -> tuple[str, dict[str, Any]]:
    name = method if method == "awq" else f"gptq-int{bits}"
    if group < 0:
        return f"{name}-channel", {
            "method": method,
            "bits": f"{bits}.01",
            "what": f"{bits} bits, one scale per channel",
        }
    if group != 128:
        name = f"{name}-g{group}"
    each = (bits + Decimal(_SCALE_BITS + bits) / group).quantize(Decimal("0.001"))
    return name, {"method": method, "bits": str(each), "group_size": group, "what": f"{bits} bits in groups of {group}"}


def _compressed(quantized: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    groups = list((quantized.get("config_groups") or {}).values())
    if len(groups) != 1:
        raise NotUnderstood(f"compressed-tensors with {len(groups)} groups of layers")
    weights, inputs = groups[0].get("weights") or {}, groups[0].get("input_activations")
    bits, kind, group = int(weights.get("num_bits") or 0), weights.get("type"), weights.get("group_size")
    if kind == "float" and bits == 8:
        if weights.get("strategy") == "block":
            return recipe({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}) or ("", {})
        return "fp8-dynamic", {
            "method": "fp8",
            "bits": str(_CHANNEL),
            "what": "compressed-tensors, one scale per output channel",
        }
    if kind == "float" and bits == 4:
        return "nvfp4", {"method": "nvfp4", "bits": "4.5", "group_size": 16, "what": "4 bits in groups of 16"}
    if kind == "int" and bits == 8 and inputs:
        return "w8a8", {
            "method": "int8-w8a8",
            "bits": str(_CHANNEL),
            "what": "compressed-tensors, INT8 weights and activations",
        }
    if kind == "int" and bits in (4, 8):
        if not group or int(group) < 0:
            return f"w{bits}a16-channel", {
                "method": "compressed-tensors",
                "bits": f"{bits}.01",
                "what": f"compressed-tensors, {bits} bits, one scale per channel",
            }
        each = (bits + Decimal(_SCALE_BITS) / int(group)).quantize(Decimal("0.001"))
        return f"w{bits}a16" if int(group) == 128 else f"w{bits}a16-g{group}", {
            "method": "compressed-tensors",
            "bits": str(each),
            "group_size": int(group),
            "what": f"compressed-tensors, {bits} bits in groups of {group}",
        }
    raise NotUnderstood(f"compressed-tensors with {bits} bits of type {kind!r}")
