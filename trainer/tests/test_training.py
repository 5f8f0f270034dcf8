"""The CPU backend on a tiny model: it learns, it continues after a stop, it refuses what it cannot learn from."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from flotilla_trainer.__main__ import run
from flotilla_trainer.adapter_files import GGUF_FILE, PEFT_CONFIG, PEFT_WEIGHTS, gguf_rows, hugging_face_rows
from flotilla_trainer.base import load_tokenizer, open_base
from flotilla_trainer.errors import TrainerError
from flotilla_trainer.examples import IGNORED_LABEL, batches, encode, padded_length
from flotilla_trainer.progress import Progress
from flotilla_trainer.settings import LoraSettings, TrainSettings

WriteJsonl = Callable[[str, list[Any]], Path]


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


EXAMPLES = [conversation(f"{word} {number}?", word[0]) for number in range(6) for word in ("red", "blue", "tan")]


def settings(tmp_path: Path, train: Path, base: Path, **changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "base": str(base),
        "train": train,
        "output": tmp_path / "adapter",
        "checkpoints": tmp_path / "checkpoints",
        "lora": LoraSettings(rank=8, alpha=16),
        "epochs": 4,
        "learning_rate": 0.02,
        "batch_size": 4,
        "max_length_tokens": 128,
        "checkpoint_every_steps": 3,
    }
    return TrainSettings(**(values | changes))


def test_training_lowers_the_loss_and_leaves_a_complete_folder(
    tiny_model: Path, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    train = write_jsonl("train.jsonl", EXAMPLES)
    wanted = settings(tmp_path, train, tiny_model, validation=train)
    first = run(wanted.model_copy(update={"epochs": 1, "output": tmp_path / "one"}), "jax", Progress())
    document = run(wanted, "jax", Progress())
    assert document["validationLoss"] < first["validationLoss"] * 0.9
    assert document["examples"] == len(EXAMPLES)
    report = json.loads((wanted.output / "report.json").read_text())
    assert sorted(report["files"]) == sorted([PEFT_CONFIG, PEFT_WEIGHTS, GGUF_FILE])
    assert report["digest"] == document["digest"]
    assert not wanted.checkpoints.exists(), "checkpoints of a finished run are of no use"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


class Stopped(Exception):
    """Stands for the end of the process."""


def test_a_run_that_was_stopped_ends_with_the_same_adapter(
    tiny_model: Path, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    stop_after = 7
    train = write_jsonl("train.jsonl", EXAMPLES)
    undisturbed = settings(tmp_path, train, tiny_model, output=tmp_path / "whole", checkpoints=tmp_path / "c1")
    run(undisturbed, "jax", Progress())

    class Interrupting(Progress):
        def step(self, step: int, steps: int, loss: float, tokens_per_second: float) -> None:
            if step == stop_after + 1:
                raise Stopped
            super().step(step, steps, loss, tokens_per_second)

    stopped = settings(tmp_path, train, tiny_model, output=tmp_path / "resumed", checkpoints=tmp_path / "c2")
    with pytest.raises(Stopped):
        run(stopped, "jax", Interrupting())
    assert not stopped.output.exists()
    document = run(stopped, "jax", Progress())
    assert document["resumedFromStep"] == stop_after // 3 * 3
    expected, found = (load_file(folder / PEFT_WEIGHTS) for folder in (undisturbed.output, stopped.output))
    assert expected.keys() == found.keys()
    for name, matrix in expected.items():
        np.testing.assert_allclose(found[name], matrix, atol=1e-6, err_msg=name)


def test_a_checkpoint_of_other_data_is_not_continued(tiny_model: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    wanted = settings(tmp_path, write_jsonl("a.jsonl", EXAMPLES), tiny_model, epochs=1)

    class Stopping(Progress):
        def epoch(self, *_: Any) -> None:
            raise Stopped

    with pytest.raises(Stopped):
        run(wanted, "jax", Stopping())
    other = wanted.model_copy(update={"train": write_jsonl("b.jsonl", EXAMPLES[1:])})
    assert run(other, "jax", Progress())["resumedFromStep"] == 0


def test_longer_examples_are_left_out_and_counted(tiny_model: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    train = write_jsonl("train.jsonl", [*EXAMPLES, conversation("x" * 400, "y")])
    document = run(settings(tmp_path, train, tiny_model, epochs=1), "jax", Progress())
    assert (document["examples"], document["skippedExamples"]) == (len(EXAMPLES), 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"messages": [{"role": "user", "content": "no answer"}]}], "line 1: "),
        ([conversation("a", "b"), {"prompt": "p"}], "line 2: "),
        ([conversation("a", "")], "line 1: "),
        ([], "at least one"),
        ([conversation("x" * 4000, "y")], "longer than 128 tokens"),
    ],
)
def test_files_that_cannot_be_learned_from_are_refused(
    tiny_model: Path, tmp_path: Path, write_jsonl: WriteJsonl, lines: list[Any], message: str
) -> None:
    with pytest.raises(TrainerError, match=message):
        run(settings(tmp_path, write_jsonl("bad.jsonl", lines), tiny_model), "jax", Progress())


def test_only_the_answer_and_its_end_are_learned(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(open_base(str(tiny_model)))
    example = encode(tokenizer, conversation("red?", "blue")["messages"], 128)
    assert example is not None
    assert tokenizer.decode(example.tokens[example.prompt_tokens :]) == "blue<|im_end|>"
    (batch,) = batches([example], 2, None)
    learned = batch.labels[0][batch.labels[0] != IGNORED_LABEL]
    assert list(learned) == list(example.tokens[example.prompt_tokens :])
    assert [batch.tokens[0][position + 1] for position in batch.positions[0][: len(learned)]] == list(learned)
    assert (batch.labels[1] == IGNORED_LABEL).all(), "rows that fill up the last batch teach nothing"


def test_shapes_are_few_and_large_enough() -> None:
    lengths = [padded_length(tokens) for tokens in range(1, 8193)]
    assert all(length >= tokens for tokens, length in enumerate(lengths, start=1))
    assert len(set(lengths)) <= 40


def test_rows_of_gguf_files_are_the_inverse_of_the_order_of_hugging_face() -> None:
    matrix = np.arange(6 * 8 * 3).reshape(48, 3)
    np.testing.assert_array_equal(hugging_face_rows(gguf_rows(matrix, 6), 6), matrix)
    # The first pair of a head is its row 0 and the first row of its second half.
    assert gguf_rows(matrix, 6)[:2].tolist() == [matrix[0].tolist(), matrix[4].tolist()]


def test_the_command_reports_steps_and_leaves_a_termination_message(
    tiny_model: Path, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    message = tmp_path / "termination-log"
    arguments = ["--base", tiny_model, "--train", write_jsonl("t.jsonl", EXAMPLES), "--output", tmp_path / "out"]
    options = ["--epochs", "1", "--batch-size", "6", "--rank", "4", "--termination-message", message]
    command = [sys.executable, "-m", "flotilla_trainer", "train", *map(str, arguments + options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["loaded", "step", "step", "step", "epoch", "finished"]
    assert json.loads(message.read_text())["digest"] == events[-1]["digest"]
    refused = subprocess.run([*command[:-4], "--rank", "0"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: rank: 0 is not valid")
