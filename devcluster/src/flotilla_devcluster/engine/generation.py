"""What one request will be answered with: decided before it enters the queue, by its prompt alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flotilla_devcluster.engine import text

DEFAULT_OUTPUT_TOKENS: Final = 64
_TOKENS_PER_MESSAGE: Final = 4
"""What a chat template adds around each message."""
_TOKENS_PER_IMAGE: Final = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    seed: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice: `tokens` words of the text of `seed`."""

    seed: int
    tokens: int
    finish_reason: str

    def words(self, start: int, end: int) -> str:
        return text.words(self.seed, start, end)


def text_prompt(content: str) -> Prompt:
    return Prompt(text.seed(content), text.count_tokens(content))


def token_prompt(tokens: Sequence[int]) -> Prompt:
    return Prompt(text.seed(repr(list(tokens))), max(1, len(tokens)))


def chat_prompt(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> Prompt:
    """Of OpenAI chat messages; contents may be text or parts of text and images."""
    tokens = 0
    pieces: list[str] = []
    for message in messages:
        content, images = _content(message.get("content"))
        pieces.append(f"{message.get('role', '')}\n{content}")
        tokens += _TOKENS_PER_MESSAGE + images * _TOKENS_PER_IMAGE + text.count_tokens(content)
    if tools:
        tokens += text.count_tokens(repr(tools))
    return Prompt(text.seed("\n".join(pieces)), max(1, tokens))


def _content(content: Any) -> tuple[str, int]:
    if not isinstance(content, list):
        return (content if isinstance(content, str) else "", 0)
    parts = [part for part in content if isinstance(part, dict)]
    return (
        "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text"),
        sum(part.get("type") == "image_url" for part in parts),
    )


def answers(
    prompt: Prompt, *, count: int, max_tokens: int | None, room: int, mean_tokens: int, ignore_eos: bool
) -> list[Answer]:
    """`count` choices. `room`: tokens the context has left; `mean_tokens` 0: max_tokens alone decides."""
    return [
        _answer(
            (prompt.seed + index) & 0xFFFFFFFF,
            max_tokens=max_tokens,
            room=room,
            mean_tokens=mean_tokens,
            ignore_eos=ignore_eos,
        )
        for index in range(count)
    ]


def _answer(seed: int, *, max_tokens: int | None, room: int, mean_tokens: int, ignore_eos: bool) -> Answer:
    most = room if max_tokens is None else min(max_tokens, room)
    ends_by_itself = not ignore_eos and (mean_tokens > 0 or max_tokens is None)
    if ends_by_itself:
        natural = text.natural_length(seed, mean_tokens or DEFAULT_OUTPUT_TOKENS)
        if natural <= most:
            return Answer(seed, natural, "stop")
    return Answer(seed, most, "length")
