"""Models that are known without a download: their architecture, and how each checkpoint stores its weights.

Data flows downwards: a config.json, or a row of data/models.json, becomes an `Architecture` (`from_config`,
`from_facts`); the catalogue finds the row of a checkpoint by its hub id. The rows are kept by hack/catalogue. Pure.
"""

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any

from flotilla.catalog import names, recipes
from flotilla.catalog.model_config import (
    RECURRENT,
    LayerKind,
    attention_heads,
    family,
    flat,
    layer_kinds,
    needed,
    number,
)
from flotilla.catalog.parameters import ENCODERS, Parts, count, experts, mamba2_shape, mamba_inner, understood

_MATCHES_KEPT = 256
_LEAST_OF_SHAPES = 0.98
_USED_EXPERTS = ("num_experts_per_tok", "top_k_experts", "num_experts_per_token", "moe_k")


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """What the recurrent layers keep for each sequence, whatever its length: a convolution's inputs, and a state.

    Elements are of one layer. vLLM keeps the convolution's in the model's 16 bits, and divides both over its GPUs.
    """

    kind: LayerKind
    layers: int
    conv_elements: int
    state_elements: int
    state_bytes: int = 2
    """Bytes of an element of the state: 4 where the config asks for float32."""
    groups: int = 1
    """Groups of heads that share some of the convolution; more GPUs than groups hold copies of a group."""
    group_elements: int = 0
    """Elements of the convolution that belong to one group."""

    def bytes_per_layer(self, gpus: int) -> int:
        """Of one sequence on each of `gpus` GPUs."""
        shared = self.groups * self.group_elements
        conv = -(-(self.conv_elements - shared) // gpus) + -(-self.groups // gpus) * self.group_elements
        return 2 * conv + self.state_bytes * -(-self.state_elements // gpus)


@dataclass(frozen=True, slots=True)
class VisionTower:
    """What an engine runs over an image before the language model sees it."""

    hidden_size: int
    intermediate_size: int
    layers: int
    patch_size: int
    merge_size: int
    """Patches that become one token, along each side."""
    largest_image_patches: int = 0
    """Of the largest image that the processor lets through, with which engines try their memory; 0: not known."""
    largest_image_tokens: int = 0
    """What the language model sees of it."""
    levels: int = 1
    """Outputs of the tower that go to the language model: the last layer's, and those of deep stacks."""
    gated: bool = False
    """Whether its MLP has a gate, that is two wide inputs for each output."""
    video_images: int = 0
    """The longest video that the processor lets through, in images of the largest size; 0: shorter than one."""


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
    """Layers with a KV cache of the whole context, of their own: those that share another's are not counted."""
    sliding_layers: int = 0
    sliding_window: int = 0
    latent_width: int = 0
    """Width of one row of a latent KV cache (MLA: kv_lora_rank + qk_rope_head_dim); 0 without."""
    context_length: int = 0
    """The most tokens that the model was made for; 0 where nobody says."""
    kv_unknown: str = ""
    """Why no formula tells the size of the cache, as a clause; "" where one does."""
    encoder: bool = False
    """Whether it reads a text at once and keeps no cache, as models that embed or rank do."""
    chunked: bool = False
    """Whether `sliding_layers` see the present chunk of `sliding_window` tokens, and not the last ones (Llama 4)."""
    model_type: str = ""
    """Of the language model, as transformers names it; "" where only counts were given."""
    multimodal: str = ""
    """The model type of the whole, for a language model with towers."""
    dtype: str = ""
    """The dtype that the checkpoint names; "" where it names none."""
    parts: Parts | None = None
    """Parameters by part; None where the shapes of this kind of model are not known."""
    full_kv_heads: int = 0
    """KV heads of the layers with full attention where they differ (Gemma 4); 0: kv_heads."""
    full_head_dim: int = 0
    """Likewise the width of a head; 0: head_dim."""
    shared_kv_layers: int = 0
    """Layers without a cache of their own, which read that of an earlier layer (Gemma 3n)."""
    draft_layers: int = 0
    """Layers for multi-token prediction, which engines load for speculative decoding."""
    recurrent: RecurrentState | None = None
    tower: VisionTower | None = None
    experts: int = 0
    """Routed experts of a layer; 0 for a model without."""
    experts_per_token: int = 0
    """How many of them one token goes through."""
    expert_width: int = 0
    """Width of one expert's MLP."""
    expert_parameters: int = 0
    """Of all routed experts of all layers; 0 with experts: how many layers have them is not known."""

    @property
    def kv_known(self) -> bool:
        """Whether a formula tells the size of the cache."""
        return not self.kv_unknown

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
    """Read a config.json (of transformers). `parameters` is counted from the shapes where it is not given.

    Raises InvalidSpec that names the key which is missing or makes no sense.
    """
    return from_facts(flat(config), parameters=parameters)


def from_facts(text: Mapping[str, Any], *, parameters: int | None = None) -> Architecture:
    """Read a flat config (`model_config.flat`), or a row of the catalogue, whose facts are complete."""
    layers = layer_kinds(text)
    heads, kv_heads, head_dim = attention_heads(text)
    hidden, vocabulary = needed(text, "hidden_size"), needed(text, "vocab_size")
    parts = count(text) if parameters is None or understood(text) else None
    if parts is not None and parameters is not None and parameters < _LEAST_OF_SHAPES * parts.total:
        # Somebody knows better than the shapes.
        parts = None
    latent = number(text, "kv_lora_rank") and number(text, "kv_lora_rank") + needed(text, "qk_rope_head_dim")
    shared = number(text, "num_kv_shared_layers")
    own = layers[: len(layers) - shared]
    chunked = own.count(LayerKind.CHUNKED)
    sliding = own.count(LayerKind.SLIDING) + chunked
    tables = 1 if text.get("tie_word_embeddings", True) else 2
    # A family's defaults may name experts that no layer of this model has.
    routed = experts(text) if parts is None or parts.experts else 0
    used = next((number(text, key) for key in _USED_EXPERTS if number(text, key)), routed)
    return Architecture(
        parameters=parameters if parameters is not None else parts.total if parts else 0,
        embedding_parameters=parts.embeddings + parts.head if parts else vocabulary * hidden * tables,
        hidden_size=hidden,
        intermediate_size=number(text, "intermediate_size") or number(text, "moe_intermediate_size") or 4 * hidden,
        vocab_size=vocabulary,
        heads=heads,
        kv_heads=1 if latent else kv_heads,
        head_dim=head_dim,
        full_layers=own.count(LayerKind.FULL) + own.count(LayerKind.ATTENTION_AND_MAMBA2),
        sliding_layers=sliding,
        sliding_window=number(text, "attention_chunk_size" if chunked else "sliding_window") if sliding else 0,
        latent_width=latent,
        context_length=_context_length(text),
        kv_unknown=_kv_unknown(text, layers),
        encoder=family(text) in ENCODERS,
        chunked=bool(chunked),
        model_type=str(text.get("model_type") or ""),
        multimodal=str(text.get("multimodal") or ""),
        dtype=str(text.get("torch_dtype") or text.get("dtype") or ""),
        parts=parts,
        full_kv_heads=number(text, "num_global_key_value_heads") if text.get("attention_k_eq_v") else 0,
        full_head_dim=number(text, "global_head_dim"),
        shared_kv_layers=shared,
        draft_layers=number(text, "num_nextn_predict_layers") or number(text, "mtp_num_hidden_layers"),
        recurrent=_recurrent_state(text, layers),
        tower=_tower(text),
        experts=routed,
        experts_per_token=min(used, routed),
        expert_width=number(text, "moe_intermediate_size", number(text, "intermediate_size")) if routed else 0,
        expert_parameters=parts.experts if parts else 0,
    )


_POSITIONS_BEFORE_THE_FIRST = 2
_OFFSET_FAMILIES = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Encoders that count positions from the index of their padding on, so that two of them hold no token."""


def _context_length(text: Mapping[str, Any]) -> int:
    positions = number(text, "max_position_embeddings") or number(text, "model_max_length")
    if family(text) in _OFFSET_FAMILIES:
        return max(0, positions - _POSITIONS_BEFORE_THE_FIRST)
    return positions


def _kv_unknown(text: Mapping[str, Any], layers: list[LayerKind]) -> str:
    if family(text) == "mllama":
        return "the cache of its cross-attention depends on the images of a request"
    kinds = set(layers)
    if LayerKind.LIGHTNING in kinds and not family(text).startswith("minimax"):
        return "the shape of the state of its linear attention is not known"
    if RECURRENT & kinds and kinds & {LayerKind.SLIDING, LayerKind.CHUNKED}:
        return "no published rule tells how engines group windows beside recurrent layers"
    return ""


def _recurrent_state(text: Mapping[str, Any], layers: list[LayerKind]) -> RecurrentState | None:
    """By the shapes of vLLM's MambaStateShapeCalculator (vllm/model_executor/layers/mamba/mamba_utils.py)."""
    kind = next((layer for layer in layers if layer in RECURRENT), None)
    if kind is None:
        return None
    amount = layers.count(kind)
    if kind is LayerKind.DELTA:
        keys = number(text, "linear_num_key_heads") * number(text, "linear_key_head_dim")
        value_heads = number(text, "linear_num_value_heads")
        values = value_heads * number(text, "linear_value_head_dim")
        conv = (2 * keys + values) * (number(text, "linear_conv_kernel_dim") - 1)
        state = values * number(text, "linear_key_head_dim")
        return RecurrentState(kind, amount, conv, state, _state_bytes(text))
    if kind in (LayerKind.MAMBA2, LayerKind.ATTENTION_AND_MAMBA2):
        shape = mamba2_shape(text)
        conv = shape.channels * (shape.kernel - 1)
        state = shape.heads * shape.head_dim * shape.state
        shared = 2 * shape.state * (shape.kernel - 1)
        return RecurrentState(kind, amount, conv, state, _state_bytes(text), shape.groups, shared)
    if kind is LayerKind.MAMBA:
        inner = mamba_inner(text)
        conv = inner * (number(text, "mamba_d_conv", number(text, "conv_kernel", 4)) - 1)
        state = inner * number(text, "mamba_d_state", number(text, "state_size", 16))
        return RecurrentState(kind, amount, conv, state, _state_bytes(text))
    if kind is LayerKind.KDA:
        linear = text["linear_attn_config"]
        width, heads = int(linear["head_dim"]), int(linear["num_heads"])
        conv = 3 * width * heads * (int(linear["short_conv_kernel_size"]) - 1)
        # vLLM keeps this state in 32 bits whatever the config says.
        return RecurrentState(kind, amount, conv, heads * width * width, 4)
    if kind is LayerKind.LIGHTNING:
        heads, _, width = attention_heads(text)
        return RecurrentState(kind, amount, 0, heads * width * width)
    if kind is LayerKind.SHORT_CONV:
        hidden = needed(text, "hidden_size")
        return RecurrentState(kind, amount, hidden * (number(text, "conv_L_cache") - 1), 0)
    return None


def _state_bytes(text: Mapping[str, Any]) -> int:
    """vLLM takes the model's own dtype where the config names none."""
    return 4 if (text.get("mamba_ssm_cache_dtype") or text.get("mamba_ssm_dtype")) == "float32" else 2


_QWEN_IMAGE_TOKENS = 16384
"""max_pixels of the processors of Qwen2-VL to Qwen3.5 (preprocessor_config.json), 28 or 32 pixels square each."""
_QWEN2_VIDEO_IMAGES = 7
"""vLLM tries Qwen2-VL and Qwen2.5-VL with 14 frames of the largest image, two of which become one."""
_PIXTRAL_IMAGE_SIZE = 1540


def _tower(text: Mapping[str, Any]) -> VisionTower | None:
    tower = text.get("vision_config")
    if not isinstance(tower, Mapping):
        return None
    width = number(tower, "embed_dim") or number(tower, "hidden_size")
    layers = number(tower, "depth") or number(tower, "num_hidden_layers")
    if not width or not layers:
        return None
    patch, merge = (
        number(tower, "patch_size", 14),
        number(tower, "spatial_merge_size", number(text, "spatial_merge_size", 1)),
    )
    whole = str(text.get("multimodal") or text.get("model_type"))
    patches = tokens = 0
    if whole.startswith("qwen"):
        tokens = _QWEN_IMAGE_TOKENS
        patches = tokens * merge * merge
    elif whole == "gemma3":
        patches, tokens = (number(tower, "image_size", 896) // patch) ** 2, 256
    elif whole == "mistral3":
        patches = (_PIXTRAL_IMAGE_SIZE // patch) ** 2
        tokens = patches // (merge * merge)
    return VisionTower(
        hidden_size=width,
        intermediate_size=number(tower, "intermediate_size") or 4 * width,
        layers=layers,
        patch_size=patch,
        merge_size=merge,
        largest_image_patches=patches,
        largest_image_tokens=tokens,
        levels=1 + len(tower.get("deepstack_visual_indexes") or ()),
        gated=whole == "qwen2_5_vl",
        video_images=_QWEN2_VIDEO_IMAGES if whole in ("qwen2_vl", "qwen2_5_vl") else 0,
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a checkpoint was quantized before it was published."""

    name: str
    method: str
    """As spec.quantization.method names it."""
    bits: Decimal
    """Per parameter of the quantized parts, scales included."""
    group_size: int = 0
    """Inputs that share a scale; the width of a layer on one GPU must be a multiple. 0: one scale for each channel."""
    block_size: int = 0
    """Side of the square that shares a scale (block FP8); 0: no such squares."""
    keeps: frozenset[str] = frozenset()
    """Parts (fields of Parts) that stay in 16 bits beside embeddings, output projection, towers and norms."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One checkpoint of the catalogue."""

    id: str
    architecture: Architecture
    recipe: Recipe | None
    """None for weights in 16 bits."""
    task: str
    """generate, or embed for a model that embeds or ranks."""
    verified: bool
    """False where the row was derived from a name and not read; `source` says how."""
    source: str

    @property
    def method(self) -> str:
        """How it was quantized before it was published; empty for 16-bit weights."""
        return self.recipe.method if self.recipe else ""


def known_from_config(name: str, config: Mapping[str, Any], *, parameters: int | None = None) -> KnownModel:
    """A checkpoint by its own config.json. Raises InvalidSpec for kinds of model or quantization that are not known."""
    found = recipes.recipe(config)
    return KnownModel(
        id=name,
        architecture=from_config(config, parameters=parameters),
        recipe=_recipe(*found) if found else None,
        task="embed" if family(flat(config)) in ENCODERS else "generate",
        verified=True,
        source="its own config.json",
    )


def _recipe(name: str, facts: Mapping[str, Any]) -> Recipe:
    return Recipe(
        name,
        facts["method"],
        Decimal(facts["bits"]),
        facts.get("group_size", 0),
        facts.get("block_size", 0),
        frozenset(facts.get("keeps", ())),
    )


class ModelCatalogue:
    """Looked up by hub id, OWNER/NAME, whatever its case; `nearest` helps with what is not found."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._rows: Mapping[str, Mapping[str, Any]] = data["models"]
        self._sources: Mapping[str, Mapping[str, Any]] = data["sources"]
        self._recipes = {name: _recipe(name, facts) for name, facts in data["quantizations"].items()}
        self._read: dict[tuple[str, int, int, int], Architecture] = {}
        self._matched: dict[str, names.NameMatch] = {}
        self._own: KnownModel | None = None
        self._found = {
            name.lower(): (row, name) for row, entry in self._rows.items() for name in (row, *entry["checkpoints"])
        }

    def find(self, hub_id: str) -> KnownModel | None:
        """The model, None when the catalogue does not have it. Former names of owners are understood."""
        if self._own is not None and hub_id == self._own.id:
            return self._own
        hit = next((found for name in names.spellings(hub_id) if (found := self._found.get(name))), None)
        if hit is None:
            return None
        row, name = hit
        entry = self._rows[row]
        own = entry if name == row else entry["checkpoints"][name]
        source = self._sources[own.get("source", entry["source"])]
        return KnownModel(
            id=name,
            architecture=self._architecture(
                row,
                own.get("parameters", entry["parameters"]),
                own.get("context", 0),
                0 if own is entry else own.get("intermediate_size", 0),
            ),
            recipe=self._recipes.get(own.get("quantization", "")),
            task=entry.get("task", "generate"),
            verified=source.get("verified", True),
            source=f"{source['what']} ({source['date']})",
        )

    def match(self, typed: str) -> names.NameMatch:
        """What somebody may have meant: hub links, ids without an owner, Ollama's names and typos are understood.

        Some tens of milliseconds for a name that is not found; asked again, none.
        """
        if typed not in self._matched:
            if len(self._matched) >= _MATCHES_KEPT:
                self._matched.clear()
            self._matched[typed] = names.match(typed, self._found)
        return self._matched[typed]

    def with_own(self, known: KnownModel) -> "ModelCatalogue":
        """The same catalogue with one checkpoint more."""
        other = copy(self)
        other._own = known
        return other

    def checkpoints(self, known: KnownModel, method: str) -> list[str]:
        """Checkpoints of the same architecture that were quantized with `method`, those of the same model first."""
        if known.id.lower() not in self._found:
            return []
        row, _ = self._found[known.id.lower()]
        own = known.id.rpartition("/")[2].lower()
        recipes = {name for name, recipe in self._recipes.items() if recipe.method == method}
        found = [
            name
            for name, checkpoint in self._rows[row]["checkpoints"].items()
            if checkpoint.get("quantization") in recipes
        ]
        return sorted(found, key=lambda name: not name.rpartition("/")[2].lower().startswith(own))

    def _architecture(self, row: str, parameters: int, context: int, padded: int) -> Architecture:
        key = (row, parameters, context, padded)
        if key not in self._read:
            facts = self._rows[row]["config"]
            if context:
                facts = {**facts, "max_position_embeddings": context}
            if padded:
                facts = {**facts, "intermediate_size": padded}
            self._read[key] = from_facts(facts, parameters=parameters)
        return self._read[key]

    def __len__(self) -> int:
        return len(self._found)

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """The facts by the id of each row."""
        return self._rows

    @property
    def ids(self) -> list[str]:
        """Every checkpoint, in the order of the data."""
        return [name for _, name in self._found.values()]


@cache
def load_models() -> ModelCatalogue:
    """The packaged catalogue; read once."""
    return ModelCatalogue(json.loads(files(__package__).joinpath("data/models.json").read_text()))
