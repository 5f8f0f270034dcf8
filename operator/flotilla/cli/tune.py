"""`flotilla tune`: make a data set of captured examples and train a LoRA adapter on this machine.

The data set is made here, by `flotilla.finetuning.dataset`. The training is done by a program of its own,
`flotilla-trainer`, which has JAX or PyTorch; this command starts it and shows its progress."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flotilla.cli.common import EXIT_NO, EXIT_USAGE, command_app, fail
from flotilla.errors import InvalidSpec
from flotilla.finetuning.capture import Selection
from flotilla.finetuning.capture_store import examples, open_store
from flotilla.finetuning.dataset import Dataset, DatasetSettings, build, refuse_leakage

app = command_app()

_TRAINER: Final = "flotilla-trainer"


@app.command()
def tune(
    base: Annotated[Path, typer.Option(help="GGUF file, or folder with config.json and safetensors.")],
    data: Annotated[str, typer.Option(help="JSONL file, folder of captured examples, s3:// or gs://.")],
    output: Annotated[Path, typer.Option(help="Folder of the adapter; it appears when it is complete.")],
    rule: Annotated[list[str] | None, typer.Option(help="Only captured examples of this rule.")] = None,
    cases: Annotated[
        Path | None, typer.Option(help="JSONL of an Evaluation: its questions must not be trained on.")
    ] = None,
    holdout_percent: Annotated[int, typer.Option(min=0, max=50, help="Share that is held out.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Split, order, and start of the adapter.")] = 0,
    rank: Annotated[int, typer.Option(min=1, max=512, help="Rank of the LoRA matrices.")] = 16,
    alpha: Annotated[int, typer.Option(min=1, max=1024, help="The adapter is scaled by alpha/rank.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, max=100, help="Passes over the examples.")] = 3,
    learning_rate: Annotated[str, typer.Option(help="Peak of AdamW's learning rate.")] = "0.0006",
    max_length: Annotated[int, typer.Option(min=16, help="Tokens; longer examples are left out.")] = 512,
    trainer: Annotated[
        str, typer.Option(envvar="FLOTILLA_TRAINER", help="Command that starts the trainer.")
    ] = _TRAINER,
    backend: Annotated[str, typer.Option(help="jax (CPU) or trl (GPU).")] = "jax",
    dataset_only: Annotated[bool, typer.Option("--dataset-only", help="Make the data set and stop.")] = False,
) -> None:
    """Train a LoRA adapter from captured examples on this machine."""
    folder = output.parent / f"{output.name}.data"
    try:
        dataset = build(_read(data, rule), DatasetSettings(holdout_percent=holdout_percent, seed=seed))
        if cases is not None:
            questions = list(_documents(cases))
            refuse_leakage((*dataset.training, *dataset.held_out), questions, evaluation=cases.name)
        command = [] if dataset_only else _command(trainer)
    except InvalidSpec as error:
        fail(error, EXIT_NO if error.reason in ("DatasetTooSmall", "TrainingLeaksEvaluation") else EXIT_USAGE)
    except OSError as error:
        fail(InvalidSpec(f"{error.filename or data} cannot be read: {error.strerror}.", field="--data"), EXIT_USAGE)
    train, held_out = _write(folder, dataset)
    typer.echo(
        f"Data set: {len(dataset.training)} examples to train on, {len(dataset.held_out)} held out, of {dataset.read} "
        f"lines ({dataset.duplicates} duplicates, {dataset.contradictions} questions with several answers, "
        f"{dataset.balanced_away} left out for balance, {dataset.unusable} not usable). {dataset.digest[:19]}"
    )
    if dataset_only:
        typer.echo(f"{train}\n{held_out}")
        return
    command += ["train", "--base", str(base), "--train", str(train), "--output", str(output)]
    command += ["--validation", str(held_out)] if dataset.held_out else []
    command += ["--rank", str(rank), "--alpha", str(alpha), "--epochs", str(epochs), "--learning-rate", learning_rate]
    command += ["--max-length-tokens", str(max_length), "--seed", str(seed), "--backend", backend]
    finished = _run(command)
    validation = finished.get("validationLoss")
    held = "" if validation is None else f", {validation:.3f} on held-out examples"
    typer.echo(
        f"Adapter {output}: trained in {finished['seconds']:.0f} s, loss {finished['trainLoss']:.3f}{held}. "
        f"{finished['digest'][:19]}"
    )


def _read(data: str, rules: list[str] | None) -> Iterator[dict[str, Any]]:
    if "://" in data or Path(data).is_dir():
        return examples(open_store(data), Selection(rules=frozenset(rules or ())))
    return iter(list(_documents(Path(data))))


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a JSONL file of any form. Raises InvalidSpec for a line that is not a JSON object."""
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise InvalidSpec(f"Line {number} of {path} is not a JSON object.", field="--data")
        yield document


def _write(folder: Path, dataset: Dataset) -> tuple[Path, Path]:
    """Both parts as files that the trainer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, part in zip(paths, (dataset.training, dataset.held_out), strict=True):
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in part), encoding="utf-8")
    return paths


def _command(trainer: str) -> list[str]:
    """The trainer's command. Raises InvalidSpec when its program is not there."""
    words = shlex.split(trainer)
    if not words or shutil.which(words[0]) is None:
        raise InvalidSpec(
            f"There is no program {words[0] if words else trainer!r}. Install it with `uv tool install {_TRAINER}`, or "
            "name another command, such as `uv run --project trainer flotilla-trainer`.",
            field="--trainer",
        )
    return words


def _run(command: Sequence[str]) -> dict[str, Any]:
    """Run the trainer and show its steps; returns its summary. A failure of it ends the command."""
    finished: dict[str, Any] = {}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process,  # noqa: S603 - as asked
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        shown = progress.add_task("loading", total=None, loss="")
        assert process.stdout is not None
        for text in process.stdout:
            try:
                event = json.loads(text)
            except ValueError:
                sys.stderr.write(text)
                continue
            kind = event.get("event")
            if kind == "step":
                steps = f"step {event['step']}/{event['steps']}"
                loss = f"loss {event['loss']:.3f}"
                progress.update(shown, description=steps, total=event["steps"], completed=event["step"], loss=loss)
            elif kind == "epoch":
                progress.console.print(_epoch(event))
            elif kind == "resumed":
                progress.console.print(f"Continued from step {event['step']} of {event['steps']}.")
            elif kind == "finished":
                finished = event
        code = process.wait()
    if code or not finished:
        fail(InvalidSpec(f"The trainer ended with exit code {code}; its message is above."), code or EXIT_NO)
    return finished


def _epoch(event: dict[str, Any]) -> str:
    held = event.get("validationLoss")
    after = "" if held is None else f", {held:.3f} on held-out examples"
    return f"Epoch {event['epoch']} of {event['epochs']}: loss {event['trainLoss']:.3f}{after}."
