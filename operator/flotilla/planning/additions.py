"""What an engine loads beside the model: slots for LoRA adapters, and a draft model for speculative decoding. Pure.

Both are read from the spec (spec.model.adapters, spec.engine.args) and counted by the shapes that vLLM allocates
(vllm/lora/layers, vllm/config/speculative.py). The memory fit adds them to the weights of each GPU, and the draft's
layers to the cache.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from flotilla.api.types import amount
from flotilla.catalog.engines import SpeculationFlags
from flotilla.catalog.models import Architecture, KnownModel
from flotilla.errors import InvalidSpec

_BYTES = 2
"""Of an element of an adapter, which has the model's own 16 bits."""
_NO_WEIGHTS = frozenset({"ngram", "ngram_gpu", "suffix"})
"""Methods that draft from the text itself."""
_OF_THE_CHECKPOINT = re.compile(r"mtp$|^nextn$")
"""Methods whose layers the model's own checkpoint has (mtp, qwen3_next_mtp, deepseek_mtp; SGLang: nextn)."""
_EAGLE = re.compile(r"^eagle")
_EAGLE3_VOCABULARY = 32000
"""Of the draft's own output projection, as its authors publish it."""


@dataclass(frozen=True, slots=True)
class LoraSlots:
    """Adapters that can be in the GPU's memory at one time, and the rank that each slot is made for."""

    count: int
    rank: int


NO_SLOTS = LoraSlots(0, 0)


@dataclass(frozen=True, slots=True)
class DraftModel:
    """What drafts the tokens that the model then checks. Without weights or layers where it needs none."""

    tokens: int = 0
    """Drafted at a time."""
    parameters: int = 0
    """Beside those of the model itself."""
    bits: Decimal = Decimal(16)
    layers: int = 0
    """With a cache of the whole context."""
    kv_heads: int = 0
    head_dim: int = 0
    latent_width: int = 0
    unknown: str = ""
    """Why its memory is not known, as a clause."""

    def weights_bytes(self, gpus: int) -> int:
        """On each of `gpus` GPUs, over which it is split like the model."""
        return int(self.parameters * Fraction(self.bits) / 8 / gpus)

    def row_elements(self, gpus: int) -> int:
        """Of one token in the cache of one layer on each GPU."""
        return self.latent_width or 2 * -(-self.kv_heads // gpus) * self.head_dim


NO_DRAFT = DraftModel()


def lora_bytes(architecture: Architecture, slots: LoraSlots, *, gpus: int) -> int:
    """What the slots take on each of `gpus` GPUs.

    Each linear layer of the model gets two matrices for each slot, rank x inputs and outputs x rank. The first is on
    every GPU where the outputs are divided, the second where the inputs are.
    """
    if not slots.count:
        return 0
    a = architecture
    heads, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    attention = 3 * a.hidden_size + (heads + 2 * keys) // gpus + heads // gpus + a.hidden_size
    width = a.expert_width if a.experts else a.intermediate_size
    mlp = 2 * a.hidden_size + 2 * width // gpus + width // gpus + a.hidden_size
    layers = a.full_layers + a.sliding_layers + a.shared_kv_layers + (a.recurrent.layers if a.recurrent else 0)
    tables = 2 * (a.vocab_size // gpus + a.hidden_size)
    return _BYTES * slots.count * slots.rank * (layers * (attention + mlp * max(1, a.experts)) + tables)


def draft(
    architecture: Architecture,
    args: Sequence[str],
    flags: SpeculationFlags | None,
    find: Callable[[str], KnownModel | None],
) -> DraftModel:
    """What users' args ask for. Raises InvalidSpec for what the engine would not understand."""
    wanted = _wanted(args, flags) if flags is not None else {}
    if not wanted:
        return NO_DRAFT
    model, tokens = str(wanted.get("model") or ""), _tokens(wanted)
    method = str(wanted.get("method") or "").lower() or _method_of(model)
    if method in _NO_WEIGHTS:
        return DraftModel(tokens)
    if _OF_THE_CHECKPOINT.search(method):
        return _own_layers(architecture, tokens)
    known = find(model) if model else None
    if known is not None:
        return _of_another(known, tokens, shares_tables=bool(_EAGLE.match(method)))
    if _EAGLE.match(method):
        return _eagle(architecture, tokens, third="3" in method)
    return DraftModel(tokens, unknown=f"the draft model {model or method!r} is not in the catalogue")


def _wanted(args: Sequence[str], flags: SpeculationFlags) -> dict[str, object]:
    text = flag_text(args, flags.config)
    if text:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise _refused(flags.config, text, 'Give JSON, such as {"method": "ngram", ...}') from error
        if not isinstance(found, dict):
            raise _refused(flags.config, text, "Give a JSON object")
        return found
    given = {
        "method": flag_text(args, flags.method),
        "model": flag_text(args, flags.model),
        "num_speculative_tokens": flag_text(args, flags.tokens),
    }
    return {name: value for name, value in given.items() if value}


def _tokens(wanted: dict[str, object]) -> int:
    number = amount(str(wanted.get("num_speculative_tokens", 1)))
    if number is None or number < 1:
        raise _refused("num_speculative_tokens", wanted["num_speculative_tokens"], "Give a whole number above 0")
    return int(number)


def _method_of(model: str) -> str:
    """As vLLM takes it from the draft's name where none is given."""
    name = model.lower()
    if "eagle3" in name:
        return "eagle3"
    return "eagle" if "eagle" in name else "draft_model"


def _own_layers(architecture: Architecture, tokens: int) -> DraftModel:
    parts = architecture.parts
    if parts is None or not parts.draft:
        return DraftModel(tokens, unknown="the catalogue has no layers for multi-token prediction of this checkpoint")
    return DraftModel(
        tokens,
        parameters=parts.draft,
        layers=max(1, architecture.draft_layers),
        kv_heads=architecture.full_kv_heads or architecture.kv_heads,
        head_dim=architecture.full_head_dim or architecture.head_dim,
        latent_width=architecture.latent_width,
    )


def _of_another(known: KnownModel, tokens: int, *, shares_tables: bool) -> DraftModel:
    of, recipe = known.architecture, known.recipe
    if of.recurrent is not None or not of.kv_known:
        return DraftModel(tokens, unknown=f"the draft model {known.id} has recurrent layers")
    return DraftModel(
        tokens,
        parameters=of.parameters - (of.embedding_parameters if shares_tables else 0),
        bits=recipe.bits if recipe else Decimal(16),
        layers=of.full_layers + of.sliding_layers,
        kv_heads=of.kv_heads,
        head_dim=of.head_dim,
        latent_width=of.latent_width,
    )


def _eagle(architecture: Architecture, tokens: int, *, third: bool) -> DraftModel:
    """One layer of the model's own shape, and the projection that mixes its states into the draft's input."""
    a = architecture
    heads, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    inputs = (2 if third else 1) * a.hidden_size
    layer = inputs * (heads + 2 * keys) + heads * a.hidden_size + 3 * a.hidden_size * a.intermediate_size
    mixing = (3 if third else 2) * a.hidden_size * a.hidden_size
    head = min(_EAGLE3_VOCABULARY, a.vocab_size) * a.hidden_size if third else 0
    return DraftModel(
        tokens,
        parameters=layer + mixing + head,
        layers=1,
        kv_heads=a.kv_heads,
        head_dim=a.head_dim,
        latent_width=a.latent_width,
    )


def flag_text(args: Sequence[str], flag: str) -> str:
    """What users' args give a flag as `--flag value` or `--flag=value`; the last one counts, "" where none does."""
    found = ""
    for index, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if flag and name.replace("_", "-") == flag:
            found = value if equals else args[index + 1] if index + 1 < len(args) else ""
    return found


def _refused(name: str, value: object, remedy: str) -> InvalidSpec:
    return InvalidSpec(
        f"{name} is {value!r}, which the engine does not understand. {remedy}.", field="spec.engine.args"
    )
