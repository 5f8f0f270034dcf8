"""Requests to the simulated engines, and what they are answered with, decided before they enter the queue.

An engine reads a body with `read_json`, checks it in its own words (`ApiError`), and plans its answers with `plan`. A
prompt alone decides the text and the length of its answer: `Prompt` counts four characters as a token, `Answer` is a
run of words from a fixed list.
"""

from __future__ import annotations

import hmac
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any, Final

from flotilla.simulation.engine import SimulatedSequence
from flotilla_devcluster.engine.settings import DATA

DEFAULT_OUTPUT_TOKENS: Final = 64
_TOKENS_PER_MESSAGE: Final = 4
"""What a chat template adds around each message."""
_TOKENS_PER_IMAGE: Final = 256
CHARACTERS_PER_TOKEN: Final = 4
_WORDS: Final = (DATA / "words.txt").read_text().split()
_CYCLE_LENGTH: Final = 4096
_CYCLE: Final = [f" {_WORDS[(index * 2654435761 >> 7) % len(_WORDS)]}" for index in range(_CYCLE_LENGTH)]
_MEAN_STEPS: Final = 64
"""Natural lengths spread over mean/2 to 3/2 mean in so many steps."""


class ApiError(Exception):
    """A request that the engine refuses: the status and the body that the real one answers with.

    `body`: a JSON document, or plain text from the HTTP layer below the engine. `event`: what a stream that has begun
    carries instead; by default the document.
    """

    def __init__(
        self, status: HTTPStatus, message: str, body: Mapping[str, Any] | str, *, event: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.event = body if event is None else event


def read_json(
    body: bytes, *, broken: Callable[[ValueError], ApiError], no_object: Callable[[], ApiError]
) -> dict[str, Any]:
    """The JSON object of a body; raises what `broken` or `no_object` makes of any other."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise broken(error) from None
    if not isinstance(document, dict):
        raise no_object()
    return document


def is_json(content_type: str) -> bool:
    """Whether a Content-Type is application/json, with or without parameters."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


def messages_of(document: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The chat messages of a body; None unless they are a list of objects."""
    messages = document.get("messages")
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        return messages
    return None


def whole(document: Mapping[str, Any], name: str, refuse: Callable[[str], ApiError]) -> int | None:
    """A field that is a whole number or absent; raises what `refuse` makes of its name where it is anything else."""
    value = document.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise refuse(name)
    return value


def has_bearer(headers: Mapping[str, str], keys: Iterable[str]) -> bool:
    """Whether the header `Authorization: Bearer KEY` has one of these keys."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    known = any(hmac.compare_digest(key.encode(), expected.encode()) for expected in keys)
    return known and scheme.lower() == "bearer"


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer per choice, in the order of their index; `choices_per_prompt` of them for each prompt."""

    chat: bool
    prompts: tuple[Prompt, ...]
    answers: tuple[Answer, ...]
    choices_per_prompt: int
    max_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.tokens for prompt in self.prompts)

    @property
    def completion_tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    def prompt_of(self, index: int) -> Prompt:
        return self.prompts[index // self.choices_per_prompt]

    def sequences(self) -> list[SimulatedSequence]:
        """The sequences that the batcher has to generate."""
        return [
            SimulatedSequence(
                prompt_tokens=self.prompt_of(index).tokens,
                output_tokens=answer.tokens,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(self.answers)
        ]


def plan(
    document: Mapping[str, Any],
    prompts: list[Prompt],
    *,
    chat: bool,
    count: int,
    limit: int | None,
    context: int,
    mean_tokens: int,
    force_usage: bool = False,
) -> Asked:
    """Plan `count` answers to each prompt of at most `limit` tokens, which fit with it into `context` tokens."""
    given = document.get("stream_options")
    stream_options = given if isinstance(given, dict) else {}
    planned = (
        answers(
            prompt,
            count=count,
            max_tokens=limit,
            room=context - prompt.tokens,
            mean_tokens=mean_tokens,
            ignore_eos=bool(document.get("ignore_eos")),
        )
        for prompt in prompts
    )
    return Asked(
        chat=chat,
        prompts=tuple(prompts),
        answers=tuple(chain.from_iterable(planned)),
        choices_per_prompt=count,
        max_tokens=context - prompts[0].tokens if limit is None else limit,
        stream=bool(document.get("stream")),
        include_usage=bool(stream_options.get("include_usage")) or force_usage,
        continuous_usage=bool(stream_options.get("continuous_usage_stats")),
    )


def prompts_of(given: Any) -> list[Prompt] | None:
    """The prompts of a `prompt` field: a text, a list of texts, token ids or a list of those; else None."""
    if isinstance(given, str):
        return [text_prompt(given)]
    if not isinstance(given, list) or not given:
        return None
    if all(isinstance(item, int) for item in given):
        return [token_prompt(given)]
    if all(isinstance(item, str) for item in given):
        return [text_prompt(item) for item in given]
    if all(isinstance(item, list) for item in given):
        return [token_prompt(item) for item in given]
    return None


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
        return words(self.seed, start, end)


def text_prompt(content: str) -> Prompt:
    return Prompt(seed(content), count_tokens(content))


def token_prompt(tokens: Sequence[int]) -> Prompt:
    return Prompt(seed(repr(list(tokens))), max(1, len(tokens)))


def chat_prompt(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> Prompt:
    """Of OpenAI chat messages; contents may be text or parts of text and images."""
    tokens = 0
    pieces: list[str] = []
    for message in messages:
        content, images = _content(message.get("content"))
        pieces.append(f"{message.get('role', '')}\n{content}")
        tokens += _TOKENS_PER_MESSAGE + images * _TOKENS_PER_IMAGE + count_tokens(content)
    if tools:
        tokens += count_tokens(repr(tools))
    return Prompt(seed("\n".join(pieces)), max(1, tokens))


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


def _answer(answer_seed: int, *, max_tokens: int | None, room: int, mean_tokens: int, ignore_eos: bool) -> Answer:
    most = room if max_tokens is None else min(max_tokens, room)
    ends_by_itself = not ignore_eos and (mean_tokens > 0 or max_tokens is None)
    if ends_by_itself:
        natural = natural_length(answer_seed, mean_tokens or DEFAULT_OUTPUT_TOKENS)
        if natural <= most:
            return Answer(answer_seed, natural, "stop")
    return Answer(answer_seed, most, "length")


def count_tokens(text: str) -> int:
    """Tokens of a prompt: one for each begun four characters, and at least one."""
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def seed(text: str) -> int:
    """The same for the same prompt in every process (unlike `hash`)."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def words(prompt_seed: int, start: int, end: int) -> str:
    """Tokens `start` to `end` of the answer to a prompt: one lower-case word each, blanks between them."""
    offset = (prompt_seed + start) % _CYCLE_LENGTH
    wanted = end - start
    pieces = _CYCLE[offset : offset + wanted]
    while len(pieces) < wanted:
        pieces += _CYCLE[: wanted - len(pieces)]
    text = "".join(pieces)
    return text[1:] if start == 0 else text


def natural_length(prompt_seed: int, mean_tokens: int) -> int:
    """Where the answer to a prompt ends by itself: mean/2 to 3/2 mean tokens, fixed by the prompt."""
    return max(1, round(mean_tokens * (0.5 + (prompt_seed // 7 % (_MEAN_STEPS + 1)) / _MEAN_STEPS)))
