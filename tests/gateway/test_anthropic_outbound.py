"""OpenAI's chat completions to Anthropic's Messages API and back: each field, and each fault of a stream."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.support.hosted_answers import anthropic_events, event, fault_body, message, named
from tests.support.sdk import check_request

from flotilla.errors import UntranslatableRequest
from flotilla.gateway.anthropic.outbound_requests import message_from_chat, request_headers
from flotilla.gateway.anthropic.outbound_responses import (
    StreamTranslator,
    completion_from_message,
    error_from_anthropic,
)
from flotilla.routing.budgets import DEFAULT_MAX_TOKENS, Usage, usage_of

HELLO = [{"role": "user", "content": "Hi"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Now.", "parameters": {"properties": {"city": {"type": "string"}}}},
}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def sent(**fields: Any) -> dict[str, Any]:
    """The translated body, after Anthropic's own types have read it."""
    body = json.loads(message_from_chat({"model": "m", "messages": HELLO, **fields}, "claude").content)
    check_request(body)
    assert isinstance(body, dict)
    return body


def received(*pieces: bytes, include_usage: bool = False) -> tuple[list[dict[str, Any]], StreamTranslator]:
    """The data of all events but [DONE], after OpenAI's own types have read it."""
    translator = StreamTranslator(created=1, include_usage=include_usage)
    out = b"".join(translator.feed(piece) for piece in pieces)
    chunks = [line.removeprefix("data: ") for line in out.decode().split("\n\n") if line]
    assert (chunks[-1:] == ["[DONE]"]) == translator.done
    found = [json.loads(chunk) for chunk in chunks if chunk != "[DONE]"]
    for chunk in found:
        if "error" not in chunk:
            ChatCompletionChunk.model_validate(chunk)
    return found, translator


def test_the_least_request() -> None:
    assert sent() == {
        "model": "claude",
        "max_tokens": DEFAULT_MAX_TOKENS,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }
    assert request_headers("k")["authorization"] == "Bearer k"


def test_system_and_developer_messages_become_the_system_prompt_wherever_they_stand() -> None:
    body = sent(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        ]
    )
    assert [block["text"] for block in body["system"]] == ["Be brief.", "Be kind."]
    assert [turn["role"] for turn in body["messages"]] == ["user"]


def test_calls_and_their_results_go_into_neighbouring_turns() -> None:
    calls = [
        {"id": f"call.{city}", "type": "function", "function": {"name": "weather", "arguments": f'{{"city":"{city}"}}'}}
        for city in ("Rome", "Oslo")
    ]
    results = [{"role": "tool", "tool_call_id": f"call.{city}", "content": "sunny"} for city in ("Rome", "Oslo")]
    asked = {"role": "assistant", "content": None, "tool_calls": calls}

    body = sent(messages=[*HELLO, asked, *results, {"role": "user", "content": "And?"}], tools=[WEATHER])

    _, assistant, user = body["messages"]
    assert [block["input"] for block in assistant["content"]] == [{"city": "Rome"}, {"city": "Oslo"}]
    assert [block["type"] for block in user["content"]] == ["tool_result", "tool_result", "text"]
    assert [block["id"] for block in assistant["content"]] == ["call_Rome", "call_Oslo"]
    assert [block["tool_use_id"] for block in user["content"][:2]] == ["call_Rome", "call_Oslo"]


def test_images_by_data_url_and_by_address() -> None:
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "image_url", "image_url": {"url": "https://example.com/x.png", "detail": "low"}},
    ]
    translated = message_from_chat({"model": "m", "messages": [{"role": "user", "content": parts}]}, "claude")
    assert translated.dropped == ("messages.content.image_url.detail",)
    body = sent(messages=[{"role": "user", "content": parts}])
    sources = [block["source"] for block in body["messages"][0]["content"][1:]]
    assert sources[0] == {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    assert sources[1] == {"type": "url", "url": "https://example.com/x.png"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, {"type": "tool", "name": "weather"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
    ],
)
def test_the_choice_of_tools(given: dict[str, Any], expected: object) -> None:
    body = sent(tools=[WEATHER], **given)
    assert body.get("tool_choice") == expected
    assert body["tools"][0]["input_schema"]["type"] == "object"


def test_structured_output_is_the_apis_own() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    body = sent(response_format=wanted, reasoning_effort="minimal")
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    assert "output_config" not in sent(response_format={"type": "text"})


def test_bounds_stops_stream_and_user() -> None:
    body = sent(max_tokens=5, max_completion_tokens=7, stop=["END", " "], stream=True, user="u1", n=1)
    assert (body["max_tokens"], body["stop_sequences"], body["stream"]) == (7, ["END"], True)
    assert body["metadata"] == {"user_id": "u1"}
    assert sent(stop="END")["stop_sequences"] == ["END"]


def test_marks_for_the_prompt_cache_are_kept_and_other_extras_named() -> None:
    mark = {"type": "ephemeral"}
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Rules.", "cache_control": mark, "x": 1}]}
        ],
        "tools": [{**WEATHER, "cache_control": mark, "function": {**WEATHER["function"], "y": 2}}],
    }
    translated = message_from_chat(body, "claude")
    out = json.loads(translated.content)
    assert out["system"][0]["cache_control"] == out["tools"][0]["cache_control"] == mark
    assert translated.dropped == ("messages.content.x", "tools.function.y")
    check_request(out)


def test_what_only_steers_is_dropped_and_named() -> None:
    # From version 2026-10-21 on the API refuses temperature, top_p and top_k.
    body = {"model": "m", "messages": [{**HELLO[0], "name": "Ada"}], "temperature": 0, "seed": 1, "stop": [" "]}
    translated = message_from_chat(
        {**body, "reasoning_effort": "none", "store": None, "modalities": ["text"]}, "claude"
    )
    assert translated.dropped == ("messages.name", "reasoning_effort", "seed", "stop", "temperature")
    assert set(json.loads(translated.content)) == {"model", "max_tokens", "messages"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_the_client_would_miss_is_refused_by_the_name_of_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UntranslatableRequest) as refused:
        message_from_chat({"model": "m", "messages": HELLO, **fields}, "claude")
    assert refused.value.param == param
    assert str(refused.value).startswith(f"{param}: ")


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"properties": {"a": value}}
    return value


def test_what_nests_too_deeply_is_refused_and_no_defect() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": nested(300)}}]
    with pytest.raises(UntranslatableRequest, match="too deeply"):
        message_from_chat({"model": "m", "messages": HELLO, "tools": tools}, "claude")
    block = {"type": "tool_use", "id": "t", "name": "f", "input": nested(300)}
    with pytest.raises(ValueError, match="too deeply"):
        completion_from_message(json.dumps(message([block])).encode(), created=1)
    assert received(*anthropic_events([block]))[1].done


def test_a_whole_answer_with_text_and_calls() -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "...", "signature": "s"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
    ]
    read = ChatCompletion.model_validate_json(
        completion_from_message(json.dumps(message(blocks, stop_reason="tool_use")).encode(), created=5)
    )
    choice = read.choices[0]
    assert (choice.finish_reason, choice.message.content, read.created) == ("tool_calls", "Let me see.", 5)
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].to_dict() == {
        "id": "toolu_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
    }


@pytest.mark.parametrize(
    ("stop_reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_why_an_answer_ended(stop_reason: str, expected: str) -> None:
    whole = json.loads(completion_from_message(json.dumps(message(stop_reason=stop_reason)).encode(), created=1))
    chunks, _ = received(*anthropic_events("x", stop_reason=stop_reason))
    assert whole["choices"][0]["finish_reason"] == expected
    assert chunks[-1]["choices"][0]["finish_reason"] == expected


def test_the_stop_sequence_and_a_refusal_are_told_whole_and_streamed() -> None:
    details = {"type": "refusal", "category": None, "explanation": "No."}
    for end in (
        {"stop_reason": "stop_sequence", "stop_sequence": "END"},
        {"stop_reason": "refusal", "stop_details": details},
    ):
        whole = json.loads(completion_from_message(json.dumps({**message(), **end}).encode(), created=1))["choices"][0]
        *_, last = received(*anthropic_events("x")[:-2], named("message_delta", delta=end), named("message_stop"))[0]
        streamed = last["choices"][0]
        assert whole.get("stop_reason") == streamed.get("stop_reason") == end.get("stop_sequence")
        said = details["explanation"] if "stop_details" in end else None
        assert whole["message"]["refusal"] == streamed["delta"].get("refusal") == said


def test_tokens_of_the_cache_are_among_the_prompts() -> None:
    counted = {
        "input_tokens": 10,
        "output_tokens": 4,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 20,
    }
    whole = json.loads(completion_from_message(json.dumps(message(usage=counted)).encode(), created=1))
    chunks, translator = received(*anthropic_events("x", usage=counted), include_usage=True)
    assert whole["usage"] == chunks[-1]["usage"] == translator.usage
    assert whole["usage"]["prompt_tokens"] == 130
    assert usage_of(whole["usage"]) == Usage(130, 4, 100, 20)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"type":"error"}'])
def test_what_is_no_message_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        completion_from_message(content, created=1)


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", (400, "invalid_request_error")),
        (429, "rate_limit_error", (429, "requests")),
        (529, "overloaded_error", (503, "server_error")),
        (500, "api_error", (500, "server_error")),
        (401, "authentication_error", (401, "invalid_request_error")),
    ],
)
def test_errors_take_openais_shape(status: int, kind: str, expected: tuple[int, str]) -> None:
    given, body = error_from_anthropic(status, json.dumps(fault_body(kind, "Too much.")).encode())
    assert (given, json.loads(body)["error"]["type"]) == expected
    assert json.loads(body)["error"] == {"message": "Too much.", "type": expected[1], "param": None, "code": kind}


def test_an_error_that_is_no_json_is_told_without_its_text() -> None:
    status, body = error_from_anthropic(502, b"<html>secret</html>")
    assert status == 502
    assert b"secret" not in body
    assert json.loads(body)["error"]["type"] == "server_error"


def test_a_streamed_text() -> None:
    chunks, translator = received(*anthropic_events("Hello there"))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello there"
    assert {chunk["id"] for chunk in chunks} == {"msg_1"}
    assert translator.done


def test_a_streamed_call_among_others_and_one_without_arguments() -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "text", "text": "So"},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "b", "name": "now", "input": {}},
    ]
    events = anthropic_events(blocks[:2], stop_reason="tool_use")
    end = events[-2:]
    silent = [
        named("content_block_start", index=2, content_block=blocks[2]),
        named("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ""}),
        named("content_block_stop", index=2),
    ]
    chunks, _ = received(*events[:-2], *silent, *end)
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    opened = [(call["index"], call["id"], call["function"]["name"]) for call in deltas if "id" in call]
    assert opened == [(0, "a", "weather"), (1, "b", "now")]
    arguments = {n: "".join(c["function"]["arguments"] for c in deltas if c["index"] == n) for n in (0, 1)}
    assert {n: json.loads(text) for n, text in arguments.items()} == {0: {"city": "Rome"}, 1: {}}


def test_an_error_in_a_stream_ends_it_without_done() -> None:
    events = anthropic_events("Hello there")
    broken = [*events[:4], named("error", error={"type": "overloaded_error", "message": "Busy."}), *events[4:]]
    chunks, translator = received(*broken)
    assert chunks[-1]["error"] == {
        "message": "Busy.",
        "type": "server_error",
        "param": None,
        "code": "overloaded_error",
    }
    assert translator.failed
    assert not translator.done


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: {\n\n",
        event([1]),
        event({"type": "content_block_delta", "index": 9, "delta": {"type": "input_json_delta", "partial_json": "x"}}),
        event({"no": "type"}),
        named("message_start", message=3),
    ],
)
def test_garbage_in_a_stream_is_told_and_ends_it(garbage: bytes) -> None:
    events = anthropic_events("Hello")
    chunks, translator = received(*events[:3], garbage, *events[3:])
    assert "error" in chunks[-1]
    assert translator.failed


def test_pings_and_events_of_later_versions_say_nothing() -> None:
    chunks, _ = received(named("ping"), named("new_thing", x=1), b": comment\n\n")
    assert chunks == []


def test_thinking_is_reasoning_of_a_chat_and_keeps_its_signature() -> None:
    block = {"type": "thinking", "thinking": "hm", "signature": "s"}
    whole = json.loads(
        completion_from_message(json.dumps(message([block, {"type": "text", "text": "Hi"}])).encode(), created=1)
    )
    said = whole["choices"][0]["message"]
    assert (said["reasoning_content"], said["thinking_blocks"], said["content"]) == ("hm", [block], "Hi")
    opened = named("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""})
    thought = named("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"})
    signed = named("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "s"})
    start = anthropic_events("Hi")[0]
    chunks, _ = received(start, opened, thought, signed)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[1:] == [
        {"reasoning_content": "hm"},
        {"thinking_blocks": [{"type": "thinking", "signature": "s"}]},
    ]


def test_an_event_without_end_is_given_up() -> None:
    translator = StreamTranslator(created=1, include_usage=False)
    out = b"".join(translator.feed(b"data: " + b"x" * 2**20) for _ in range(5))
    assert translator.failed
    assert b"error" in out
