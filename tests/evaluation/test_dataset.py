"""Cases are read with line numbers in every complaint; samples depend on the seed and on nothing else."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.evaluation.dataset import DatasetInvalid, parse_dataset, request_messages, sampled, weird_cases
from flotilla.evaluation.dataset_client import read_dataset


def lines(*cases: object) -> bytes:
    return "\n".join(json.dumps(case) for case in cases).encode()


def test_a_case_is_a_text_or_messages() -> None:
    messages = [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]
    first, second = parse_dataset(lines({"input": "a", "expected": "x", "slice": "s"}, {"messages": messages})).cases
    assert (first.expected, first.slice, first.line) == ("x", "s", 1)
    assert request_messages(first, "do") == [{"role": "system", "content": "do"}, {"role": "user", "content": "a"}]
    assert request_messages(second, "do") == messages


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "no JSON"),
        (b"[]", "a list is no case"),
        (b'{"input": 1}', "input must be a text"),
        (b'{"input": "a", "messages": []}', "exactly one of input and messages"),
        (b'{"expected": "a"}', "exactly one of input and messages"),
        (b'{"messages": []}', "at least one message"),
        (b'{"messages": [{"role": "robot"}]}', r"messages\[0\] must be an object whose role"),
        (b'{"input": "a", "expect": "b"}', "'expect' is unknown"),
        (b'{"input": "a", "parameters": 1}', "parameters must be an object"),
        (b'{"input": "a", "parameters": {"stream": true}}', "must not set 'stream'"),
        (b'{"input": "a", "slice": 7}', "slice must be a text"),
        (b'{"input": "a", "id": ""}', "id must be a text"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(line: bytes, said: str) -> None:
    with pytest.raises(DatasetInvalid, match=f"line 3: .*{said}"):
        parse_dataset(b'{"input": "fine"}\n\n' + line)


def test_an_empty_dataset_and_many_wrong_lines_are_told_briefly() -> None:
    with pytest.raises(DatasetInvalid, match="no case"):
        parse_dataset(b"\n \n")
    with pytest.raises(DatasetInvalid, match=r"\(20 more lines are wrong\.\)"):
        parse_dataset(b"x\n" * 30)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=30), st.integers(0, 99), st.randoms(use_true_random=False))
def test_a_sample_does_not_depend_on_the_order_of_lines(texts: list[str], seed: int, rng: random.Random) -> None:
    cases = [{"input": text} for text in texts]
    shuffled = cases[:]
    rng.shuffle(shuffled)
    one, other = (sampled(parse_dataset(lines(*order)).cases, 10, seed) for order in (cases, shuffled))
    assert [case.id for case in one] == [case.id for case in other]
    assert len({case.id for case in one}) == len(one) == min(10, len(texts))


def test_another_seed_is_another_sample() -> None:
    cases = parse_dataset(lines(*({"input": str(n)} for n in range(100)))).cases
    assert [c.id for c in sampled(cases, 10, 1)] != [c.id for c in sampled(cases, 10, 2)]


def test_weird_inputs_have_an_empty_and_a_long_one() -> None:
    sizes = [len(str(case.messages[0]["content"]).encode()) for case in weird_cases()]
    assert min(sizes) == 0
    assert max(sizes) > 100_000


async def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(DatasetInvalid, match=r"nowhere\.jsonl cannot be read"):
        await read_dataset("nowhere.jsonl")
