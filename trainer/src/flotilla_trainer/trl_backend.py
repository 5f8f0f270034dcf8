"""Training on GPUs with TRL's SFTTrainer and PEFT; the extra `gpu` brings both with PyTorch.

The same examples, settings and outputs as the CPU backend. Loading, mixed precision, gradient checkpointing and
checkpoints are the libraries' own."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from flotilla_trainer.base import Base
from flotilla_trainer.errors import TrainerError
from flotilla_trainer.examples import Example, encode, read_conversations
from flotilla_trainer.jax_backend import Trained
from flotilla_trainer.progress import Progress
from flotilla_trainer.settings import TrainSettings

_NOT_LEARNED = -100
"""PyTorch's label of a token that has no part in the loss."""


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Hands what the trainer logs to `Progress`."""

    def __init__(self, progress: Progress, epochs: int) -> None:
        self._progress = progress
        self._epochs = epochs
        self.train_loss: float | None = None
        self.validation_loss: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.train_loss = float(logs["loss"])
            self._progress.step(state.global_step, state.max_steps, self.train_loss, 0.0)
        if "eval_loss" in logs:
            self.validation_loss = float(logs["eval_loss"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.train_loss is not None:
            self._progress.epoch(round(state.epoch or 0), self._epochs, self.train_loss, self.validation_loss)


def _dataset(tokenizer: Any, path: Path | None, settings: TrainSettings) -> tuple[Dataset | None, int]:
    """Token columns with the answer as labels, and how many examples were too long."""
    if path is None:
        return None, 0
    encoded = [encode(tokenizer, messages, settings.max_length_tokens) for messages in read_conversations(path)]
    kept = [example for example in encoded if example is not None]
    return Dataset.from_list([_row(example) for example in kept]) if kept else None, len(encoded) - len(kept)


def _row(example: Example) -> dict[str, list[int]]:
    return {
        "input_ids": list(example.tokens),
        "labels": [*[_NOT_LEARNED] * example.prompt_tokens, *example.tokens[example.prompt_tokens :]],
    }


def train(base: Base, tokenizer: Any, settings: TrainSettings, progress: Progress) -> tuple[Trained, int, int]:
    """Train an adapter; returns it with the number of examples and of those that were too long."""
    examples, skipped = _dataset(tokenizer, settings.train, settings)
    held_out, _ = _dataset(tokenizer, settings.validation, settings)
    if examples is None:
        raise TrainerError(
            f"max-length-tokens: all {skipped} examples are longer than {settings.max_length_tokens} tokens."
        )
    gpu = torch.cuda.is_available()
    place = (
        {"pretrained_model_name_or_path": base.path.parent, "gguf_file": base.path.name}
        if base.is_gguf
        else {"pretrained_model_name_or_path": base.path}
    )
    model = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.bfloat16 if gpu else torch.float32, local_files_only=True
    )
    progress.event(
        "loaded", examples=len(examples), skipped=skipped, heldOut=len(held_out or ()), backend="trl", gpu=gpu
    )
    reporter = _Reporter(progress, settings.epochs)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=examples,
        eval_dataset=held_out,
        peft_config=LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            target_modules=list(settings.lora.target_modules),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        ),
        callbacks=[reporter],
        args=SFTConfig(
            output_dir=str(settings.checkpoints),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=None,
            bf16=gpu,
            use_cpu=not gpu,
            activation_checkpointing=gpu,
            eval_strategy="epoch" if held_out is not None else "no",
            save_strategy="steps",
            save_steps=settings.checkpoint_every_steps,
            save_total_limit=1,
            logging_steps=1,
            seed=settings.seed,
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
    )
    kept = sorted(settings.checkpoints.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    result = trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)
    tensors = {
        name: one.detach().to("cpu", torch.float32).numpy().astype(np.float32)
        for name, one in get_peft_model_state_dict(trainer.model).items()
    }
    trained = Trained(
        tensors=tensors,
        steps=trainer.state.global_step,
        resumed_from_step=int(kept[-1].name.rpartition("-")[2]) if kept else 0,
        train_loss=reporter.train_loss if reporter.train_loss is not None else float(result.training_loss),
        validation_loss=reporter.validation_loss,
    )
    return trained, len(examples), skipped
