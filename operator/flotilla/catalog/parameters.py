"""How many parameters a model has, by part, counted from the shapes that its config.json implies.

The count is exact for the families below: the catalogue's test compares it with the number that each checkpoint
declares. The parts matter because engines store them differently: a 4-bit checkpoint keeps embeddings, and often the
attention or the vision tower, in 16 bits. Pure; numbers are parameters, not bytes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from flotilla.catalog.model_config import (
    ATTENTION,
    LayerKind,
    attention_heads,
    family,
    layer_kinds,
    needed,
    number,
)
from flotilla.errors import InvalidSpec


@dataclass(frozen=True, slots=True)
class Parts:
    """Parameters of each part of a checkpoint."""

    embeddings: int = 0
    head: int = 0
    """The output projection where it is not tied to the embeddings."""
    attention: int = 0
    mlp: int = 0
    """Dense feed-forward blocks, and the experts that every token passes."""
    experts: int = 0
    """Routed experts, all of them."""
    recurrent: int = 0
    """Mamba, linear attention and short convolutions."""
    vision: int = 0
    """Towers and projectors for images, video and sound."""
    draft: int = 0
    """Layers for multi-token prediction, which an engine loads only for speculative decoding."""
    other: int = 0
    """Norms, routers and position tables, which stay in 16 bits."""

    @property
    def total(self) -> int:
        """Everything in the checkpoint."""
        return sum(int(getattr(self, field.name)) for field in fields(self))


class _Family(NamedTuple):
    """What the shapes of a family's layers are, where they differ from Llama's."""

    qkv_bias: bool | str = "attention_bias"
    """True, False, or the key of the config that says it."""
    out_bias: bool | str = "attention_bias"
    qk_norm: str = ""
    """A norm of queries and keys: "head" of one head's width, "width" of all heads'."""
    norms: int = 2
    """Norms of each layer."""
    norm_bias: bool = False
    final_norm: bool = True
    gated: bool = True
    """Whether the MLP has a gate beside its up and down projections."""
    mlp_bias: bool | str = "mlp_bias"
    output_gate: bool = False
    """Whether the query projection also yields a gate for the attention's output."""
    head_bias: bool = False
    router_bias: bool = False


_LLAMA = _Family()
_QK_HEAD = _Family(qk_norm="head")
_ALL_BIASES = _Family(True, True, norm_bias=True, gated=False, mlp_bias=True)
FAMILIES: dict[str, _Family] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "mixtral",
            "ministral",
            "ministral3",
            "mistral3",
            "granite",
            "granitemoe",
            "granitemoehybrid",
            "gemma",
            "phi3",
            "smollm3",
            "jamba",
            "falcon_h1",
            "minicpm",
            "minicpm3",
            "exaone",
            "baichuan",
            "yi",
            "deepseek",
            "deepseek_v2",
            "mllama",
            "llava",
            "idefics3",
            "smolvlm",
            "internvl_chat",
            "mimo",
            "kimi_linear",
            "llama4",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("deepseek_v3", "kimi_k2", "glm4_moe_lite", "minimax_m2"), _Family(router_bias=True)),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"), _Family(True, False)),
    **dict.fromkeys(("qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_moe", "hunyuan_v1_dense"), _QK_HEAD),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_moe"), _Family(qk_norm="head", output_gate=True)),
    "gemma2": _Family(norms=4),
    **dict.fromkeys(("gemma3", "gemma3n", "gemma4", "gemma4_unified"), _Family(qk_norm="head", norms=4)),
    **dict.fromkeys(("exaone4", "exaone_moe"), _QK_HEAD),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _Family(qk_norm="head", router_bias=True)),
    **dict.fromkeys(("olmo2", "olmo3", "olmoe"), _Family(qk_norm="width")),
    "olmo": _Family(norms=0, final_norm=False),
    **dict.fromkeys(("cohere", "cohere2"), _Family(norms=1)),
    "glm": _Family("attention_bias", False),
    "glm4": _Family("attention_bias", False, norms=4),
    "glm4_moe": _Family("attention_bias", False, router_bias=True),
    "chatglm": _Family("add_qkv_bias", False),
    **dict.fromkeys(("internlm2", "internlm3"), _Family("bias", "bias")),
    "seed_oss": _Family("attention_bias", "attention_out_bias"),
    "apertus": _Family(qk_norm="head", gated=False),
    "arcee": _Family(gated=False),
    "mpt": _Family(False, False, gated=False, mlp_bias=False),
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe"), _Family("use_bias", "use_bias", mlp_bias="use_bias")),
    "gpt_oss": _LLAMA,
    "nemotron": _Family(norm_bias=True, gated=False),
    "nemotron_h": _Family(norms=1, gated=False, router_bias=True),
    "starcoder2": _Family("use_bias", "use_bias", norm_bias=True, gated=False, mlp_bias="use_bias"),
    "stablelm": _Family("use_qkv_bias", False, norm_bias=True),
    "falcon": _Family("bias", "bias", norm_bias=True, gated=False, mlp_bias="bias"),
    "phi": _ALL_BIASES._replace(norms=1, head_bias=True),
    "phimoe": _Family(True, True, norm_bias=True, head_bias=True),
    "gpt_neox": _ALL_BIASES,
    "gpt_bigcode": _ALL_BIASES,
    "opt": _ALL_BIASES,
}
ENCODERS = frozenset({"bert", "xlm-roberta", "roberta", "mpnet", "nomic_bert", "modernbert", "new"})
"""Model types that read a whole text at once and keep no KV cache."""
_SHARED_COUNTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_EXPERT_COUNTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")


def understood(text: Mapping[str, Any]) -> bool:
    """Whether the shapes of this kind of model are known, so that `count` can tell its parameters."""
    kind = family(text)
    if kind not in FAMILIES and kind not in ENCODERS:
        return False
    return "vision_parameters" in text or _towers(text) is not None


def count(text: Mapping[str, Any]) -> Parts:
    """Parameters by part, of the facts that `model_config.flat` returns or of a row of the catalogue.

    Raises InvalidSpec for a kind of model whose shapes are not known, and for missing keys.
    """
    kind = family(text)
    if not understood(text):
        raise InvalidSpec(
            f"The parameters of a model of type {kind or 'unknown'} cannot be counted from its config.json. Give their "
            "number: the hub's page of the model shows it, and model.safetensors.index.json holds the bytes.",
            field="parameters",
            reason="ArchitectureUnknown",
        )
    if kind in ENCODERS:
        return Parts(**_encoder(text, kind))
    parts = _decoder(text, FAMILIES[kind])
    parts["vision"] = number(text, "vision_parameters") or _towers(text) or 0
    return Parts(**parts)


def _decoder(text: Mapping[str, Any], shape: _Family) -> Counter[str]:
    hidden, vocabulary = needed(text, "hidden_size"), needed(text, "vocab_size")
    kind = family(text)
    parts = Counter(embeddings=vocabulary * hidden)
    if not text.get("tie_word_embeddings", True):
        parts["head"] = vocabulary * hidden
    if shape.head_bias:
        parts["other"] += vocabulary
    norm = hidden * (2 if shape.norm_bias else 1)
    norms = shape.norms
    if kind == "falcon":
        norms = 2 if text.get("new_decoder_architecture") else 1
    kinds = layer_kinds(text)
    shared_from = len(kinds) - number(text, "num_kv_shared_layers")
    for index, (layer, block) in enumerate(zip(kinds, _blocks(text, kind, len(kinds)), strict=True)):
        parts["other"] += norms * norm
        if layer in ATTENTION:
            parts["attention"] += _attention(text, shape, layer, shared=index >= shared_from)
        parts["recurrent"] += _recurrent(text, layer)
        _add_block(parts, text, shape, block, shared=index >= shared_from)
    if shape.final_norm:
        parts["other"] += norm
    if kind in ("gemma3n", "gemma4"):
        _add_per_layer_embeddings(parts, text, kind)
    parts["draft"] = _draft(text, shape, hidden)
    return parts


def _attention(text: Mapping[str, Any], shape: _Family, layer: LayerKind, *, shared: bool = False) -> int:
    hidden = needed(text, "hidden_size")
    if text.get("kv_lora_rank"):
        return _latent_attention(text, hidden)
    heads, kv_heads, width = attention_heads(text)
    values = 1
    if layer is LayerKind.FULL and text.get("global_head_dim"):
        width = number(text, "global_head_dim")
        if text.get("attention_k_eq_v"):
            # Full layers of Gemma 4 use their keys as values.
            kv_heads, values = number(text, "num_global_key_value_heads", kv_heads), 0
    if shared:
        # The layer attends to the keys and values of an earlier one.
        kv_heads = 0
    own = kv_heads * width
    total = hidden * heads * width * (3 if shape.output_gate or text.get("attn_output_gate") else 2)
    total += hidden * own * (1 + values)
    if _is_set(text, shape.qkv_bias):
        total += heads * width + own * (1 + values)
    if _is_set(text, shape.out_bias):
        total += hidden
    if shape.qk_norm == "head" or (family(text) == "glm4_moe" and text.get("use_qk_norm")):
        total += width if shared else 2 * width
    elif shape.qk_norm == "width" or (family(text).startswith("cohere") and text.get("use_qk_norm")):
        total += heads * width + own
    if family(text) == "gpt_oss":
        total += heads
    return total


def _latent_attention(text: Mapping[str, Any], hidden: int) -> int:
    heads = needed(text, "num_attention_heads")
    latent, rope = needed(text, "kv_lora_rank"), needed(text, "qk_rope_head_dim")
    nope = needed(text, "qk_nope_head_dim")
    value = number(text, "v_head_dim", nope)
    rank = number(text, "q_lora_rank")
    query = rank * (hidden + 1 + heads * (nope + rope)) if rank else hidden * heads * (nope + rope)
    return query + hidden * (latent + rope) + latent + latent * heads * (nope + value) + heads * value * hidden


def _recurrent(text: Mapping[str, Any], layer: LayerKind) -> int:
    hidden = needed(text, "hidden_size")
    if layer in (LayerKind.MAMBA2, LayerKind.ATTENTION_AND_MAMBA2):
        shape = mamba2_shape(text)
        total = hidden * (shape.inner + shape.channels + shape.heads) + shape.channels * shape.kernel
        total += 3 * shape.heads + shape.inner * hidden
        if text.get("mamba_conv_bias", text.get("use_conv_bias", True)):
            total += shape.channels
        return total if family(text) == "falcon_h1" and not text.get("mamba_rms_norm") else total + shape.inner
    if layer is LayerKind.MAMBA:
        inner, state = mamba_inner(text), number(text, "mamba_d_state", number(text, "state_size", 16))
        rank = number(text, "mamba_dt_rank", number(text, "time_step_rank", -(-hidden // 16)))
        kernel = number(text, "mamba_d_conv", number(text, "conv_kernel", 4))
        total = 3 * hidden * inner + inner * (kernel + 1) + inner * (rank + 2 * state) + inner * (rank + state + 2)
        return total + (rank + 2 * state if family(text) == "jamba" else 0)
    if layer is LayerKind.DELTA:
        keys = number(text, "linear_num_key_heads") * number(text, "linear_key_head_dim")
        value_heads, value_width = number(text, "linear_num_value_heads"), number(text, "linear_value_head_dim")
        values = value_heads * value_width
        kernel = number(text, "linear_conv_kernel_dim")
        return (
            hidden * (2 * keys + 3 * values + 2 * value_heads)
            + (2 * keys + values) * kernel
            + 2 * value_heads
            + value_width
        )
    if layer is LayerKind.KDA:
        linear = text["linear_attn_config"]
        width, heads = int(linear["head_dim"]), int(linear["num_heads"])
        inner = width * heads
        return (
            4 * hidden * inner
            + 3 * inner * int(linear["short_conv_kernel_size"])
            + 2 * (hidden * width + width * inner)
            + hidden * heads
            + heads
            + inner
            + width
        )
    if layer is LayerKind.SHORT_CONV:
        return hidden * (4 * hidden + number(text, "conv_L_cache")) + (5 * hidden if text.get("conv_bias") else 0)
    if layer is LayerKind.LIGHTNING:
        raise InvalidSpec(
            f"The recurrent layers of a model of type {family(text)} are not known. Give the number of parameters.",
            field="parameters",
            reason="ArchitectureUnknown",
        )
    return 0


class Mamba2Shape(NamedTuple):
    """Widths of a Mamba-2 layer."""

    inner: int
    heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int

    @property
    def channels(self) -> int:
        """Channels of the convolution."""
        return self.inner + 2 * self.groups * self.state


def mamba2_shape(text: Mapping[str, Any]) -> Mamba2Shape:
    """Read from the names of Granite and Falcon (mamba_*) or of Nemotron."""
    heads = number(text, "mamba_n_heads", number(text, "mamba_num_heads"))
    width = number(text, "mamba_d_head", number(text, "mamba_head_dim"))
    return Mamba2Shape(
        inner=number(text, "mamba_d_ssm", heads * width),
        heads=heads,
        head_dim=width,
        state=number(text, "mamba_d_state", number(text, "ssm_state_size")),
        groups=number(text, "mamba_n_groups", number(text, "n_groups", 1)),
        kernel=number(text, "mamba_d_conv", number(text, "conv_kernel", 4)),
    )


def mamba_inner(text: Mapping[str, Any]) -> int:
    """Width of a Mamba-1 layer."""
    if family(text) == "jamba":
        return number(text, "mamba_expand", 2) * needed(text, "hidden_size")
    return number(text, "intermediate_size") or number(text, "expand", 2) * needed(text, "hidden_size")


def _blocks(text: Mapping[str, Any], kind: str, layers: int) -> list[str]:
    """The feed-forward block of each layer: dense, moe, shared (Granite's dense hybrids) or none."""
    if kind in ("mamba", "mamba2", "falcon_mamba"):
        return ["none"] * layers
    if text.get("hybrid_override_pattern"):
        return [{"-": "dense", "E": "moe"}.get(letter, "none") for letter in text["hybrid_override_pattern"]]
    if not experts(text):
        return ["shared" if kind == "granitemoehybrid" else "dense"] * layers
    if kind == "jamba":
        period, offset = number(text, "expert_layer_period", 2), number(text, "expert_layer_offset", 1)
        return ["moe" if index % period == offset else "dense" for index in range(layers)]
    if kind == "llama4":
        step = number(text, "interleave_moe_layer_step", 1) or 1
        return ["dense" if (index + 1) % step else "moe" for index in range(layers)]
    first = number(text, "first_k_dense_replace", number(text, "num_dense_layers"))
    if kind.startswith("ernie"):
        first = number(text, "moe_layer_start_index")
    dense = set(text.get("mlp_only_layers") or ())
    step = number(text, "decoder_sparse_step", 1) or 1
    return ["dense" if index < first or index in dense or (index + 1) % step else "moe" for index in range(layers)]


def experts(text: Mapping[str, Any]) -> int:
    """Routed experts of one layer; 0 for a dense model."""
    return next((number(text, key) for key in _EXPERT_COUNTS if number(text, key) > 1), 0)


def _add_block(parts: Counter[str], text: Mapping[str, Any], shape: _Family, block: str, *, shared: bool) -> None:
    hidden, kind = needed(text, "hidden_size"), family(text)
    if block == "none":
        return
    if block == "shared":
        parts["mlp"] += 3 * hidden * number(text, "shared_intermediate_size")
        return
    width = mlp_width(text)
    if block == "dense" or text.get("enable_moe_block"):
        if kind == "llama4":
            width = number(text, "intermediate_size_mlp", width)
        if shared and text.get("use_double_wide_mlp"):
            width *= 2
        parts["mlp"] += _dense(text, shape, width)
    if block == "moe":
        _add_experts(parts, text, shape, width)
        if kind == "gemma4":
            parts["other"] += 4 * hidden + experts(text)


def mlp_width(text: Mapping[str, Any]) -> int:
    """Width of the dense MLP."""
    width = number(text, "intermediate_size") or 4 * needed(text, "hidden_size")
    if family(text) in ("lfm2", "lfm2_moe") and text.get("block_auto_adjust_ff_dim"):
        unit = number(text, "block_multiple_of", 256)
        width = int((text.get("block_ffn_dim_multiplier") or 1) * int(2 * number(text, "block_ff_dim", width) / 3))
        width = -(-width // unit) * unit
    return width


def _dense(text: Mapping[str, Any], shape: _Family, width: int) -> int:
    hidden = needed(text, "hidden_size")
    matrices = 3 if shape.gated else 2
    total = matrices * hidden * width
    if _is_set(text, shape.mlp_bias):
        total += (matrices - 1) * width + hidden
    return total + (2 if family(text) == "apertus" else 0)


def _add_experts(parts: Counter[str], text: Mapping[str, Any], shape: _Family, dense_width: int) -> None:
    hidden, kind, routed = needed(text, "hidden_size"), family(text), experts(text)
    matrices = 3 if shape.gated else 2
    width = number(text, "moe_intermediate_size", dense_width)
    inner = number(text, "moe_latent_size", hidden)
    parts["experts"] += routed * matrices * inner * width
    parts["other"] += hidden * routed + (routed if shape.router_bias else 0)
    if inner != hidden:
        parts["mlp"] += 2 * hidden * inner
    if kind == "gpt_oss":
        parts["experts"] += routed * (2 * width + hidden)
        parts["other"] += routed
    always = number(text, "shared_expert_intermediate_size", number(text, "shared_intermediate_size"))
    if not always:
        copies = next((number(text, key) for key in _SHARED_COUNTS if text.get(key)), 0)
        always = number(text, "moe_shared_expert_intermediate_size") or width * (1 if kind == "llama4" else copies)
    parts["mlp"] += matrices * hidden * always
    if always and kind in ("qwen2_moe", "qwen3_next", "qwen3_5_moe"):
        parts["other"] += hidden


def _add_per_layer_embeddings(parts: Counter[str], text: Mapping[str, Any], kind: str) -> None:
    """Gemma 3n and the small ones of Gemma 4 add an embedding of each token to every layer."""
    hidden, width = needed(text, "hidden_size"), number(text, "hidden_size_per_layer_input")
    layers = needed(text, "num_hidden_layers")
    if kind == "gemma4":
        # A scale for each layer.
        parts["other"] += layers
    if not width:
        return
    parts["embeddings"] += number(text, "vocab_size_per_layer_input") * layers * width
    parts["other"] += hidden * layers * width + width + layers * (2 * hidden * width + hidden)
    if kind == "gemma3n":
        inputs, rank = number(text, "altup_num_inputs", 4), number(text, "laurel_rank", 64)
        parts["other"] += layers * (2 * hidden * rank + hidden)
        parts["other"] += layers * (2 * hidden + inputs * inputs + inputs**3 + hidden * inputs)
        parts["other"] += 2 * (inputs - 1) * hidden * hidden


def _draft(text: Mapping[str, Any], shape: _Family, hidden: int) -> int:
    """Layers for multi-token prediction: one more layer, a projection of two inputs, and three norms."""
    layers = number(text, "mtp_num_hidden_layers", number(text, "num_nextn_predict_layers"))
    if not layers:
        return 0
    parts: Counter[str] = Counter(attention=_attention(text, shape, LayerKind.FULL))
    sparse = experts(text) and not family(text).startswith("ernie")
    _add_block(parts, text, shape, "moe" if sparse else "dense", shared=False)
    parts["other"] += (shape.norms + 3) * hidden + 2 * hidden * hidden
    repeats = family(text) in ("deepseek_v3", "glm4_moe", "glm4_moe_lite")
    if text.get("mtp_use_dedicated_embeddings", repeats):
        # These checkpoints repeat the embeddings and the output projection.
        parts["other"] += 2 * hidden * needed(text, "vocab_size")
    return layers * parts.total()


def _encoder(text: Mapping[str, Any], kind: str) -> Counter[str]:
    hidden, layers = needed(text, "hidden_size"), needed(text, "num_hidden_layers")
    width = number(text, "intermediate_size", 4 * hidden)
    parts = Counter(embeddings=needed(text, "vocab_size") * hidden)
    if kind in ("nomic_bert", "new"):
        biased = kind == "new"
        parts["attention"] = layers * (4 * hidden * hidden + (4 * hidden if biased else 0))
        parts["mlp"] = layers * (3 * hidden * width + (hidden if biased else 0))
        parts["other"] = layers * 4 * hidden + (2 + number(text, "type_vocab_size")) * hidden
        return parts
    if kind == "modernbert":
        parts["attention"] = layers * 4 * hidden * hidden
        parts["mlp"] = layers * 3 * hidden * width
        # The first layer has no norm before its attention.
        parts["other"] = (2 * layers + 1) * hidden
        return parts
    parts["attention"] = layers * (4 * hidden * hidden + 4 * hidden)
    parts["mlp"] = layers * (2 * hidden * width + width + hidden)
    parts["other"] = layers * 4 * hidden + (number(text, "max_position_embeddings", 512) + 2) * hidden
    # Kinds of segment, and the pooler.
    parts["other"] += number(text, "type_vocab_size") * hidden + hidden * hidden + hidden
    if kind == "mpnet":
        parts["other"] += number(text, "relative_attention_num_buckets", 32) * needed(text, "num_attention_heads")
    return parts


def _towers(text: Mapping[str, Any]) -> int | None:
    """Parameters of the towers for images and sound; None where one is of a kind that is not known."""
    if text.get("audio_config"):
        return None
    tower = text.get("vision_config")
    return _vision_tower(tower, text) if tower else 0


def _vision_tower(tower: Mapping[str, Any], text: Mapping[str, Any]) -> int | None:
    kind, outer = str(tower.get("model_type") or ""), str(text.get("multimodal") or text.get("model_type") or "")
    text_width = needed(text, "hidden_size")
    hidden = number(tower, "hidden_size")
    layers = number(tower, "num_hidden_layers", number(tower, "depth"))
    if outer == "qwen2_5_vl":
        return _qwen2_5_tower(tower, text_width)
    if outer == "qwen2_vl":
        width = needed(tower, "embed_dim")
        inner = int(width * (tower.get("mlp_ratio") or 4))
        layers = needed(tower, "depth")
        layer = 4 * width * width + 4 * width + 2 * width * inner + inner + width + 4 * width
        merged = 4 * width
        return (
            3 * number(tower, "temporal_patch_size", 2) * number(tower, "patch_size", 14) ** 2 * width
            + layers * layer
            + 2 * width
            + merged * merged
            + merged
            + merged * text_width
            + text_width
        )
    if outer in ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"):
        return _qwen3_tower(tower, text_width)
    if outer == "gemma3" and hidden:
        inner, patch = needed(tower, "intermediate_size"), number(tower, "patch_size", 14)
        positions = (number(tower, "image_size", 896) // patch) ** 2
        layer = 4 * hidden * hidden + 4 * hidden + 2 * hidden * inner + inner + hidden + 4 * hidden
        return (
            3 * patch * patch * hidden
            + hidden
            + positions * hidden
            + layers * layer
            + 2 * hidden
            + hidden * text_width
            + hidden
        )
    if outer == "mistral3" and kind == "pixtral":
        inner = needed(tower, "intermediate_size")
        merge = number(text, "spatial_merge_size", 2) ** 2
        return (
            3 * number(tower, "patch_size", 14) ** 2 * hidden
            + hidden
            + layers * (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden)
            + hidden
            + merge * hidden * hidden
            + hidden * text_width
            + text_width * text_width
        )
    return None


def _qwen2_5_tower(tower: Mapping[str, Any], text_width: int) -> int:
    hidden, inner = needed(tower, "hidden_size"), needed(tower, "intermediate_size")
    merged = number(tower, "spatial_merge_size", 2) ** 2 * hidden
    layer = 2 * hidden + 4 * hidden * hidden + 4 * hidden + 3 * hidden * inner + 2 * inner + hidden
    return (
        3 * number(tower, "temporal_patch_size", 2) * number(tower, "patch_size", 14) ** 2 * hidden
        + needed(tower, "depth") * layer
        + hidden
        + merged * merged
        + merged
        + merged * text_width
        + text_width
    )


def _qwen3_tower(tower: Mapping[str, Any], text_width: int) -> int:
    hidden, inner = needed(tower, "hidden_size"), needed(tower, "intermediate_size")
    merged = number(tower, "spatial_merge_size", 2) ** 2 * hidden
    layer = 4 * hidden + 4 * hidden * hidden + 4 * hidden + 2 * hidden * inner + inner + hidden
    merger = merged * merged + merged + merged * text_width + text_width
    deep = len(tower.get("deepstack_visual_indexes") or ())
    return (
        3 * number(tower, "temporal_patch_size", 2) * number(tower, "patch_size", 16) ** 2 * hidden
        + hidden
        + number(tower, "num_position_embeddings", 2304) * hidden
        + needed(tower, "depth") * layer
        + merger
        + 2 * hidden
        + deep * (merger + 2 * merged)
    )


def _is_set(text: Mapping[str, Any], switch: bool | str) -> bool:
    return bool(text.get(switch)) if isinstance(switch, str) else switch
