"""llama.cpp serves what was trained: SmolLM2's answers with the adapter are those of the trainer's own model."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import xllamacpp

WriteJsonl = Callable[[str, list[Any]], Path]


def trainer(*arguments: object) -> str:
    command = [sys.executable, "-m", "flotilla_trainer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def llama_cpp(base: Path, adapter: Path) -> Iterator[Callable[[str, Any], Any]]:
    """llama.cpp's HTTP server with an adapter; yields a function that posts JSON."""
    params = xllamacpp.CommonParams()
    params.model.path = str(base)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.use_jinja = 2048, 1, True
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(params)
    address = server.listening_address

    def post(path: str, body: Any) -> Any:
        request = urllib.request.Request(
            address + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    yield post
    del server


def test_served_answers_are_those_of_the_trainer(
    smollm2: Path, tickets: ModuleType, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    """A short run over 48 tickets, so that the answers are no longer those of the base, and 50 prompts."""
    train, held_out = tickets.training_tickets()[:48], tickets.held_out_tickets()
    prompts = (held_out + train)[:50]
    asked = write_jsonl("prompts.jsonl", prompts)
    output = tmp_path / "adapter"
    arguments = ("--base", smollm2, "--train", write_jsonl("train.jsonl", train), "--output", output)
    trainer("train", *arguments, "--epochs", 1, "--learning-rate", "2e-3", "--termination-message", tmp_path / "t")
    own = [
        json.loads(line)
        for line in trainer(
            "answer", "--base", smollm2, "--adapter", output, "--prompts", asked, "--most-tokens", 6
        ).splitlines()
    ]
    with llama_cpp(smollm2, output / "adapter.gguf") as post:
        served = [
            post(
                "/v1/chat/completions",
                {"messages": one["messages"][:-1], "temperature": 0, "max_tokens": 6, "cache_prompt": False},
            )
            for one in prompts
        ]
    assert [one["usage"]["prompt_tokens"] for one in served] == [one["promptTokens"] for one in own]
    answers = [one["choices"][0]["message"]["content"] for one in served]
    equal = sum(mine["answer"] == theirs for mine, theirs in zip(own, answers, strict=True))
    # llama.cpp multiplies with 8-bit activations, so that a near tie between two tokens may fall the other way.
    assert equal >= 48, [(mine["answer"], theirs) for mine, theirs in zip(own, answers, strict=True)]
    assert any(answer in tickets.LABELS for answer in answers), "the adapter was applied"
