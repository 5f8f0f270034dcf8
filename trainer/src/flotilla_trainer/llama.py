"""The Llama architecture in JAX, for training a LoRA adapter on a CPU: weights, forward pass, loss.

Weights are read from a GGUF file or from a folder with `config.json` and safetensors files, and kept as float32,
stacked over the layers, so that XLA compiles one layer and loops over it. `q_proj` and `k_proj` have the layout of
Hugging Face (halves are rotated); GGUF files keep the rows in pairs, and are translated when they are read.

Other architectures are trained by the other backend (`trl_backend`), which needs PyTorch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from flotilla_trainer.adapter_files import hugging_face_rows
from flotilla_trainer.errors import TrainerError

# Name of a projection in Hugging Face's and PEFT's files -> its name in GGUF files.
PROJECTIONS: Final = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class LlamaShape:
    """What the forward pass has to know besides the weights."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_size: int
    context_tokens: int
    norm_epsilon: float


@dataclass(frozen=True)
class LlamaModel:
    """Frozen weights of a base model. `layers` has one stacked array per projection ([layer, out, in]) and norm."""

    shape: LlamaShape
    embedding: jax.Array
    head: jax.Array
    final_norm: jax.Array
    inverse_frequencies: jax.Array
    layers: dict[str, jax.Array]


def module_path(projection: str) -> str:
    """`q_proj` -> `self_attn.q_proj`, as PyTorch's modules are called."""
    return f"{'self_attn' if projection in _ATTENTION else 'mlp'}.{projection}"


def load_model(base: Path) -> LlamaModel:
    """The base model of a GGUF file, or of a folder in Hugging Face's layout.

    Raises TrainerError for another architecture, naming it and the remedy."""
    return _load_gguf(base) if base.is_file() else _load_folder(base)


def _refuse(architecture: str) -> TrainerError:
    return TrainerError(
        f"base: the CPU backend trains models of the Llama architecture, and this one is {architecture}; "
        "use --backend trl with the trainer's image for GPUs."
    )


def _load_gguf(path: Path) -> LlamaModel:
    reader = gguf.GGUFReader(path)

    def field(name: str, default: Any = None) -> Any:
        one = reader.fields.get(name)
        return default if one is None else one.contents()

    architecture = field("general.architecture")
    if architecture != "llama":
        raise _refuse(str(architecture))
    heads = int(field("llama.attention.head_count"))
    hidden = int(field("llama.embedding_length"))
    shape = LlamaShape(
        layers=int(field("llama.block_count")),
        hidden=hidden,
        heads=heads,
        key_value_heads=int(field("llama.attention.head_count_kv", heads)),
        head_size=int(field("llama.rope.dimension_count", hidden // heads)),
        context_tokens=int(field("llama.context_length", 2048)),
        norm_epsilon=float(field("llama.attention.layer_norm_rms_epsilon", 1e-5)),
    )
    tensors = {
        tensor.name: np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        for tensor in reader.tensors
    }

    def layer(number: int, name: str) -> np.ndarray:
        if name in _NORMS:
            return tensors[f"blk.{number}.{_NORMS[name]}.weight"]
        matrix = tensors[f"blk.{number}.{PROJECTIONS[name]}.weight"]
        if name == "q_proj":
            return hugging_face_rows(matrix, shape.heads)
        return hugging_face_rows(matrix, shape.key_value_heads) if name == "k_proj" else matrix

    frequencies = _frequencies(shape.head_size, float(field("llama.rope.freq_base", 10000.0)))
    if (factors := tensors.get("rope_freqs.weight")) is not None:
        frequencies = frequencies / factors
    return LlamaModel(
        shape=shape,
        embedding=jnp.asarray(tensors["token_embd.weight"]),
        head=jnp.asarray(tensors.get("output.weight", tensors["token_embd.weight"])),
        final_norm=jnp.asarray(tensors["output_norm.weight"]),
        inverse_frequencies=jnp.asarray(frequencies),
        layers={
            name: jnp.stack([layer(number, name) for number in range(shape.layers)]) for name in (*PROJECTIONS, *_NORMS)
        },
    )


def _load_folder(folder: Path) -> LlamaModel:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise TrainerError(f"base: {folder} is neither a GGUF file nor a folder with a config.json.")
    config = json.loads(config_file.read_text())
    if config.get("model_type") != "llama":
        raise _refuse(str(config.get("model_type")))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise _refuse(f"llama with rope_type {rope['rope_type']!r}")
    heads = int(config["num_attention_heads"])
    shape = LlamaShape(
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        heads=heads,
        key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or config["hidden_size"] // heads),
        context_tokens=int(config.get("max_position_embeddings", 2048)),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-5)),
    )
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update({name: one.astype(np.float32) for name, one in load_file(file).items()})

    def layer(number: int, name: str) -> np.ndarray:
        module = name if name in _NORMS else module_path(name)
        return tensors[f"model.layers.{number}.{module}.weight"]

    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    embedding = tensors["model.embed_tokens.weight"]
    return LlamaModel(
        shape=shape,
        embedding=jnp.asarray(embedding),
        head=jnp.asarray(tensors.get("lm_head.weight", embedding)),
        final_norm=jnp.asarray(tensors["model.norm.weight"]),
        inverse_frequencies=jnp.asarray(_frequencies(shape.head_size, base)),
        layers={
            name: jnp.stack([layer(number, name) for number in range(shape.layers)]) for name in (*PROJECTIONS, *_NORMS)
        },
    )


def _frequencies(head_size: int, base: float) -> np.ndarray:
    return (1.0 / base ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)).astype(np.float32)


def new_adapter(model: LlamaModel, targets: tuple[str, ...], rank: int, seed: int) -> dict[str, dict[str, jax.Array]]:
    """A fresh adapter: `a` uniform as PyTorch's linear layers start, `b` zero, so that it changes nothing yet."""
    adapter = {}
    keys = jax.random.split(jax.random.key(seed), len(targets))
    for target, key in zip(targets, keys, strict=True):
        layers, rows, columns = model.layers[target].shape
        bound = columns**-0.5
        adapter[target] = {
            "a": jax.random.uniform(key, (layers, rank, columns), minval=-bound, maxval=bound),
            "b": jnp.zeros((layers, rows, rank)),
        }
    return adapter


def hidden_states(model: LlamaModel, adapter: Tree, scale: float, tokens: jax.Array) -> jax.Array:
    """Normalized hidden states [sequence, position, hidden] of right-padded `tokens` [sequence, position]."""
    shape = model.shape
    sequences, length = tokens.shape
    angles = jnp.arange(length)[:, None] * model.inverse_frequencies[None, :]
    cosine, sine = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    visible = jnp.tril(jnp.ones((length, length), dtype=bool))[None, None]
    group = shape.heads // shape.key_value_heads

    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + shape.norm_epsilon) * weight

    def rotate(x: jax.Array) -> jax.Array:
        low, high = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)

    def block(x: jax.Array, layer: tuple[Tree, Tree]) -> tuple[jax.Array, None]:
        weights, lora = layer

        def linear(name: str, y: jax.Array) -> jax.Array:
            out: jax.Array = y @ weights[name].T
            if name in lora:
                out = out + ((y @ lora[name]["a"].T) @ lora[name]["b"].T) * scale
            return out

        y = norm(x, weights["input_layernorm"])
        query = rotate(linear("q_proj", y).reshape(sequences, length, shape.heads, shape.head_size))
        key = rotate(linear("k_proj", y).reshape(sequences, length, shape.key_value_heads, shape.head_size))
        value = linear("v_proj", y).reshape(sequences, length, shape.key_value_heads, shape.head_size)
        query = query.reshape(sequences, length, shape.key_value_heads, group, shape.head_size)
        scores = jnp.einsum("bqkgd,bskd->bkgqs", query, key) * shape.head_size**-0.5
        shares = jax.nn.softmax(jnp.where(visible[:, :, None], scores, -1e30), axis=-1)
        mixed = jnp.einsum("bkgqs,bskd->bqkgd", shares, value).reshape(sequences, length, -1)
        x = x + linear("o_proj", mixed)
        y = norm(x, weights["post_attention_layernorm"])
        return x + linear("down_proj", jax.nn.silu(linear("gate_proj", y)) * linear("up_proj", y)), None

    x, _ = jax.lax.scan(block, model.embedding[tokens], (model.layers, adapter))
    states: jax.Array = norm(x, model.final_norm)
    return states


def logits_at(model: LlamaModel, states: jax.Array, positions: jax.Array) -> jax.Array:
    """Logits [sequence, k, token] at `positions` [sequence, k]: only where needed, since the vocabulary is large."""
    chosen = jnp.take_along_axis(states, positions[:, :, None], axis=1)
    return chosen @ model.head.T


jax.tree_util.register_dataclass(
    LlamaModel,
    data_fields=["embedding", "head", "final_norm", "inverse_frequencies", "layers"],
    meta_fields=["shape"],
)
