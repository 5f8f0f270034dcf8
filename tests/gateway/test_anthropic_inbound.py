"""Anthropic's Messages API to OpenAI's chat completions and back: each field, and each oddity of an answer."""

import json
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParams
from pydantic import TypeAdapter
from tests.support.hosted_answers import DONE, chat, event, openai_chunk, openai_chunks, tool_call
from tests.support.messages import message_events, put_together
from tests.support.sdk import check_message, check_request

from flotilla.gateway.anthropic.inbound_requests import read_request
from flotilla.gateway.anthropic.inbound_responses import MessageStream, error_from_openai, message_from_completion
from flotilla.gateway.anthropic.outbound_requests import message_unchanged
from flotilla.gateway.openai.requests import InvalidBody

CHAT: TypeAdapter[Any] = TypeAdapter(CompletionCreateParams)
HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"api_key": {"type": "string"}}}
CACHED = {"cache_control": {"type": "ephemeral"}}
BASE64 = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
BY_URL = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}


def asked(**fields: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 9, "messages": HELLO, **fields}
    return {name: value for name, value in body.items() if value is not ...}


def sent(**fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The chat, after OpenAI's own types have read it, and what was dropped."""
    body = read_request(json.dumps(asked(**fields)).encode())
    assert json.loads(body.raw) == body.fields
    CHAT.validate_python(body.fields)
    return body.fields, body.dropped


def chat_of(*messages: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sent(messages=list(messages))[0]["messages"]
    return found


def told(*pieces: bytes) -> list[dict[str, Any]]:
    stream = MessageStream("req")
    return message_events(b"".join(stream.feed(piece) for piece in pieces))


def calls(*deltas: dict[str, Any]) -> list[bytes]:
    end = openai_chunks("", finish_reason="tool_calls")[-2:]
    return [*(openai_chunk({"tool_calls": [delta]}) for delta in deltas), *end]


# requests


def test_the_least_request() -> None:
    assert sent() == ({"model": "m", "messages": HELLO, "max_completion_tokens": 9}, ())


def test_fields_have_their_place_in_a_chat() -> None:
    chat, dropped = sent(
        stream=True,
        stop_sequences=["END"],
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        metadata={"user_id": "u"},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    )
    assert chat["stream_options"] == {"include_usage": True}
    assert (chat["stream"], chat["stop"], chat["user"]) == (True, ["END"], "u")
    assert (chat["temperature"], chat["top_p"], chat["top_k"], chat["reasoning_effort"]) == (0.5, 0.9, 5, "low")
    described = {"name": "answer", "schema": SCHEMA, "strict": True}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": described}
    assert dropped == ()


def test_tools_are_functions() -> None:
    tool = {"name": "f", "description": "Does.", "input_schema": SCHEMA, "strict": True, "type": "custom", **CACHED}
    chat, dropped = sent(tools=[tool])
    function = {"name": "f", "description": "Does.", "parameters": SCHEMA, "strict": True}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert dropped == ("tools.cache_control",)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
        ({"type": "any", "disable_parallel_tool_use": False}, {"tool_choice": "required"}),
    ],
)
def test_the_choice_of_tools(choice: dict[str, Any], wanted: dict[str, Any]) -> None:
    chat, _ = sent(tools=[{"name": "f", "input_schema": SCHEMA}], tool_choice=choice)
    assert {name: chat[name] for name in ("tool_choice", "parallel_tool_calls") if name in chat} == wanted


def test_one_text_is_written_as_text_and_several_as_parts() -> None:
    one, two = ({"type": "text", "text": text} for text in ("a", "b"))
    assert sent(system="S")[0]["messages"][0] == {"role": "system", "content": "S"}
    assert sent(system=[one])[0]["messages"][0]["content"] == "a"
    assert sent(system=[one, two])[0]["messages"][0]["content"] == [one, two]
    assert sent(system="")[0]["messages"] == HELLO
    assert chat_of({"role": "user", "content": [one, {"type": "text", "text": ""}]})[0]["content"] == "a"


def test_a_system_message_stays_where_it_is() -> None:
    messages = [*HELLO, {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go on."}]
    assert chat_of(*messages) == messages


def test_images_keep_their_place() -> None:
    parts = chat_of({"role": "user", "content": [BASE64, {"type": "text", "text": "?"}, BY_URL]})[0]["content"]
    assert parts == [
        PIXEL,
        {"type": "text", "text": "?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
    ]


def test_calls_and_results() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "one", "is_error": True},
        {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "two"}, BASE64]},
        {"type": "tool_result", "tool_use_id": "t3"},
        {"type": "text", "text": "And?"},
    ]
    body = read_request(
        json.dumps(
            asked(
                messages=[
                    *HELLO,
                    {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, use]},
                    {"role": "user", "content": results},
                ]
            )
        ).encode()
    )
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert body.fields["messages"][1:] == [
        {"role": "assistant", "content": "Wait.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "one"},
        {"role": "tool", "tool_call_id": "t2", "content": "two"},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
        {"role": "user", "content": [PIXEL, {"type": "text", "text": "And?"}]},
    ]
    assert body.dropped == ("messages.content.is_error",)


def test_messages_of_one_side_are_one_turn() -> None:
    again = {"role": "user", "content": "Again"}
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "Again"}]
    assert chat_of(*HELLO, again) == [{"role": "user", "content": parts}]


def test_hints_are_dropped_and_named() -> None:
    fields = asked(
        thinking={"type": "disabled"},
        service_tier="auto",
        system=[{"type": "text", "text": "S", **CACHED}],
        **CACHED,
    )
    check_request(fields)
    assert sent(**fields)[1] == ("cache_control", "messages.content.cache_control", "service_tier", "thinking")


def test_claude_is_sent_what_the_client_wrote_but_for_what_its_version_refuses() -> None:
    fields = asked(system=[{"type": "text", "text": "S", **CACHED}], thinking={"type": "disabled"}, **CACHED)
    check_request(fields)
    body = read_request(json.dumps({**fields, "temperature": 1, "top_k": 3, "top_p": None}).encode())
    translated = message_unchanged(body.message, "claude")
    assert json.loads(translated.content) == {**fields, "model": "claude"}
    assert translated.dropped == ("temperature", "top_k")


def user(block: Any) -> list[Any]:
    return [{"role": "user", "content": [block]}]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"container": "c"}, "container"),
    ({"inference_geo": "us"}, "inference_geo"),
    ({"mcp_servers": [{"type": "url", "url": "https://a.example"}]}, "mcp_servers"),
    ({"max_tokens": ...}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"metadata": {"team": "x"}}, "metadata.team"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_config": {"style": "x"}}, "output_config.style"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "f", "input_schema": {}, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [{"name": "f", "input_schema": {}, "allowed_callers": ["x"]}]}, "tools[0].allowed_callers"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"stop_sequences": "END"}, "stop_sequences"),
    ({"system": [BASE64]}, "system[0]"),
    ({"system": 1}, "system"),
    ({"messages": []}, "messages"),
    ({"messages": ...}, "messages"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "It is ("}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "name": "ann"}]}, "messages[0].name"),
    ({"messages": user({"type": "document", "source": {}})}, "messages[0].content[0].source.type"),
    ({"messages": user({"type": "thinking", "thinking": "x"})}, "messages[0].content[0]"),
    ({"messages": user({"type": "text", "text": 1})}, "messages[0].content[0].text"),
    ({"messages": user({"type": "image", "source": {"type": "file"}})}, "messages[0].content[0].source.type"),
    ({"messages": user({**BASE64, "transformations": {}})}, "messages[0].content[0].transformations"),
    ({"messages": user({"type": "tool_result"})}, "messages[0].content[0].tool_use_id"),
    (
        {"messages": user({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document"}]})},
        "messages[0].content[0].content[0].source",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]}, *HELLO]},
        "messages[0].content[0].input",
    ),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_cannot_be_kept_is_refused_by_its_path(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidBody) as refused:
        read_request(json.dumps(asked(**fields)).encode())
    assert refused.value.param == param
    assert str(refused.value).startswith(param)


def test_a_name_that_is_refused_elsewhere_is_the_clients_own_in_a_schema() -> None:
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert sent(output_config=config)[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    with pytest.raises(InvalidBody, match="api_key"):
        read_request(json.dumps(asked(metadata={"user_id": "u"}, api_key="k")).encode())


# whole answers


def given(body: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(message_from_completion(json.dumps(body).encode()))
    check_message(found)
    return found


def test_an_answer_is_a_message() -> None:
    assert given(chat()) == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "hosted",
        "content": [{"type": "text", "text": "Hello there"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 2},
    }


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"finish_reason": "stop"}, "end_turn"),
        ({"finish_reason": "length"}, "max_tokens"),
        ({"finish_reason": "content_filter"}, "refusal"),
        ({"finish_reason": "tool_calls"}, "end_turn"),
        ({"finish_reason": "abort"}, None),
        ({"finish_reason": "stop", "stop_reason": 128009}, "end_turn"),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence"),
        ({"finish_reason": "stop", "matched_stop": "END"}, "stop_sequence"),
    ],
)
def test_why_it_ended(choice: dict[str, Any], wanted: str | None) -> None:
    body = chat()
    body["choices"][0] |= choice
    found = given(body)
    assert (found["stop_reason"], found["stop_sequence"]) == (wanted, "END" if wanted == "stop_sequence" else None)


def test_calls_are_blocks_also_where_an_engine_says_that_it_stopped() -> None:
    called = tool_call("f", '{"a": 1}')
    found = given(chat("Wait.", finish_reason="stop", tool_calls=[called, {**tool_call("g", ""), "id": None}]))
    assert found["content"] == [
        {"type": "text", "text": "Wait."},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_chatcmpl-1_1", "name": "g", "input": {}},
    ]
    assert found["stop_reason"] == "tool_use"
    assert given(chat(None, finish_reason="length", tool_calls=[called]))["stop_reason"] == "max_tokens"


def test_a_refusal_is_told_in_the_details() -> None:
    body = chat(None)
    body["choices"][0]["message"]["refusal"] = "No."
    found = given(body)
    assert (found["content"], found["stop_reason"]) == ([], "refusal")
    assert found["stop_details"] == {"type": "refusal", "category": None, "explanation": "No."}


def test_cached_tokens_are_counted_beside_the_others() -> None:
    details = {"cached_tokens": 60, "cache_creation_tokens": 30}
    thought = {"reasoning_tokens": 4}
    counted = {"prompt_tokens": 100, "completion_tokens": 9, "prompt_tokens_details": details}
    assert given({**chat(), "usage": {**counted, "completion_tokens_details": thought}})["usage"] == {
        "input_tokens": 10,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 30,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 4},
    }


@pytest.mark.parametrize(
    "body",
    [
        {"object": "error"},
        [],
        {"choices": []},
        {"choices": [{"message": None}]},
        chat(None, tool_calls=[tool_call("f", "{")]),
        chat(None, tool_calls=[tool_call("f", "[1]")]),
        chat(None, tool_calls=[{"id": "c", "type": "custom"}]),
    ],
)
def test_what_is_no_answer_is_told_as_none(body: Any) -> None:
    with pytest.raises(ValueError, match=r"target's answer|arguments"):
        message_from_completion(json.dumps(body).encode())


# errors


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_json", "invalid_request_error"),
        (401, "invalid_api_key", "authentication_error"),
        (403, "sovereignty_no_target", "permission_error"),
        (404, "model_not_found", "not_found_error"),
        (405, "method_not_allowed", "invalid_request_error"),
        (413, "body_too_large", "request_too_large"),
        (429, "budget_exceeded", "rate_limit_error"),
        (502, "upstream_error", "api_error"),
        (503, "no_capacity", "overloaded_error"),
        (504, "upstream_timeout", "timeout_error"),
        (None, "no_capacity", "overloaded_error"),
        (None, "upstream_timeout", "timeout_error"),
        (None, "upstream_stream_interrupted", "api_error"),
    ],
)
def test_errors_have_anthropics_types_and_our_codes(status: int | None, code: str, kind: str) -> None:
    said = {"message": "No.", "type": "server_error", "param": None, "code": code}
    assert error_from_openai(said, "req", status) == {
        "type": "error",
        "error": {"type": kind, "message": "No.", "details": {"error_code": code}},
        "request_id": "req",
    }


def test_an_error_of_claudes_is_its_own_again_and_one_of_an_engine_is_read() -> None:
    own = error_from_openai(
        {"message": "No.", "type": "server_error", "param": None, "code": "billing_error"}, "r", 400
    )
    assert own["error"] == {"type": "billing_error", "message": "No."}
    engines = error_from_openai({"message": "No.", "type": "BadRequestError", "code": 400, "param": "stop"}, "r", 400)
    assert engines["error"] == {"type": "invalid_request_error", "message": "No.", "details": {"param": "stop"}}
    assert (
        error_from_openai({"message": "No.", "type": "invalid_request_error"}, "r")["error"]["type"]
        == "invalid_request_error"
    )
    assert error_from_openai(None, None, 502)["error"]["type"] == "api_error"


# streams


def test_a_stream_is_events() -> None:
    events = told(*openai_chunks("Hello there", usage=True))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    said = put_together(events)
    assert said["content"] == [{"type": "text", "text": "Hello there"}]
    assert (said["id"], said["stop_reason"]) == ("chatcmpl-1", "end_turn")
    assert said["usage"] == {"input_tokens": 7, "output_tokens": 2}


def test_tokens_that_nobody_counts_are_pieces() -> None:
    assert put_together(told(*openai_chunks("one two three")))["usage"]["output_tokens"] == 3


def test_text_and_calls_are_blocks_of_their_own() -> None:
    first, second = ({"index": n, **tool_call("f", "", call_id=f"c{n}")} for n in (0, 1))
    chunks = [
        openai_chunk({"role": "assistant", "content": "Wait."}),
        *calls(
            first,
            {"index": 0, "function": {"arguments": '{"a":'}},
            {"index": 0, "id": None, "function": {"name": None, "arguments": "1}"}},
            second,
        ),
    ]
    said = put_together(told(*chunks))
    assert said["content"] == [
        {"type": "text", "text": "Wait."},
        {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
    ]
    assert said["stop_reason"] == "tool_use"


def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    one, two = (tool_call("f", json.dumps({"n": n}), call_id=f"c{n}") for n in (1, 2))
    said = put_together(told(*calls({"index": 0, **one}, {"index": 0, **one, "function": {}}, {"index": 0, **two})))
    assert [(block["id"], block["input"]) for block in said["content"]] == [("c1", {"n": 1}), ("c2", {"n": 2})]


def test_a_call_without_an_id_gets_one() -> None:
    said = put_together(told(*calls({"index": 0, "function": {"name": "f", "arguments": "{}"}})))
    assert said["content"][0]["id"] == "toolu_req_0"


def test_a_refusal_and_a_stop_sequence_are_told_at_the_end() -> None:
    refused = put_together(told(openai_chunk({"refusal": "No"}), *openai_chunks(".")[-2:]))
    assert (refused["stop_reason"], refused["stop_details"]["explanation"]) == ("refusal", "No")
    choice = {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}
    stopped = put_together(told(*openai_chunks("Hi")[:2], event({"choices": [choice]}), DONE))
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "END")


def test_comments_are_pings_and_may_come_before_the_message() -> None:
    events = told(b": waiting for a replica\n\n", *openai_chunks("Hi"))
    assert [event["type"] for event in events][:2] == ["ping", "message_start"]


def test_an_empty_stream_is_an_empty_message() -> None:
    said = put_together(told(DONE))
    assert (said["id"], said["content"], said["stop_reason"]) == ("msg_req", [], None)


@pytest.mark.parametrize(
    "piece",
    [
        b"data: {\n\n",
        b"data: 1\n\n",
        event({"choices": [1]}),
        event({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}),
        event({"choices": [{"delta": {"content": ["x"]}}]}),
    ],
)
def test_what_cannot_be_read_ends_the_stream_with_an_error(piece: bytes) -> None:
    events = told(*openai_chunks("Hi", done=False)[:2], piece, *openai_chunks(" there")[1:])
    assert (events[-1]["type"], events[-1]["error"]["type"]) == ("error", "api_error")
    assert sum(event["type"] == "error" for event in events) == 1


def test_a_piece_of_a_call_that_has_ended_is_no_answer() -> None:
    first, second = ({"index": n, **tool_call("f", "", call_id=f"c{n}")} for n in (0, 1))
    events = told(*calls(first, second, {"index": 0, "function": {"arguments": "{}"}}))
    assert events[-1]["type"] == "error"
