"""From examples to a data set for one training run: deduplicated, balanced, split, and checked for leakage. Pure.

Two examples with the same normalized prompt are one question. The split is by question and depends on the seed and the
question's own text alone, so that a data set that grew keeps each earlier example on its side: what was held out once
is never trained on later with the same seed. Leakage means that a question of an Evaluation is in the training data. It
is refused, since its verdict would be about memory and not about the task."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from flotilla.errors import InvalidSpec

_SPLIT_SPACE: Final = 2**32
SMALLEST_TRAINING_SET: Final = 8
"""Fewer examples than one batch teach nothing that can be measured."""
_LONGEST_LABEL = 64
_LEAKS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class DatasetSettings:
    """How a data set is made."""

    holdout_percent: int
    """0 to 50."""
    seed: int
    max_examples: int = 100_000
    balance: bool = True
    """Whether the most frequent short answers are cut down, so that no label drowns the others."""
    largest_ratio: int = 4
    """With `balance`: an answer may stand at most so many times as often as the median answer."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set and what was done to make it."""

    training: tuple[dict[str, Any], ...]
    held_out: tuple[dict[str, Any], ...]
    read: int
    unusable: int
    duplicates: int
    contradictions: int
    """Questions that came with different answers; the most frequent answer was kept, of equals the latest."""
    balanced_away: int

    @property
    def digest(self) -> str:
        """SHA-256 over both parts, in their order."""
        digest = hashlib.sha256()
        for part in (self.training, self.held_out):
            for example in part:
                digest.update(orjson.dumps(example, option=orjson.OPT_SORT_KEYS) + b"\n")
            digest.update(b"--\n")
        return f"sha256:{digest.hexdigest()}"


def question_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """A hash of a prompt that ignores case, blanks and Unicode forms: what a person would call the same question."""
    text = "\x1e".join(f"{message.get('role')}\x1f{_text(message.get('content'))}" for message in messages)
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(normal.encode(errors="replace")).hexdigest()


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def build(documents: Iterable[Mapping[str, Any]], settings: DatasetSettings) -> Dataset:
    """The data set of decoded JSONL lines.

    Raises InvalidSpec when too few are left to train on, naming the numbers."""
    read = unusable = 0
    questions: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        read += 1
        example = _usable(document)
        if example is None:
            unusable += 1
            continue
        questions.setdefault(question_key(example["messages"][:-1]), []).append(example)
    chosen = {key: _most_frequent(examples) for key, examples in questions.items()}
    contradictions = sum(len({_answer(example) for example in examples}) > 1 for examples in questions.values())
    keys = sorted(chosen)
    kept = _balanced(keys, chosen, settings) if settings.balance else keys
    ordered = sorted(kept, key=lambda key: _draw(settings.seed, "order", key))[: settings.max_examples]
    limit = settings.holdout_percent * _SPLIT_SPACE // 100
    held_out = [key for key in ordered if _draw(settings.seed, "split", key) < limit]
    training = [key for key in ordered if _draw(settings.seed, "split", key) >= limit]
    if len(training) < SMALLEST_TRAINING_SET:
        raise InvalidSpec(
            f"Of {read} lines, {unusable} are not usable and {len(chosen)} different questions remain, of which "
            f"{len(training)} are for training. At least {SMALLEST_TRAINING_SET} are needed: capture more, or lower "
            "spec.holdoutPercent.",
            field="spec.dataset",
            reason="DatasetTooSmall",
        )
    return Dataset(
        training=tuple(chosen[key] for key in training),
        held_out=tuple(chosen[key] for key in held_out),
        read=read,
        unusable=unusable,
        duplicates=read - unusable - len(chosen),
        contradictions=contradictions,
        balanced_away=len(keys) - len(kept),
    )


def _usable(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """`messages` (and `tools`) of a line whose last message is a text of the assistant, or of an Evaluation's case,
    with `input` and `expected`."""
    messages = document.get("messages")
    expected = document.get("expected")
    if messages is None and isinstance(document.get("input"), str):
        messages = [{"role": "user", "content": document["input"]}]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    if expected is not None and (not messages or messages[-1].get("role") != "assistant"):
        messages = [*messages, {"role": "assistant", "content": expected if isinstance(expected, str) else None}]
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        return None
    content = messages[-1].get("content")
    if not isinstance(content, str) or not content.strip():
        return None
    tools = document.get("tools")
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _answer(example: Mapping[str, Any]) -> str:
    return str(example["messages"][-1]["content"]).strip()


def _most_frequent(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The example whose answer came most often; of equally frequent ones, that of the latest line."""
    counts = Counter(_answer(example) for example in examples)
    most = max(counts.values())
    return next(example for example in reversed(examples) if counts[_answer(example)] == most)


def _balanced(keys: Sequence[str], chosen: Mapping[str, dict[str, Any]], settings: DatasetSettings) -> list[str]:
    """Cut down answers that are far more frequent than the median one. Texts that all differ stay as they are."""
    by_answer: dict[str, list[str]] = {}
    for key in keys:
        by_answer.setdefault(_answer(chosen[key]), []).append(key)
    repeated = sorted(
        len(group) for answer, group in by_answer.items() if len(answer) <= _LONGEST_LABEL and len(group) > 1
    )
    if len(repeated) < 2:
        return list(keys)
    most = settings.largest_ratio * repeated[(len(repeated) - 1) // 2]
    kept: list[str] = []
    for group in by_answer.values():
        kept += sorted(group, key=lambda key: _draw(settings.seed, "balance", key))[:most]
    return kept


def _draw(seed: int, purpose: str, key: str) -> int:
    """A uniform number below 2^32 that depends on its arguments alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}:{key}".encode()).digest()[:4], "big")


def refuse_leakage(
    training: Iterable[Mapping[str, Any]], cases: Iterable[Mapping[str, Any]], *, evaluation: str
) -> None:
    """Raise InvalidSpec when a question of the Evaluation's `cases` is in the training data."""
    trained = {question_key(example["messages"][:-1]): example for example in training}
    leaked = []
    for case in cases:
        messages = case.get("messages")
        if messages is None and isinstance(case.get("input"), str):
            messages = [{"role": "user", "content": case["input"]}]
        if not isinstance(messages, list) or not messages:
            continue
        asked = messages[:-1] if messages[-1].get("role") == "assistant" else messages
        if question_key(asked) in trained:
            leaked.append(_text(asked[-1].get("content"))[:60])
    if leaked:
        shown = "; ".join(repr(text) for text in leaked[:_LEAKS_SHOWN])
        raise InvalidSpec(
            f"{len(leaked)} questions of the Evaluation {evaluation} are in the training data ({shown}), so that its "
            "verdict would measure memory. Remove them from the data set, or exclude them.",
            field="spec.dataset",
            reason="TrainingLeaksEvaluation",
        )
