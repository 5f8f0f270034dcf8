"""Words instead of a model's output, and tokens counted by length."""

from __future__ import annotations

import zlib
from typing import Final

from flotilla_devcluster.engine.settings import DATA

CHARACTERS_PER_TOKEN: Final = 4
_WORDS: Final = (DATA / "words.txt").read_text().split()
_CYCLE_LENGTH: Final = 4096
_CYCLE: Final = [f" {_WORDS[(index * 2654435761 >> 7) % len(_WORDS)]}" for index in range(_CYCLE_LENGTH)]
_MEAN_STEPS: Final = 64
"""Natural lengths spread over mean/2 to 3/2 mean in so many steps."""


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
