"""Model architectures and checkpoints that are known without a download, packaged in `data/models.yaml`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flotilla import yaml_text
from flotilla.errors import InvalidSpec

_RECURRENT_KEYS = ("linear_attention_layers", "mamba_n_heads", "mamba_num_heads", "conv_L_cache", "ssm_state_size")
_IRREGULAR_KEYS = ("global_head_dim", "attention_chunk_size", "num_global_key_value_heads")
_ENCODERS = frozenset({"bert", "xlm-roberta", "roberta", "modernbert", "nomic_bert", "new"})
"""Model types without a KV cache."""
_TWO_MATRIX_MLPS = frozenset({"starcoder2", "phi", "nemotron", "gpt_neox", "falcon", "bert", "xlm-roberta"})
"""Model types whose MLP has an up and a down projection and no gate."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Counts, not bytes. `sliding_layers` keep only the last `sliding_window` tokens in the KV cache."""

    parameters: int
    """Everything in the checkpoint; a mixture of experts counts all experts."""
    embedding_parameters: int
    """Input and output embeddings, which stay in 16 bits whatever the rest is quantized to."""
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int
    full_layers: int
    sliding_layers: int = 0
    sliding_window: int = 0
    latent_width: int = 0
    """Width of one row of a latent KV cache (MLA: kv_lora_rank + qk_rope_head_dim); 0 without."""
    context_length: int = 0
    """The most tokens that the model was made for; 0 where nobody says."""
    experts: int = 0
    """Routed experts of a layer; 0 for a model without."""
    experts_per_token: int = 0
    """How many of them one token goes through."""
    expert_parameters: int = 0
    """Of all routed experts of all layers; 0 with experts: how many layers have them is not known."""
    kv_known: bool = True
    """False where layers keep a state of another kind or shape, so that no formula tells the size of the cache."""

    @property
    def active_parameters(self) -> int:
        """What one token is multiplied with: everything but the routed experts that it does not go through."""
        if not self.experts:
            return self.parameters
        return self.parameters - self.expert_parameters * (self.experts - self.experts_per_token) // self.experts

    def tensor_parallel(self, gpus: int) -> bool:
        """Whether the heads can be split evenly over so many GPUs (KV heads may be replicated instead)."""
        if self.heads % gpus:
            return False
        return bool(self.latent_width) or self.kv_heads % gpus == 0 or gpus % self.kv_heads == 0


def from_config(config: Mapping[str, Any], *, parameters: int | None = None) -> Architecture:
    """Read a config.json (of transformers). `parameters` is counted by formula where it is not given.

    Raises InvalidSpec that names the key which is missing or makes no sense.
    """
    # Multimodal checkpoints keep the language model's facts one level down.
    text = {**config, **(config.get("text_config") or {})}
    layers, heads, hidden = (_number(text, key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    full, sliding, window = _windows(text, layers)
    latent = 0
    if text.get("kv_lora_rank"):
        latent = _number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim")
    recurrent = any(text.get(key) for key in _RECURRENT_KEYS)
    if recurrent and (kept := text.get("full_attention_layers")) is not None:
        full, sliding = int(kept), 0
    vocab = _number(text, "vocab_size")
    experts, used, one_expert = _experts(text, hidden)
    routed = (layers - _dense_layers(text, layers)) * experts * one_expert
    total = parameters if parameters is not None else count_parameters(text)
    return Architecture(
        parameters=total,
        embedding_parameters=vocab * hidden * (1 if text.get("tie_word_embeddings", True) else 2),
        hidden_size=hidden,
        intermediate_size=int(text.get("intermediate_size") or text.get("moe_intermediate_size") or 4 * hidden),
        vocab_size=vocab,
        heads=heads,
        kv_heads=1 if latent else int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        full_layers=full,
        sliding_layers=sliding,
        sliding_window=window,
        latent_width=latent,
        context_length=int(text.get("max_position_embeddings") or 0),
        experts=experts,
        experts_per_token=used,
        # Where only some layers have experts, by a pattern of the family's own, the product is too large: unknown.
        expert_parameters=routed if routed < total else 0,
        kv_known=not recurrent
        and not any(text.get(key) for key in _IRREGULAR_KEYS)
        and text.get("model_type") not in _ENCODERS,
    )


def _windows(text: Mapping[str, Any], layers: int) -> tuple[int, int, int]:
    """Layers with full attention, layers with a window, and the window in tokens."""
    window = int(text.get("sliding_window") or 0)
    # Qwen2 and its kin carry a window that is switched off.
    if not window or text.get("use_sliding_window") is False:
        return layers, 0, 0
    kinds = text.get("layer_types")
    if kinds:
        sliding = sum(kind == "sliding_attention" for kind in kinds)
        return layers - sliding, sliding, window if sliding else 0
    # Every pattern-th layer attends in full; 0 or no pattern: none does.
    pattern = int(text.get("sliding_window_pattern") or 0)
    full = layers // pattern if pattern else 0
    return full, layers - full, window


def count_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of a transformer by formula: embeddings, attention (MLA too), MLP or experts, and norms.

    Within 1 % for the text models of the catalogue. Raises InvalidSpec for recurrent layers, whose shapes differ by
    family, and where a vision tower adds what the formula does not see.
    """
    if any(config.get(key) for key in _RECURRENT_KEYS) or config.get("vision_config"):
        raise InvalidSpec(
            "The parameters of this kind of model cannot be counted from its config.json. Give their number: the hub's "
            "page of the model shows it, and model.safetensors.index.json holds the bytes.",
            field="parameters",
            reason="ArchitectureUnknown",
        )
    hidden, layers = _number(config, "hidden_size"), _number(config, "num_hidden_layers")
    tables = 1 if config.get("tie_word_embeddings", True) else 2
    dense, sparse = _feed_forward(config, hidden)
    dense_layers = _dense_layers(config, layers) if sparse else layers
    per_layer = _attention(config, hidden) + 2 * hidden
    return (
        tables * _number(config, "vocab_size") * hidden
        + layers * per_layer
        + dense_layers * dense
        + (layers - dense_layers) * sparse
        + hidden
    )


def _dense_layers(config: Mapping[str, Any], layers: int) -> int:
    return min(int(config.get("first_k_dense_replace") or config.get("num_dense_layers") or 0), layers)


def _attention(config: Mapping[str, Any], hidden: int) -> int:
    heads = _number(config, "num_attention_heads")
    if config.get("kv_lora_rank"):
        latent, rope = _number(config, "kv_lora_rank"), _number(config, "qk_rope_head_dim")
        nope, value = _number(config, "qk_nope_head_dim"), _number(config, "v_head_dim")
        query = int(config.get("q_lora_rank") or 0)
        q = query * (hidden + heads * (nope + rope)) if query else hidden * heads * (nope + rope)
        return q + hidden * (latent + rope) + latent * heads * (nope + value) + heads * value * hidden
    width = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return 2 * hidden * heads * width + 2 * hidden * kv_heads * width


def _feed_forward(config: Mapping[str, Any], hidden: int) -> tuple[int, int]:
    """Parameters of one dense MLP, and of one layer of experts with its router (0 without experts)."""
    matrices = 2 if config.get("model_type") in _TWO_MATRIX_MLPS else 3
    inner = int(config.get("intermediate_size") or 0)
    dense = matrices * hidden * inner
    experts, _, one_expert = _experts(config, hidden)
    if not experts:
        return dense, 0
    expert = one_expert // (matrices * hidden)
    shared = expert * int(config.get("n_shared_experts") or 0) + int(
        config.get("shared_expert_intermediate_size") or config.get("shared_intermediate_size") or 0
    )
    return dense, hidden * (matrices * (experts * expert + shared) + experts)


def _experts(config: Mapping[str, Any], hidden: int) -> tuple[int, int, int]:
    """Routed experts of a layer, how many a token goes through, and the parameters of one; zeros without experts."""
    experts = _first(config, "n_routed_experts", "num_local_experts", "num_experts")
    if not experts:
        return 0, 0, 0
    matrices = 2 if config.get("model_type") in _TWO_MATRIX_MLPS else 3
    expert = int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 0)
    used = _first(config, "num_experts_per_tok", "top_k_experts", "num_experts_per_token") or experts
    return experts, min(used, experts), matrices * hidden * expert


def _first(config: Mapping[str, Any], *keys: str) -> int:
    return next((int(config[key]) for key in keys if config.get(key)), 0)


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidSpec(
            f"{key} is {value!r}; a whole number above 0 is needed. Use the config.json that lies beside the weights.",
            field=key,
            reason="ArchitectureUnknown",
        )
    return value


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One checkpoint. `method` is how it was quantized before it was published; empty for 16-bit weights."""

    id: str
    architecture: Architecture
    method: str


class ModelCatalogue:
    """Looked up by hub id, OWNER/NAME, whatever its case."""

    def __init__(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self._rows = rows
        self._read: dict[str, Architecture] = {}
        self._found: dict[str, tuple[str, str, str]] = {}
        for name, row in rows.items():
            own = row.get("checkpoint", "")
            for other, method in ((name, own), *((same, own) for same in row.get("same", ()))):
                self._found[other.lower()] = (name, other, method)
            for other, method in row.get("quantized", {}).items():
                self._found[other.lower()] = (name, other, method)

    def find(self, hub_id: str) -> KnownModel | None:
        """The model, None when the catalogue does not have it."""
        hit = self._found.get(hub_id.lower())
        if hit is None:
            return None
        row, name, method = hit
        if row not in self._read:
            facts = self._rows[row]
            self._read[row] = from_config(facts["config"], parameters=facts["parameters"])
        return KnownModel(name, self._read[row], method)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """The facts by the id of each row."""
        return self._rows


@cache
def load_models() -> ModelCatalogue:
    """The packaged catalogue; read once."""
    return ModelCatalogue(yaml_text.load(files(__package__).joinpath("data/models.yaml").read_text()))
