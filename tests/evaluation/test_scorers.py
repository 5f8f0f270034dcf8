"""What counts as right, as wrong, and as no answer at all."""

from typing import Any

import pytest

from flotilla.api.evaluation import ScorerSpec
from flotilla.evaluation.dataset import Case, DatasetInvalid
from flotilla.evaluation.scorers import Scorer, judge_messages, judged, macro_f1, read_judgement

RIGHT, WRONG, MALFORMED = (1000, False), (0, False), (0, True)


def scored(answer: str, expected: Any, **spec: Any) -> tuple[int, bool]:
    case = Case("c", 1, ({"role": "user", "content": "q"},), expected)
    score = Scorer(ScorerSpec.model_validate(spec), [case]).score(answer, case)
    return score.permille, score.malformed


LABELS = {"method": "Label", "labels": ["billing", "shipping", "order", "order status", "not_spam"]}
ADDRESS = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}


@pytest.mark.parametrize(
    ("answer", "expected", "spec", "score"),
    [
        ("billing", "billing", LABELS, RIGHT),
        (" **Billing**.\n", "billing", LABELS, RIGHT),
        ("Not spam", "not_spam", LABELS, RIGHT),
        ("The category is shipping.", "shipping", LABELS, RIGHT),
        ('{"label": "Shipping"}', "shipping", LABELS, RIGHT),
        ("order status", "order status", LABELS, RIGHT),
        ("this is about the order status", "order status", LABELS, RIGHT),
        ("shipping", "billing", LABELS, WRONG),
        ("billing or shipping", "billing", LABELS, MALFORMED),
        ("reshippings", "shipping", LABELS, MALFORMED),
        ("I cannot say", "billing", LABELS, MALFORMED),
        ("", "billing", LABELS, MALFORMED),
        (" yes\n", "yes", {"method": "ExactMatch"}, RIGHT),
        ("Yes", "yes", {"method": "ExactMatch"}, WRONG),
        ("b", ["a", "b"], {"method": "ExactMatch"}, RIGHT),
        ("We refund IT within 14 days", ["refund it", "14 days"], {"method": "Contains"}, RIGHT),
        ("We refund it", ["refund it", "14 days"], {"method": "Contains"}, WRONG),
        ("So 3 boxes cost $1,250.50.", 1250.5, {"method": "Numeric"}, RIGHT),
        ("about 101", "100", {"method": "Numeric", "tolerance": "1"}, RIGHT),
        ("about 102", "100", {"method": "Numeric", "tolerance": "1"}, WRONG),
        ("-1050", -1000, {"method": "Numeric", "tolerancePermille": 50}, RIGHT),
        ("no idea", 5, {"method": "Numeric"}, MALFORMED),
        ('{"a": "X  y", "b": 1.0}', {"a": "x y", "b": 1}, {"method": "JSONFields"}, RIGHT),
        ('```json\n{"a": {"b": 2}}\n```', {"a": {"b": 2}, "c": 4}, {"method": "JSONFields", "fields": ["a.b"]}, RIGHT),
        ('{"a": true}', {"a": 1}, {"method": "JSONFields"}, WRONG),
        ('{"b": 1}', {"a": 1}, {"method": "JSONFields"}, WRONG),
        ("a: 1", {"a": 1}, {"method": "JSONFields"}, MALFORMED),
        ('{"city": "Ulm"}', None, {"method": "JSONSchema", "jsonSchema": ADDRESS}, RIGHT),
        ('{"city": 7}', ADDRESS, {"method": "JSONSchema"}, MALFORMED),
        ("Ulm", ADDRESS, {"method": "JSONSchema"}, MALFORMED),
    ],
)  # fmt: skip
def test_an_answer_is_scored(answer: str, expected: Any, spec: dict[str, Any], score: tuple[int, bool]) -> None:
    assert scored(answer, expected, **spec) == score


@pytest.mark.parametrize(
    ("expected", "spec", "said"),
    [
        ("other", LABELS, "expected 'other' is not one of spec.scorer.labels"),
        (None, {"method": "Label"}, "expected must be a label"),
        (7, {"method": "ExactMatch"}, "a text or a list of texts"),
        ("seven", {"method": "Numeric"}, "expected must be a number"),
        (True, {"method": "Numeric"}, "expected must be a number"),
        ("x", {"method": "JSONFields"}, "an object with the fields"),
        ({"a": 1}, {"method": "JSONFields", "fields": ["b"]}, "has no field 'b'"),
        ({"type": "nonsense"}, {"method": "JSONSchema"}, "is no JSON schema"),
        (["x"], {"method": "Judge", "judge": {"target": "j", "rubric": "r"}}, "the judge compares with"),
    ],
)
def test_a_case_that_cannot_be_compared_is_named_by_its_line(expected: Any, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetInvalid, match="line 1: ") as refused:
        scored("x", expected, **spec)
    assert said in str(refused.value)


def test_macro_f1_is_the_mean_over_expected_labels() -> None:
    # a: 2 hits, expected 3, said 3; b: 1 hit, expected 2, said 1; "" is malformed
    pairs = [("a", "a"), ("a", "a"), ("a", ""), ("b", "b"), ("b", "a")]
    assert macro_f1(pairs) == pytest.approx((2 * 2 / 6 + 2 * 1 / 3) / 2)
    assert macro_f1([]) is None


@pytest.mark.parametrize(
    ("first", "swapped", "permille"),
    [
        ("good", None, 1000), ("bad", None, 0),
        ("A", "B", 1000), ("tie", "tie", 1000), ("A", "tie", 1000),
        ("B", "A", 0), ("A", "A", 500), ("B", "B", 500),
    ],
)  # fmt: skip
def test_a_judge_that_goes_by_the_position_counts_as_half(first: str, swapped: str | None, permille: int) -> None:
    assert judged(first, swapped).permille == permille


def test_a_judgement_is_read_from_json_or_a_word_and_nothing_else() -> None:
    assert read_judgement('{"verdict": "a"}', compared=True) == "A"
    assert read_judgement("Tie.", compared=True) == "tie"
    assert read_judgement("good", compared=True) is None
    assert read_judgement('```\n{"verdict": "bad"}\n```', compared=False) == "bad"
    assert read_judgement("both are fine", compared=True) is None


def test_the_judge_sees_both_answers_in_the_order_that_is_asked() -> None:
    case = Case("c", 1, ({"role": "user", "content": "q"},))
    text = str(judge_messages("be kind", case, "one", "two")[1]["content"])
    assert text.index("one") < text.index("two")
    assert "be kind" in text
