"""How rows of the catalogue of models are made and checked; pure.

A row is one architecture: the facts of a config.json that decide memory, the declared number of parameters, and the
checkpoints that share them. `add` reduces a config.json to its facts and puts the checkpoint into the row that has the
same facts, or into a new one. `check` holds every row against rules, above all this one: the parameters counted from
the shapes must be those that the checkpoint declares.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flotilla.catalog import parameters
from flotilla.catalog.model_config import LayerKind, attention_heads, family, layer_kinds, number
from flotilla.errors import InvalidSpec

Catalogue = dict[str, Any]

FACTS = (
    "model_type",
    "multimodal",
    "hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    # attention
    "attention_bias",
    "attention_out_bias",
    "add_qkv_bias",
    "use_qkv_bias",
    "use_qk_norm",
    "use_bias",
    "bias",
    "mlp_bias",
    "attn_output_gate",
    "multi_query",
    "multi_query_attention",
    "multi_query_group_num",
    "new_decoder_architecture",
    "num_kv_heads",
    "global_head_dim",
    "num_global_key_value_heads",
    "attention_k_eq_v",
    "num_kv_shared_layers",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "v_head_dim",
    # layers and windows
    "sliding_window",
    "sliding_window_pattern",
    "attention_chunk_size",
    "layer_types",
    "hybrid_override_pattern",
    "full_attention_interval",
    "attn_layer_period",
    "attn_layer_offset",
    "linear_attn_config",
    "cross_attention_layers",
    # recurrent layers
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "mamba_n_heads",
    "mamba_num_heads",
    "mamba_d_head",
    "mamba_head_dim",
    "mamba_d_ssm",
    "mamba_d_state",
    "ssm_state_size",
    "mamba_n_groups",
    "n_groups",
    "mamba_d_conv",
    "conv_kernel",
    "mamba_expand",
    "mamba_dt_rank",
    "mamba_rms_norm",
    "mamba_conv_bias",
    "use_conv_bias",
    "mamba_ssm_dtype",
    "mamba_ssm_cache_dtype",
    "conv_L_cache",
    "conv_bias",
    # feed-forward blocks
    "block_auto_adjust_ff_dim",
    "block_ff_dim",
    "block_ffn_dim_multiplier",
    "block_multiple_of",
    "use_double_wide_mlp",
    "enable_moe_block",
    "n_routed_experts",
    "num_local_experts",
    "num_experts",
    "moe_num_experts",
    "num_experts_per_tok",
    "top_k_experts",
    "num_experts_per_token",
    "moe_k",
    "moe_intermediate_size",
    "moe_latent_size",
    "n_shared_experts",
    "num_shared_experts",
    "moe_num_shared_experts",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "first_k_dense_replace",
    "num_dense_layers",
    "moe_layer_start_index",
    "mlp_only_layers",
    "decoder_sparse_step",
    "expert_layer_period",
    "expert_layer_offset",
    "interleave_moe_layer_step",
    # further parts
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
    "altup_num_inputs",
    "laurel_rank",
    "mtp_num_hidden_layers",
    "num_nextn_predict_layers",
    "mtp_use_dedicated_embeddings",
    "type_vocab_size",
    "spatial_merge_size",
    "vision_config",
    "vision_parameters",
    # of the checkpoint rather than of the architecture
    "max_position_embeddings",
    "torch_dtype",
)
"""The keys of a config.json that the fit reads, in the order in which they are written."""
TOWER_FACTS = (
    "model_type",
    "hidden_size",
    "embed_dim",
    "intermediate_size",
    "mlp_ratio",
    "num_hidden_layers",
    "depth",
    "num_attention_heads",
    "num_heads",
    "patch_size",
    "temporal_patch_size",
    "spatial_merge_size",
    "image_size",
    "num_position_embeddings",
    "deepstack_visual_indexes",
)
ON = ("tie_word_embeddings", "multi_query", "mamba_conv_bias", "use_conv_bias", "mtp_use_dedicated_embeddings")
"""Switches that are on where they are absent, so that false must be written."""
DEFAULTED = (
    *(
        key
        for key in FACTS
        if not key.startswith(("vision_", "mtp_"))
        and key not in ("model_type", "multimodal", "head_dim", "layer_types")
        # A config that does not name draft layers has none, whatever the class says.
        and key not in ("num_nextn_predict_layers", "torch_dtype")
    ),
    "use_sliding_window",
    "max_window_layers",
)
"""Keys for which a config.json that leaves them out means the default of transformers."""
_OF_THE_CHECKPOINT = ("max_position_embeddings", "torch_dtype")
TOLERANCE_PERMILLE = 2
"""How far the count from shapes may be from the declared one."""
ENCODER_TOLERANCE_PERMILLE = 8
"""Encoders are published with and without a pooler and a table of positions."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LETTERS = {"full": "f", "sliding": "s", "chunked": "c", "none": "-"}


def facts(text: Mapping[str, Any]) -> dict[str, Any]:
    """What of a flat config (model_config.flat) decides memory; absent is the same as off."""
    kept = {key: text[key] for key in FACTS if text.get(key) or (key in ON and text.get(key) is False)}
    if "dtype" in text and "torch_dtype" not in kept:
        kept["torch_dtype"] = text["dtype"]
    if isinstance(tower := kept.get("vision_config"), Mapping):
        kept["vision_config"] = {key: tower[key] for key in TOWER_FACTS if tower.get(key)}
    if isinstance(kept.get("intermediate_size"), list):
        kept["intermediate_size"] = kept["intermediate_size"][0]
    if isinstance(linear := kept.get("linear_attn_config"), Mapping):
        kept["linear_attn_config"] = {key: value for key, value in linear.items() if key != "kda_layers"}
    if kept.get("kv_lora_rank"):
        kept.pop("head_dim", None)
    elif kept.get("head_dim") and kept["head_dim"] * kept.get("num_attention_heads", 0) == kept.get("hidden_size"):
        kept.pop("head_dim")
    if family(text) in parameters.ENCODERS:
        for key in ("num_key_value_heads", "head_dim", "sliding_window", "layer_types"):
            kept.pop(key, None)
        return kept
    kinds = layer_kinds(text)
    if isinstance(kept.get("layer_types"), list) or text.get("use_sliding_window"):
        kept["layer_types"] = "".join(_LETTERS.get(kind, "r") for kind in kinds)
    if kept.get("full_attention_interval") or not set(kinds) - {LayerKind.FULL}:
        kept.pop("layer_types", None)
    if LayerKind.SLIDING not in kinds:
        kept.pop("sliding_window", None)
        kept.pop("sliding_window_pattern", None)
    return kept


def add(
    catalogue: Catalogue,
    name: str,
    text: Mapping[str, Any],
    *,
    declared: int,
    source: str,
    quantization: str = "",
    task: str = "",
) -> str:
    """Put a checkpoint into the row with the same facts, or into a row of its own; returns the row's name.

    `text` is a flat config. A checkpoint that the catalogue has already stays as it is.
    """
    known = find(catalogue, name)
    if known:
        return str(known)
    own = facts(text)
    row: str | None = next((other for other, row in catalogue["models"].items() if _same(row, own, task)), None)
    if row is None:
        entry: dict[str, Any] = {"parameters": declared, "config": own, "source": source}
        if quantization:
            entry["quantization"] = quantization
        if task:
            entry["task"] = task
        catalogue["models"][name] = entry | {"checkpoints": {}}
        return name
    add_checkpoint(
        catalogue,
        row,
        name,
        source=source,
        quantization=quantization,
        context=number(own, "max_position_embeddings"),
        declared=0 if quantization else declared,
    )
    return row


def add_checkpoint(
    catalogue: Catalogue,
    row: str,
    name: str,
    *,
    source: str,
    quantization: str = "",
    context: int = 0,
    declared: int = 0,
    padded: int = 0,
) -> None:
    """Put a checkpoint into a row that is known to have its facts.

    `padded` is its intermediate_size where the publisher made the MLP wider to quantize it.
    """
    if find(catalogue, name):
        return
    entry: dict[str, Any] = {}
    owner = catalogue["models"][row]
    if quantization:
        entry["quantization"] = quantization
    if context and context != number(owner["config"], "max_position_embeddings"):
        entry["context"] = context
    if declared and abs(declared - owner["parameters"]) * 1000 > TOLERANCE_PERMILLE * owner["parameters"]:
        entry["parameters"] = declared
    if padded and padded != owner["config"].get("intermediate_size"):
        entry["intermediate_size"] = padded
    if source != owner["source"]:
        entry["source"] = source
    owner["checkpoints"][name] = entry


def find(catalogue: Catalogue, name: str) -> str | None:
    """The row that has the checkpoint, whatever the case of its name."""
    wanted = name.lower()
    for row, entry in catalogue["models"].items():
        if row.lower() == wanted or any(other.lower() == wanted for other in entry["checkpoints"]):
            return str(row)
    return None


def _same(row: Mapping[str, Any], own: Mapping[str, Any], task: str) -> bool:
    def shape(config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if key not in _OF_THE_CHECKPOINT}

    return row.get("task", "") == task and shape(row["config"]) == shape(own)


def check(catalogue: Catalogue) -> list[str]:
    """Every rule that a row breaks, in words; empty for a sound catalogue."""
    problems: list[str] = []
    seen: dict[str, str] = {}
    for row, entry in catalogue["models"].items():
        problems += [f"{row}: {problem}" for problem in _check_row(entry, catalogue)]
        for name, checkpoint in [(row, entry), *entry["checkpoints"].items()]:
            if not _ID.fullmatch(name):
                problems.append(f"{name}: not of the form OWNER/NAME")
            if name.lower() in seen:
                problems.append(f"{name}: stands in the rows {seen[name.lower()]} and {row}")
            seen[name.lower()] = row
            quantization = checkpoint.get("quantization", "")
            if quantization and quantization not in catalogue["quantizations"]:
                problems.append(f"{name}: quantization {quantization} is not among the quantizations")
            if checkpoint.get("source", entry["source"]) not in catalogue["sources"]:
                problems.append(f"{name}: source {checkpoint['source']} is not among the sources")
    for name, source in catalogue["sources"].items():
        if not source.get("what") or not re.fullmatch(r"20\d\d-\d\d-\d\d", source.get("date", "")):
            problems.append(f"source {name}: needs what it is and a date")
    return problems


def _check_row(entry: Mapping[str, Any], catalogue: Catalogue) -> Iterator[str]:
    config, declared = entry["config"], entry["parameters"]
    unknown = set(config) - set(FACTS)
    if unknown:
        yield f"config has {', '.join(sorted(unknown))}, which nothing reads"
    if not parameters.understood(config):
        yield f"shapes of model type {family(config)} are not known"
        return
    try:
        counted = parameters.count(config).total
        if family(config) not in parameters.ENCODERS:
            heads, kv_heads, _ = attention_heads(config)
            if heads % kv_heads:
                yield f"{heads} query heads are no multiple of {kv_heads} KV heads"
            layer_kinds(config)
    except InvalidSpec as error:
        yield str(error)
        return
    tolerance = ENCODER_TOLERANCE_PERMILLE if family(config) in parameters.ENCODERS else TOLERANCE_PERMILLE
    if abs(counted - declared) * 1000 > tolerance * declared:
        yield f"{counted} parameters by its shapes, and it declares {declared}"
    tower = number(config, "vision_parameters")
    if tower and not 0 < tower < 0.6 * declared:
        yield f"its towers would have {tower} of {declared} parameters"
    recipe = catalogue["quantizations"].get(entry.get("quantization", ""), {})
    group = recipe.get("group_size", 0)
    if group and config["hidden_size"] % group:
        yield f"hidden_size {config['hidden_size']} is no multiple of the quantization's groups of {group}"


def dump(catalogue: Catalogue) -> str:
    """The catalogue as JSON with one row on each line, so that a change reads well in a diff."""

    def compact(value: object) -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    def block(name: str, entries: Mapping[str, Any]) -> str:
        lines = ",\n".join(f"  {json.dumps(key)}: {compact(value)}" for key, value in entries.items())
        return f' "{name}": {{\n{lines}\n }}'

    parts = [f' "about": {compact(catalogue["about"])}']
    parts += [block(name, catalogue[name]) for name in ("sources", "quantizations", "models")]
    return "{\n" + ",\n".join(parts) + "\n}\n"
