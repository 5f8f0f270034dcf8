"""A stream says what the whole answer says, however it is cut; every request is one that the API takes."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hosted_answers import anthropic_events, message
from tests.support.sdk import check_request

from flotilla.errors import UntranslatableRequest
from flotilla.gateway.anthropic.outbound_requests import message_from_chat
from flotilla.gateway.anthropic.outbound_responses import StreamTranslator, completion_from_message
from flotilla.routing.check import Collector, choices_of

TEXT = st.text(max_size=30)
NAMES = st.text("abcXYZ09_-", min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT, lambda v: st.lists(v, max_size=3), max_leaves=5
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=3)
BLOCKS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, TEXT),
    st.builds(lambda i, n, v: {"type": "tool_use", "id": i, "name": n, "input": v}, NAMES, NAMES, OBJECTS),
    st.just({"type": "redacted_thinking", "data": "x"}),
)
CALLS = st.builds(
    lambda i, n, v: {"id": i, "type": "function", "function": {"name": n, "arguments": json.dumps(v)}},
    *(NAMES, NAMES, OBJECTS),
)
PARTS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, TEXT),
    st.just({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
)
MESSAGES = st.one_of(
    st.builds(lambda text: {"role": "system", "content": text}, TEXT),
    st.builds(lambda content: {"role": "user", "content": content}, TEXT | st.lists(PARTS, max_size=3)),
    st.builds(
        lambda t, c: {"role": "assistant", "content": t, "tool_calls": c}, st.none() | TEXT, st.lists(CALLS, max_size=2)
    ),
    st.builds(lambda i, text: {"role": "tool", "tool_call_id": i, "content": text}, NAMES, TEXT),
)


@given(
    blocks=st.lists(BLOCKS, max_size=4),
    stop=st.sampled_from(["end_turn", "max_tokens", "tool_use", "refusal"]),
    cuts=st.lists(st.integers(0, 4000), max_size=8),
)
def test_a_stream_cut_anywhere_says_what_the_whole_answer_says(
    blocks: list[dict[str, Any]], stop: str, cuts: list[int]
) -> None:
    stream = b"".join(anthropic_events(blocks, stop_reason=stop))
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    translator = StreamTranslator(created=1, include_usage=True)
    out = b"".join(translator.feed(stream[a:b]) for a, b in pairwise(places))

    whole = json.loads(completion_from_message(json.dumps(message(blocks, stop_reason=stop)).encode(), created=1))
    collector = Collector()
    usage = None
    for line in out.decode().split("\n\n"):
        if line and line != "data: [DONE]":
            chunk = json.loads(line.removeprefix("data: "))
            collector.add(chunk)
            usage = chunk.get("usage", usage)

    assert translator.done
    (streamed,), (said,) = collector.choices(), choices_of(whole)
    assert (streamed.text, streamed.finish_reason) == (said.text, said.finish_reason)
    assert [call.name for call in streamed.tool_calls] == [call.name for call in said.tool_calls]
    assert [json.loads(c.arguments) for c in streamed.tool_calls] == [json.loads(c.arguments) for c in said.tool_calls]
    assert usage == whole["usage"]


@settings(max_examples=40)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=6), model=NAMES)
def test_a_request_is_of_the_types_of_anthropics_own_client_and_loses_no_word(
    messages: list[dict[str, Any]], model: str
) -> None:
    body = json.loads(message_from_chat({"model": "m", "messages": messages}, model).content)

    check_request(body)
    roles = [turn["role"] for turn in body["messages"]]
    assert all(a != b for a, b in pairwise(roles))
    assert all(turn["content"] for turn in body["messages"])
    assert _words_of_ours(messages) == _words_of_theirs(body)


FIELDS = ["tools", "stop", "n", "response_format", "tool_choice", "modalities", "user", "max_tokens", "stream"]
ODD_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
        optional={
            "content": VALUES | st.lists(OBJECTS),
            "tool_calls": VALUES | st.lists(OBJECTS),
            "tool_call_id": VALUES,
        },
    )
)


@settings(max_examples=50)
@given(messages=ODD_MESSAGES, body=st.dictionaries(st.sampled_from(FIELDS), VALUES | OBJECTS | st.lists(OBJECTS)))
def test_whatever_a_client_sends_is_translated_or_refused(messages: list[dict[str, Any]], body: dict[str, Any]) -> None:
    with suppress(UntranslatableRequest):
        assert json.loads(message_from_chat({**body, "messages": messages}, "m").content)["model"] == "m"


@given(
    data=st.lists(st.binary(max_size=60) | st.sampled_from([b"\n\n", b"data: ", b'{"type":', b'"ping"}']), max_size=12)
)
def test_no_bytes_break_the_translator(data: list[bytes]) -> None:
    translator = StreamTranslator(created=1, include_usage=False)
    for piece in data:
        translator.feed(piece)
    assert not translator.done


def _words_of_ours(messages: list[dict[str, Any]]) -> list[str]:
    found = []
    for said in messages:
        content = said.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        found += [part["text"] for part in parts if part["type"] == "text" and part["text"]]
        found += [call["function"]["name"] for call in said.get("tool_calls", ())]
    return sorted(found)


def _words_of_theirs(body: dict[str, Any]) -> list[str]:
    blocks = [*body.get("system", ()), *(block for turn in body["messages"] for block in turn["content"])]
    found = []
    for block in blocks:
        inner = block.get("content", ()) if block["type"] == "tool_result" else (block,)
        found += [part["text"] for part in inner if part["type"] == "text"]
        found += [block["name"]] if block["type"] == "tool_use" else []
    return sorted(found)
