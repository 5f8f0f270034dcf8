"""`flotilla tune` with a stand-in for the trainer: what it hands over, what it shows, what it refuses."""

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flotilla.cli.tune import app
from flotilla.finetuning.capture_store import FolderStore, example_path

TRAINER = """
import json, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if options["--rank"] == "13":
    sys.stderr.write("Error: rank: 13 is unlucky")
    raise SystemExit(2)
print("a warning of some library")
print(json.dumps({"event": "step", "step": 1, "steps": 2, "loss": 2.0}))
print(json.dumps({"event": "epoch", "epoch": 1, "epochs": 1, "trainLoss": 2.0, "validationLoss": 1.5}))
print(json.dumps({"event": "finished", "digest": "sha256:" + "a" * 64, "seconds": 3.4, "trainLoss": 2.0,
                  "validationLoss": 1.5}))
open(options["--output"], "w").write(json.dumps(options))
"""


@pytest.fixture
def trainer(tmp_path: Path) -> str:
    (tmp_path / "trainer.py").write_text(TRAINER)
    return f"{sys.executable} {tmp_path / 'trainer.py'}"


def chat(number: int) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"label {number % 3}"}
    return {"messages": [{"role": "user", "content": f"question {number}"}, answer]}


def jsonl(path: Path, documents: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def tune(tmp_path: Path, *options: object) -> Result:
    arguments = ["--base", "base.gguf", "--output", tmp_path / "adapter", *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_captured_examples_become_a_data_set_and_the_trainer_gets_it(tmp_path: Path, trainer: str) -> None:
    store = FolderStore(tmp_path / "captures")
    for rule, numbers in (("triage", range(40)), ("other", range(40, 50))):
        lines = (json.dumps({**chat(number), "flotilla": {"rule": rule}}).encode() + b"\n" for number in numbers)
        store.append(example_path("support", rule, date(2026, 11, 29), "w"), b"".join(lines))
    done = tune(tmp_path, "--data", tmp_path / "captures", "--rule", "triage", "--trainer", trainer, "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert "of 40 lines (0 duplicates" in done.stdout
    assert "trained in 3 s, loss 2.000, 1.500 on held-out examples." in done.stdout
    assert "Epoch 1 of 1: loss 2.000, 1.500 on held-out examples." in done.stderr
    options = json.loads((tmp_path / "adapter").read_text())
    assert (options["--base"], options["--epochs"], options["--backend"]) == ("base.gguf", "1", "jax")
    parts = [Path(options[name]).read_text().splitlines() for name in ("--train", "--validation")]
    assert sum(map(len, parts)) == 40
    assert set(json.loads(parts[0][0])) == {"messages"}


def test_a_refusal_of_the_trainer_is_the_commands_own(tmp_path: Path, trainer: str) -> None:
    data = jsonl(tmp_path / "train.jsonl", [chat(number) for number in range(40)])
    failed = tune(tmp_path, "--data", data, "--trainer", trainer, "--rank", 13)
    assert failed.exit_code == 2
    assert "exit code 2" in failed.stderr


def test_questions_of_an_evaluation_are_not_trained_on(tmp_path: Path, trainer: str) -> None:
    data = jsonl(tmp_path / "train.jsonl", [chat(number) for number in range(40)])
    cases = jsonl(tmp_path / "cases.jsonl", [{"input": "Question 7", "expected": "label 1"}])
    refused = tune(tmp_path, "--data", data, "--trainer", trainer, "--cases", cases)
    assert refused.exit_code == 1
    assert "1 questions of the Evaluation cases.jsonl are in the training data" in refused.stderr
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--trainer", "no-such-program"), 2, "There is no program"),
        (("--data", "missing.jsonl"), 2, "cannot be read"),
        (("--data", "few"), 1, "At least 8 are needed"),
        (("--data", "broken"), 2, "Line 1 of"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, trainer: str, options: tuple[str, str], code: int, message: str
) -> None:
    files = {
        "few": jsonl(tmp_path / "few.jsonl", [chat(1)]),
        "broken": tmp_path / "broken.jsonl",
        "all": jsonl(tmp_path / "all.jsonl", [chat(number) for number in range(40)]),
    }
    files["broken"].write_text("{\n")
    chosen = {"--trainer": trainer, "--data": "all", options[0]: options[1]}
    arguments = [files.get(word, word) for pair in chosen.items() for word in pair]
    refused = tune(tmp_path, *arguments)
    assert (refused.exit_code, message in refused.stderr) == (code, True), refused.stderr
