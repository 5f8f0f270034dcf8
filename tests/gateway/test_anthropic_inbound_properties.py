"""From Anthropic's API to a chat and back nothing is lost that is admitted, however a stream is cut."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParams
from pydantic import TypeAdapter
from tests.support.hosted_answers import anthropic_events, chat, message, openai_chunk, openai_chunks, tool_call
from tests.support.messages import message_events, put_together
from tests.support.sdk import check_request

from flotilla.gateway.anthropic.inbound_requests import read_request
from flotilla.gateway.anthropic.inbound_responses import MessageStream
from flotilla.gateway.anthropic.inbound_responses import message_from_completion as message_from_completion
from flotilla.gateway.anthropic.outbound_requests import message_from_chat, message_unchanged
from flotilla.gateway.anthropic.outbound_responses import StreamTranslator
from flotilla.gateway.anthropic.outbound_responses import completion_from_message as completion_from_message
from flotilla.gateway.http.message import Response
from flotilla.gateway.openai.requests import InvalidBody
from flotilla.gateway.openai.responses import StreamRelay

CHAT: TypeAdapter[Any] = TypeAdapter(CompletionCreateParams)
WORDS = st.text(min_size=1, max_size=20)
NAMES = st.text("abcXYZ09_-", min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | WORDS, lambda v: st.lists(v, max_size=3), max_leaves=5
)
OBJECTS = st.dictionaries(st.text(max_size=9), VALUES, max_size=3)
SCHEMAS = st.builds(lambda properties: {"type": "object", "properties": properties}, OBJECTS)
TEXT = st.builds(lambda text: {"type": "text", "text": text}, WORDS)
IMAGE = st.sampled_from(
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}},
    ]
)
USE = st.builds(lambda i, n, v: {"type": "tool_use", "id": i, "name": n, "input": v}, NAMES, NAMES, OBJECTS)
RESULT = st.builds(
    lambda i, content: {"type": "tool_result", "tool_use_id": i, "content": content},
    *(NAMES, WORDS | st.lists(TEXT, min_size=1, max_size=2)),
)


def turn(role: str, blocks: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    content = WORDS | st.lists(blocks, min_size=1, max_size=3)
    return st.builds(lambda said: {"role": role, "content": said}, content)


USER = turn("user", TEXT | IMAGE | RESULT)
TALK = st.builds(lambda before, last: [*before, last], st.lists(USER | turn("assistant", TEXT | USE), max_size=4), USER)
TOOL = st.builds(lambda n, s: {"name": n, "input_schema": s}, NAMES, SCHEMAS) | st.builds(
    lambda n, d, s, strict: {"name": n, "description": d, "input_schema": s, "strict": strict},
    *(NAMES, WORDS, SCHEMAS, st.booleans()),
)
CHOICE = st.builds(
    lambda choice, single: {**choice, "disable_parallel_tool_use": True} if single else choice,
    st.sampled_from([{"type": "auto"}, {"type": "any"}]) | st.builds(lambda n: {"type": "tool", "name": n}, NAMES),
    st.booleans(),
) | st.just({"type": "none"})
CONFIG = st.fixed_dictionaries(
    {"effort": st.sampled_from(["low", "medium", "high", "xhigh"])},
    optional={"format": st.builds(lambda schema: {"type": "json_schema", "schema": schema}, SCHEMAS)},
)
BODIES = st.fixed_dictionaries(
    {"model": NAMES, "max_tokens": st.integers(1, 9999), "messages": TALK},
    optional={
        "system": WORDS | st.lists(TEXT, min_size=1, max_size=2),
        "stream": st.booleans(),
        "stop_sequences": st.lists(st.sampled_from(["END", "###"]), min_size=1, max_size=2),
        "metadata": st.builds(lambda user: {"user_id": user}, NAMES),
        "tools": st.lists(TOOL, min_size=1, max_size=2),
        "output_config": CONFIG,
    },
)


@settings(max_examples=60)
@given(body=BODIES, choice=CHOICE)
def test_a_request_through_both_translations_is_itself(body: dict[str, Any], choice: dict[str, Any]) -> None:
    if "tools" in body:
        body["tool_choice"] = choice
    check_request(body)
    asked = read_request(json.dumps(body).encode())

    CHAT.validate_python(asked.fields)
    assert asked.dropped == ()
    back = message_from_chat(asked.fields, body["model"])
    assert back.dropped == ()
    assert json.loads(back.content) == normal(body)


@settings(max_examples=40)
@given(body=BODIES, sampling=st.dictionaries(st.sampled_from(["temperature", "top_p", "top_k"]), st.integers(1, 2)))
def test_claude_is_sent_the_request_itself(body: dict[str, Any], sampling: dict[str, Any]) -> None:
    asked = read_request(json.dumps({**body, **sampling}).encode())
    sent = message_unchanged(asked.message, "claude")
    assert json.loads(sent.content) == {**body, "model": "claude"}
    assert sent.dropped == tuple(sorted(sampling))


BLOCKS = st.lists(TEXT | USE | st.just({"type": "text", "text": ""}), max_size=4)
STOPS = st.sampled_from(
    [("end_turn", None), ("max_tokens", None), ("stop_sequence", "END"), ("refusal", None), ("tool_use", None)]
)
USAGE = st.fixed_dictionaries(
    {
        name: st.integers(0, 99)
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    }
)
CUTS = st.lists(st.integers(0, 4000), max_size=6)


@settings(max_examples=60)
@given(blocks=BLOCKS, stop=STOPS, usage=USAGE, cuts=CUTS)
def test_an_answer_of_claudes_is_itself_again_whole_and_streamed(
    blocks: list[dict[str, Any]], stop: tuple[str, str | None], usage: dict[str, int], cuts: list[int]
) -> None:
    reason, sequence = stop
    if reason not in ("max_tokens", "refusal"):
        # An answer with a call ends by it, and none else does.
        called = any(block["type"] == "tool_use" for block in blocks)
        reason, sequence = ("tool_use", None) if called else ("end_turn", None) if reason == "tool_use" else stop
    given_ = {**message(blocks, stop_reason=reason, usage=usage), "stop_sequence": sequence}
    details = {"type": "refusal", "category": None, "explanation": "No."} if reason == "refusal" else None
    end: dict[str, Any] = {"stop_sequence": sequence} | ({"stop_details": details} if details else {})

    whole = json.loads(
        message_from_completion(completion_from_message(json.dumps({**given_, **end}).encode(), created=1))
    )
    assert whole == {**given_, **end, "content": text_first(blocks)}

    stream = b"".join(anthropic_events(blocks, stop_reason=reason, usage=usage)).replace(
        b'"stop_sequence": null}, "usage"', json.dumps(end).encode()[1:] + b', "usage"'
    )
    streamed = put_together(message_events(relayed(stream, cuts, StreamTranslator(created=1, include_usage=True))))
    assert {**streamed, "content": text_first(streamed["content"])} == whole


@settings(max_examples=40)
@given(text=st.text("ab \n", max_size=20), calls=st.lists(st.tuples(NAMES, OBJECTS), max_size=2), cuts=CUTS)
def test_an_engines_stream_cut_anywhere_is_what_its_whole_answer_is(
    text: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    made = [tool_call(name, json.dumps(given_), call_id=f"c{n}") for n, (name, given_) in enumerate(calls)]
    reason = "tool_calls" if made else "stop"
    chunks = openai_chunks(text, usage=True, finish_reason=reason)
    for number, call in enumerate(made):
        arguments = call["function"]["arguments"]
        for piece in ({**call, "function": {**call["function"], "arguments": arguments[:3]}}, _rest(arguments)):
            chunks.insert(-3, openai_chunk({"tool_calls": [{"index": number, **piece}]}))
    said = put_together(message_events(relayed(b"".join(chunks), cuts)))
    whole = chat(text, tool_calls=made, finish_reason=reason)
    assert said == json.loads(message_from_completion(json.dumps(whole).encode()))


FIELDS = [
    *("model", "messages", "max_tokens", "system", "tools", "tool_choice", "metadata", "thinking", "output_config"),
    *("stop_sequences", "stream", "other"),
]


@settings(max_examples=50)
@given(body=st.dictionaries(st.sampled_from(FIELDS), VALUES | OBJECTS | st.lists(OBJECTS)))
def test_whatever_a_client_sends_is_translated_or_refused(body: dict[str, Any]) -> None:
    odd = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}], **body}
    with suppress(InvalidBody):
        assert read_request(json.dumps(odd).encode()).fields["max_completion_tokens"] == odd["max_tokens"]


@settings(max_examples=60)
@given(content=VALUES | OBJECTS | st.lists(OBJECTS), role=st.sampled_from(["user", "assistant", "system"]))
def test_whatever_a_turn_holds_is_translated_or_refused(content: Any, role: str) -> None:
    names = ("content", "text", "source", "input")
    kinds = [{"type": kind, **dict.fromkeys(names, content)} for kind in ("text", "image", "tool_use", "tool_result")]
    for said in (content, [content], kinds, *([kind] for kind in kinds)):
        turns = [{"role": role, "content": said}, {"role": "user", "content": "Hi"}]
        with suppress(InvalidBody):
            read_request(json.dumps({"model": "m", "max_tokens": 1, "messages": turns}).encode())


@given(
    data=st.lists(
        st.binary(max_size=60)
        | st.sampled_from([b"\n\n", b"data: ", b'{"choices":[{"delta":', b'{"tool_calls":[{}]}']),
        max_size=12,
    )
)
def test_no_bytes_break_the_stream(data: list[bytes]) -> None:
    stream = MessageStream("req")
    for piece in data:
        message_events(stream.feed(piece))


# what is the same to Anthropic's API


def normal(body: dict[str, Any]) -> dict[str, Any]:
    """Text is short for a block of it, and messages of one side are one turn: results first, and text before calls."""
    turns: list[dict[str, Any]] = []
    for said in body["messages"]:
        if turns and turns[-1]["role"] == said["role"]:
            turns[-1]["content"] += blocks_of(said["content"])
        else:
            turns.append({"role": said["role"], "content": blocks_of(said["content"])})
    for said in turns:
        first = "tool_result" if said["role"] == "user" else "text"
        said["content"] = sorted(said["content"], key=lambda block: block["type"] != first)
    out = {**body, "messages": turns}
    if "system" in body:
        out["system"] = blocks_of(body["system"])
    if body.get("stream") is False:
        del out["stream"]
    return out


def blocks_of(content: Any) -> list[dict[str, Any]]:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{**b, "content": blocks_of(b["content"])} if b["type"] == "tool_result" else b for b in blocks]


def text_first(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts of an answer are put together before its calls."""
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    calls = [block for block in blocks if block["type"] == "tool_use"]
    return [{"type": "text", "text": text}, *calls] if text else calls


# a stream on its way through the gateway


class Written:
    """What a client is sent."""

    def __init__(self) -> None:
        self._stream = MessageStream("req")
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += self._stream.feed(data)


def relayed(stream: bytes, cuts: list[int], translator: StreamTranslator | None = None) -> bytes:
    """Cut anywhere, and through all that stands between a socket and the client."""
    client = Written()
    relay = StreamRelay(cast("Response", client), on_start=lambda: None, strip_usage=False)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for a, b in pairwise(places):
        piece = stream[a:b] if translator is None else translator.feed(stream[a:b])
        if piece:
            assert relay.feed(piece) is None
    return client.data


def _rest(arguments: str) -> dict[str, Any]:
    return {"function": {"arguments": arguments[3:]}}
