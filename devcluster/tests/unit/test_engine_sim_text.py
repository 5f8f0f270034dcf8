"""Words and token counts."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla_devcluster.engine.requests import (
    answers,
    chat_prompt,
    count_tokens,
    natural_length,
    seed,
    text_prompt,
    token_prompt,
    words,
)

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(0, 9000))
def test_so_many_tokens_are_so_many_words_that_need_no_escaping(prompt_seed: int, tokens: int) -> None:
    text = words(prompt_seed, 0, tokens)
    assert len(text.split()) == tokens
    assert text == " ".join(text.split())
    assert all(character.islower() or character == " " for character in text)


@given(SEEDS, st.lists(st.integers(0, 5000), min_size=1, max_size=6))
def test_pieces_of_an_answer_make_the_answer(prompt_seed: int, cuts: list[int]) -> None:
    edges = sorted({0, *cuts})
    pieces = [words(prompt_seed, start, end) for start, end in pairwise(edges)]
    assert "".join(pieces) == words(prompt_seed, 0, edges[-1])


@given(SEEDS, st.integers(1, 500))
def test_natural_lengths_stay_around_the_mean(prompt_seed: int, mean: int) -> None:
    assert max(1, mean // 2 - 1) <= natural_length(prompt_seed, mean) <= mean * 3 // 2 + 1


def test_the_seed_of_a_prompt_is_the_same_in_another_process() -> None:
    code = "from flotilla_devcluster.engine.requests import seed; print(seed('hello'))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(other.stdout) == seed("hello")


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("x", 1), ("xxxx", 1), ("xxxxx", 2), ("x" * 400, 100)])
def test_four_characters_are_a_token(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens
    assert text_prompt(text).tokens == tokens


def test_a_chat_prompt_counts_templates_images_and_tools() -> None:
    plain = chat_prompt([{"role": "user", "content": "x" * 40}], [])
    parts = [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "data:"}}]
    image = chat_prompt([{"role": "user", "content": parts}], [])
    tools = chat_prompt([{"role": "user", "content": "x" * 40}], [{"type": "function"}])
    empty = chat_prompt([{"role": "assistant", "content": None}], [])
    assert (plain.tokens, image.tokens, empty.tokens) == (14, 270, 5)
    assert tools.tokens > plain.tokens
    assert token_prompt([5, 6, 7]).tokens == 3


@pytest.mark.parametrize(
    ("max_tokens", "room", "mean", "ignore_eos", "tokens", "reason"),
    [
        (10, 100, 0, False, 10, "length"),
        (200, 100, 0, False, 100, "length"),
        (None, 8, 0, False, 8, "length"),
        (1000, 5000, 10, True, 1000, "length"),
        (None, 100, 10, True, 100, "length"),
        (3, 100, 1000, False, 3, "length"),
    ],
)
def test_the_length_of_an_answer(
    max_tokens: int | None, room: int, mean: int, ignore_eos: bool, tokens: int, reason: str
) -> None:
    [answer] = answers(
        text_prompt("x"), count=1, max_tokens=max_tokens, room=room, mean_tokens=mean, ignore_eos=ignore_eos
    )
    assert (answer.tokens, answer.finish_reason) == (tokens, reason)
