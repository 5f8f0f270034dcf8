"""Reading a config.json of transformers: the language model's facts in one mapping, and what each layer is.

Two questions are answered here, and both are pure: which keys hold for the language model (multimodal checkpoints nest
them, and official files leave out what equals the default of transformers), and of which kind each layer is (full or
sliding attention, or a recurrent layer that keeps a state of fixed size instead of a KV cache).
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

from flotilla.errors import InvalidSpec

_NESTED = ("thinker_config", "language_config", "llm_config", "text_config")
"""Keys under which multimodal checkpoints keep the language model, from the outside to the inside."""
_LETTERS = {"f": "full", "s": "sliding", "c": "chunked", "r": "recurrent", "-": "none"}
"""The catalogue writes layer_types as one letter for each layer."""
_WORDS = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "local_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "recurrent",
    "lightning_attention": "recurrent",
    "mamba": "recurrent",
    "mamba2": "recurrent",
    "conv": "recurrent",
    "recurrent": "recurrent",
    "hybrid": "recurrent",
    "mlp": "none",
    "moe": "none",
}
_HYBRID_LETTERS = {"M": "recurrent", "*": "full", "-": "none", "E": "none"}
_OTHER_NAMES = {
    "mpt": {
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "max_seq_len": "max_position_embeddings",
    }
}
"""Families whose files have names of their own, by model type."""
_FULL_EVERY = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma4": 6,
    "gemma4_unified": 6,
    "cohere2": 4,
    "gpt_oss": 2,
    "exaone4": 4,
    "exaone_moe": 4,
    "olmo3": 4,
}
"""Families whose every N-th layer attends in full where a config names a window and no pattern (transformers 5.24)."""


class LayerKind(StrEnum):
    """What one layer keeps for a sequence: a KV cache of all or of the last tokens, or a state of fixed size."""

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    MAMBA = "mamba"
    MAMBA2 = "mamba2"
    DELTA = "delta"
    """Gated delta net, as in Qwen3-Next and Qwen3.5."""
    KDA = "kda"
    """Kimi's delta attention."""
    SHORT_CONV = "short-conv"
    LIGHTNING = "lightning"
    ATTENTION_AND_MAMBA2 = "attention+mamba2"
    """Both in one layer, as in Falcon-H1."""
    NONE = "none"
    """Only a feed-forward block, as in Nemotron-H."""


ATTENTION = frozenset({LayerKind.FULL, LayerKind.SLIDING, LayerKind.CHUNKED, LayerKind.ATTENTION_AND_MAMBA2})
RECURRENT = frozenset(
    {
        LayerKind.MAMBA,
        LayerKind.MAMBA2,
        LayerKind.DELTA,
        LayerKind.KDA,
        LayerKind.SHORT_CONV,
        LayerKind.LIGHTNING,
        LayerKind.ATTENTION_AND_MAMBA2,
    }
)


def family(text: Mapping[str, Any]) -> str:
    """The model type, without the ending that marks the text part of a multimodal model."""
    return str(text.get("model_type") or "").removesuffix("_text")


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's facts at the top level, with the defaults of transformers for what the file leaves out.

    `multimodal` is the model type of the whole where the language model was nested. The other functions here take what
    this one returns, or a row of the catalogue, which is complete as it is.
    """
    text = dict(config)
    for key in _NESTED:
        inner = text.pop(key, None)
        if isinstance(inner, Mapping):
            text.setdefault("multimodal", text.get("model_type"))
            text.update({name: value for name, value in inner.items() if value is not None or name not in text})
    for theirs, usual in _OTHER_NAMES.get(str(text.get("model_type")), {}).items():
        if theirs in text:
            text.setdefault(usual, text[theirs])
    defaults = _defaults().get(str(text.get("model_type")), {})
    return {**defaults, **text}


def number(text: Mapping[str, Any], key: str, default: int = 0) -> int:
    """A whole number of the config; `default` where it is absent or null. Raises InvalidSpec for anything else."""
    value = text.get(key)
    if value is None or value is False:
        return default
    if isinstance(value, Sequence) and not isinstance(value, str) and value and len(set(value)) == 1:
        # Gemma 3n gives one width for each layer.
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _refused(key, value)
    return value


def needed(text: Mapping[str, Any], key: str) -> int:
    """A whole number above 0. Raises InvalidSpec that names the key."""
    value = number(text, key)
    if value <= 0:
        raise _refused(key, text.get(key))
    return value


def attention_heads(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """Query heads, KV heads and the width of a head. Falcon and StarCoder name multi-query attention by a switch."""
    heads = needed(text, "num_attention_heads")
    kv_heads = number(text, "num_key_value_heads", heads)
    kind = family(text)
    if kind == "falcon":
        if text.get("new_decoder_architecture"):
            kv_heads = number(text, "num_kv_heads", heads)
        else:
            kv_heads = 1 if text.get("multi_query", True) else heads
    elif kind == "gpt_bigcode":
        kv_heads = 1 if text.get("multi_query", True) else heads
    elif kind == "chatglm" and text.get("multi_query_attention"):
        kv_heads = number(text, "multi_query_group_num", heads)
    return heads, kv_heads, number(text, "head_dim") or needed(text, "hidden_size") // heads


def layer_kinds(text: Mapping[str, Any]) -> list[LayerKind]:
    """The kind of each layer, in order. Raises InvalidSpec for a kind that is not known."""
    recurrent = _recurrent_kind(text)
    return [recurrent if name == "recurrent" else LayerKind(name) for name in _layer_names(text)]


def _layer_names(text: Mapping[str, Any]) -> list[str]:
    layers = needed(text, "num_hidden_layers")
    if family(text) in ("falcon_h1", "mamba", "mamba2", "falcon_mamba"):
        return ["recurrent"] * layers
    if text.get("hybrid_override_pattern"):
        return [
            _named(_HYBRID_LETTERS, letter, "hybrid_override_pattern") for letter in text["hybrid_override_pattern"]
        ]
    if isinstance(linear := text.get("linear_attn_config"), Mapping):
        # Counted from 1.
        full = set(linear.get("full_attn_layers") or ())
        return ["full" if index in full else "recurrent" for index in range(1, layers + 1)]
    types = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(types, str):
        return [_named(_LETTERS, letter, "layer_types") for letter in types]
    if types:
        if len(types) != layers:
            raise InvalidSpec(
                f"layer_types has {len(types)} entries and num_hidden_layers is {layers}. Use the config.json that "
                "lies beside the weights.",
                field="layer_types",
                reason="ArchitectureUnknown",
            )
        return [_named(_WORDS, kind, "layer_types") for kind in types]
    if period := number(text, "attn_layer_period"):
        offset = number(text, "attn_layer_offset")
        return ["full" if index % period == offset else "recurrent" for index in range(layers)]
    if period := number(text, "full_attention_interval"):
        return ["recurrent" if (index + 1) % period else "full" for index in range(layers)]
    if text.get("full_attn_idxs") is not None:
        full = set(text["full_attn_idxs"])
        return ["full" if index in full else "recurrent" for index in range(layers)]
    return _windowed(text, layers)


def _windowed(text: Mapping[str, Any], layers: int) -> list[str]:
    if number(text, "attention_chunk_size"):
        # Llama 4: every fourth layer sees everything, and has no rotary embedding.
        period = number(text, "no_rope_layer_interval", 4)
        return ["chunked" if (index + 1) % period else "full" for index in range(layers)]
    # Qwen2 and its relatives carry a window that is switched off.
    if not number(text, "sliding_window") or text.get("use_sliding_window") is False:
        return ["full"] * layers
    if text.get("use_sliding_window") and text.get("max_window_layers") is not None:
        first = number(text, "max_window_layers")
        return ["sliding" if index >= first else "full" for index in range(layers)]
    pattern = text.get("sliding_window_pattern")
    if isinstance(pattern, str):
        # EXAONE writes LLLG: three local layers, one global.
        return ["sliding" if pattern[index % len(pattern)] == "L" else "full" for index in range(layers)]
    period = number(text, "sliding_window_pattern", _FULL_EVERY.get(family(text), 0))
    return ["full" if period and (index + 1) % period == 0 else "sliding" for index in range(layers)]


def _recurrent_kind(text: Mapping[str, Any]) -> LayerKind:
    kind = family(text)
    if kind == "falcon_h1":
        return LayerKind.ATTENTION_AND_MAMBA2
    if text.get("linear_attn_config"):
        return LayerKind.KDA
    if text.get("linear_num_value_heads"):
        return LayerKind.DELTA
    if text.get("conv_L_cache"):
        return LayerKind.SHORT_CONV
    if kind in ("jamba", "mamba", "falcon_mamba"):
        return LayerKind.MAMBA
    if text.get("mamba_n_heads") or text.get("mamba_num_heads") or kind == "mamba2":
        return LayerKind.MAMBA2
    return LayerKind.LIGHTNING


def _named(names: Mapping[str, str], key: object, field: str) -> str:
    if key not in names:
        raise InvalidSpec(
            f"{field} names a layer of kind {key!r}, and only {', '.join(sorted(names))} are known. Give "
            "spec.model.architecture, or leave the fit to the engine.",
            field=field,
            reason="ArchitectureUnknown",
        )
    return names[str(key)]


def _refused(key: str, value: object) -> InvalidSpec:
    return InvalidSpec(
        f"{key} is {value!r}; a whole number above 0 is needed. Use the config.json that lies beside the weights.",
        field=key,
        reason="ArchitectureUnknown",
    )


@cache
def _defaults() -> Mapping[str, Mapping[str, Any]]:
    """Of transformers' configuration classes, by model type; written by hack/catalogue/defaults.py."""
    text = files(__package__).joinpath("data/config_defaults.json").read_text()
    defaults: Mapping[str, Mapping[str, Any]] = json.loads(text)["defaults"]
    return defaults
