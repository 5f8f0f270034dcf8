"""Training examples: chat-completion JSONL to tokens, and tokens to batches of few shapes.

A line is `{"messages": [..., {"role": "assistant", "content": ...}]}`, the format of TRL and of OpenAI's fine-tuning.
Only the last answer is learned; everything before it is the prompt."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flotilla_trainer.errors import TrainerError

IGNORED_LABEL = -1


class ChatTokenizer(Protocol):
    """The two calls that are used of a tokenizer of transformers."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def __call__(self, text: str, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Example:
    """Tokens of one conversation; those from `prompt_tokens` on are to be learned."""

    tokens: tuple[int, ...]
    prompt_tokens: int


@dataclass(frozen=True)
class Batch:
    """Right-padded arrays [sequence, ...]: `labels[i, k]` is the token that follows position `positions[i, k]`."""

    tokens: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


def read_conversations(path: Path) -> list[list[dict[str, Any]]]:
    """The conversations of a JSONL file. Raises TrainerError with file and line for one that cannot be learned from."""
    conversations = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                messages = json.loads(line)["messages"]
                last = messages[-1]
                learnable = last["role"] == "assistant" and isinstance(last["content"], str) and last["content"]
            except (ValueError, KeyError, IndexError, TypeError):
                learnable = False
            if not learnable:
                raise TrainerError(
                    f"{path.name} line {number}: a line is a JSON object with `messages`, and the last message is a "
                    "text of the role assistant."
                )
            conversations.append(messages)
    if not conversations:
        raise TrainerError(f"{path.name} has no example; a run needs at least one.")
    return conversations


def render_prompt(tokenizer: ChatTokenizer, messages: Sequence[dict[str, Any]]) -> str:
    """The text that a server of the model makes of `messages` before it answers."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def encode(tokenizer: ChatTokenizer, messages: Sequence[dict[str, Any]], max_length_tokens: int) -> Example | None:
    """One conversation as tokens, or None when it is longer than `max_length_tokens`.

    The prompt is rendered as the server will render it, so that training and serving see the same tokens."""
    prompt = render_prompt(tokenizer, messages[:-1])
    whole = str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    if not whole.startswith(prompt):
        raise TrainerError(
            "The chat template of the base model renders a prompt differently once the answer is known; "
            "such a template cannot be trained with this trainer."
        )
    # What a template writes after the end of the answer (a line feed) is never generated, so it is not learned either.
    answer = whole[len(prompt) :].rstrip()
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(before) + len(after) > max_length_tokens:
        return None
    return Example(tokens=(*before, *after), prompt_tokens=len(before))


def padded_length(tokens: int) -> int:
    """`tokens` rounded up to one of few lengths, since each is compiled once: by 16 up to 128, then by a quarter."""
    if tokens <= 128:
        return -(-tokens // 16) * 16
    step = 1 << (tokens.bit_length() - 3)
    return -(-tokens // step) * step


def batches(examples: Sequence[Example], batch_size: int, seed: int | None) -> Iterator[Batch]:
    """Batches of examples of similar length in an order that depends on `seed` alone (None: as given).

    The last batch may have rows without labels, so that it has the shape of the others."""
    order = np.arange(len(examples))
    if seed is not None:
        generator = np.random.default_rng(seed)
        generator.shuffle(order)
        # Neighbours in length within a window, so that little padding is computed and the order stays random.
        window = batch_size * 8
        order = np.concatenate(
            [
                sorted(order[start : start + window], key=lambda index: len(examples[index].tokens))
                for start in range(0, len(order), window)
            ]
        )
        groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        generator.shuffle(groups)
    else:
        groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for group in groups:
        yield _batch([examples[index] for index in group], batch_size)


def _batch(examples: Sequence[Example], rows: int) -> Batch:
    length = padded_length(max(len(example.tokens) for example in examples))
    answer = padded_length(max(len(example.tokens) - example.prompt_tokens for example in examples))
    tokens = np.zeros((rows, length), dtype=np.int32)
    positions = np.zeros((rows, answer), dtype=np.int32)
    labels = np.full((rows, answer), IGNORED_LABEL, dtype=np.int32)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = example.tokens
        learned = example.tokens[example.prompt_tokens :]
        positions[row, : len(learned)] = np.arange(example.prompt_tokens - 1, len(example.tokens) - 1)
        labels[row, : len(learned)] = learned
    return Batch(tokens, positions, labels)
