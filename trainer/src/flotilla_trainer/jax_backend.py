"""Training on a CPU with JAX: LoRA on a Llama model, AdamW, a linear warm-up and decline, checkpoints.

The order of the examples, the adapter's start and the learning rate depend on settings and step alone. A run that was
stopped continues from its last checkpoint and ends where an undisturbed run ends."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flotilla_trainer.adapter_files import tensor_name
from flotilla_trainer.examples import IGNORED_LABEL, Batch, Example, batches, padded_length
from flotilla_trainer.llama import LlamaModel, Tree, hidden_states, logits_at, module_path, new_adapter
from flotilla_trainer.progress import Progress
from flotilla_trainer.settings import TrainSettings

_WARM_UP_SHARE = 0.05
_LARGEST_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Trained:
    """A trained adapter as PEFT's tensors, and what the run measured."""

    tensors: dict[str, np.ndarray]
    steps: int
    resumed_from_step: int
    train_loss: float
    validation_loss: float | None


def _loss(adapter: Tree, model: LlamaModel, scale: float, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Sum of the learned tokens' cross-entropy in nats, divided by their number; and that number."""
    tokens, positions, labels = batch
    logits = logits_at(model, hidden_states(model, adapter, scale, tokens), positions)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    learned = labels != IGNORED_LABEL
    count = learned.sum()
    return jnp.where(learned, losses, 0.0).sum() / jnp.maximum(count, 1), count


def fingerprint(settings: TrainSettings, examples: Sequence[Example]) -> str:
    """Names the run that a checkpoint belongs to: base, settings and tokens."""
    digest = hashlib.sha256(json.dumps([settings.base, settings.fingerprint_fields], sort_keys=True).encode())
    for example in examples:
        digest.update(np.asarray((example.prompt_tokens, *example.tokens), dtype=np.int32).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=8)
def _programs(scale: float, learning_rate: float, steps: int) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """The optimizer, and the compiled step and measurement."""
    schedule = optax.warmup_cosine_decay_schedule(
        learning_rate / 10,
        learning_rate,
        warmup_steps=max(1, round(steps * _WARM_UP_SHARE)),
        decay_steps=max(2, steps),
        end_value=learning_rate / 10,
    )
    optimizer = optax.chain(optax.clip_by_global_norm(_LARGEST_GRADIENT_NORM), optax.adamw(schedule, weight_decay=0.0))

    @jax.jit
    def update(adapter: Any, memory: Any, frozen: LlamaModel, batch: Any) -> tuple[Any, Any, jax.Array]:
        (loss, _), gradient = jax.value_and_grad(_loss, has_aux=True)(adapter, frozen, scale, batch)
        change, memory = optimizer.update(gradient, memory, adapter)
        return optax.apply_updates(adapter, change), memory, loss

    @jax.jit
    def measure(adapter: Any, frozen: LlamaModel, batch: Any) -> tuple[jax.Array, jax.Array]:
        return _loss(adapter, frozen, scale, batch)

    return optimizer, update, measure


class Checkpoint:
    """The last state of a run in one file of `folder`, replaced in one rename."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / "jax-checkpoint.npz"
        self._name = name

    def save(self, step: int, epoch_losses: Sequence[float], state: Any) -> None:
        """Keep `state` (any tree of arrays) as it is after `step` steps."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".partial.npz")
        leaves: dict[str, Any] = {
            f"leaf{number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(state))
        }
        with draft.open("wb") as file:
            np.savez(
                file, name=np.asarray(self._name), step=np.asarray(step), losses=np.asarray(epoch_losses), **leaves
            )
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._file)

    def load(self, like: Any) -> tuple[int, list[float], Any]:
        """Step, losses of the epoch and state of this run's checkpoint; step 0 and `like` when there is none."""
        try:
            with np.load(self._file, allow_pickle=False) as kept:
                if str(kept["name"]) != self._name:
                    return 0, [], like
                leaves = [jnp.asarray(kept[f"leaf{number}"]) for number in range(len(jax.tree.leaves(like)))]
                return (
                    int(kept["step"]),
                    [float(one) for one in kept["losses"]],
                    jax.tree.unflatten(jax.tree.structure(like), leaves),
                )
        except (OSError, ValueError, KeyError):
            return 0, [], like

    def remove(self) -> None:
        """The run has ended."""
        self._file.unlink(missing_ok=True)


def train(
    model: LlamaModel,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    settings: TrainSettings,
    progress: Progress,
    after_step: Callable[[int], None] = lambda _step: None,
) -> Trained:
    """Train an adapter for `model`. `after_step` is called once a step's checkpoint, if any, is written."""
    per_epoch = -(-len(examples) // settings.batch_size)
    steps = per_epoch * settings.epochs
    optimizer, update, measure = _programs(settings.lora.scale, settings.learning_rate, steps)

    def mean_loss(adapter: Any) -> float | None:
        total, tokens = 0.0, 0
        for batch in batches(held_out, settings.batch_size, None):
            loss, count = measure(adapter, model, _arrays(batch))
            total, tokens = total + float(loss) * int(count), tokens + int(count)
        return total / tokens if tokens else None

    checkpoint = Checkpoint(settings.checkpoints, fingerprint(settings, examples))
    adapter = new_adapter(model, settings.lora.target_modules, settings.lora.rank, settings.seed)
    resumed, losses, (adapter, memory) = checkpoint.load((adapter, optimizer.init(adapter)))
    if resumed:
        progress.event("resumed", step=resumed, steps=steps)
    train_loss, validation_loss = float("nan"), None
    for epoch in range(resumed // per_epoch if resumed < steps else settings.epochs - 1, settings.epochs):
        seed = settings.seed * 1_000_003 + epoch
        for number, batch in enumerate(batches(examples, settings.batch_size, seed), start=epoch * per_epoch + 1):
            if number <= resumed:
                continue
            started = progress.seconds()
            adapter, memory, loss = update(adapter, memory, model, _arrays(batch))
            losses.append(float(loss))
            progress.step(number, steps, losses[-1], batch.tokens.size / max(1e-9, progress.seconds() - started))
            if number % settings.checkpoint_every_steps == 0 or number == steps:
                checkpoint.save(number, losses, (adapter, memory))
            after_step(number)
        train_loss, validation_loss = sum(losses) / len(losses), mean_loss(adapter)
        progress.epoch(epoch + 1, settings.epochs, train_loss, validation_loss)
        losses = []
    return Trained(_peft_tensors(adapter), steps, resumed, train_loss, validation_loss)


def _arrays(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.asarray(batch.tokens), jnp.asarray(batch.positions), jnp.asarray(batch.labels)


def _peft_tensors(adapter: Tree) -> dict[str, np.ndarray]:
    return {
        tensor_name(layer, module_path(projection), matrix.upper()): np.asarray(stacked[layer])
        for projection, matrices in adapter.items()
        for matrix, stacked in matrices.items()
        for layer in range(stacked.shape[0])
    }


def adapter_from_peft(tensors: Tree, model: LlamaModel, targets: Sequence[str]) -> dict[str, dict[str, jax.Array]]:
    """The inverse of what `train` returns: PEFT's tensors as stacked arrays."""
    return {
        projection: {
            matrix.lower(): jnp.stack(
                [
                    jnp.asarray(tensors[tensor_name(layer, module_path(projection), matrix)])
                    for layer in range(model.shape.layers)
                ]
            )
            for matrix in ("A", "B")
        }
        for projection in targets
    }


def answer(
    model: LlamaModel, adapter: Tree, scale: float, prompt: Sequence[int], end_tokens: Sequence[int], most_tokens: int
) -> list[int]:
    """The greedy continuation of `prompt`, at most `most_tokens` long and without the end token."""
    length = padded_length(len(prompt) + most_tokens)
    tokens = list(prompt)
    for _ in range(most_tokens):
        padded = np.zeros((1, length), dtype=np.int32)
        padded[0, : len(tokens)] = tokens
        logits = _next_logits(model, adapter, scale, jnp.asarray(padded), jnp.asarray([[len(tokens) - 1]]))
        best = int(jnp.argmax(logits[0, 0]))
        if best in end_tokens:
            break
        tokens.append(best)
    return tokens[len(prompt) :]


@jax.jit
def _next_logits(model: LlamaModel, adapter: Any, scale: Any, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    return logits_at(model, hidden_states(model, adapter, scale, tokens), positions)
