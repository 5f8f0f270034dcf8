"""The signals by which an answer is judged: each fires on its fault, and on nothing that is sound."""

import json
import math
from typing import Any

import pytest
from tests.support.hosted_answers import chat, completion, openai_chunk, tool_call

from flotilla.api.routing_policy import CalibrationPoint, Confidence, Signal
from flotilla.routing.check import Collector, choices_of
from flotilla.routing.escalation import Expectations, expectations, loops, margin_p10, signals

ALL = frozenset(Signal) - {Signal.LOW_CONFIDENCE}
LABEL = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "label", "schema": LABEL}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def judged(answer: dict[str, Any], request: dict[str, Any] | None = None) -> list[str]:
    return [str(signal) for signal in signals(choices_of(answer), expectations(request or {}, ALL))]


def test_a_sound_answer_gives_no_signal() -> None:
    assert judged(chat("Paris is the capital of France.")) == []
    assert judged(completion("Paris.")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"label": "a"}', []),
        ('{"label": "c"}', ["SchemaInvalid"]),
        ("{}", ["SchemaInvalid"]),
        ('{"label": "a"', ["SchemaInvalid"]),
        ('```json\n{"label": "a"}\n```', ["SchemaInvalid"]),
        ('{"label": NaN}', ["SchemaInvalid"]),
    ],
)
def test_an_answer_must_fit_the_schema_that_was_asked_for(text: str, found: list[str]) -> None:
    assert judged(chat(text), {"response_format": FORMAT}) == found


def test_json_mode_takes_any_json_and_no_prose() -> None:
    request = {"response_format": {"type": "json_object"}}
    assert judged(chat('{"x": 1}'), request) == []
    assert judged(chat("Sure: {}"), request) == ["SchemaInvalid"]


def test_a_schema_whose_reference_leads_elsewhere_is_not_fetched_and_judges_nothing() -> None:
    for reference in ("file:///etc/hostname", "http://127.0.0.1:9/schema"):
        request = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": reference}}}}
        assert judged(chat("{}"), request) == []


def test_a_pattern_that_backtracks_for_ever_is_given_up() -> None:
    schema = {"type": "string", "pattern": "^(?=(a+)+$)(a|aa)+\\1$"}
    request = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    assert judged(chat(json.dumps("a" * 5000 + "b")), request) == ["SchemaInvalid"]


def test_a_schema_that_nests_too_deeply_judges_nothing() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"allOf": [schema]}
    request = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    assert judged(chat("{}"), request) == []


def test_an_answer_that_is_cut_off() -> None:
    assert judged(chat("Once upon", finish_reason="length")) == ["FinishReasonLength"]


@pytest.mark.parametrize("text", ["", " \n\t", None])
def test_an_answer_without_text_is_empty_unless_it_calls_a_tool(text: str | None) -> None:
    assert judged(chat(text)) == ["EmptyAnswer"]
    called = chat(text, finish_reason="tool_calls", tool_calls=[tool_call("weather", '{"city":"Rome"}')])
    assert judged(called, {"tools": [WEATHER]}) == []


@pytest.mark.parametrize(
    "text",
    [
        "no " * 100,
        "x" * 300,
        "An introduction. " + "I will now list the steps that are needed. " * 12,
        ("x" + "a" * 99) * 8,
        "今" * 250,
    ],
)
def test_a_text_that_says_the_same_again_and_again(text: str) -> None:
    assert judged(chat(text)) == ["Repetition"]


@pytest.mark.parametrize(
    "text",
    [
        "no " * 20,
        "".join(f"{number}. item\n" for number in range(200)),
        "no " * 200 + "and then the model came to its senses and told how the story went on",
        json.dumps({"zeros": [0] * 300}),
        "A paragraph of some length that is said twice, as refrains are. " * 2,
    ],
)
def test_lists_refrains_and_loops_that_ended_are_no_repetition(text: str) -> None:
    assert not loops(text)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (tool_call("weather", '{"city": "Rome"}'), []),
        (tool_call("wether", '{"city": "Rome"}'), ["InvalidToolCall"]),
        (tool_call("weather", '{"town": "Rome"}'), ["InvalidToolCall"]),
        (tool_call("weather", '{"city": "Ro'), ["InvalidToolCall"]),
        (tool_call("weather", '["Rome"]'), ["InvalidToolCall"]),
        (tool_call("weather", ""), ["InvalidToolCall"]),
    ],
)
def test_a_call_must_name_a_tool_and_fit_its_parameters(call: dict[str, Any], found: list[str]) -> None:
    answer = chat(None, finish_reason="tool_calls", tool_calls=[call])
    assert judged(answer, {"tools": [WEATHER]}) == found


def test_a_tool_without_parameters_is_called_with_nothing() -> None:
    request = {"tools": [{"type": "function", "function": {"name": "now"}}]}
    assert judged(chat(None, tool_calls=[tool_call("now", "")]), request) == []


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_was_required_and_did_not_come(choice: object) -> None:
    request = {"tools": [WEATHER], "tool_choice": choice}
    assert judged(chat("It is sunny."), request) == ["InvalidToolCall"]
    assert judged(chat("It is sunny."), {**request, "tool_choice": "auto"}) == []


def test_tools_of_other_kinds_are_not_judged() -> None:
    request = {"tools": [WEATHER, {"type": "custom", "custom": {"name": "shell"}}]}
    assert judged(chat(None, tool_calls=[tool_call("shell", "ls")]), request) == []


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "Sorry, I cannot help with this request.",
        "I can\u2019t provide that information.",
        "As an AI language model, I am unable to discuss this.",
        "Unfortunately, I am not able to create such content.",
    ],
)
def test_a_refusal_is_known_by_how_it_begins(text: str) -> None:
    assert judged(chat(text)) == ["Refusal"]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Have you tried to restart it?",
        "I can't wait to help you! Here is the plan.",
        "The customer wrote: I cannot help it.",
        "I cannot find any error in your code: it is correct.",
    ],
)
def test_apologies_and_quotes_are_no_refusals(text: str) -> None:
    assert judged(chat(text)) == []


def test_the_apis_own_word_for_a_refusal_counts_and_is_not_also_an_empty_answer() -> None:
    refused = chat(None)
    refused["choices"][0]["message"]["refusal"] = "Policy."
    assert judged(refused, {"response_format": FORMAT}) == ["Refusal"]
    assert judged(chat("I ...", finish_reason="content_filter")) == ["Refusal"]


def test_only_signals_that_were_asked_for_are_given() -> None:
    expected = expectations({}, {Signal.FINISH_REASON_LENGTH})
    assert signals(choices_of(chat("")), expected) == ()
    assert signals(choices_of(chat("", finish_reason="length")), expected) == (Signal.FINISH_REASON_LENGTH,)


def test_one_bad_answer_of_several_is_enough() -> None:
    several = chat("fine")
    several["choices"].append({**chat("")["choices"][0], "index": 1})
    assert judged(several) == ["EmptyAnswer"]


@pytest.mark.parametrize("body", [{}, {"choices": None}, {"choices": ["x", {}]}, {"choices": [{"message": 3}]}])
def test_an_answer_of_an_odd_shape_is_judged_like_an_empty_one_or_not_at_all(body: dict[str, Any]) -> None:
    assert set(judged(body)) <= {"EmptyAnswer"}


@pytest.mark.parametrize(
    "request_",
    [{"tools": 3}, {"tools": [3, {"function": 4}]}, {"response_format": "x"}, {"response_format": {"json_schema": 1}}],
)
def test_a_request_of_an_odd_shape_expects_nothing(request_: dict[str, Any]) -> None:
    assert judged(chat("text"), request_) == []


def test_a_stream_is_judged_as_the_whole_answer_would_be() -> None:
    calls: list[dict[str, Any]] = [
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": 7}'}}]},
    ]
    collector = Collector()
    for delta in [{"role": "assistant", "content": ""}, *calls]:
        collector.add(json.loads(openai_chunk(delta)[6:]))
    collector.add(json.loads(openai_chunk({}, finish_reason="tool_calls")[6:]))

    found = signals(collector.choices(), expectations({"tools": [WEATHER]}, ALL))

    assert found == (Signal.INVALID_TOOL_CALL,)
    assert collector.choices()[0].finish_reason == "tool_calls"
    assert collector.pieces == 3


def token(text: str, first: float, second: float) -> dict[str, Any]:
    tops = [{"token": text, "logprob": math.log(first)}, {"token": "?", "logprob": math.log(second)}]
    return {"token": text, "logprob": math.log(first), "top_logprobs": tops}


def test_the_margin_of_json_is_that_of_its_values() -> None:
    sure = [token(part, 0.99, 0.005) for part in ('{"', "label", '": "')]
    doubtful = [token("bill", 0.5, 0.4), token("ing", 0.9, 0.05)]
    tokens = [*sure, *doubtful, token('"}', 0.99, 0.005)]
    text = "".join(entry["token"] for entry in tokens)

    assert text == '{"label": "billing"}'
    assert margin_p10(text, tokens) == pytest.approx(0.1)
    assert margin_p10("x" + text, tokens) == pytest.approx(0.1)  # Not the text of the tokens: all of them count.


def test_where_the_second_token_is_not_told_it_has_what_the_first_leaves() -> None:
    entry = {"token": "a", "top_logprobs": [{"token": "a", "logprob": 0.0}]}
    assert margin_p10("a", [entry]) == 1
    assert margin_p10("a", [{"token": "a", "top_logprobs": [{"token": "a", "logprob": -0.693147}]}]) == pytest.approx(
        0, abs=1e-5
    )


def test_confidence_speaks_only_with_probabilities_and_only_above_the_limit() -> None:
    points = [CalibrationPoint(margin_permille=margin, error_permille=error) for margin, error in ((0, 600), (1000, 0))]
    confidence = Confidence(escalate_above_error_permille=150, calibration=points)
    expected = Expectations(frozenset({Signal.LOW_CONFIDENCE}), confidence)

    def found(first: float, second: float) -> tuple[Signal, ...]:
        answer = chat("a", logprobs={"content": [token("a", first, second)]})
        return signals(choices_of(answer), expected)

    assert found(0.5, 0.4) == (Signal.LOW_CONFIDENCE,)
    assert found(0.95, 0.01) == ()
    assert signals(choices_of(chat("a")), expected) == ()
