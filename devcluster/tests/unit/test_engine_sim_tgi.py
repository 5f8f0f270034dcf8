"""A simulated TGI over HTTP, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from tests.support.engine_sim import eventually, running_tgi

SLOW = {"FLOTILLA_SIM_STEP_SECONDS": "0.02", "FLOTILLA_SIM_TOKENS_PER_SECOND": "100000"}
CHAT = {"messages": [{"role": "user", "content": "What is a lighthouse for?"}]}


async def test_generate_returns_the_text_and_on_request_its_tokens() -> None:
    parameters: dict[str, Any] = {"max_new_tokens": 5}
    async with running_tgi() as tgi:
        status, plain = await tgi.post("/generate", {"inputs": "x" * 40, "parameters": parameters})
        _, detailed = await tgi.post("/generate", {"inputs": "x" * 40, "parameters": {**parameters, "details": True}})
    assert status == 200
    assert set(plain) == {"generated_text"}
    assert len(plain["generated_text"].split()) == 5
    details = detailed["details"]
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", 5)
    assert "".join(token["text"] for token in details["tokens"]) == plain["generated_text"]


async def test_generate_stream_has_one_event_per_token_and_the_text_in_the_last() -> None:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 30, "details": True}}
    async with running_tgi() as tgi:
        _, data = await tgi.stream("/generate_stream", body)
    tokens = [json.loads(item) for item in data]
    assert [token["index"] for token in tokens] == list(range(1, 31))
    assert "".join(token["token"]["text"] for token in tokens) == tokens[-1]["generated_text"]
    assert [token["generated_text"] for token in tokens[:-1]] == [None] * 29
    assert tokens[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 30,
        "seed": None,
        "input_length": 2,
    }


async def test_an_answer_that_ends_by_itself_says_eos_token_natively_and_stop_to_openai_clients() -> None:
    async with running_tgi() as tgi:
        _, native = await tgi.post("/generate", {"inputs": "hello", "parameters": {"details": True}})
        _, chat = await tgi.post("/v1/chat/completions", CHAT)
    assert native["details"]["finish_reason"] == "eos_token"
    assert chat["choices"][0]["finish_reason"] == "stop"


async def test_chat_streams_and_documents_agree_whatever_the_model_is_called() -> None:
    body = {**CHAT, "model": "anything", "max_tokens": 20}
    async with running_tgi() as tgi:
        _, document = await tgi.post("/v1/chat/completions", body)
        _, data = await tgi.stream("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    parts = [json.loads(item) for item in data[:-1]]
    text = "".join(choice["delta"]["content"] for part in parts for choice in part["choices"])
    assert text == document["choices"][0]["message"]["content"]
    assert (document["model"], document["id"], document["usage"]["completion_tokens"]) == ("anything", "", 20)
    assert parts[-1]["usage"] == document["usage"]
    assert data[-1] == "[DONE]"


async def test_completions_take_several_prompts() -> None:
    async with running_tgi() as tgi:
        _, document = await tgi.post("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4})
        status, error = await tgi.post("/v1/completions", {"prompt": ["a"] * 5, "max_tokens": 4})
    assert [len(choice["text"].split()) for choice in document["choices"]] == [4, 4]
    assert (status, error["error_type"]) == (422, "batch size exceeded")


async def test_over_the_limit_answers_are_429_and_streams_are_200_with_an_error() -> None:
    async with running_tgi("--max-concurrent-requests", "2", env=SLOW) as tgi:
        body = {"inputs": "x", "parameters": {"max_new_tokens": 40}}
        held = [asyncio.create_task(tgi.post("/generate", body)) for _ in "12"]

        async def full() -> bool:
            return (await tgi.metrics()).get("tgi_batch_current_size") == 2

        await eventually(full)
        plain = await tgi.post("/v1/chat/completions", CHAT)
        native = await tgi.stream("/generate_stream", body)
        openai = await tgi.stream("/v1/chat/completions", CHAT)
        metrics = await tgi.metrics()
        await asyncio.gather(*held)
    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
    assert plain == (429, overloaded)
    assert native == (200, [json.dumps(overloaded, separators=(",", ":"))])
    assert openai[0] == 200
    assert json.loads(openai[1][0]) == {"error": {"message": "Model is overloaded", "http_status_code": 422}}
    assert metrics["tgi_request_failure{err=overloaded}"] == 3


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"inputs": ""}, 422, "Input validation error: `inputs` cannot be empty"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 0}}, 422, "`max_new_tokens` must be strictly positive"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 100}}, 422, "Given: 1 `inputs` tokens and 100 `max_new_"),
        ({"inputs": "x" * 320}, 422, "`inputs` must have less than 50 tokens. Given: 80"),
        ({}, 422, "Failed to deserialize the JSON body into the target type: missing field `inputs`"),
        (["x"], 422, "Failed to deserialize the JSON body"),
    ],
)
async def test_validation_refuses_with_tgi_s_messages(body: Any, status: int, message: str) -> None:
    async with running_tgi("--max-total-tokens", "100", "--max-input-tokens", "50") as tgi:
        got, document = await tgi.post("/generate", body)
    assert got == status
    assert message in (document if isinstance(document, str) else document["error"])


@pytest.mark.parametrize(
    ("content_type", "data", "status"),
    [("text/plain", b"{}", 415), ("application/json", b"{", 400), ("application/json", b'"' + b"x" * 2000, 413)],
)
async def test_bodies_that_the_http_layer_refuses(content_type: str, data: bytes, status: int) -> None:
    async with running_tgi("--payload-limit", "1000") as tgi:
        headers = {"Content-Type": content_type}
        async with tgi.session.post(tgi.url + "/generate", data=data, headers=headers) as response:
            assert response.status == status


async def test_a_fresh_server_has_no_queue_metric_until_its_first_request() -> None:
    async with running_tgi() as tgi:
        fresh = await tgi.metrics()
        await tgi.post("/generate", {"inputs": "x" * 40, "parameters": {"max_new_tokens": 5}})
        used = await tgi.metrics()
    assert fresh == {"tgi_batch_max_total_tokens": 262144}
    assert used["tgi_queue_size"] == used["tgi_batch_current_size"] == 0
    assert used["tgi_request_generated_tokens_sum"] == 5
    assert used["tgi_request_input_length_sum"] == 10
    assert used["tgi_request_success"] == used["tgi_request_count"] == 1


async def test_a_reservation_for_the_whole_answer_makes_the_next_request_queue() -> None:
    env = {**SLOW, "FLOTILLA_SIM_KV_TOKENS": "150", "FLOTILLA_SIM_CONTEXT_LENGTH": "120"}
    async with running_tgi(env=env) as tgi:
        body = {"inputs": "x", "parameters": {"max_new_tokens": 100}}
        first = asyncio.create_task(tgi.post("/generate", body))
        second = asyncio.create_task(tgi.post("/generate", body))

        async def one_waits() -> bool:
            metrics = await tgi.metrics()
            return metrics.get("tgi_queue_size") == 1 and metrics.get("tgi_batch_current_max_tokens") == 101

        await eventually(one_waits)
        first.cancel()
        assert (await second)[0] == 200


async def test_a_key_guards_what_generates() -> None:
    async with running_tgi("--api-key", "Secret") as tgi:
        assert (await tgi.post("/generate", {"inputs": "x"}))[0] == 401
        headers = {"Authorization": "bearer secret"}
        body = {"inputs": "x"}
        async with tgi.session.post(tgi.url + "/generate", json=body, headers=headers) as response:
            assert response.status == 200
        for path in ("/health", "/info", "/metrics", "/v1/models", "/ping"):
            async with tgi.session.get(tgi.url + path) as response:
                assert response.status == 200


async def test_info_has_the_limits() -> None:
    async with (
        running_tgi("--max-total-tokens", "2048", "--max-input-tokens", "1024") as tgi,
        tgi.session.get(tgi.url + "/info") as response,
    ):
        info = await response.json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == ("m/x", 2048, 1024)
    assert info["max_concurrent_requests"] == 128


async def test_at_its_end_it_refuses_connections_and_answers_what_it_has() -> None:
    async with running_tgi(env=SLOW) as tgi:
        body = {"inputs": "x", "parameters": {"max_new_tokens": 20}}
        task = asyncio.create_task(tgi.post("/generate", body))

        async def runs() -> bool:
            return (await tgi.metrics()).get("tgi_batch_current_size") == 1

        await eventually(runs)
        ending = asyncio.create_task(tgi.engine.terminate(tgi.server))
        await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as other:
            with pytest.raises(aiohttp.ClientConnectorError):
                await other.get(tgi.url + "/health")
        assert (await task)[0] == 200
        await asyncio.wait_for(ending, 2)
