"""The backend for GPUs, on a CPU: the same files and the same settings. Needs the extra `gpu`, some gigabytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flotilla_trainer.__main__ import run
from flotilla_trainer.progress import Progress
from flotilla_trainer.settings import LoraSettings, TrainSettings


@pytest.mark.slow
def test_the_backend_for_gpus_leaves_the_same_files(
    tiny_model: Path, tmp_path: Path, write_jsonl: Callable[[str, list[Any]], Path]
) -> None:
    examples = [
        {"messages": [{"role": "user", "content": f"{word} {n}?"}, {"role": "assistant", "content": word[0]}]}
        for n in range(4)
        for word in ("red", "blue")
    ]
    train = write_jsonl("train.jsonl", examples)
    settings = TrainSettings(
        base=str(tiny_model),
        train=train,
        validation=train,
        output=tmp_path / "adapter",
        checkpoints=tmp_path / "checkpoints",
        lora=LoraSettings(rank=4, alpha=8),
        epochs=2,
        learning_rate=0.02,
        batch_size=4,
        max_length_tokens=128,
    )
    document = run(settings, "trl", Progress())
    assert document["validationLoss"] < 5.5
    report = json.loads((settings.output / "report.json").read_text())
    assert sorted(report["files"]) == ["adapter.gguf", "adapter_config.json", "adapter_model.safetensors"]
    assert (document["steps"], document["examples"], document["backend"]) == (4, 8, "trl")
