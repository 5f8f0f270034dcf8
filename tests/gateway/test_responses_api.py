"""/v1/responses: as OpenAI's own client and LangChain use it, and what every stream must be."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from tests.support.gateway import document_of
from tests.support.gateway_process import Fakes, gateway_process
from tests.support.hosted import HostedApi, Stream, Whole, fault
from tests.support.hosted_answers import chat, event, openai_chunk, openai_chunks, tool_call
from tests.support.routing import SOUND

from flotilla.gateway.openai.requests import InvalidBody
from flotilla.gateway.openai.response_events import ResponseEvents, response_from_completion
from flotilla.gateway.openai.response_requests import read_response_request

PIXEL = "data:image/png;base64,AA=="
LOOK_UP: Any = {"type": "function", "name": "look_up", "parameters": {"type": "object"}, "strict": False}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Ticket(BaseModel):
    label: str


@dataclass
class Stage:
    url: str
    engine: HostedApi

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    fakes = Fakes()
    engine = fakes.start()
    try:
        api = fakes.slices({"qwen-medium": engine})
        directory = tmp_path_factory.mktemp("gateway")
        with gateway_process(directory, document_of({**SOUND, "rules": []}), api) as gateway:
            yield Stage(gateway.url, engine)
    finally:
        fakes.stop()


def asked(stage: Stage) -> Any:
    return stage.engine.received[-1].json


def test_a_whole_response(stage: Stage) -> None:
    with stage.client() as client:
        found = client.responses.create(
            model="support",
            instructions="Be short.",
            input="Hi",
            max_output_tokens=20,
            metadata={"a": "b"},
            store=False,
        )
    assert (found.output_text, found.status, found.metadata) == ("Hello there", "completed", {"a": "b"})
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (7, 2, 9)
    assert asked(stage)["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
    ]
    assert asked(stage)["max_completion_tokens"] == 20
    assert not {"metadata", "store", "input", "instructions"} & set(asked(stage))


def test_a_streamed_response(stage: Stage) -> None:
    thinking = [openai_chunk({"reasoning_content": "hm"}), *openai_chunks("Hello there", usage=True)]
    stage.engine.script(Stream(thinking))
    with stage.client() as client, client.responses.stream(model="support", input="Hi") as stream:
        kinds = [found.type for found in stream]
        whole = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.output_text.delta") == 2
    assert kinds.count("response.reasoning_text.delta") == 1
    assert kinds[-1] == "response.completed"
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.output_text == "Hello there"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_functions_and_their_results(stage: Stage, stream: bool) -> None:
    call = tool_call("look_up", '{"id": 1}')
    if stream:
        stage.engine.script(
            Stream(
                [
                    openai_chunk({"tool_calls": [{"index": 0, **tool_call("look_up", "")}]}),
                    openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"id": 1}'}}]}),
                    *openai_chunks("", finish_reason="tool_calls")[-2:],
                ]
            )
        )
    else:
        stage.engine.script(Whole(chat(None, finish_reason="tool_calls", tool_calls=[call])))
    with stage.client() as client:
        if stream:
            with client.responses.stream(model="support", input="Hi", tools=[LOOK_UP]) as events:
                found: Any = events.get_final_response()
        else:
            found = client.responses.create(model="support", input="Hi", tools=[LOOK_UP])
        (item,) = found.output
        assert (item.type, item.name, item.arguments) == ("function_call", "look_up", '{"id": 1}')
        # As the documentation does: what came is sent back, and the result after it.
        history: Any = [
            {"role": "user", "content": "Hi"},
            *found.output,
            {"type": "function_call_output", "call_id": item.call_id, "output": "found"},
        ]
        answer = client.responses.create(model="support", input=history, tools=[LOOK_UP], tool_choice="auto")
    assert answer.output_text == "Hello there"
    _, called, result = asked(stage)["messages"]
    assert called["tool_calls"] == [{**call, "id": item.call_id}]
    assert result == {"role": "tool", "tool_call_id": item.call_id, "content": "found"}
    assert asked(stage)["tools"][0]["function"]["name"] == "look_up"


def test_structured_output_and_images(stage: Stage) -> None:
    stage.engine.script(Whole(chat('{"label": "billing"}')))
    content: Any = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": PIXEL}]
    with stage.client() as client:
        found = client.responses.parse(
            model="support",
            input=[{"role": "user", "content": content}],
            text_format=Ticket,
            reasoning={"effort": "low"},
        )
    assert found.output_parsed == Ticket(label="billing")
    schema = asked(stage)["response_format"]["json_schema"]
    assert (schema["name"], schema["strict"]) == ("Ticket", True)
    assert asked(stage)["messages"][0]["content"][1] == {"type": "image_url", "image_url": {"url": PIXEL}}
    assert asked(stage)["reasoning_effort"] == "low"


def test_an_answer_that_was_cut_off_is_incomplete(stage: Stage) -> None:
    stage.engine.script(
        Whole(chat("Hel", finish_reason="length")), Stream(openai_chunks("Hel", finish_reason="length"))
    )
    with stage.client() as client:
        found = client.responses.create(model="support", input="Hi")
        assert (found.status, found.incomplete_details and found.incomplete_details.reason) == (
            "incomplete",
            "max_output_tokens",
        )
        kinds = [found.type for found in client.responses.create(model="support", input="Hi", stream=True)]
        assert kinds[-1] == "response.incomplete"


def test_errors_have_openais_form_and_a_broken_stream_is_a_failed_response(stage: Stage) -> None:
    stage.engine.script(fault(400, message="no"), Stream(openai_chunks("Hello there"), reset_after=2))
    with stage.client() as client:
        with pytest.raises(openai.BadRequestError, match="no"):
            client.responses.create(model="support", input="Hi")
        events = list(client.responses.create(model="support", input="Hi", stream=True))
        assert events[-1].type == "response.failed"
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="other", input="Hi")


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("previous_response_id", "resp_1", "previous_response_id"),
        ("background", True, "background"),
        ("tools", [{"type": "web_search"}], "tools[0].type"),
        ("input", [{"type": "item_reference", "id": "x"}], "input[0].type"),
        ("input", [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], "input[0].content[0]"),
        ("anything", 1, "anything"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_path(field: str, value: Any, path: str) -> None:
    body = {"model": "support", "input": "Hi", field: value}
    with pytest.raises(InvalidBody) as found:
        read_response_request(json.dumps(body).encode())
    assert found.value.param == path


def test_langchain_uses_it(stage: Stage) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="support", base_url=f"{stage.url}/v1", api_key="none", use_responses_api=True)
    assert model.invoke("Hi").text == "Hello there"
    assert "".join(chunk.text for chunk in model.stream("Hi")) == "Hello there"


PIECES = st.sampled_from(
    [
        {"content": "Hello"},
        {"content": " there"},
        {"reasoning_content": "hm"},
        {"reasoning": "so"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, **tool_call("look_up", "{}")}]},
        {"tool_calls": [{"index": 1, **tool_call("look_up", '{"a"')}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": ":1}"}}]},
        {},
    ]
)


@given(pieces=st.lists(PIECES, max_size=12), end=st.sampled_from(["stop", "length", "tool_calls", None, "error"]))
def test_every_stream_is_one_that_the_sdk_reads(pieces: Sequence[dict[str, Any]], end: str | None) -> None:
    stream = ResponseEvents({"model": "m", "tools": [LOOK_UP]}, "1")
    data = b"".join(openai_chunk(piece) for piece in pieces)
    if end == "error":
        data += event({"error": {"message": "broken"}})
    else:
        data += openai_chunk({}, finish_reason=end) + b"data: [DONE]\n\n"
    out = stream.feed(data)
    found = [EVENT.validate_json(line[6:]) for line in out.decode().split("\n") if line.startswith("data: ")]
    assert [one.sequence_number for one in found] == list(range(len(found)))
    assert found[0].type == "response.created"
    last = found[-1]
    assert last.type in ("response.completed", "response.incomplete", "response.failed")
    opened = [one.item.id for one in found if one.type == "response.output_item.added"]
    closed = [one.item for one in found if one.type == "response.output_item.done"]
    if last.type != "response.failed":
        assert opened == [item.id for item in closed]
        assert not closed or list(last.response.output) == closed
        text = "".join(one.delta for one in found if one.type == "response.output_text.delta")
        assert last.response.output_text == text


@given(
    words=st.one_of(st.none(), st.text(max_size=5)),
    reason=st.sampled_from(["stop", "length", "content_filter", "tool_calls"]),
    calls=st.lists(st.just(tool_call("look_up", "{}")), max_size=2),
)
def test_every_whole_answer_is_one_that_the_sdk_reads(words: str | None, reason: str, calls: list[Any]) -> None:
    body = json.dumps(chat(words, finish_reason=reason, tool_calls=calls)).encode()
    found = OpenAIResponse.model_validate_json(response_from_completion(body, {"model": "m"}, "1"), strict=True)
    assert found.output_text == (words or "")
    assert found.output
