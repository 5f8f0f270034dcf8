"""`python -m flotilla_trainer`: train an adapter, ask a trained one, or convert PEFT's files to GGUF."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from flotilla_trainer import adapter_files
from flotilla_trainer.base import Base, load_tokenizer, open_base
from flotilla_trainer.errors import TrainerError
from flotilla_trainer.examples import Example, encode, read_conversations, render_prompt
from flotilla_trainer.progress import Progress, Summary, summary_document, write_termination_message
from flotilla_trainer.settings import ALL_PROJECTIONS, LoraSettings, TrainSettings

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Backend = Literal["jax", "trl"]
BaseOption = Annotated[str, typer.Option(help="A GGUF file, or a folder with config.json and safetensors.")]


def _examples(base: Base, path: Path | None, settings: TrainSettings) -> tuple[list[Example], int]:
    """The tokens of a file's conversations, and how many were too long."""
    if path is None:
        return [], 0
    tokenizer = load_tokenizer(base)
    encoded = [encode(tokenizer, messages, settings.max_length_tokens) for messages in read_conversations(path)]
    kept = [example for example in encoded if example is not None]
    return kept, len(encoded) - len(kept)


def _train_jax(base: Base, settings: TrainSettings, progress: Progress) -> tuple[Any, int, int]:
    from flotilla_trainer.jax_backend import train
    from flotilla_trainer.llama import load_model

    examples, skipped = _examples(base, settings.train, settings)
    held_out, _ = _examples(base, settings.validation, settings)
    if not examples:
        raise TrainerError(
            f"max-length-tokens: all {skipped} examples are longer than {settings.max_length_tokens} tokens."
        )
    model = load_model(base.path)
    progress.event("loaded", examples=len(examples), skipped=skipped, heldOut=len(held_out), backend="jax")
    return train(model, examples, held_out, settings, progress), len(examples), skipped


def _train_trl(base: Base, settings: TrainSettings, progress: Progress) -> tuple[Any, int, int]:
    try:
        from flotilla_trainer.trl_backend import train
    except ImportError as error:
        raise TrainerError(
            f"backend: trl needs PyTorch, TRL and PEFT ({error}); install flotilla-trainer[gpu] or use --backend jax."
        ) from error
    return train(base, load_tokenizer(base), settings, progress)


def run(settings: TrainSettings, backend: Backend, progress: Progress) -> dict[str, Any]:
    """One training run from its settings to the published folder; returns the summary document."""
    base = open_base(settings.base)
    trained, examples, skipped = (_train_jax if backend == "jax" else _train_trl)(base, settings, progress)
    draft = settings.output.parent / f".{settings.output.name}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    lora = settings.lora
    config = adapter_files.peft_config(settings.base, lora.rank, lora.alpha, lora.target_modules)
    adapter_files.write_peft(draft, config, trained.tensors)
    adapter_files.write_gguf(draft, base.architecture, base.heads, base.key_value_heads)
    document = summary_document(
        Summary(
            digest=adapter_files.adapter_digest(adapter_files.file_digests(draft)),
            examples=examples,
            skipped_examples=skipped,
            steps=trained.steps,
            resumed_from_step=trained.resumed_from_step,
            train_loss=trained.train_loss,
            validation_loss=trained.validation_loss,
            seconds=progress.seconds(),
            backend=backend,
            output=str(settings.output),
        )
    )
    adapter_files.publish(draft, settings.output, document)
    # After the output has its name: a run that is stopped before that continues from its last checkpoint.
    shutil.rmtree(settings.checkpoints, ignore_errors=True)
    return document


@app.command("train")
def train_command(
    base: BaseOption,
    train: Annotated[Path, typer.Option(help="Chat-completion JSONL; the last answer of each line is learned.")],
    output: Annotated[Path, typer.Option(help="Folder of the adapter; it appears when it is complete.")],
    validation: Annotated[Path | None, typer.Option(help="Held-out JSONL, measured after each epoch.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints; default OUTPUT.checkpoints.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA matrices.")] = 16,
    alpha: Annotated[int, typer.Option(help="The adapter is scaled by alpha/rank.")] = 32,
    target_modules: Annotated[str, typer.Option(help="Projections, separated by commas.")] = ",".join(ALL_PROJECTIONS),
    epochs: Annotated[int, typer.Option(help="Passes over the examples.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Peak of AdamW's learning rate.")] = 6e-4,
    batch_size: Annotated[int, typer.Option(help="Examples of one optimizer step.")] = 8,
    max_length_tokens: Annotated[int, typer.Option(help="Longer examples are left out and counted.")] = 512,
    seed: Annotated[int, typer.Option(help="Order of the examples and start of the adapter.")] = 0,
    checkpoint_every_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 16,
    backend: Annotated[Backend, typer.Option(help="jax: CPU, Llama models. trl: GPUs, PyTorch.")] = "jax",
    metrics_port: Annotated[int, typer.Option(help="Port of /metrics; 0 for none.")] = 0,
    termination_message: Annotated[
        Path | None, typer.Option(help="File for the summary; default where the kubelet looks for it.")
    ] = Path("/dev/termination-log"),
) -> None:
    """Train a LoRA adapter. A run that was stopped continues from its last checkpoint."""
    try:
        settings = TrainSettings(
            base=base,
            train=train,
            validation=validation,
            output=output,
            checkpoints=checkpoints or output.parent / f"{output.name}.checkpoints",
            lora=LoraSettings(rank=rank, alpha=alpha, target_modules=tuple(filter(None, target_modules.split(",")))),
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length_tokens=max_length_tokens,
            seed=seed,
            checkpoint_every_steps=checkpoint_every_steps,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][-1] if isinstance(first["loc"][-1], str) else first["loc"][0]).replace("_", "-")
        _fail(TrainerError(f"{field}: {first['input']!r} is not valid: {first['msg']}."), termination_message)
    progress = Progress(metrics_port)
    try:
        document = run(settings, backend, progress)
    except (TrainerError, FileNotFoundError) as error:
        _fail(error, termination_message)
    progress.event("finished", **document)
    write_termination_message(termination_message, document)


@app.command("answer")
def answer_command(
    base: BaseOption,
    prompts: Annotated[Path, typer.Option(help='JSONL of {"messages": [...]}; a last answer is ignored.')],
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter; none asks the base itself.")] = None,
    most_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 16,
) -> None:
    """Answer prompts greedily with the trainer's own model, one JSON object a line: a reference for what is served."""
    from safetensors.numpy import load_file

    from flotilla_trainer.jax_backend import adapter_from_peft, answer
    from flotilla_trainer.llama import load_model

    try:
        opened = open_base(base)
        tokenizer, model = load_tokenizer(opened), load_model(opened.path)
        matrices: dict[str, Any] = {}
        scale = 0.0
        if adapter is not None:
            config = json.loads((adapter / adapter_files.PEFT_CONFIG).read_text())
            matrices = adapter_from_peft(
                load_file(adapter / adapter_files.PEFT_WEIGHTS), model, sorted(config["target_modules"])
            )
            scale = config["lora_alpha"] / config["r"]
        for line in prompts.read_text(encoding="utf-8").splitlines():
            messages: Sequence[dict[str, Any]] = json.loads(line)["messages"]
            asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
            tokens = tokenizer(render_prompt(tokenizer, asked), add_special_tokens=False)["input_ids"]
            text = tokenizer.decode(
                answer(model, matrices, scale, tokens, [tokenizer.eos_token_id], most_tokens), skip_special_tokens=True
            )
            print(json.dumps({"answer": text, "promptTokens": len(tokens)}), flush=True)
    except (TrainerError, FileNotFoundError) as error:
        _fail(error, None)


@app.command("convert")
def convert_command(
    base: BaseOption,
    adapter: Annotated[Path, typer.Option(help="Folder with PEFT's two files; adapter.gguf is added to it.")],
) -> None:
    """Write adapter.gguf beside PEFT's files, for llama.cpp."""
    try:
        opened = open_base(base)
        adapter_files.write_gguf(adapter, opened.architecture, opened.heads, opened.key_value_heads)
    except (TrainerError, FileNotFoundError) as error:
        _fail(error, None)
    print(adapter / adapter_files.GGUF_FILE)


def _fail(error: Exception, termination_message: Path | None) -> Any:
    sys.stderr.write(f"Error: {error}\n")
    write_termination_message(termination_message, {"error": str(error)})
    raise typer.Exit(2)


def main() -> None:
    """Entry point of the program `flotilla-trainer`."""
    # Rank 0 alone reports; the others of a multi-GPU run only train.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


if __name__ == "__main__":
    main()
