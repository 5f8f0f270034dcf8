"""The judge: nothing that a client or a model writes breaks it, and a loop is found wherever it began."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotilla.api.routing_policy import CalibrationPoint, Confidence, Signal
from flotilla.routing.budgets import usage_of
from flotilla.routing.check import Collector, choices_of
from flotilla.routing.escalation import expectations, loops, margin_p10, signals

KEYS = [
    *("type", "name", "function", "parameters", "schema", "json_schema", "properties", "required", "$ref", "index"),
    *("content", "message", "delta", "tool_calls", "arguments", "logprobs", "top_logprobs", "logprob", "token"),
]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
REQUESTS = st.dictionaries(st.sampled_from(["tools", "tool_choice", "response_format"]), JSON)
CONFIDENCE = Confidence(
    escalate_above_error_permille=100,
    calibration=[CalibrationPoint(margin_permille=m, error_permille=1000 - m) for m in (0, 1000)],
)


@given(request=REQUESTS, choices=st.lists(JSON, max_size=3) | JSON)
def test_whatever_is_asked_and_answered_is_judged(request: dict[str, Any], choices: Any) -> None:
    expected = expectations(request, set(Signal), CONFIDENCE)
    found = signals(choices_of({"choices": choices}), expected)
    assert list(found) == [signal for signal in Signal if signal in found]


@given(chunks=st.lists(st.fixed_dictionaries({"choices": st.lists(JSON, max_size=2) | JSON}), max_size=4), usage=JSON)
def test_whatever_is_streamed_is_collected(chunks: list[dict[str, Any]], usage: Any) -> None:
    collector = Collector()
    for chunk in chunks:
        collector.add(chunk)
    assert collector.pieces >= 0
    assert len(collector.choices()) <= 2 * len(chunks)
    counted = usage_of(usage)
    assert counted is None or counted.cached_tokens + counted.cache_creation_tokens <= counted.prompt_tokens


@given(start=st.text(max_size=300), phrase=st.text(min_size=1, max_size=60), cut=st.integers(0, 59))
def test_a_phrase_said_often_enough_at_the_end_is_a_loop(start: str, phrase: str, cut: int) -> None:
    rounds = 210 // len(phrase) + 7
    text = start + phrase * rounds + phrase[: cut % len(phrase)]
    assert loops(text)


@given(text=st.text("abcdefghijklmnopqrstuvwxyz ", min_size=0, max_size=150))
def test_a_short_text_is_no_loop(text: str) -> None:
    assert not loops(text)


@given(tokens=st.lists(st.tuples(st.text(max_size=5), st.floats(-20, 0), st.floats(-20, 0)), max_size=20))
def test_a_margin_is_a_probability_and_that_of_the_least_sure_tenth(tokens: list[tuple[str, float, float]]) -> None:
    entries = [{"token": t, "top_logprobs": [{"logprob": a}, {"logprob": b}]} for t, a, b in tokens]
    margin = margin_p10("".join(t for t, _, _ in tokens), entries)
    assert (margin is None) == (not tokens)
    assert margin is None or 0 <= margin <= 1
