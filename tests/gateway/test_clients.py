"""The clients that people use, through a gateway that runs as a process: openai, anthropic, LangChain, curl.

Anthropic's client is also held against the fake of Anthropic's API that the gateway translates to, so that what the
translator is tested with is what that client reads.
"""

import base64
import json
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pydantic import BaseModel
from tests.support.gateway import document_of
from tests.support.gateway_process import Fakes, gateway_process
from tests.support.hosted import HostedApi, Stream, Whole, fault
from tests.support.hosted_answers import (
    anthropic_events,
    chat,
    fault_body,
    message,
    named,
    openai_chunk,
    openai_chunks,
    tool_call,
)
from tests.support.routing import HOSTED, SOUND
from tests.support.sdk import anthropic

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

PUBLIC = {"x-data-class": "public"}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HI: Any = [{"role": "user", "content": "Hi"}]


@dataclass
class Stage:
    """What a client talks to, and what stands behind it."""

    url: str
    engine: HostedApi
    hosted: HostedApi
    claude: HostedApi

    def openai(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "key-of-clients-ann", "max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def anthropic(self, **options: Any) -> "anthropic.Anthropic":
        options = {"api_key": "key-of-clients-ann", "max_retries": 0, **options}
        return anthropic.Anthropic(base_url=self.url, **options)

    def langchain(self, model: str = "support", **options: Any) -> "ChatOpenAI":
        from langchain_openai import ChatOpenAI  # takes most of a second, which each worker would pay

        options = {"api_key": "key-of-clients-ann", "max_retries": 0, **options}
        return ChatOpenAI(model=model, base_url=f"{self.url}/v1", **options)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    fakes = Fakes()
    engine, hosted, claude = (fakes.start() for _ in range(3))
    targets = [
        *SOUND["targets"][:2],
        {"name": "frontier", "external": {**HOSTED, "baseURL": f"{hosted.url}/v1"}},
        {"name": "claude", "external": {**HOSTED, "provider": "Anthropic", "baseURL": f"{claude.url}/v1"}},
    ]
    rules = [{"name": "claude", "match": {"models": ["claude"]}, "route": {"split": [{"target": "claude"}]}}]
    spec = {
        **SOUND,
        "hostModels": ["support", "claude"],
        "targets": targets,
        "clients": [{"name": "ann", "secretRef": {"name": "clients", "key": "ann"}, "dataClass": "public"}],
        "rules": rules,
        "defaultRoute": {"split": [{"target": "medium"}]},
        "limits": {"rates": [{"name": "bursts", "per": "Team", "requestsPerMinute": 1000}]},
    }
    one = {"rates": [{"name": "one", "requestsPerMinute": 1}]}
    once, seldom = ({**spec, "hostModels": [model], "rules": [], "limits": one} for model in ("once", "seldom"))
    directory = tmp_path_factory.mktemp("gateway")
    try:
        api = fakes.slices({"qwen-medium": engine})
        with gateway_process(directory, document_of(spec, once, seldom), api) as gateway:
            yield Stage(gateway.url, engine, hosted, claude)
    finally:
        fakes.stop()


@pytest.fixture(autouse=True)
def nothing_left_over(stage: Stage) -> Iterator[None]:
    yield
    for api in (stage.engine, stage.hosted, stage.claude):
        assert not api._script, "a scripted reply was not used"
        api.received.clear()


# openai


def test_openai_whole_and_streamed(stage: Stage) -> None:
    with stage.openai() as client:
        raw = client.chat.completions.with_raw_response.create(model="support", messages=HI)
        whole = raw.parse()
        stream = client.chat.completions.create(
            model="support", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)

    assert whole.choices[0].message.content == "Hello there"
    assert whole.usage is not None
    assert "target=medium" in raw.headers["x-flotilla-route"]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there"
    assert chunks[-1].usage is not None
    # The client's own key is the gateway's business, and no engine's.
    assert "authorization" not in stage.engine.received[0].headers


def test_openai_calls_tools_and_sends_their_results(stage: Stage) -> None:
    arguments = '{"city":"Rome"}'
    stage.engine.script(
        Whole(chat(None, finish_reason="tool_calls", tool_calls=[tool_call("weather", arguments)])),
        Stream(
            [
                openai_chunk({"tool_calls": [{"index": 0, **tool_call("weather", "")}]}),
                openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}),
                *openai_chunks("", finish_reason="tool_calls")[-2:],
            ]
        ),
    )
    with stage.openai() as client:
        asked = client.chat.completions.create(model="support", messages=HI, tools=[WEATHER])
        call = asked.choices[0].message
        with client.chat.completions.stream(model="support", messages=HI, tools=[WEATHER]) as stream:
            streamed = stream.get_final_completion().choices[0].message
        result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
        talk: Any = [*HI, call.to_dict(), result]
        told = client.chat.completions.create(model="support", messages=talk, tools=[WEATHER])

    for said in (call, streamed):
        assert said.tool_calls is not None
        assert said.tool_calls[0].to_dict()["function"] == {"name": "weather", "arguments": arguments} | (
            {"parsed_arguments": None} if said is streamed else {}
        )
    assert told.choices[0].message.content == "Hello there"
    assert stage.engine.received[2].json["messages"][1]["tool_calls"][0]["id"] == "call_1"


class Label(BaseModel):
    label: str


def test_openai_parses_structured_output(stage: Stage) -> None:
    stage.engine.script(Whole(chat('{"label":"billing"}')))
    with stage.openai() as client:
        parsed = client.chat.completions.parse(model="support", messages=HI, response_format=Label)

    assert parsed.choices[0].message.parsed == Label(label="billing")
    assert stage.engine.received[0].json["response_format"]["json_schema"]["schema"]["required"] == ["label"]


def test_openai_completions_embeddings_and_models(stage: Stage) -> None:
    with stage.openai() as client:
        text = client.completions.create(model="support", prompt="Hi")
        vectors = client.embeddings.create(model="support", input=["a", "b"], encoding_format="float")
        models = [model.id for model in client.models.list()]
        one = client.models.retrieve("claude")

    assert text.choices[0].text == "Hello there"
    assert [vector.embedding for vector in vectors.data] == [[0.25, -0.5, 0.0], [0.25, -0.5, 1.0]]
    assert models == ["support", "claude", "once", "seldom"]
    assert one.id == "claude"


def test_openai_asks_for_embeddings_in_base64_and_reads_them(stage: Stage) -> None:
    packed = base64.b64encode(struct.pack("<3f", 0.25, -0.5, 1.0)).decode()
    vector = {"object": "embedding", "index": 0, "embedding": packed}
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    stage.engine.script(Whole({"object": "list", "data": [vector], "model": "m", "usage": usage}))
    with stage.openai() as client:
        found = client.embeddings.create(model="support", input="a")
    assert found.data[0].embedding == [0.25, -0.5, 1.0]
    assert stage.engine.received[0].json["encoding_format"] == "base64"


def test_openai_reads_the_gateways_errors(stage: Stage) -> None:
    with stage.openai() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="nobody", messages=HI)
        with pytest.raises(openai.AuthenticationError) as stranger:
            client.with_options(api_key="wrong").chat.completions.create(model="support", messages=HI)
        with pytest.raises(openai.BadRequestError) as unsupported:
            client.chat.completions.create(model="claude", messages=HI, n=2)
        stage.engine.script(Whole({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, 400))
        with pytest.raises(openai.BadRequestError) as engines:
            client.chat.completions.create(model="support", messages=HI)
        stage.engine.script(fault(500))
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model="support", messages=HI)

    assert (missing.value.code, missing.value.param, missing.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    assert stranger.value.code == "invalid_api_key"
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_by_targets", "n")
    assert engines.value.body == {"message": "too long", "type": "BadRequestError", "code": 400}
    assert (failed.value.code, failed.value.status_code) == ("upstream_error", 502)


def test_openai_is_told_to_wait_by_a_rate(stage: Stage) -> None:
    with stage.openai() as client:
        client.chat.completions.create(model="once", messages=HI)
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model="once", messages=HI)

    assert limited.value.code == "rate_limit_exceeded"
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 61


def test_openai_sees_a_stream_that_was_cut_off_as_an_error(stage: Stage) -> None:
    stage.engine.script(Stream(openai_chunks("one two three"), reset_after=3, gap_s=0.01))
    with stage.openai() as client:
        stream = client.chat.completions.create(model="support", messages=HI, stream=True)
        text = ""
        with pytest.raises(openai.APIError) as cut:  # noqa: PT012
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""

    assert text == "one two"
    assert cut.value.code == "upstream_stream_interrupted"


# openai, with Anthropic behind


def test_openai_speaks_with_claude_whole_and_streamed(stage: Stage) -> None:
    with stage.openai() as client:
        raw = client.chat.completions.with_raw_response.create(model="claude", messages=HI, temperature=0.5)
        stream = client.chat.completions.create(
            model="claude", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)

    assert raw.parse().choices[0].message.content == "Hello there"
    assert raw.headers["x-flotilla-dropped"] == "temperature"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9
    (whole, _) = stage.claude.received
    assert (whole.path, whole.headers["authorization"]) == ("/v1/messages", "Bearer key-of-provider-api-key")
    assert whole.json["model"] == "big-1"


def test_openai_calls_tools_of_claude(stage: Stage) -> None:
    blocks = [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}]
    stage.claude.script(
        Whole(message(blocks, stop_reason="tool_use")), Stream(anthropic_events(blocks, stop_reason="tool_use"))
    )
    with stage.openai() as client:
        whole = client.chat.completions.create(model="claude", messages=HI, tools=[WEATHER], tool_choice="required")
        with client.chat.completions.stream(model="claude", messages=HI, tools=[WEATHER]) as stream:
            streamed = stream.get_final_completion()
        call = whole.choices[0].message.to_dict()
        result: Any = {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"}
        client.chat.completions.create(model="claude", messages=[*HI, call, result], tools=[WEATHER])  # type: ignore[list-item]

    for choice in (whole.choices[0], streamed.choices[0]):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        assert json.loads(choice.message.tool_calls[0].to_dict()["function"]["arguments"]) == {"city": "Rome"}  # type: ignore[index]
    assert stage.claude.received[0].json["tool_choice"] == {"type": "any"}
    turns = stage.claude.received[2].json["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[2]["content"][0]["tool_use_id"] == "toolu_1"


def test_openai_parses_structured_output_of_claude_and_reads_its_errors(stage: Stage) -> None:
    stage.claude.script(Whole(message('{"label":"billing"}')), fault(400, message="Too long.", anthropic=True))
    with stage.openai() as client:
        parsed = client.chat.completions.parse(model="claude", messages=HI, response_format=Label)
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="claude", messages=HI)

    assert parsed.choices[0].message.parsed == Label(label="billing")
    assert stage.claude.received[0].json["output_config"]["format"]["schema"]["required"] == ["label"]
    assert "Too long." in str(refused.value)


# Anthropic's own client, where the gateway's translator to it stands


def test_anthropics_client_reads_what_the_translator_is_tested_with(stage: Stage) -> None:
    block = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
    stage.claude.script(Stream(anthropic_events([block], stop_reason="tool_use")), fault(529, anthropic=True))
    with anthropic.Anthropic(api_key="k", base_url=stage.claude.url, max_retries=0) as client:
        with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]) as stream:
            final = stream.get_final_message()
        with pytest.raises(anthropic.APIStatusError) as busy:
            client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
        whole = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])

    assert final.content[0].type == "tool_use"
    assert final.content[0].input == {"city": "Rome"}
    assert final.stop_reason == "tool_use"
    assert whole.content[0].type == "text"
    assert whole.content[0].text == "Hello there"
    assert busy.value.status_code == 529
    # What Anthropic's client sends is what the translator sends.
    sent = stage.claude.received[0]
    assert sent.path == "/v1/messages"
    assert sent.headers["authorization"] == "Bearer k"
    assert sent.headers["anthropic-version"] == "2026-10-21"


# Anthropic's own client, through the gateway


HELLO: Any = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
FORECAST: Any = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
ROME = {"city": "Rome"}
PIXEL: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}


@pytest.mark.parametrize("model", ["support", "claude"])
def test_anthropics_client_asks_whole_and_streamed(stage: Stage, model: str) -> None:
    with stage.anthropic() as client:
        raw = client.messages.with_raw_response.create(model=model, system="Be brief.", **HELLO)
        whole = raw.parse()
        with client.messages.stream(model=model, **HELLO) as stream:
            pieces = list(stream.text_stream)
            streamed = stream.get_final_message()

    for said in (whole, streamed):
        assert [block.to_dict() for block in said.content] == [{"type": "text", "text": "Hello there"}]
        assert (said.stop_reason, said.usage.input_tokens, said.usage.output_tokens) == ("end_turn", 7, 2)
    assert pieces == ["Hello", " there"]
    assert f"target={'medium' if model == 'support' else 'claude'}" in raw.headers["x-flotilla-route"]
    assert whole._request_id == raw.headers["x-request-id"]


def test_anthropics_client_reaches_engines_as_a_chat_and_claude_as_it_wrote(stage: Stage) -> None:
    cached: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    asked: Any = {**HELLO, "system": cached, "stop_sequences": ["END"], "metadata": {"user_id": "u"}}
    with stage.anthropic() as client:
        raw = client.messages.with_raw_response.create(model="support", **asked)
        client.messages.create(model="claude", extra_body={"temperature": 0.5}, **asked)

    assert stage.engine.received[0].path == "/v1/chat/completions"
    assert stage.engine.received[0].json == {
        "model": "qwen2.5-7b",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_completion_tokens": 9,
        "stop": ["END"],
        "user": "u",
    }
    assert raw.headers["x-flotilla-dropped"] == "messages.content.cache_control"
    assert stage.claude.received[0].json == {**asked, "model": "big-1"}


@pytest.mark.parametrize("model", ["support", "claude"])
def test_anthropics_client_calls_tools_and_sends_their_results(stage: Stage, model: str) -> None:
    block = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": ROME}
    call = tool_call("weather", json.dumps(ROME), call_id="toolu_1")
    stage.engine.script(
        Whole(chat(None, finish_reason="tool_calls", tool_calls=[call])),
        Stream(
            [
                openai_chunk({"tool_calls": [{"index": 0, **tool_call("weather", "", call_id="toolu_1")}]}),
                openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
                openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]}),
                *openai_chunks("", finish_reason="tool_calls")[-2:],
            ]
        ),
    ) if model == "support" else stage.claude.script(
        Whole(message([block], stop_reason="tool_use")), Stream(anthropic_events([block], stop_reason="tool_use"))
    )
    with stage.anthropic() as client:
        asked = client.messages.create(model=model, tools=[FORECAST], tool_choice={"type": "any"}, **HELLO)
        with client.messages.stream(model=model, tools=[FORECAST], **HELLO) as stream:
            streamed = stream.get_final_message()
        result: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny", "is_error": False}
        talk: Any = [
            *HELLO["messages"],
            {"role": "assistant", "content": asked.to_dict()["content"]},
            {"role": "user", "content": [result]},
        ]
        told = client.messages.create(model=model, max_tokens=9, tools=[FORECAST], messages=talk)

    for said in (asked, streamed):
        assert [block.to_dict() for block in said.content] == [block]
        assert said.stop_reason == "tool_use"
    assert told.content[0].to_dict()["text"] == "Hello there"
    sent = (stage.engine if model == "support" else stage.claude).received
    if model == "support":
        assert sent[0].json["tool_choice"] == "required"
        assert sent[0].json["tools"] == [WEATHER]
        assert sent[2].json["messages"][2] == {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"}
    else:
        assert sent[0].json["tool_choice"] == {"type": "any"}
        assert sent[2].json["messages"] == talk


@pytest.mark.parametrize("model", ["support", "claude"])
def test_anthropics_client_parses_structured_output(stage: Stage, model: str) -> None:
    stage.engine.script(Whole(chat('{"label":"billing"}')), Stream(openai_chunks('{"label": "billing"}'))) if (
        model == "support"
    ) else stage.claude.script(Whole(message('{"label":"billing"}')), Stream(anthropic_events('{"label": "billing"}')))
    with stage.anthropic() as client:
        parsed = client.messages.parse(model=model, output_format=Label, **HELLO)
        with client.messages.stream(model=model, output_format=Label, **HELLO) as stream:
            streamed = stream.get_final_message()

    assert parsed.parsed_output == streamed.parsed_output == Label(label="billing")
    if model == "support":
        wanted = stage.engine.received[0].json["response_format"]
        assert (wanted["type"], wanted["json_schema"]["schema"]["required"]) == ("json_schema", ["label"])


def test_anthropics_client_shows_images(stage: Stage) -> None:
    words: Any = [PIXEL, {"type": "text", "text": "What is it?"}]
    inside: Any = [{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}]
    with stage.anthropic() as client:
        client.messages.create(model="support", max_tokens=9, messages=[{"role": "user", "content": words}])
        with pytest.raises(anthropic.BadRequestError) as refused:
            client.messages.create(model="claude", max_tokens=9, messages=[{"role": "user", "content": inside}])

    (image, text) = stage.engine.received[0].json["messages"][0]["content"]
    assert image == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    assert text == {"type": "text", "text": "What is it?"}
    assert refused.value.error_code == "invalid_image_url"


def test_anthropics_client_reads_the_gateways_errors(stage: Stage) -> None:
    with stage.anthropic() as client:
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(model="nobody", **HELLO)
        with pytest.raises(anthropic.AuthenticationError) as stranger:
            client.with_options(api_key="wrong").messages.create(model="support", **HELLO)
        stage.engine.script(fault(500))
        with pytest.raises(anthropic.InternalServerError) as failed:
            client.messages.create(model="support", **HELLO)
        stage.claude.script(Whole(fault_body("invalid_request_error", "Too long."), 400))
        with pytest.raises(anthropic.BadRequestError) as refused:
            client.messages.create(model="claude", **HELLO)

    assert (missing.value.type, missing.value.error_code) == ("not_found_error", "model_not_found")
    assert (stranger.value.type, stranger.value.error_code) == ("authentication_error", "invalid_api_key")
    assert (failed.value.status_code, failed.value.type, failed.value.error_code) == (
        502,
        "api_error",
        "upstream_error",
    )
    assert (refused.value.type, refused.value.api_message) == ("invalid_request_error", "Too long.")
    assert missing.value.request_id == missing.value.response.headers["x-request-id"]


CODE: Any = {
    "max_tokens": 100,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "system": [{"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}}],
    "metadata": {"user_id": "u"},
    "tools": [
        {"name": "weather", "description": "x", "input_schema": {"type": "object"}, "eager_input_streaming": True}
    ],
    "extra_body": {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
}
"""The shape of Claude Code's requests."""
PDF: Any = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_as_claude_code_sends_it_works_at_an_engine(stage: Stage, stream: bool) -> None:
    thought, answer = {"reasoning_content": "hm"}, openai_chunks("Hello there", usage=True)
    whole = chat("Hello there")
    whole["choices"][0]["message"]["reasoning_content"] = "hm"
    stage.engine.script(Stream([openai_chunk(thought), *answer]) if stream else Whole(whole))
    asked: Any = [{"role": "user", "content": [PDF, {"type": "text", "text": "Hi"}]}]
    with stage.anthropic() as client:
        if stream:
            with client.messages.stream(model="support", messages=asked, **CODE) as events:
                found: Any = events.get_final_message()
        else:
            found = client.messages.create(model="support", messages=asked, **CODE)
        thinking, said = found.content
        assert (thinking.thinking, said.text) == ("hm", "Hello there")
        # The next turn has the thinking of this one in its history.
        history = [*asked, {"role": "assistant", "content": found.content}, {"role": "user", "content": "And?"}]
        client.messages.create(model="support", messages=history, **CODE)
        client.messages.create(model="claude", messages=history, **CODE)

    first, second = (request.json for request in stage.engine.received)
    assert not {"thinking", "context_management"} & set(first)
    assert first["messages"][1]["content"][0]["file"]["file_data"] == "data:application/pdf;base64,JVBERi0="
    assert second["messages"][2] == {"role": "assistant", "content": "Hello there"}
    # Claude gets the hints, and no thinking that is not its own: it would refuse the signature.
    (claude,) = (request.json for request in stage.claude.received)
    assert claude["thinking"] == CODE["thinking"]
    assert "context_management" in claude
    assert [block["type"] for block in claude["messages"][1]["content"]] == ["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_claudes_own_thinking_comes_back_with_its_signature(stage: Stage, stream: bool) -> None:
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "sig"}, {"type": "text", "text": "Hello there"}]
    opened = {"type": "thinking", "thinking": "", "signature": ""}
    start, _, *rest = anthropic_events("Hello there")
    events = [
        start,
        named("content_block_start", index=0, content_block=opened),
        named("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
        named("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "sig"}),
        named("content_block_stop", index=0),
        *rest,
    ]
    stage.claude.script(Stream(events) if stream else Whole(message(blocks)))
    asked: Any = [{"role": "user", "content": "Hi"}]
    with stage.anthropic() as client:
        if stream:
            with client.messages.stream(model="claude", messages=asked, **CODE) as found_events:
                found: Any = found_events.get_final_message()
        else:
            found = client.messages.create(model="claude", messages=asked, **CODE)
        history = [*asked, {"role": "assistant", "content": found.content}, {"role": "user", "content": "And?"}]
        client.messages.create(model="claude", messages=history, **CODE)
    assert [block.type for block in found.content] == ["thinking", "text"]
    sent = stage.claude.received[1].json["messages"][1]["content"]
    assert (sent[0]["signature"], sent[0]["thinking"]) == ("sig", "hm")


def test_tokens_are_estimated_and_the_root_answers(stage: Stage) -> None:
    with stage.anthropic() as client:
        counted = client.messages.count_tokens(
            model="support", messages=[{"role": "user", "content": "x" * 400}], system="y" * 40
        )
        with pytest.raises(anthropic.AuthenticationError):
            client.with_options(api_key="wrong").messages.count_tokens(model="support", messages=HELLO["messages"])
    assert counted.input_tokens == 110
    assert stage.engine.received == []
    head = subprocess.run(["curl", "-sI", stage.url + "/"], capture_output=True, text=True, check=True).stdout
    assert head.startswith("HTTP/1.1 200")


def test_anthropics_client_lists_the_models(stage: Stage) -> None:
    older = {"default_headers": {"x-api-key": "key-of-clients-ann", "authorization": anthropic.Omit()}}
    for options in ({}, older):
        with stage.anthropic(**options) as client:
            assert [model.id for model in client.models.list()] == ["support", "claude", "once", "seldom"]


def test_anthropics_client_is_told_to_wait_by_a_rate(stage: Stage) -> None:
    with stage.anthropic() as client:
        client.messages.create(model="seldom", **HELLO)
        with pytest.raises(anthropic.RateLimitError) as limited:
            client.messages.create(model="seldom", **HELLO)

    assert (limited.value.type, limited.value.error_code) == ("rate_limit_error", "rate_limit_exceeded")
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 61


@pytest.mark.parametrize("model", ["support", "claude"])
def test_anthropics_client_sees_a_stream_that_was_cut_off_as_an_error(stage: Stage, model: str) -> None:
    stage.engine.script(Stream(openai_chunks("one two three"), reset_after=3, gap_s=0.01)) if (
        model == "support"
    ) else stage.claude.script(Stream(anthropic_events("one two three"), reset_after=5, gap_s=0.01))
    with stage.anthropic() as client, client.messages.stream(model=model, **HELLO) as stream:
        text = ""
        with pytest.raises(anthropic.APIStatusError) as cut:  # noqa: PT012
            for piece in stream.text_stream:
                text += piece

    assert text == "one two"
    assert (cut.value.type, cut.value.error_code) == ("api_error", "upstream_stream_interrupted")


# LangChain


def weather(city: str) -> str:
    """The weather in a city."""
    return "sunny"


@pytest.mark.parametrize("model", ["support", "claude"])
def test_langchain_asks_and_streams(stage: Stage, model: str) -> None:
    llm = stage.langchain(model)
    assert llm.invoke("Hi").content == "Hello there"
    assert "".join(str(chunk.content) for chunk in llm.stream("Hi")) == "Hello there"


def test_langchain_binds_tools_and_structured_output(stage: Stage) -> None:
    calls = [tool_call("weather", '{"city":"Rome"}')]
    stage.engine.script(Whole(chat(None, finish_reason="tool_calls", tool_calls=calls)), Whole(chat('{"label":"x"}')))
    asked = stage.langchain().bind_tools([weather]).invoke("Hi")
    parsed = stage.langchain().with_structured_output(Label, method="json_schema").invoke("Hi")

    assert [(call["name"], call["args"]) for call in asked.tool_calls] == [("weather", {"city": "Rome"})]
    assert parsed == Label(label="x")


def test_langchain_embeds(stage: Stage) -> None:
    from langchain_openai import OpenAIEmbeddings

    options: dict[str, Any] = {"base_url": f"{stage.url}/v1", "api_key": "key-of-clients-ann"}
    embeddings = OpenAIEmbeddings(model="support", check_embedding_ctx_length=False, **options)
    assert embeddings.embed_documents(["a", "b"]) == [[0.25, -0.5, 0.0], [0.25, -0.5, 1.0]]


# LangChain writes an event of openai's out whose type does not fit its own declaration.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_langchain_streams_tools_and_structured_output(stage: Stage) -> None:
    arguments = '{"city":"Rome"}'
    stage.engine.script(
        Stream(
            [
                openai_chunk({"tool_calls": [{"index": 0, **tool_call("weather", "")}]}),
                openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}),
                *openai_chunks("", finish_reason="tool_calls")[-2:],
            ]
        ),
        Stream(openai_chunks('{"label": "x"}')),
    )
    pieces = list(stage.langchain().bind_tools([weather]).stream("Hi"))
    whole: Any = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    parsed = list(stage.langchain().with_structured_output(Label, method="json_schema").stream("Hi"))

    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Rome"})]
    assert parsed[-1] == Label(label="x")


def test_langchain_reads_the_gateways_errors(stage: Stage) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        stage.langchain("nobody").invoke("Hi")
    with pytest.raises(openai.AuthenticationError) as stranger:
        stage.langchain(api_key="wrong").invoke("Hi")
    stage.engine.script(Stream(openai_chunks("one two three"), reset_after=3, gap_s=0.01))
    with pytest.raises(openai.APIError) as cut:
        list(stage.langchain().stream("Hi"))

    assert (missing.value.code, stranger.value.code) == ("model_not_found", "invalid_api_key")
    assert cut.value.code == "upstream_stream_interrupted"


# curl


def curl(stage: Stage, *arguments: str, path: str = "/v1/chat/completions") -> str:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", *arguments, stage.url + path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_curl_whole_streamed_and_refused(stage: Stage) -> None:
    key = ("--header", "Authorization: Bearer key-of-clients-ann")
    json_type = ("--header", "Content-Type: application/json")
    body = json.dumps({"model": "support", "messages": HI})
    whole = json.loads(curl(stage, *key, *json_type, "--data", body))
    streamed = curl(stage, "-N", *key, *json_type, "--data", json.dumps({**json.loads(body), "stream": True}))
    refused = curl(stage, "--write-out", "\n%{http_code}", *json_type, "--data", body)
    models = json.loads(curl(stage, *key, path="/v1/models"))

    assert whole["choices"][0]["message"]["content"] == "Hello there"
    assert streamed.endswith("data: [DONE]\n\n")
    assert refused.splitlines()[-1] == "401"
    assert json.loads(refused.splitlines()[0])["error"]["code"] == "invalid_api_key"
    assert models["data"][0]["id"] == "support"


def test_curl_calls_tools_asks_for_a_schema_and_embeds(stage: Stage) -> None:
    calls = [tool_call("weather", '{"city":"Rome"}')]
    stage.engine.script(Whole(chat(None, finish_reason="tool_calls", tool_calls=calls)), Whole(chat('{"label":"x"}')))
    schema = {"type": "json_schema", "json_schema": {"name": "label", "schema": Label.model_json_schema()}}

    def ask(path: str, **fields: Any) -> Any:
        key = ("--header", "Authorization: Bearer key-of-clients-ann", "--header", "Content-Type: application/json")
        return json.loads(curl(stage, *key, "--data", json.dumps({"model": "support", **fields}), path=path))

    called = ask("/v1/chat/completions", messages=HI, tools=[WEATHER])
    parsed = ask("/v1/chat/completions", messages=HI, response_format=schema)
    vectors = ask("/v1/embeddings", input=["a", "b"])

    assert called["choices"][0]["message"]["tool_calls"] == calls
    assert parsed["choices"][0]["message"]["content"] == '{"label":"x"}'
    assert [vector["embedding"] for vector in vectors["data"]] == [[0.25, -0.5, 0.0], [0.25, -0.5, 1.0]]
    assert stage.engine.received[0].json["tools"] == [WEATHER]
    assert stage.engine.received[1].json["response_format"] == schema


def test_curl_asks_before_it_sends_a_large_body(stage: Stage, tmp_path: Path) -> None:
    # From a megabyte on curl sends Expect: 100-continue and waits for leave.
    body = json.dumps({"model": "support", "messages": [{"role": "user", "content": "x" * 1_500_000}]})
    file = tmp_path / "body.json"
    file.write_text(body)
    key = ("--header", "Authorization: Bearer key-of-clients-ann")
    whole = json.loads(curl(stage, *key, "--header", "Expect: 100-continue", "--data", f"@{file}"))
    assert whole["choices"][0]["message"]["content"] == "Hello there"
    assert len(stage.engine.received[0].body) > 1_500_000
