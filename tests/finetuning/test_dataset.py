"""Data sets: one example a question, nothing held out is trained on, no question of an Evaluation is learned."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.errors import InvalidSpec
from flotilla.finetuning.dataset import DatasetSettings, build, question_key, refuse_leakage

SETTINGS = DatasetSettings(holdout_percent=20, seed=7)


def chat(question: str, answer: str = "billing", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


MANY = [chat(f"question {number}", f"label {number % 4}") for number in range(200)]


def keys(examples: Any) -> set[str]:
    return {question_key(one["messages"][:-1]) for one in examples}


@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abc")), max_size=150), st.integers(0, 50), st.integers(0, 9)
)
def test_every_question_is_on_one_side_and_stays_there_when_the_data_grow(
    drawn: list[tuple[int, str]], percent: int, seed: int
) -> None:
    settings = DatasetSettings(holdout_percent=percent, seed=seed, balance=False)
    before = build(MANY, settings)
    after = build([*MANY, *(chat(f"new {number}", answer) for number, answer in drawn)], settings)
    assert not keys(after.training) & keys(after.held_out)
    assert keys(before.training) <= keys(after.training)
    assert keys(before.held_out) <= keys(after.held_out)
    assert after.read == after.unusable + after.duplicates + len(after.training) + len(after.held_out)


def test_the_order_of_the_lines_does_not_matter_and_the_seed_does() -> None:
    assert build(MANY, SETTINGS).digest == build(list(reversed(MANY)), SETTINGS).digest
    assert build(MANY, SETTINGS).digest != build(MANY, DatasetSettings(holdout_percent=20, seed=8)).digest
    assert 20 <= len(build(MANY, SETTINGS).held_out) <= 60


def test_the_same_question_in_other_letters_is_one_and_the_usual_answer_wins() -> None:
    lines = [chat("Where is it?", "a"), chat("where  IS it? ", "b"), chat("where is it?", "b"), *MANY]
    dataset = build(lines, SETTINGS)
    assert (dataset.duplicates, dataset.contradictions) == (2, 1)
    found = [one for one in (*dataset.training, *dataset.held_out) if "it?" in one["messages"][0]["content"].lower()]
    assert [one["messages"][-1]["content"] for one in found] == ["b"]


def test_a_label_that_drowns_the_others_is_cut_down() -> None:
    lines = [chat(f"q{n}", "outage") for n in range(300)] + [chat(f"r{n}", f"label {n % 3}") for n in range(30)]
    dataset = build(lines, DatasetSettings(holdout_percent=0, seed=1))
    counts = Counter(one["messages"][-1]["content"] for one in dataset.training)
    assert counts["outage"] == 40
    assert all(counts[f"label {n}"] == 10 for n in range(3))
    assert dataset.balanced_away == 260


def test_texts_that_all_differ_are_not_balanced() -> None:
    lines = [chat(f"q{n}", f"a text {n}") for n in range(50)]
    assert build(lines, SETTINGS).balanced_away == 0


def test_lines_of_an_evaluation_can_be_trained_on_and_others_are_counted() -> None:
    lines = [{"input": f"case {n}", "expected": "yes"} for n in range(20)]
    odd: list[dict[str, Any]] = [{}, {"messages": "x"}, chat("q", ""), {"messages": [{"role": "user", "content": "q"}]}]
    dataset = build([*lines, *odd], DatasetSettings(holdout_percent=0, seed=1))
    assert (len(dataset.training), dataset.unusable) == (20, 4)


def test_too_few_examples_are_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidSpec, match="Of 5 lines, 0 are not usable and 5 different questions remain") as caught:
        build(MANY[:5], SETTINGS)
    assert caught.value.reason == "DatasetTooSmall"


def test_a_question_of_an_evaluation_in_the_training_data_is_refused() -> None:
    dataset = build(MANY, DatasetSettings(holdout_percent=0, seed=1))
    refuse_leakage(dataset.training, [{"input": "something else", "expected": "x"}], evaluation="triage")
    for case in (
        {"input": "QUESTION 7"},
        {"messages": [{"role": "user", "content": "question  7"}]},
        chat("question 7"),
    ):
        with pytest.raises(InvalidSpec, match="1 questions of the Evaluation triage") as caught:
            refuse_leakage(dataset.training, [case], evaluation="triage")
        assert caught.value.reason == "TrainingLeaksEvaluation"
